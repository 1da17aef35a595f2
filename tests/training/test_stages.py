"""A run through stages: what each starts from, what a killed one resumes, and what is refused before any of it trains.

The optimizer step is replaced by one that needs no compilation; tests/launch/test_train_stages.py runs the real one.
"""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import magi_jax
from magi_jax.checkpoint import load_config, newest_run, save_config
from magi_jax.config import ConfigError, StageConfig, from_config_dict, select_stage, stage_config
from magi_jax.config.stages import STAGE_FIELDS
from magi_jax.config_checks import check_config
from magi_jax.data import latents
from magi_jax.parallel.mesh import make_mesh
from magi_jax.pretrained.folder import read_facts
from magi_jax.training import loop, stages
from magi_jax.training.stages import train_stages
from tests.training.staged import STEPS, staged_config, write_videos


class Killed(BaseException):
    """Stands for the end of the process."""


class Silent:
    """A console that keeps its lines."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)

    def progress(self, initial, total):
        del initial, total
        return self

    def update(self, count):
        del count

    def set_postfix(self, **values):
        del values

    def close(self):
        pass


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    return str(write_videos(tmp_path_factory.mktemp('videos')))


@contextlib.contextmanager
def fake_steps():
    """Yields a list that gets (frames, height, step before) of every step, and one of those at which a run dies."""
    taken, die_at = [], []

    def compiled(tokenizer, config, mesh, console):
        del tokenizer, mesh, console

        def step(state, tokenizer, batch):
            del tokenizer
            taken.append((*batch['video'].shape[1:3], int(state.step)))
            if taken[-1] in die_at:
                raise Killed
            # Depends on data, step and learning rate, as a real step does.
            move = config.optim.learning_rate * (np.asarray(batch['video']).mean() + int(state.step))
            params = jax.tree.map(lambda leaf: leaf + np.float32(move), state.params)
            ema = jax.tree.map(lambda old, new: 0.5 * old + 0.5 * new, state.ema, params)
            metrics = {'loss': jnp.float32(move), 'grad_norm': jnp.float32(1), 'bad_leaf': jnp.int32(-1)}
            return state.replace(step=state.step + 1, params=params, ema=ema), metrics

        return step

    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, stages):  # one device of the eight, which takes a fifth of the time
            patch.setattr(module, 'make_mesh', lambda config: make_mesh(config, jax.devices()[:1]))
        patch.setattr(loop, '_compile', compiled)
        patch.setattr(loop, 'make_eval_step', lambda *_: lambda *_: {'loss': jnp.float32(0)})
        yield taken, die_at


@pytest.fixture
def steps():
    with fake_steps() as lists:
        yield lists


@pytest.fixture(scope='module')
def killed(tmp_path_factory, videos):
    """A run killed in stage 1, between the stages and in stage 2, after its fourth step was saved."""
    workdir = tmp_path_factory.mktemp('killed')
    with fake_steps() as (taken, die_at):
        for death in ((2, 16, 3), (3, 24, 0), (3, 24, 5)):
            die_at[:] = [death]
            with pytest.raises(Killed):
                _train(staged_config(videos), workdir)
    assert [taken.count((2, 16, n)) for n in range(4)] == [1, 1, 2, 2]
    return workdir


def _train(values, workdir):
    return train_stages(from_config_dict(values), str(workdir), Silent())


def _final(folder):
    """The trees of the newest checkpoint."""
    step = max(int(path.name) for path in (folder / 'checkpoints').iterdir() if path.name.isdigit())
    items = ocp.args.Composite(ema=ocp.args.StandardRestore(), training=ocp.args.StandardRestore())
    with ocp.CheckpointManager(folder / 'checkpoints') as manager:
        return jax.tree.map(np.asarray, dict(manager.restore(step, args=items)))


def _assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_stages_start_from_the_weights_before_and_resume_bit_for_bit(tmp_path, videos, killed, steps, monkeypatch):
    taken, _ = steps
    config, restarts, restart = staged_config(videos), [], loop.StateFactory.restart

    def watched(factory, params, ema):
        restarts.append(restart(factory, params, ema))
        return restarts[-1]

    monkeypatch.setattr(loop.StateFactory, 'restart', watched)
    whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
    assert _train(config, whole)
    assert taken == [(2, 16, n) for n in range(STEPS[0])] + [(3, 24, n) for n in range(STEPS[1])]
    first, second, (start,) = _final(whole / 'stage_1'), _final(whole / 'stage_2'), restarts
    _assert_equal(start.params, first['training']['params'])
    _assert_equal(start.ema, first['ema'])
    assert not np.array_equal(*(jax.tree.leaves(tree)[0] for tree in (start.params, start.ema)))
    assert int(start.step) == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(start.opt_state))

    shutil.copytree(killed, resumed)
    taken.clear()
    assert _train(config, resumed)
    assert taken == [(3, 24, 4), (3, 24, 5)]
    _assert_equal(_final(resumed / 'stage_2'), second)
    shutil.rmtree(resumed / 'stage_1')  # no longer needed
    taken.clear()
    assert _train(config, resumed) and taken == []


def test_a_staged_folder_is_read_as_its_newest_stage(tmp_path, videos, killed):
    whole, data = from_config_dict(staged_config(videos)), magi_jax.load(killed).config.data
    assert (data.frames, data.height, data.width) == (3, 24, 32)
    assert load_config(killed) == whole and load_config(newest_run(killed)) == stage_config(whole, 2)
    for folder, stage, step in ((killed, 'stage_2', 4), (killed / 'stage_1', 'stage_1', STEPS[0])):
        generator = magi_jax.load(folder)
        assert (generator.workdir, generator.step) == (str(killed / stage), step)
        _assert_equal(generator.params, _final(killed / stage)['ema'])
    (killed / 'metrics.json').write_text('{"psnr": 20.0}')
    assert read_facts(killed / 'stage_1', STEPS[0])['metrics']
    generator.save_pretrained(tmp_path / 'shared')
    shared = magi_jax.load(tmp_path / 'shared')
    _assert_equal(shared.params, generator.params)
    assert shared.config.train.steps == STEPS[0] and shared.config.stages == ()


def test_a_damaged_last_checkpoint_is_no_start(tmp_path, videos, killed, steps):
    taken, config, workdir = steps[0], staged_config(videos), tmp_path / 'run'
    shutil.copytree(killed, workdir, ignore=shutil.ignore_patterns('stage_2'))
    last = workdir / 'stage_1' / 'checkpoints' / str(STEPS[0])
    for part in filter(Path.is_file, (last / 'ema').rglob('*')):
        part.write_bytes(b'')
    with pytest.raises(ConfigError, match=f'the checkpoint of step {STEPS[0]} in .*stage_1 cannot be read: remove it'):
        _train(config, workdir)
    shutil.rmtree(last)
    assert taken == [] and _train(config, workdir)
    assert taken[:3] == [(2, 16, 2), (2, 16, 3), (3, 24, 0)]


@pytest.mark.parametrize(
    ('stages', 'message'),
    [
        (({'steps': 4}, {'steps': 7}), r'stages\[1\].steps = 6, not 7'),
        (({'steps': 4},), r'len\(stages\) = 2, not 1'),
        ((), r'len\(stages\) = 2, not 0'),
    ],
)
def test_other_stages_are_another_experiment(videos, killed, stages, message):
    values = staged_config(videos)
    values.stages = stages
    with pytest.raises(ConfigError, match=f'was started with {message}: use another --workdir'):
        save_config(killed, from_config_dict(values))


def test_what_a_stage_computes_with_may_change(tmp_path, videos, killed):
    config = from_config_dict(staged_config(videos))
    (tmp_path / 'stage_1' / 'checkpoints' / '4').mkdir(parents=True)
    save_config(tmp_path, config)
    first, second = config.stages
    other = dataclasses.replace(config, stages=(first, dataclasses.replace(second, remat='block', fsdp=2)))
    (tmp_path / 'config.json').write_text((killed / 'config.json').read_text())
    save_config(tmp_path, other)
    assert load_config(tmp_path) == other


def test_parameters_that_depend_on_the_size_stay_at_one_size(tmp_path, videos, steps):
    taken, _ = steps
    for change in ({'frames': 3}, {'height': 24}, {'width': 24}):
        config = staged_config(videos, 'magi')
        config.stages = ({'steps': 1}, {'steps': 1, **change})
        ((field, value),) = change.items()
        with pytest.raises(ConfigError, match=rf"^stage 2: data.{field} = {value}, but stage 1 has .* 'magi' .*[^\n]$"):
            _train(config, tmp_path / field)
    assert taken == []
    config.stages = ({'steps': 1}, {'steps': 2, 'batch_size': 4, 'learning_rate': 0.5, 'warmup_steps': 1})
    config = from_config_dict(config)
    stages.check_stages(config, loop.frozen_tokenizer(config, tmp_path), 1)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'batch_size': 6, 'accumulate': 4}, 'data.batch_size = 6 is not a multiple of optim.accumulate = 4'),
        ({'height': 20}, 'frames of 20x16 must be multiples of tokenizer.downsample = 8'),
        ({'frames': 6}, 'none of the 3 video files .* has 5 frames, fewer than data.frames = 6'),
        ({'source': 'nowhere'}, 'no dataset nowhere under .*: build it with launch.prepare_data'),
        ({'sequence': 3}, '.*mesh.sequence = 3 .* do not lay out 1 devices'),
    ],
)
def test_all_stages_are_checked_before_the_first_trains(tmp_path, videos, steps, change, message):
    taken, _ = steps
    config = staged_config(videos)
    config.stages = ({'steps': 1}, {'steps': 1, **change})
    with pytest.raises(ConfigError, match=f'^stage 2: {message}') as error:
        _train(config, tmp_path)
    assert '\n' not in str(error.value) and taken == [] and not (tmp_path / 'stage_1').exists()


def test_latents_of_another_size_are_refused(tmp_path, videos, steps, monkeypatch):
    settings = latents.LatentSettings(
        'train', 'validation', 16, 16, 2, 0, 1, False, False, 0, 0, (2, 2, 2, 192), False, 'float32', 1
    )
    description = latents.Description(settings, 'of the tokenizer', videos, '')
    monkeypatch.setattr(latents, 'describe', lambda data: description if data.source == 'small' else None)
    monkeypatch.setattr(loop, 'describe', latents.describe)
    monkeypatch.setattr(loop, 'fingerprint', lambda _: 'of the tokenizer')
    config = staged_config(videos)
    config.stages = ({'steps': 1}, {'steps': 1, 'source': 'small', 'height': 24})
    with pytest.raises(
        ConfigError, match='^stage 2: small holds latents of data.height = 16, not 24: encode them again'
    ):
        _train(config, tmp_path)
    assert steps[0] == []


def test_a_stage_replaces_exactly_its_fields(videos):
    config = from_config_dict(staged_config(videos))
    assert set(STAGE_FIELDS) == {field.name for field in dataclasses.fields(StageConfig)}
    first = stage_config(config, 1)
    assert dataclasses.replace(first, stages=config.stages, train=config.train) == config
    values = {'steps': 11, 'frames': 5, 'height': 8, 'width': 24, 'source': 'a', 'batch_size': 12, 'accumulate': 3}
    values |= {'learning_rate': 0.25, 'warmup_steps': 7, 'remat': 'block', 'fsdp': 2, 'sequence': -1}
    config = dataclasses.replace(config, stages=(StageConfig(), StageConfig(**values)))
    second = stage_config(config, 2)
    for name, path in STAGE_FIELDS.items():
        group, field = path.split('.')
        assert getattr(getattr(second, group), field) == values[name]
    assert second.seed not in (config.seed, stage_config(config, 1).seed) and select_stage(config) == second
    assert select_stage(config, 1).stages == () and select_stage(first) == first
    for number in (3, -1):
        with pytest.raises(ConfigError, match=f'there is no stage {number}, config.stages holds 2: choose 1 to 2'):
            select_stage(config, number)


@pytest.mark.parametrize(
    ('stages', 'message'),
    [
        (({'frmes': 5},), r'unknown config field config.stages\[0\].frmes: choose one of steps, frames'),
        (({}, {'frames': -5}), r'config.stages\[1\].frames = -5 is out of range'),
        ((5,), r'config.stages\[0\] = 5 is not a group of fields'),
    ],
)
def test_a_wrong_stage_is_named(videos, stages, message):
    values = staged_config(videos)
    values.stages = stages
    with pytest.raises(ConfigError, match=message):
        from_config_dict(values)


def test_an_autoencoder_has_no_stages(videos):
    config = dataclasses.replace(from_config_dict(staged_config(videos)), objective='autoencoder')
    with pytest.raises(ConfigError, match='objective = autoencoder has none: set config.stages'):
        check_config(config)


def test_a_saved_config_without_the_field_has_no_stages(videos):
    values = json.loads(json.dumps(dataclasses.asdict(stage_config(from_config_dict(staged_config(videos)), 1))))
    without = {name: value for name, value in values.items() if name != 'stages'}
    assert from_config_dict(without) == from_config_dict(values)
