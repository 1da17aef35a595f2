"""Objects named by a caption are found in real videos, and each wrong word is noticed for what it is."""

import numpy as np
import pytest

from magi_jax.config import ConfigError
from magi_jax.data.builders import captions
from magi_jax.data.builders.drawing import PALETTE, SHAPES, draw_example, make_shape
from magi_jax.evaluation import text_steering
from magi_jax.evaluation.text_steering import SteeringResult, other_rows, score_steering, shown, table_rows

CLIPS = 12  # each combination once
ALL = {'colour': 1.0, 'shape': 1.0, 'direction': 1.0}


@pytest.fixture(scope='module')
def real():
    """Clips of the test split, as a batch of the data pipeline."""
    videos = [captions.make_video('test', index) for index in range(CLIPS)]
    batch = {name: np.stack([video[name] for video in videos]) for name in ('labels', 'colours', 'direction')}
    return batch | {
        'video': np.stack([video['frames'][::5] for video in videos]),  # of the whole way, in a quarter of the time
        'caption': np.array([video['caption'] for video in videos], object),
    }


@pytest.fixture(scope='module')
def named(real):
    return {'labels': real['labels'][:, 0], 'colours': real['colours'][:, 0], 'directions': real['direction']}


def moving(shape, colour, steps, start=(20.0, 30.0)):
    """One clip [1,T,64,64,3] of an object that makes the steps (x, y)."""
    path = np.asarray(start) + np.cumsum(np.asarray(steps, float), axis=0)
    item = make_shape(SHAPES.index(shape), list(PALETTE).index(colour))
    return draw_example('a clip', [item], path[:, None])['frames'][None]


def looked(video, shape, colour, direction):
    """What `shown` says of one clip and one caption: {measure: True or False}."""
    words = SHAPES.index(shape), list(PALETTE).index(colour), captions.DIRECTIONS.index(direction)
    return {name: bool(values[0]) for name, values in shown(video, *(np.array([word]) for word in words)).items()}


def test_real_videos_show_what_their_captions_name(real, named):
    assert len(set(zip(*(named[name].tolist() for name in named)))) == 12  # so that every word is tried
    assert {name: values.tolist() for name, values in shown(real['video'], **named).items()} == dict.fromkeys(
        ALL, [True] * CLIPS
    )


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('other', SHAPES)
def test_another_shape_is_noticed_and_nothing_else(shape, other):
    video = moving(shape, 'red', [(6, 0)] * 5)
    assert looked(video, other, 'red', 'right') == ALL | {'shape': shape == other}


def test_another_direction_is_noticed_and_nothing_else(real, named):
    turned = named | {'directions': (named['directions'] + np.where(np.arange(CLIPS) % 2, 1, -1)) % 8}
    found = shown(real['video'], **turned)
    assert not found['direction'].any() and found['colour'].all() and found['shape'].all()


def test_without_the_named_colour_nothing_is_shown():
    """Shape and direction are those of the object that has the named colour; there is none."""
    assert looked(moving('disc', 'red', [(2, 0)] * 16), 'disc', 'green', 'right') == dict.fromkeys(ALL, False)


def test_a_resting_object_of_the_named_colour_has_no_direction(real, named):
    resting = real['labels'][:, 1] >= 0
    words = {'labels': real['labels'][:, 1], 'colours': real['colours'][:, 1], 'directions': real['direction']}
    found = shown(real['video'][resting], **{name: values[resting] for name, values in words.items()})
    assert 2 < resting.sum() < 10  # both kinds of videos are tried
    assert found['colour'].all() and found['shape'].all() and not found['direction'].any()


def test_an_object_that_comes_back_has_no_direction():
    there_and_back = [(2, 0)] * 8 + [(-2, 0)] * 8
    for direction in ('left', 'right'):
        assert not looked(moving('square', 'blue', there_and_back), 'square', 'blue', direction)['direction']


def test_an_object_that_is_gone_for_most_frames_is_not_shown():
    video = moving('square', 'blue', [(2, 0)] * 16)
    half, less = video.copy(), video.copy()
    half[:, 8:], less[:, 7:] = 0, 0
    assert looked(half, 'square', 'blue', 'right') == ALL
    assert looked(less, 'square', 'blue', 'right') == dict.fromkeys(ALL, False)


def test_a_shape_must_last_for_most_frames():
    disc, square = (moving(shape, 'white', [(0, -1.5)] * 16) for shape in ('disc', 'square'))
    early, late = np.concatenate([disc[:, :9], square[:, 9:]], 1), np.concatenate([disc[:, :7], square[:, 7:]], 1)
    assert looked(early, 'disc', 'white', 'up') == ALL
    assert looked(late, 'disc', 'white', 'up') == ALL | {'shape': False}


def test_swapped_captions_tell_if_the_caption_steers(real):
    videos, calls = dict(zip(real['caption'], real['video'])), []

    def obedient(texts, seed):
        calls.append((seed, texts))
        return np.stack([videos[text] for text in texts])

    result = score_steering(real, obedient, seeds=2, first_seed=5)
    assert [seed for seed, _ in calls] == [5, 5, 6, 6] and calls[0][1] == real['caption'].tolist()
    assert result.own == {name: [1.0, 1.0] for name in ALL} and result.real == ALL and result.clips == CLIPS
    assert result.swapped['direction'] == [0.0, 0.0]  # a resting object may have the colour, and then the shape
    assert 0 < max(result.swapped['colour']) < 0.4 and max(result.swapped['shape']) <= max(result.swapped['colour'])
    deaf = score_steering(real, lambda texts, seed: real['video'], seeds=1, first_seed=0)
    assert deaf.own == deaf.swapped == {name: [1.0] for name in ALL}


def test_the_swapped_caption_is_of_a_clip_that_differs_in_every_word(named):
    words = np.stack([named['labels'], named['colours'], named['directions']])
    rows = other_rows(*words)
    assert (words[:, rows] != words).all() and len(set(rows.tolist())) > 4
    with pytest.raises(ConfigError, match='clip 0 has no clip with another colour, shape and direction: .* more clips'):
        other_rows(*words[:, :1])
    same_shape = words.copy()
    same_shape[0] = 1
    with pytest.raises(ConfigError, match='clip 0 has no clip'):
        other_rows(*same_shape)


def test_the_table_has_a_row_for_each_measure():
    own = {'colour': [1.0, 0.9], 'shape': [0.5, 0.5], 'direction': [0.25, 0.75]}
    result = SteeringResult(own, {name: [0.0, 0.1] for name in ALL}, ALL, clips=10)
    headings, rows = table_rows(result)
    assert headings == ['shown in the video', 'own caption', 'swapped caption', 'real videos', 'goal']
    assert rows == [
        ['colour', '95.0 ± 7.1 %', '5.0 ± 7.1 %', '100.0 %', '90 %'],
        ['shape', '50.0 ± 0.0 %', '5.0 ± 7.1 %', '100.0 %', '80 %'],
        ['direction', '50.0 ± 35.4 %', '5.0 ± 7.1 %', '100.0 %', '80 %'],
    ]
    once = SteeringResult({name: [0.5] for name in ALL}, {name: [0.5] for name in ALL}, ALL, clips=10)
    assert [row[1] for row in table_rows(once)[1]] == ['50.0 %'] * 3  # one seed has no spread
    assert result.to_json()['own'] == own and set(text_steering.GOALS) == set(text_steering.MEASURES)
