"""The papers' variants, to the parameter.

MAGI: 20 blocks of width 1280, 256 tokens of 16 values, 25 intervals, 6 levels. VideoMAR: 36 blocks of width 1536, text
of 300 states of 1536 values.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from configs.videomar_i2v import get_config
from magi_jax.config import MagiConfig, MagiHeadConfig, MagiModelConfig, from_config_dict
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.diffusion_head import DiffusionHead
from magi_jax.objectives.api import make_objective
from magi_jax.objectives.masked_diffusion import MaskedDiffusion
from magi_jax.training.lowering import abstract_tokenizer

PAPER = ClipShape(frames=16, rows=16, columns=16, token_width=16, intervals=25, noise_levels=6)


def _count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.unbox(tree)))


def _init(config=None, **model):
    objective = MaskedDiffusion(config or MagiConfig(model=MagiModelConfig(**model)), PAPER)
    return jax.eval_shape(objective.init, jax.random.key(0))


def test_every_component_of_the_paper():
    params = _init()
    trunk = dict(params['trunk'])
    assert _count(trunk.pop('trunk')) == 787_097_600
    assert _count(trunk.pop('noise_projection')) == 3_278_080
    assert {name: _count(leaf) for name, leaf in trunk.items()} == {
        'token_projection': 21_760,
        'mask_token': 1_280,
        'observed_table': 256 * 1280,
        'masked_table': 256 * 1280,
        'head_table': 256 * 1280,
        'interval_table': 32_000,
        'noise_table': 7_680,
        'input_norm': 2_560,
        'output_norm': 2_560,
    }
    assert _count(trunk) == 1_050_880
    assert _count(params['head']) == 20_524_064
    assert _count(params) == 787_097_600 + 20_524_064 + 1_050_880 + 3_278_080
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(('token_width', 'count'), [(32, 20_573_248), (64, 20_671_616)])
def test_head_of_wider_tokens(token_width, count):
    head = DiffusionHead(MagiHeadConfig(), token_width, jnp.float32)
    x, t, z = jnp.zeros((1, token_width)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 1280))
    assert _count(jax.eval_shape(head.init, jax.random.key(0), x, t, z)) == count


@pytest.mark.parametrize(
    ('option', 'difference'),
    [
        ({'mlp_layers': 'temporal'}, -20 * (13_113_600 + 2_560)),
        ({'frame_table': 'full'}, 2 * 15 * 256 * 1280),
        ({'frame_table': 'frame'}, -2 * 255 * 1280),
        ({'shared_projection': False}, 21_760),
        ({'noise_embedding': 'add'}, -3_278_080),
        ({'noise_embedding': 'concat_token'}, -3_278_080),
        ({'input_norm': False}, -2_560),
        ({'head': MagiHeadConfig(position_table='per_frame')}, 15 * 256 * 1280),
        ({'teacher_forcing': 'masked'}, -256 * 1280),
        ({'blocks': 21}, 2 * 19_677_440),
    ],
)
def test_what_each_option_costs(option, difference):
    assert _count(_init(**option)) == 811_950_624 + difference


@pytest.fixture(scope='module')
def videomar():
    config = from_config_dict(get_config())
    return jax.eval_shape(make_objective(config, abstract_tokenizer(config)).init, jax.random.key(0))


def test_every_component_of_videomar(videomar):
    """16 D^2 a block: 4 for self-attention, 4 for attention to the text, 8 for the MLP; no biases."""
    trunk, width, blocks = dict(videomar['trunk']), 1536, 36
    stack = dict(trunk.pop('trunk')['blocks'])
    assert {name: _count(leaf) for name, leaf in stack.items()} == {
        'attention_norm': blocks * 2 * width,
        'attention': blocks * (4 * width**2 + 2 * 64),  # and a scale of each channel of a head, for queries and keys
        'text_attention': blocks * (4 * width**2 + 2 * 64),
        'mlp_norm': blocks * 2 * width,
        'up': blocks * 4 * width**2,
        'down': blocks * 4 * width**2,
    }
    assert _count(stack) == blocks * 16 * width**2 + 230_400
    assert {name: _count(leaf) for name, leaf in trunk.items()} == {
        'token_projection': 16 * width + width,
        'mask_token': width,
        'text_projection': width**2 + width,
        'null_text': 300 * width,
        'output_norm': 2 * width,
    }
    assert _count(videomar['head']) == 20_786_208
    assert _count(videomar) == 1_382_823_456
