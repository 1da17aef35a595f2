"""Folders of randomly initialised Hugging Face models with a small tokenizer, as their libraries write them."""

import tokenizers
import transformers

CAPTIONS = ['a red disc moves up and left past a blue square', 'a white triangle moves down', 'describe: the motion']
WIDTH = 32
SIZES = {'hidden_size': WIDTH, 'intermediate_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4}
GROUPED = SIZES | {'num_key_value_heads': 2}


def make_tokenizer(bert=False):
    """A byte-level tokenizer; for BERT with [CLS] before and [SEP] behind every text."""
    own = tokenizers.Tokenizer(tokenizers.models.BPE())
    own.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = tokenizers.decoders.ByteLevel()
    special = ['<pad>', '<end>', '[CLS]', '[SEP]']
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    own.train_from_iterator(CAPTIONS, trainer)
    if bert:
        own.post_processor = tokenizers.processors.TemplateProcessing(
            single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 2), ('[SEP]', 3)]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, pad_token='<pad>', eos_token='<end>')


def _qwen2(vocabulary):
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=vocabulary, **GROUPED))


def _qwen2_vl(vocabulary):
    rope = {'rope_type': 'default', 'mrope_section': [1, 1, 2], 'rope_theta': 10_000.0}
    text = {'vocab_size': vocabulary, 'rope_parameters': rope, **GROUPED}
    vision = {'depth': 1, 'embed_dim': 16, 'hidden_size': WIDTH, 'num_heads': 2, 'mlp_ratio': 2, 'patch_size': 4}
    return transformers.Qwen2VLForConditionalGeneration(
        transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
    )


def _t5(vocabulary):
    sizes = {'d_model': WIDTH, 'd_kv': 8, 'd_ff': 64, 'num_layers': 2, 'num_heads': 4}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **sizes)
    )


def _bert(vocabulary):
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=vocabulary, **SIZES))


KINDS = {'qwen2': _qwen2, 'qwen2_vl': _qwen2_vl, 't5': _t5, 'bert': _bert}


def save(kind, folder, seed=0):
    """Write a model and its tokenizer; return the model."""
    transformers.set_seed(seed)
    tokenizer = make_tokenizer(kind == 'bert')
    model = KINDS[kind](len(tokenizer)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
