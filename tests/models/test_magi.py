"""What may depend on what: causality, blindness, and the cached passes against the training pass, for every option."""

import dataclasses
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import MagiHeadConfig, MagiModelConfig
from magi_jax.layers.kv_cache import append, empty_cache
from magi_jax.masking.frames import causal, complete_teacher_forcing
from magi_jax.models import magi
from magi_jax.models.clip_shape import ClipShape
from magi_jax.models.conditions import Conditions
from magi_jax.models.magi import Magi
from tests.random_params import random_params

SHAPE = ClipShape(frames=4, rows=1, columns=5, token_width=3, intervals=7, noise_levels=6)
CLIPS, FRAMES, TOKENS, WIDTH = 2, SHAPE.frames, SHAPE.tokens, SHAPE.token_width
BASE = MagiModelConfig(width=16, blocks=2, heads=2, mlp_width=24, dropout=0.3)
VARIANTS = {
    'complete': {},
    'masked': {'teacher_forcing': 'masked'},
    'token_every_full': {'noise_embedding': 'concat_token', 'embed_at': 'every_block', 'frame_table': 'full'},
    'add_separate_frame_temporal': {
        'noise_embedding': 'add',
        'shared_projection': False,
        'frame_table': 'frame',
        'mlp_layers': 'temporal',
        'input_norm': False,
        'head': MagiHeadConfig(position_table='per_frame'),
    },
    'masked_all': {
        'teacher_forcing': 'masked',
        'noise_embedding': 'concat_token',
        'embed_at': 'every_block',
        'frame_table': 'full',
        'shared_projection': False,
    },
}


def _inputs():
    rng = np.random.default_rng(1)
    observed, masked = np.float32(rng.normal(size=(2, CLIPS, FRAMES, TOKENS, WIDTH)))
    mask = rng.random((CLIPS, FRAMES, TOKENS)) < 0.6
    level = rng.integers(0, SHAPE.noise_levels, (CLIPS, FRAMES))
    return {'observed': observed, 'masked': masked, 'mask': mask, 'interval': np.asarray([1, 7]), 'level': level}


@dataclasses.dataclass
class Passes:
    """A model's passes, each compiled once; `rows` gives z and the trunk's output of all its rows."""

    config: MagiModelConfig

    def __post_init__(self):
        self.model = Magi(self.config, SHAPE, jnp.float32)
        self.params = {
            'params': random_params(lambda key: self.model.init(key, **self._arguments(_inputs()))['params'])
        }
        self.observe, self.predict = jax.jit(self._observe), jax.jit(self._predict)
        self._rows = jax.jit(self._run)

    def _observe(self, tokens, level, interval, *rest):
        return self.model.apply(self.params, tokens, Conditions(interval, level), *rest, method=Magi.observe)

    def _predict(self, tokens, mask, interval, *rest):
        return self.model.apply(self.params, tokens, mask, Conditions(interval), *rest, method=Magi.predict)

    def _arguments(self, inputs):
        inputs = dict(inputs)
        conditions = Conditions(inputs.pop('interval'), inputs.pop('level'), inputs.pop('history', None))
        if self.config.teacher_forcing == 'masked':
            inputs['observed'] = None
        return inputs | {'conditions': conditions}

    def _run(self, inputs):
        def keep_trunk(module, _):
            return module.name == 'trunk'

        z, kept = self.model.apply(
            self.params, **self._arguments(inputs), capture_intermediates=keep_trunk, mutable=['intermediates']
        )
        return z, kept['intermediates']['trunk']['__call__'][0][0]

    def rows(self, **changes):
        return jax.tree.map(np.asarray, self._rows(_inputs() | changes))

    def empty(self):
        sites = TOKENS + (self.config.noise_embedding == 'concat_token')
        return empty_cache(self.config.blocks, CLIPS, FRAMES, sites, self.config.width, jnp.float32)


@pytest.fixture(scope='module', params=VARIANTS)
def passes(request):
    return Passes(dataclasses.replace(BASE, **VARIANTS[request.param]))


def _perturbed(name, frame):
    changed = _inputs()[name].copy()
    changed[:, frame] += 1.0
    return {name: changed}


def _frames_changed_by(passes, changes):
    """Frames whose z, and rows whose trunk output, are no longer bit-identical."""
    before, after = passes.rows(), passes.rows(**changes)
    return [{i for i in range(a.shape[1]) if (a[:, i] != b[:, i]).any()} for a, b in zip(before, after)]


def _is_complete_forcing(passes):
    """Observed frame t reaches observed rows >= t and masked rows > t, the last one none; a masked frame its own."""
    later = [
        _frames_changed_by(passes, _perturbed('observed', t))
        == [set(range(t + 1, FRAMES)), set(range(t, FRAMES - 1)) | set(range(FRAMES + t, 2 * FRAMES - 1))]
        for t in range(FRAMES)
    ]
    own = [_frames_changed_by(passes, _perturbed('masked', t)) == [{t}, {FRAMES - 1 + t}] for t in range(FRAMES)]
    return all(later + own)


def _is_causal(passes):
    """Masked Teacher Forcing: masked frame t reaches rows >= t, observed frames are not read."""
    later = [set(range(t, FRAMES)) for t in range(FRAMES)]
    return all(
        _frames_changed_by(passes, _perturbed('masked', t)) == [later[t], later[t]]
        and _frames_changed_by(passes, _perturbed('observed', t)) == [set(), set()]
        for t in range(FRAMES)
    )


def test_who_depends_on_whom_to_the_bit(passes):
    check = _is_causal if passes.config.teacher_forcing == 'masked' else _is_complete_forcing
    assert check(passes)


BROKEN_MASKS = {  # (query rows, key rows) that are wrongly allowed
    'masked frame sees its own target': lambda t: (t + np.arange(t), np.arange(t)),
    'masked frame sees a later observation': lambda t: (t, t - 2),
    'masked frame sees another masked one': lambda t: (2 * t - 1, t),
    'observed frame sees a later one': lambda t: (0, 1),
    'observed frame sees a masked one': lambda t: (t - 2, t),
}


class GivenMask(Passes):
    """The passes under any mask of rows, compiled once for all masks."""

    allowed = None

    def rows(self, **changes):
        return jax.tree.map(np.asarray, self._rows(_inputs() | changes, self.allowed))

    def _run(self, inputs, allowed):
        with unittest.mock.patch.object(magi, 'complete_teacher_forcing', lambda frames: allowed):
            return super()._run(inputs)


@pytest.fixture(scope='module')
def given_mask():
    return GivenMask(dataclasses.replace(BASE, blocks=1))


def test_check_is_content_with_the_right_mask(given_mask):
    given_mask.allowed = complete_teacher_forcing(FRAMES)
    assert _is_complete_forcing(given_mask)


@pytest.mark.parametrize('leak', BROKEN_MASKS)
def test_a_leak_in_the_mask_is_noticed(given_mask, leak):
    given_mask.allowed = complete_teacher_forcing(FRAMES)
    given_mask.allowed[BROKEN_MASKS[leak](FRAMES)] = True
    assert not _is_complete_forcing(given_mask)


def test_a_leak_in_the_causal_mask_is_noticed(monkeypatch):
    monkeypatch.setattr(magi, 'causal', lambda frames: causal(frames) | np.eye(frames, k=1, dtype=bool))
    assert not _is_causal(Passes(dataclasses.replace(BASE, blocks=1, teacher_forcing='masked')))


def test_what_is_hidden_cannot_be_seen(passes):
    inputs = _inputs()
    changed = np.where(inputs['mask'][..., None], 99.0, inputs['masked']).astype(np.float32)
    assert _frames_changed_by(passes, {'masked': changed})[0] == set()


def _gap_between_cached_and_trained(passes):
    """Largest difference between z of the training pass and of `predict`, over all frames. The cache holds every frame,
    its length says how many count: what lies beyond must not matter."""
    inputs = _inputs()
    positions = jnp.arange(FRAMES, dtype=jnp.float32)
    complete_frames = inputs['observed']
    if passes.config.teacher_forcing == 'masked':
        complete_frames = inputs['masked']
    k, v = passes.observe(complete_frames, inputs['level'], inputs['interval'], positions, passes.empty())
    gaps = []
    for frame in range(FRAMES):
        trained = inputs
        if passes.config.teacher_forcing == 'masked':  # earlier frames complete, the frame itself labelled as clean
            earlier = (np.arange(FRAMES) < frame)[None]
            mask = inputs['mask'] & ~earlier[..., None]
            trained = inputs | {'mask': mask, 'level': np.where(earlier, inputs['level'], 0)}
        expected = passes.rows(**trained)[0][:, frame]
        own = inputs['masked'][:, frame], inputs['mask'][:, frame], inputs['interval']
        z = passes.predict(*own, positions[frame], append(passes.empty(), k, v, frame))
        gaps.append(np.abs(z - expected).max())
    return max(gaps)


def test_cached_prediction_is_the_training_row(passes):
    assert _gap_between_cached_and_trained(passes) <= 1e-5


def test_a_clip_without_history_is_its_frames_alone():
    """Its masked rows are predictions behind an empty cache; another clip of the batch still sees earlier frames."""
    passes, inputs = Passes(dataclasses.replace(BASE, blocks=1)), _inputs()
    z = passes.rows(history=np.asarray([False, True]))[0]
    nothing = empty_cache(1, CLIPS, 0, TOKENS, passes.config.width, jnp.float32)
    for frame in range(FRAMES):
        own = inputs['masked'][:, frame], inputs['mask'][:, frame], inputs['interval'], jnp.float32(frame)
        alone = passes.predict(*own, nothing)
        np.testing.assert_allclose(z[0, frame], alone[0], atol=1e-5)
        assert frame == 0 or np.abs(z[1, frame] - alone[1]).max() > 1e-3


def test_a_cache_mask_that_is_off_by_one_is_noticed(monkeypatch):
    sound = magi.cached_causal
    monkeypatch.setattr(magi, 'cached_causal', lambda rows, capacity, length: sound(rows, capacity, length + 1))
    assert _gap_between_cached_and_trained(Passes(dataclasses.replace(BASE, blocks=1))) > 1e-2


def test_prefill_is_committing_frame_by_frame(passes):
    inputs, positions = _inputs(), jnp.arange(FRAMES, dtype=jnp.float32)
    k, v = passes.observe(inputs['observed'], inputs['level'], inputs['interval'], positions, passes.empty())
    cache = passes.empty()
    for t in range(FRAMES):
        one = slice(t, t + 1)
        own = passes.observe(
            inputs['observed'][:, one], inputs['level'][:, one], inputs['interval'], positions[one], cache
        )
        cache = append(cache, *own, 1)
    np.testing.assert_allclose(cache.k, k, atol=1e-5)
    np.testing.assert_allclose(cache.v, v, atol=1e-5)


def test_every_condition_reaches_the_output(passes):
    """Interval and noise level, each of its own clip only."""
    before = passes.rows()[0]
    after = passes.rows(interval=np.asarray([1, 6]))[0]
    assert (after[0] == before[0]).all() and (np.abs(after[1] - before[1]).max(-1) > 1e-4).all()
    level = (_inputs()['level'] + np.asarray([[0], [1]])) % SHAPE.noise_levels
    after = passes.rows(level=level)[0]
    assert (after[0] == before[0]).all() and (np.abs(after[1, 1:] - before[1, 1:]).max(-1) > 1e-4).all()


def test_time_and_place_are_told_apart(passes):
    """A clip of equal tokens: only positions can make its outputs differ."""
    same = np.ones((CLIPS, FRAMES, TOKENS, WIDTH), np.float32)
    level = np.zeros((CLIPS, FRAMES), np.int32)
    z = passes.rows(observed=same, masked=same, level=level, mask=np.ones((CLIPS, FRAMES, TOKENS), bool))[0][0]
    rows = z.reshape(FRAMES * TOKENS, -1)
    distances = np.abs(rows[:, None] - rows[None]).max(-1) + np.eye(len(rows))
    assert distances.min() > 1e-2


def test_fractional_positions_lie_between_whole_ones(passes):
    inputs, cache = _inputs(), passes.empty()
    own = inputs['masked'][:, 0], inputs['mask'][:, 0], inputs['interval']
    at = [passes.predict(*own, jnp.float32(p), cache) for p in (1.0, 1.001, 2.0)]
    assert 0 < jnp.abs(at[1] - at[0]).max() < 0.02 * jnp.abs(at[2] - at[0]).max()
