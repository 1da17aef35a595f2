"""Continuations of any run: which clips, the right numbers, also of one clip, and a page that shows them."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from magi_jax.config import ConfigError, DataConfig, TokenizerConfig
from magi_jax.data import sources
from magi_jax.data.latents import Description, LatentSettings
from magi_jax.evaluation import continuation, continuation_clips, continuation_report, pixels
from magi_jax.evaluation.continuation_clips import open_clips
from magi_jax.evaluation.protocols import find_protocol, spelling
from magi_jax.tokenizers.api import create_tokenizer

SIDE = 16


class Videos:
    """Frame i of video v is the same noise, moved by i pixels; colours differ between videos."""

    def __init__(self, *lengths):
        self.lengths = np.asarray(lengths)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        picture = np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        read = lambda frames: np.stack([np.roll(picture, frame, axis=1) for frame in frames])  # noqa: E731
        return sources.Video(str(index), int(self.lengths[index]), read, {})


@pytest.fixture
def splits(monkeypatch):
    """Splits that `open_source` knows, to be filled by the test."""
    known = {}

    def open_source(data, split):
        if split not in known:
            raise ConfigError(f'no split {split}')
        return known[split]

    monkeypatch.setattr(continuation_clips.sources, 'open_source', open_source)
    return known


@pytest.fixture(scope='module')
def tokenizer():
    config = TokenizerConfig(kind='identity', channels=3 * 8 * 8, downsample=8)
    return create_tokenizer(config, jax.random.key(0), SIDE, SIDE)


DATA = DataConfig(source='video_folder', height=SIDE, width=SIDE, frames=16)


def opened(tokenizer, data=DATA, **changes):
    return open_clips(data, find_protocol('continuation', **changes), tokenizer)


def test_clips_of_the_test_split_come_first(splits, tokenizer):
    splits |= {'validation': Videos(20), 'test': Videos(20), 'train': Videos(20)}
    assert opened(tokenizer).split == 'test'
    del splits['test']
    clips = opened(tokenizer, clips=1)
    assert (clips.split, len(clips), clips.notes) == ('validation', 1, ())
    splits['validation'] = Videos(15)  # too short
    clips = opened(tokenizer, clips=1)
    assert clips.split == 'train' and 'the training split' in clips.notes[0]
    with pytest.raises(ConfigError, match='no split test; no video of split .validation. has 21 raw frames'):
        opened(tokenizer, frames=21)


def test_one_video_gives_clips_that_do_not_overlap(splits, tokenizer):
    splits['test'] = Videos(50, 17, 10)
    clips = opened(tokenizer)
    assert clips.places == [(0, 0), (1, 0), (0, 16), (0, 32)]
    assert re.search('64 clips requested, but the split has 4 .of 16 raw frames, no overlap. in 2 v', clips.notes[0])
    assert opened(tokenizer, clips=3).places == clips.places[:3] and not opened(tokenizer, clips=3).notes
    strided = opened(tokenizer, frames=5, interval=4)
    assert strided.places == [(0, 0), (1, 0), (0, 17)]
    np.testing.assert_array_equal(strided.read([2])[0], Videos(50)[0].read([17, 21, 25, 29, 33]))


@pytest.mark.parametrize(
    ('data', 'changes', 'expected'),
    [
        ({}, {}, (16, 5)),
        ({'frames': 4}, {}, (4, 2)),
        ({}, {'context': 1, 'frames': 2}, (2, 1)),
        ({'context_frames': 9}, {}, (16, 9)),
    ],
)
def test_frames_and_context_suit_the_run(splits, tokenizer, data, changes, expected):
    splits['test'] = Videos(20)
    protocol = opened(tokenizer, dataclasses.replace(DATA, **data), **changes).protocol
    assert (protocol.frames, protocol.context) == expected


def test_context_that_fills_the_clips_of_the_run_is_refused(splits, tokenizer):
    splits['test'] = Videos(20)
    with pytest.raises(ConfigError, match='--frames 16 leaves nothing to generate after 16 context frames'):
        opened(tokenizer, context=16)


def _noisy(clips):
    """Continues as the truth does, with noise that grows from frame to frame and depends on the seed and the clip."""

    def generate(context, seed, numbers):
        video = clips.read(numbers).copy()
        assert (video[:, : context.shape[1]] == context).all()
        for row, number in enumerate(numbers):
            rng = np.random.default_rng([seed, number])
            for frame in range(context.shape[1], video.shape[1]):
                noise = rng.integers(0, 4 * frame, video[row, frame].shape)
                video[row, frame] = np.clip(video[row, frame] + noise, 0, 255)
        return video

    return generate


@pytest.fixture
def scored(splits, tokenizer, request):
    splits['test'] = Videos(32, 16)
    changes = {'clips': 3, 'seeds': 2}
    clips = opened(tokenizer, **changes)
    name = spelling('continuation', **changes)
    return continuation.score_continuation(name, clips, _noisy(clips), 7, 2)


def test_numbers_are_means_over_clips_and_deviations_over_seeds(scored, monkeypatch):
    result, shown = scored
    clips = result.clips
    real = clips.read(range(3))
    videos = [_noisy(clips)(real[:, :5], seed, np.arange(3)) for seed in (7, 8)]
    for metric, compare in continuation.METRICS.items():
        course = result.metrics[metric]
        by_seed = np.stack([compare(video[:, 5:], real[:, 5:]).astype(float).mean(axis=0) for video in videos])
        np.testing.assert_allclose(course.generated, by_seed, rtol=1e-6)
        np.testing.assert_allclose(course.by_frame[1], by_seed.std(axis=0, ddof=1), rtol=1e-6)
        assert course.mean == pytest.approx(by_seed.mean())
        assert course.std == pytest.approx(by_seed.mean(axis=1).std(ddof=1), rel=1e-4)
        still = pixels.repeat_last_context(real[:, :5], 11)
        np.testing.assert_allclose(course.repeated, compare(still, real[:, 5:]).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(shown.generated, videos[0][:2])
    monkeypatch.setattr(continuation, 'BATCH', 2)
    again, _ = continuation.score_continuation(result.name, clips, _noisy(clips), 7, 2)
    np.testing.assert_allclose(again.metrics['psnr'].generated, result.metrics['psnr'].generated, rtol=1e-12)


def test_json_says_what_the_numbers_depend_on(scored):
    data = json.loads(json.dumps(scored[0].to_json(), allow_nan=False))
    assert data['protocol'] == 'continuation --clips 3 --seeds 2' and data['frames'] == list(range(6, 17))
    settings = {'clips': 3, 'seeds': 2, 'frames': 16, 'context': 5, 'interval': 1, 'split': 'test'}
    assert data['settings'] == settings
    assert len(data['psnr']['by_frame']['mean']) == len(data['ssim']['by_frame']['repeat_last_frame']) == 11
    assert len(data['psnr']['by_seed']) == 2 and data['psnr']['std'] > 0


def test_page_shows_playing_pairs_and_numbers(scored):
    result, shown = scored
    page = continuation_report.render_continuation(result, shown, {'run': 'r'}, ['python -m x'], {'a': 1})
    course = result.metrics['psnr']
    assert page.count('image/webp') == 2 and 'alt="clip 2: real on the left, generated on the right"' in page
    said = [f'{course.mean:.2f} ± {course.std:.2f} dB (over 2 seeds)', f'{course.repeated.mean():.2f} dB', 'SSIM']
    for text in [*said, 'better than a still picture', 'python -m x', '5 frames given', 'id="results"']:
        assert text in page, text


def test_a_single_generated_frame_of_a_single_clip_has_a_page(splits, tokenizer):
    splits['test'] = Videos(2)
    clips = opened(tokenizer, clips=1, frames=2, context=1)
    result, shown = continuation.score_continuation('continuation', clips, _noisy(clips), 0, 6)
    page = continuation_report.render_continuation(result, shown, {}, [], {})
    assert '±' not in page and '1 real clip of the split' in page and page.count('<use') == 4


def test_stored_latents_stand_in_for_videos_that_are_gone(splits, tokenizer, monkeypatch):
    settings = LatentSettings(
        **dict.fromkeys(('train_split', 'eval_split', 'dtype'), ''),
        **dict.fromkeys(('height', 'width', 'frames', 'max_interval', 'seed', 'clips', 'videos_per_shard'), 0),
        context_frames=0,
        flip_horizontal=True,
        flip_vertical=False,
        variance=False,
        latent_shape=(16, 2, 2, 192),
    )
    described = Description(settings, '', 'my_videos', '')
    video = Videos(18)[0].read(range(18))

    class Stored:
        lengths = np.asarray([18])

        def __init__(self, *_):
            pass

        def __len__(self):
            return 1

        def read_frames(self, index, flip, frames):
            assert (index, flip) == (0, (False, False))
            encoded = tokenizer.encode(video[None, np.asarray(frames)] / np.float32(127.5) - 1)
            return {'mean': np.asarray(encoded)[0]}

    monkeypatch.setattr(continuation_clips.latents, 'describe', lambda data: described)
    monkeypatch.setattr(continuation_clips.latents, 'LatentSource', Stored)
    clips = opened(tokenizer, dataclasses.replace(DATA, source='my_latents'), clips=1)
    assert 'decoded from stored latents, because the videos cannot be read: no split test' in clips.notes[0]
    np.testing.assert_allclose(clips.read([0])[0].astype(int), video[:16], atol=1)
