"""Text states beside the videos: each clip gets the text of its video, from videos and latents, whatever the split."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from magi_jax.config import ConfigError, DataConfig, TextConfig
from magi_jax.data import pipeline, prepared, sources, texts
from magi_jax.data.builders import captions as captioned
from magi_jax.data.preparation import captions, dataset, encoding, rows, shards, text_states
from magi_jax.data.preparation.listing import list_source
from magi_jax.data.preparation.reencode import Settings
from magi_jax.data.video_file import write_mp4
from magi_jax.text_encoders.api import describe, open_encoder, read_description
from tests.data import tiny_captions
from tests.data.test_latents import TOKENIZER, files_of, frame_wise, settings_of

TEXT = TextConfig('words', 12, 16)
COUNTS = {'train': 7, 'validation': 3, 'test': 4}


def start(data, text=TEXT, given='', replace=False):
    """(job, encoder, shards not yet done) of a dataset."""
    name, folder = texts.location(data, text.encoder)
    encoder = open_encoder(text)
    job = text_states.make_job(name, folder, captions.collect(data, given), describe(encoder), 3, replace)
    todo = [shard for shard in shards.planned_shards(job.folder, job.plan) if not shard.is_done()]
    return job, encoder, todo


def encode(data, text=TEXT, given='', replace=False):
    job, encoder, todo = start(data, text, given, replace)
    for shard in todo:
        assert sum(text_states.encode_shard(job, shard, encoder, 2)) == len(text_states.rows_of(job, shard))
    text_states.merge(*texts.location(data, text.encoder))
    return job.folder


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A dataset with encoded captions."""
    data = tiny_captions.build(tmp_path_factory.mktemp('texts'), **COUNTS)
    encode(data)
    return data


def take(count, data, text=TEXT):
    batches = pipeline.train_batches(data, 0, text=text)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def text_of(split, index):
    """The states that the caption of a video has."""
    states, mask = open_encoder(TEXT).encode([captioned.make_video(split, index)['caption']])
    return {'text': states[0], 'text_mask': mask[0]}


def test_every_clip_gets_the_text_of_its_video(data):
    first_frames = {captioned.make_video('train', i)['frames'][0].tobytes(): i for i in range(COUNTS['train'])}
    still = dataclasses.replace(data, frames=16, max_interval=1)  # each clip is its whole video
    seen = set()
    for batch in take(5, still):
        assert batch['text'].shape == (4, 12, 16) and batch['text'].dtype == np.float32
        assert batch['text_mask'].shape == (4, 12) and batch['text_mask'].dtype == bool
        for row in range(4):
            index = first_frames[batch['video'][row, 0].tobytes()]
            seen.add(index)
            for name, value in text_of('train', index).items():
                np.testing.assert_array_equal(batch[name][row], value)
    assert len(seen) == COUNTS['train']


def test_text_changes_nothing_else(data):
    for with_text, without in zip(take(3, data), take(3, data, TextConfig()), strict=True):
        assert with_text.keys() - without.keys() == {'text', 'text_mask'}
        for name, value in without.items():
            np.testing.assert_array_equal(with_text[name], value)
    assert texts.open_texts(data, TextConfig()) is None and texts.batch_shapes(TextConfig()) == {}
    shapes = {name: (value.shape[1:], value.dtype) for name, value in take(1, data)[0].items()}
    assert texts.batch_shapes(TEXT).items() <= shapes.items()


def test_evaluation_reads_captions_and_texts_of_every_split(data):
    for split, clips in (
        ('validation', pipeline.validation_clips(data, TEXT)),
        ('test', pipeline.EvalClips(data, 'test', 16, text=TEXT)),
        ('test', pipeline.EvalClips(data, 'train[:2]+test', 16, text=TEXT)),
    ):
        shift = len(clips) - COUNTS[split]
        batch = clips.read([shift + 2, shift])
        for row, index in enumerate((2, 0)):
            assert batch['caption'][row] == captioned.make_video(split, index)['caption']
            for name, value in text_of(split, index).items():
                np.testing.assert_array_equal(batch[name][row], value)


def test_latents_read_the_texts_of_their_videos(data, tmp_path):
    job = encoding.make_job('small', str(tmp_path), data, settings_of(data, 0), TOKENIZER)
    for shard in shards.planned_shards(prepared.dataset_folder('small', str(tmp_path)), job.plan):
        list(encoding.encode_shard(job, shard, frame_wise, 3, 0))
    encoding.merge('small', str(tmp_path))
    stored = dataclasses.replace(data, source='small', path=str(tmp_path))
    assert texts.location(stored, 'words') == texts.location(data, 'words')
    for of_latents, of_videos in zip(take(4, stored), take(4, data), strict=True):
        assert 'mean' in of_latents and 'video' not in of_latents
        for name in ('text', 'text_mask', 'example'):
            np.testing.assert_array_equal(of_latents[name], of_videos[name])
    of_latents, of_videos = (pipeline.validation_clips(one, TEXT).read([1, 2]) for one in (stored, data))
    np.testing.assert_array_equal(of_latents['text'], of_videos['text'])
    own = prepared.dataset_folder('small', str(tmp_path)) / 'text'
    shutil.copytree(prepared.dataset_folder(*texts.location(data, 'words')).parents[1], own)
    assert texts.location(stored, 'words')[1] == str(own.parent)
    assert take(1, stored)[0]['text'].any()


def test_killed_it_goes_on_to_the_same_bytes(data, tmp_path):
    whole = prepared.dataset_folder(*texts.location(data, 'words'))
    copy = tiny_captions.build(tmp_path, **COUNTS)
    job, encoder, todo = start(copy)
    list(text_states.encode_shard(job, todo[0], encoder, 2))
    half = text_states.encode_shard(job, todo[1], encoder, 2)
    next(half)
    half.close()  # as a kill, but tidy
    assert [shard.is_done() for shard in todo[:2]] == [True, False]
    with pytest.raises(ConfigError, match='is not finished: run the command that started it again'):
        take(1, copy)
    encode(copy)
    assert files_of(job.folder) == files_of(whole)
    for shard in todo:
        task = shard, dataset.read_report(shard, job.plan), job.plan, text_states.check_texts
        assert dataset.check_shard(task) == []
    task[1]['videos'][0]['num_frames'] += 1
    assert dataset.check_shard(task) == ['captions/validation/00000 is not the text named in the report']


def test_what_does_not_fit_is_refused(data, tmp_path):
    for changes, words in (
        ({'length': 13}, r'length = 12, not 13: set config\.text'),
        ({'width': 17}, r'width = 16, not 17: set config\.text'),
        ({'encoder': 'a/Model'}, r'not encoded by a/Model: run launch.encode_text --dataset bouncing_objects/captions'),
    ):
        with pytest.raises(ConfigError, match=words):
            take(1, data, dataclasses.replace(TEXT, **changes))
    with pytest.raises(ConfigError, match=r'captions do not describe flipped videos: set both to False'):
        take(1, dataclasses.replace(data, flip_horizontal=True))
    with pytest.raises(ConfigError, match=r'was started with width = 16, not 17: add --replace'):
        start(data, dataclasses.replace(TEXT, width=17))
    copy = tiny_captions.build(tmp_path, **COUNTS)
    folder = encode(copy)
    assert texts.describe_encoder(copy, TEXT) == describe(open_encoder(TEXT)) == read_description(folder)
    open_encoder(TEXT, folder)
    summary = json.loads((folder / prepared.SUMMARY).read_text())
    summary[texts.ENCODER]['fingerprint'] = 'other'
    (folder / prepared.SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match=r"fingerprint = 'other', not "):
        take(1, copy)
    assert encode(copy, dataclasses.replace(TEXT, width=17), replace=True) == folder
    assert take(1, copy, dataclasses.replace(TEXT, width=17))[0]['text'].shape == (4, 12, 17)


@pytest.fixture
def folder_of_videos(tmp_path):
    """Videos without captions: two to train on, one to validate."""
    root = tmp_path / 'videos'
    for number, name in enumerate(('train/a.mp4', 'train/b.mp4', 'validation/c.mp4')):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_mp4(root / name, np.full((6, 32, 32, 3), 60 * number + 40, np.uint8), 8)
    return DataConfig(
        source='video_folder', path=str(root), frames=5, height=32, width=32, batch_size=2, threads=0,
        flip_horizontal=False,
    )  # fmt: skip


@pytest.mark.parametrize('form', ['jsonl', 'csv'])
def test_captions_of_a_file(folder_of_videos, tmp_path, form):
    given = {'train/a.mp4': 'a dark grey', 'train/b.mp4': 'grey, "lighter"', 'validation/c.mp4': 'très clair', 'x': 'y'}
    path = tmp_path / f'captions.{form}'
    write_captions(path, given)
    assert captions.read_file(path) == given
    encode(folder_of_videos, given=str(path))
    encoder = open_encoder(TEXT)
    for batch in take(2, folder_of_videos):
        for video, text in zip(batch['video'], batch['text'], strict=True):
            caption = given['train/a.mp4' if video.mean() < 70 else 'train/b.mp4']
            np.testing.assert_array_equal(text, encoder.encode([caption])[0][0])
    validation = pipeline.validation_clips(folder_of_videos, TEXT).read([0])
    np.testing.assert_array_equal(validation['text'], encoder.encode(['très clair'])[0])
    write_mp4(tmp_path / 'videos/train/new.mp4', np.zeros((6, 32, 32, 3), np.uint8), 8)
    with pytest.raises(ConfigError, match=r'no text of video train/new.mp4: run launch.encode_text again'):
        take(3, folder_of_videos)
    with pytest.raises(ConfigError, match='1 of 4 videos of video_folder have no caption, the first is train/new.mp4'):
        encode(folder_of_videos, given=str(path))


def test_captions_of_a_prepared_dataset(folder_of_videos, tmp_path):
    settings = Settings(height=32, width=32, min_frames=1)
    listing = list_source(folder_of_videos.path)
    folder, plan = dataset.make_plan('mine', str(tmp_path), listing, settings)
    for shard in shards.make_shards('mine', folder, listing, settings):
        with shards.ShardWriter(shard, plan['digest'], prepared.make_features(plan['labels'])) as writer:
            for row in shard.rows:
                writer.add(*rows.make_record(row, rows.prepare_row((listing.root, row, settings)), plan['labels']))
            writer.commit()
    dataset.merge('mine', str(tmp_path), dataset.Limits())
    data = dataclasses.replace(folder_of_videos, source='mine', path=str(tmp_path))
    with pytest.raises(ConfigError, match='3 of 3 videos of mine have no caption'):
        captions.collect(data)
    videos = [source[i] for source in (sources.open_source(data, s) for s in plan['rows']) for i in range(len(source))]
    given = {video.video_id: f'the video {video.video_id}' for video in videos}
    write_captions(tmp_path / 'captions.csv', given)
    assert encode(data, given=str(tmp_path / 'captions.csv')) == folder / 'text/words/1.0.0'
    video, found = sources.open_source(data, 'train')[1], pipeline.EvalClips(data, 'train', 5, text=TEXT).read([1])
    np.testing.assert_array_equal(found['text'], open_encoder(TEXT).encode([given[video.video_id]])[0])
    write_captions(tmp_path / 'captions.csv', given | {video.video_id: 'another'})
    with pytest.raises(ConfigError, match=r'was started with other captions \(3 then, 3 now\): add --replace'):
        encode(data, given=str(tmp_path / 'captions.csv'))


def write_captions(path, given):
    if path.suffix == '.csv':
        quote = '"'
        lines = [f'{name},"{text.replace(quote, 2 * quote)}"' for name, text in given.items()]
        path.write_text('\n'.join(['video_id,caption', *lines]))
    else:
        path.write_text('\n'.join(json.dumps({'video_id': name, 'caption': text}) for name, text in given.items()))


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('a.txt', '', r'is neither .jsonl nor .csv'),
        ('a.jsonl', '{"video_id": "a", "caption": "b"}\n{"video_id": "a"}', r'line 2: no texts video_id and caption'),
        ('a.jsonl', '["a", "b"]', r'line 1: no texts video_id and caption'),
        ('a.jsonl', '{"video_id": "a", "caption"', r'cannot be read as jsonl'),
        ('a.csv', 'id,text\na,b', r'line 2: no texts video_id and caption'),
        ('a.csv', 'video_id,caption\na,b\na,c', r'line 3: a second caption of a'),
    ],
)
def test_bad_files_of_captions(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        captions.read_file(tmp_path / name)


def test_videos_without_captions_are_counted(folder_of_videos, data):
    with pytest.raises(ConfigError, match='3 of 3 videos .* the first is train/a.mp4: give them with --captions FILE'):
        captions.collect(folder_of_videos)
    assert {split: len(found) for split, found in captions.collect(data).items()} == COUNTS
    assert sources.split_names(folder_of_videos) == {'train', 'validation'}
