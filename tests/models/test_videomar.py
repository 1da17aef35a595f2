"""What depends on what: causality, blindness, the three layouts of a clip, cached passes, text, and other sizes."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import TextConfig, VideomarModelConfig
from magi_jax.layers.kv_cache import append
from magi_jax.layers.linear import prepare_params
from magi_jax.masking.frames import causal, complete_teacher_forcing, hide_after_target
from magi_jax.models import videomar
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions, TextStates
from magi_jax.models.videomar import Videomar
from tests.random_params import random_params

SHAPE = ClipShape(frames=5, rows=2, columns=3, token_width=3, intervals=1, noise_levels=1)
CLIPS, FRAMES, TOKENS, WIDTH = 2, SHAPE.frames, SHAPE.tokens, SHAPE.token_width
CONFIG = VideomarModelConfig(width=32, blocks=2, heads=2, mlp_width=24, rope_split=(8, 4, 4), rope_base=100.0)
TEXTS = {'text': TextConfig(encoder='words', length=4, width=5), 'no text': TextConfig()}
RANDOM = np.random.default_rng(1)
VIDEO = np.float32(RANDOM.normal(size=(CLIPS, FRAMES, TOKENS, WIDTH)))
MASK = RANDOM.random((CLIPS, FRAMES, TOKENS)) < 0.6
STATES = np.float32(RANDOM.normal(size=(CLIPS, 4, 5)))
TEXT_MASK = np.asarray([[True, True, True, False], [True, False, True, False]])
POSITIONS = np.arange(FRAMES, dtype=np.float32)


def _conditions(text=True, states=STATES, mask=TEXT_MASK, keep=(True, True)):
    text = TextStates(jnp.asarray(states), jnp.asarray(mask), jnp.asarray(keep)) if text else None
    return Conditions(jnp.ones((CLIPS,), jnp.int32), text=text)


@dataclasses.dataclass
class Passes:
    """The passes of a model, each compiled once for each shape."""

    text: TextConfig
    config: VideomarModelConfig = CONFIG
    shape: ClipShape = SHAPE

    def __post_init__(self):
        self.model = Videomar(self.config, self.shape, self.text, jnp.float32)
        self.default = _conditions(bool(self.text.encoder))
        self.params = random_params(self.init)
        self._methods = {
            name: jax.jit(
                lambda *arguments, name=name: self.model.apply({'params': self.params}, *arguments, method=name)
            )
            for name in ('__call__', 'observe', 'predict')
        }

    def init(self, key):
        return self.model.init(key, None, VIDEO, MASK, self.default)['params']

    def single(self, video=VIDEO, mask=MASK, conditions=None):
        return np.asarray(self._methods['__call__'](None, video, mask, conditions or self.default))

    def complete(self, observed=VIDEO, masked=VIDEO, mask=MASK, conditions=None):
        return np.asarray(self._methods['__call__'](observed, masked, mask, conditions or self.default))

    def observe(self, tokens, positions, cache):
        return self._methods['observe'](tokens, self.default, positions, cache)

    def predict(self, frame, cache, conditions=None, shift=0.0):
        own = VIDEO[:, frame], MASK[:, frame], conditions or self.default, jnp.float32(frame + shift)
        return np.asarray(self._methods['predict'](*own, cache))

    def filled(self, frames, shift=0.0):
        """A cache whose length is `frames`. Its other slots hold keys of later frames, which must not be read."""
        empty = self.model.empty_cache(CLIPS, FRAMES)
        return append(empty, *self.observe(VIDEO, POSITIONS + np.float32(shift), empty), frames)


_passes = functools.cache(lambda name: Passes(TEXTS[name]))  # compiled functions are kept for all tests


@pytest.fixture(params=TEXTS)
def passes(request):
    return _passes(request.param)


@pytest.fixture
def with_text():
    return _passes('text')


def _near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_single_sequence_complete_forcing_and_cut_clip_agree(passes):
    complete = passes.complete()
    for k in range(FRAMES):
        mask = np.asarray(hide_after_target(MASK, np.full((CLIPS,), k)))
        assert not mask[:, :k].any() and (mask[:, k] == MASK[:, k]).all() and mask[:, k + 1 :].all()
        single = passes.single(mask=mask)[:, k]
        _near(single, complete[:, k])
        if k == 2 and passes.text.encoder:
            _near(passes.single(VIDEO[:, : k + 1], mask[:, : k + 1])[:, k], single)
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(complete.swapaxes(0, 1), 2)) > 1e-2


def _frames_changed(before, after):
    """Frames whose z is no longer bit-identical."""
    return {frame for frame in range(FRAMES) if (before[:, frame] != after[:, frame]).any()}


def _perturbed(frame):
    return VIDEO + np.float32(np.arange(FRAMES) == frame)[None, :, None, None]


def _single_is_causal(passes):
    """Frame t reaches the frames from t on."""
    before = passes.single()
    return all(_frames_changed(before, passes.single(_perturbed(t))) == set(range(t, FRAMES)) for t in range(FRAMES))


def _complete_is_causal(passes):
    """Complete frame t reaches the predictions after t, and masked frame t its own alone."""
    before = passes.complete()
    return all(
        _frames_changed(before, passes.complete(observed=_perturbed(t))) == set(range(t + 1, FRAMES))
        and _frames_changed(before, passes.complete(masked=_perturbed(t))) == {t}
        for t in range(FRAMES)
    )


def test_later_frames_change_no_bit(passes):
    assert _single_is_causal(passes) and _complete_is_causal(passes)


def test_a_leak_in_the_causal_mask_is_noticed(monkeypatch):
    monkeypatch.setattr(videomar, 'causal', lambda frames: causal(frames) | np.eye(frames, k=1, dtype=bool))
    assert not _single_is_causal(Passes(TextConfig(), dataclasses.replace(CONFIG, blocks=1)))


@pytest.mark.parametrize('leak', [(FRAMES + 1, 1), (FRAMES + 2, FRAMES + 1)])
def test_a_leak_in_the_complete_mask_is_noticed(monkeypatch, leak):
    """A masked frame sees its own target, or another masked frame."""

    def leaking(frames):
        visible = complete_teacher_forcing(frames)
        visible[leak] = True
        return visible

    monkeypatch.setattr(videomar, 'complete_teacher_forcing', leaking)
    assert not _complete_is_causal(Passes(TextConfig(), dataclasses.replace(CONFIG, blocks=1)))


def test_hidden_tokens_cannot_be_seen(with_text):
    changed = np.where(MASK[..., None], np.float32(99), VIDEO)
    np.testing.assert_array_equal(with_text.single(changed), with_text.single())
    np.testing.assert_array_equal(with_text.complete(masked=changed), with_text.complete())
    assert _frames_changed(with_text.single(), with_text.single(mask=~MASK)) == set(range(FRAMES))


def test_cached_prediction_is_the_full_pass(with_text):
    expected = with_text.complete()
    for context in (1, 2, 4):
        _near(with_text.predict(context, with_text.filled(context)), expected[:, context])
    nothing = with_text.model.empty_cache(CLIPS, 0)
    _near(with_text.predict(0, nothing), expected[:, 0])


def test_a_cache_mask_that_is_off_by_one_is_noticed(with_text, monkeypatch):
    sound, cache = videomar.cached_causal, with_text.filled(2)
    monkeypatch.setattr(videomar, 'cached_causal', lambda rows, capacity, length: sound(rows, capacity, length - 1))
    assert np.abs(Passes(TEXTS['text']).predict(2, cache) - with_text.complete()[:, 2]).max() > 1e-3


def test_prefill_is_committing_frame_by_frame(with_text):
    whole, cache = with_text.filled(FRAMES), with_text.model.empty_cache(CLIPS, FRAMES)
    for t in range(FRAMES):
        cache = append(cache, *with_text.observe(VIDEO[:, t : t + 1], POSITIONS[t : t + 1], cache), 1)
    _near(cache.k, whole.k)
    _near(cache.v, whole.v)


def test_only_distances_between_frames_count(with_text):
    z, shifted = with_text.predict(2, with_text.filled(2)), with_text.predict(2, with_text.filled(2, 11), shift=11.0)
    _near(shifted, z)
    assert np.abs(with_text.predict(2, with_text.filled(2), shift=1.0) - z).max() > 1e-3


@pytest.mark.parametrize(('split', 'axis'), [((8, 8, 0), 'rows'), ((0, 0, 16), 'columns')])
def test_tokens_are_in_raster_order(split, axis):
    """Equal tokens differ by their rotations alone: here by their rows, or by their columns."""
    passes, same = Passes(TextConfig(), dataclasses.replace(CONFIG, blocks=1, rope_split=split)), np.ones_like(VIDEO)
    z = passes.single(same, np.arange(TOKENS)[None, None] == np.zeros_like(MASK) + 5)[0, 0]  # one token is another
    groups = np.divmod(np.arange(5), SHAPE.columns)[axis == 'columns']
    for a, b in itertools.combinations(range(5), 2):
        assert (np.abs(z[a] - z[b]).max() < 1e-5) == (groups[a] == groups[b])


def test_prepared_text_is_text_as_states(with_text):
    """Also with the kernels as the sampler stores them, cast and split, and for a clip without text."""
    model, stored = with_text.model, prepare_params(with_text.params, 'blocks', jnp.float32)
    for keep in ([True, True], [False, True]):
        conditions = _conditions(keep=keep)
        z = with_text.predict(2, with_text.filled(2), conditions)
        for variables in ({'params': with_text.params}, stored):
            prepared = jax.jit(model.prepare)(variables, conditions)
            assert prepared.text.k.shape == (CLIPS, CONFIG.blocks, 4, CONFIG.width)
            _near(with_text.predict(2, with_text.filled(2), prepared), z)


def test_a_clip_without_text_reads_the_null_sequence_alone(with_text):
    """Its z depends neither on the states nor on the padding of its prompt. With text it does."""
    video, mask = (np.broadcast_to(x[:1], x.shape) for x in (VIDEO, MASK))
    none = with_text.single(video, mask, _conditions(keep=(False, False)))
    np.testing.assert_array_equal(none[0], none[1])
    full = with_text.single(video, mask, _conditions(states=10 * STATES, mask=~TEXT_MASK, keep=(False, False)))
    np.testing.assert_array_equal(full, none)
    mixed = with_text.single(video, mask, _conditions(keep=(True, False)))
    np.testing.assert_array_equal(mixed[1], none[1])
    assert (np.abs(mixed[0] - none[0]).max(-1) > 1e-3).all()


def test_padding_of_a_prompt_is_not_read(with_text):
    padded = np.where(TEXT_MASK[..., None], STATES, np.float32(50))
    z = with_text.single()
    np.testing.assert_array_equal(with_text.single(conditions=_conditions(states=padded)), z)
    read = np.where(TEXT_MASK[..., None], np.float32(50), STATES)
    assert (np.abs(with_text.single(conditions=_conditions(states=read)) - z).max(-1) > 1e-3).all()
    prepare = jax.jit(with_text.model.prepare)
    prepared = [prepare({'params': with_text.params}, _conditions(states=states)) for states in (STATES, padded)]
    cache = with_text.filled(2)
    np.testing.assert_array_equal(*(with_text.predict(2, cache, conditions) for conditions in prepared))


def test_parameters_do_not_depend_on_the_size_of_clips():
    shapes = []
    for shape in (SHAPE, ClipShape(frames=7, rows=4, columns=2, token_width=3, intervals=9, noise_levels=2)):
        model = Videomar(CONFIG, shape, TEXTS['text'])
        tokens, mask = (jnp.zeros((1, shape.frames, shape.tokens, *rest)) for rest in ((3,), ()))
        conditions = jax.tree.map(lambda x: x[:1], _conditions())
        shapes.append(jax.eval_shape(model.init, jax.random.key(0), None, tokens, mask > 0, conditions)['params'])
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])


@pytest.mark.slow
def test_other_sizes_with_the_same_parameters(with_text):
    """Seven frames of 3 x 4 tokens: the cached pass is the full pass, as for the five frames of 2 x 3."""
    model = with_text.model.clone(shape=dataclasses.replace(SHAPE, rows=3, columns=4))
    video = np.float32(np.random.default_rng(2).normal(size=(CLIPS, 7, 12, WIDTH)))
    mask = np.broadcast_to(np.arange(7) == 6, (12, 7)).T[None].repeat(CLIPS, 0)

    @jax.jit
    def passes(params):
        whole = model.apply(params, None, video, mask, with_text.default)
        cache, frames = model.empty_cache(CLIPS, 8), jnp.arange(7, dtype=jnp.float32)
        seen = video[:, :6], with_text.default, frames[:6], cache
        cache = append(cache, *model.apply(params, *seen, method='observe'), 6)
        own = video[:, 6], mask[:, 6], with_text.default, frames[6], cache
        return whole[:, 6], model.apply(params, *own, method='predict')

    whole, cached = passes({'params': with_text.params})
    assert whole.shape == (CLIPS, 12, CONFIG.width)
    _near(cached, whole)
