"""A generator with text: what a prompt changes, which prompts are refused, and videos of another size."""

import json
import shutil

import numpy as np
import pytest

import magi_jax
from magi_jax.config import ConfigError
from magi_jax.text_encoders.api import DESCRIPTION
from tests.pretrained.tiny_run import VIDEOMAR, make_run

FRAMES = 3
RED, BLUE = 'a red disc moves up', 'a blue square moves right'
GREY = np.full((2, 1, 16, 16, 3), 128, np.uint8)
SAME_NOISE = {'frames': FRAMES, 'numbers': [0, 0], 'progress': False}  # two videos that differ only in their prompts


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videomar') / 'run'
    make_run(folder, VIDEOMAR)
    return folder


@pytest.fixture(scope='module')
def generator(workdir):
    return magi_jax.load(workdir)


@pytest.fixture(scope='module')
def steered(generator):
    """The videos of two prompts."""
    return generator.sample(prompt=[RED, BLUE], **SAME_NOISE)


def test_prompts_steer_and_nothing_else_differs(generator, steered):
    red, blue = steered.astype(int)
    assert steered.shape == (2, FRAMES, 16, 16, 3) and abs(red - blue).max() > 20
    both = generator.sample(prompt=RED, **SAME_NOISE)
    np.testing.assert_array_equal(both, [steered[0], steered[0]])
    np.testing.assert_array_equal(generator.sample(prompt=(BLUE, RED), **SAME_NOISE), steered[::-1])
    without = generator.sample(**SAME_NOISE)
    assert abs(without.astype(int) - steered).max(axis=(1, 2, 3, 4)).min() > 5


def test_streamed_frames_are_the_same(generator, steered):
    options = {name: SAME_NOISE[name] for name in ('frames', 'numbers')}
    streamed = np.stack(list(generator.stream(prompt=[RED, BLUE], **options)), axis=1)
    np.testing.assert_allclose(streamed.astype(int), steered, atol=1)


@pytest.mark.slow
def test_guidance_of_one_is_one_pass_without_the_null_text(generator, steered):
    """The program of one pass agrees with the doubled one in the limit; larger guidance does not."""
    once = generator.sample(prompt=[RED, BLUE], guidance=1.0, **SAME_NOISE).astype(int)
    doubled = generator.sample(prompt=[RED, BLUE], guidance=1.000001, **SAME_NOISE)
    np.testing.assert_allclose(once, doubled, atol=1)
    assert abs(once - steered).max() > 5


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'prompt': 3}, 'prompt = 3 is not a text: give a string, or a list of strings'),
        ({'prompt': b'a disc'}, "prompt = b'a disc' is not a text"),
        ({'prompt': [RED, None]}, r"prompt = \['a red disc moves up', None\] is not a text"),
        ({'prompt': []}, r'prompt = \[\] is not a text'),
        ({'prompt': 40 * [1]}, r'prompt = \[1, 1, .*\.\.\. is not a text'),
        ({'prompt': ''}, "the text '' has no words: give at least one"),
        ({'prompt': [RED, ' ?! ']}, r"the text ' \?! ' has no words"),
        ({'prompt': 3 * [RED], 'context': GREY}, '3 prompts do not fit 2 videos: give one prompt, or one for each'),
        ({'prompt': 3 * [RED], 'numbers': [1, 2]}, '3 prompts do not fit 2 videos'),
        ({'prompt': 3 * [RED], 'num': 2}, 'num = 2 does not fit 3 clips of context, numbers or prompts: leave num out'),
    ],
)
def test_prompts_that_fit_nothing_are_refused_in_one_line(generator, arguments, message):
    for call in generator.sample, generator.stream:
        with pytest.raises(ConfigError, match=message) as error:
            call(**arguments)
        assert '\n' not in str(error.value)


def test_another_encoder_in_the_run_folder_is_refused(workdir, tmp_path):
    folder = shutil.copytree(workdir, tmp_path / 'run')
    stored = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps(stored | {'fingerprint': 'another'}))
    with pytest.raises(
        ConfigError, match="is by an encoder with fingerprint = 'another', not .*: set config.text"
    ) as e:
        magi_jax.load(folder).sample(prompt=RED)
    assert str(folder) in str(e.value)
    folder = shutil.copytree(workdir, tmp_path / 'without')
    (folder / DESCRIPTION).unlink()
    with pytest.raises(ConfigError, match=f'{folder} has no {DESCRIPTION}: give the folder of a run .* with text'):
        magi_jax.load(folder).sample(prompt=RED)


def test_shared_weights_take_the_same_prompts(generator, steered, tmp_path):
    generator.save_pretrained(tmp_path / 'shared')
    assert (tmp_path / 'shared' / DESCRIPTION).is_file()
    shared = magi_jax.load(tmp_path / 'shared')
    np.testing.assert_array_equal(shared.sample(prompt=[RED, BLUE], **SAME_NOISE), steered)
    for change in (lambda path: path.write_text('{}'), lambda path: path.unlink()):
        change(tmp_path / 'shared' / DESCRIPTION)
        with pytest.raises(ConfigError, match=f'{DESCRIPTION} (differs|is missing)'):
            magi_jax.load(tmp_path / 'shared')


def test_videos_of_another_size(generator):
    wide = generator.with_size(8, 24)
    context = np.random.default_rng(0).integers(0, 256, (2, 1, 8, 24, 3), np.uint8)
    video = wide.sample(context, 2, prompt=[RED, BLUE], progress=False)
    assert video.shape == (2, 2, 8, 24, 3) and (video[:, :1] == context).all() and video[:, 1].std() > 10
    assert generator.config.data.height == 16 and generator.with_size(16, 16).config == generator.config
    with pytest.raises(ConfigError, match=r'not uint8 \[clips, frames, 8, 24, 3\]: resize'):
        wide.sample(GREY, prompt=RED)


@pytest.mark.parametrize(
    ('size', 'message'),
    [
        ((18, 16), '18'),
        ((20, 16), r'latents of 5x4 cannot be cut into patches of model\.patch = 2'),
        ((0, 16), 'height = 0 is out of range'),
        ((16, 16.0), r'width = 16\.0'),
    ],
)
def test_sizes_that_the_tokenizer_or_the_model_cannot_cut_are_refused(generator, size, message):
    with pytest.raises(ConfigError, match=message) as error:
        generator.with_size(*size)
    assert '\n' not in str(error.value)
