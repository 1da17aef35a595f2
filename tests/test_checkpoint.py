"""Checkpoints: any mesh reads them, other experiments do not, and neither a full disk nor damage passes silently."""

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from launch.console import is_disk_full
from magi_jax.checkpoint import Checkpoints, _checksum, latest_step, load_config, save_config
from magi_jax.config import ConfigError, MagiConfig
from magi_jax.parallel.mesh import make_mesh

FIRST = 3
ROWS = 2**12  # of arrays large enough to have a file of their own


def _tree(mesh, shift=0.0, rows=16):
    """'w' divided over data and fsdp, 'step' whole."""
    w = np.float32(np.random.default_rng(0).normal(size=(rows, 7))) + np.float32(shift)
    sharding = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
    return {
        'w': jax.device_put(w, sharding),
        'step': jax.device_put(jnp.int32(5), NamedSharding(mesh, PartitionSpec())),
    }


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _save(workdir, step, items, keep=2):
    with contextlib.closing(Checkpoints(workdir, keep)) as checkpoints:
        checkpoints.save(step, items)


def _restore(workdir, abstract):
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        return checkpoints.restore(abstract)


def _meshes():
    mesh = MagiConfig().mesh
    devices = jax.devices()
    return {
        'one': make_mesh(mesh, devices[:1]),
        'data': make_mesh(mesh, devices),
        'fsdp': make_mesh(dataclasses.replace(mesh, fsdp=4), devices),
    }


@pytest.mark.parametrize(('writer', 'reader'), [('data', 'one'), ('one', 'data'), ('fsdp', 'data'), ('data', 'fsdp')])
def test_a_checkpoint_is_read_on_any_mesh(tmp_path, writer, reader):
    written, wanted = _tree(_meshes()[writer]), _abstract(_tree(_meshes()[reader]))
    _save(tmp_path, FIRST, {'ema': written})
    restored = _restore(tmp_path, {'ema': wanted})['ema']
    for name, leaf in restored.items():
        np.testing.assert_array_equal(leaf, written[name])
        assert leaf.sharding == wanted[name].sharding and leaf.dtype == wanted[name].dtype


def test_the_average_is_read_alone(tmp_path):
    """Sampling needs no memory for optimizer moments: they are not even asked for."""
    tree = _tree(_meshes()['one'])
    _save(tmp_path, FIRST, {'ema': tree, 'training': _tree(_meshes()['one'], shift=1.0)})
    restored = _restore(tmp_path, {'ema': _abstract(tree)})
    assert restored.keys() == {'ema'}
    np.testing.assert_array_equal(restored['ema']['w'], tree['w'])


def test_the_newest_stay(tmp_path):
    mesh = _meshes()['one']
    with contextlib.closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        for step in (1, 2, 5):
            checkpoints.save(step, {'ema': _tree(mesh, shift=step)})
    assert sorted(path.name for path in (tmp_path / 'checkpoints').iterdir()) == ['2', '5']
    restored = _restore(tmp_path, {'ema': _abstract(_tree(mesh))})['ema']
    np.testing.assert_array_equal(restored['w'], _tree(mesh, shift=5)['w'])


def _two_checkpoints(workdir):
    """Writes steps 1 and 2; returns their 'w', which differ, and the files of step 2."""
    trees = [_tree(_meshes()['fsdp'], shift=step, rows=ROWS) for step in (1, 2)]
    with contextlib.closing(Checkpoints(workdir, keep=2)) as checkpoints:
        for step, tree in enumerate(trees, start=1):
            checkpoints.save(step, {'ema': tree})
    files = [path for path in sorted((workdir / 'checkpoints' / '2').rglob('*')) if path.is_file()]
    return [np.asarray(tree['w']) for tree in trees], files


def _invert_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE = {
    'changed': _invert_a_byte,
    'cut': lambda path: os.truncate(path, path.stat().st_size // 2),
    'gone': lambda path: path.unlink(),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_damage_to_any_file_is_noticed_or_harmless(tmp_path, damage):
    """The newest checkpoint comes back to the bit, or the one before with a line that says why."""
    (before, newest), files = _two_checkpoints(tmp_path)
    passed_over, reasons = set(), ''
    for path in files:
        original, said = path.read_bytes(), []
        DAMAGE[damage](path)
        with contextlib.closing(Checkpoints(tmp_path, warn=said.append)) as checkpoints:
            restored = checkpoints.restore({'ema': _abstract(_tree(_meshes()['one'], rows=ROWS))})['ema']['w']
        np.testing.assert_array_equal(restored, before if said else newest, err_msg=str(path))
        if said:
            (line,) = said
            assert re.fullmatch(r'the checkpoint of step 2 in \S+ is damaged \(.+\): trying step 1', line)
            reasons += line
            passed_over.add(path.relative_to(tmp_path / 'checkpoints/2').parts[0])
        path.write_bytes(original)
    assert passed_over >= {'ema', 'checksums'}
    # TensorStore stores large arrays as they are: only the checksum tells.
    assert damage != 'changed' or 'the checksum of ema does not match' in reasons


def test_a_trainer_moves_damaged_checkpoints_aside(tmp_path):
    """The run goes on from the checkpoint before, so it will come to the damaged one's step again."""
    (before, _), _ = _two_checkpoints(tmp_path)
    _invert_a_byte(tmp_path / 'checkpoints/2/ema/manifest.ocdbt')
    said = []
    with contextlib.closing(Checkpoints(tmp_path, keep=2, warn=said.append)) as checkpoints:
        restored = checkpoints.restore({'ema': _abstract(_tree(_meshes()['one'], rows=ROWS))})['ema']
        np.testing.assert_array_equal(restored['w'], before)
        assert len(said) == 1 and checkpoints.latest_step() == latest_step(tmp_path) == 1
        assert [path.name for path in (tmp_path / 'damaged').iterdir()] == ['2']
        checkpoints.save(2, {'ema': restored})
    np.testing.assert_array_equal(_restore(tmp_path, {'ema': _abstract(restored)})['ema']['w'], before)


def test_no_whole_checkpoint_is_an_error_that_moves_nothing(tmp_path):
    _two_checkpoints(tmp_path)
    for step in '12':
        (tmp_path / 'checkpoints' / step / '_CHECKPOINT_METADATA').unlink()
        shutil.rmtree(tmp_path / 'checkpoints' / step / 'ema')
    expected = pytest.raises(ConfigError, match=r'every checkpoint in \S+ is damaged \(step 2: .*in another --workdir')
    with contextlib.closing(Checkpoints(tmp_path, 2, lambda _: None)) as checkpoints, expected as caught:
        checkpoints.restore({'ema': _abstract(_tree(_meshes()['one'], rows=ROWS))})
    assert '\n' not in str(caught.value) and not (tmp_path / 'damaged').exists()


def test_checksums_see_every_change_and_no_mesh():
    meshes = _meshes()
    sums = {int(_checksum(_tree(meshes[name]))) for name in meshes}
    assert len(sums) == 1
    values = {
        'half': np.arange(3, dtype=jnp.bfloat16),
        'flag': np.array([True, False]),
        'whole': np.arange(6).reshape(2, 3),
    }
    for name, value in values.items():
        for index in np.ndindex(value.shape):
            changed = {**values, name: value.copy()}
            changed[name][index] = not value[index] if name == 'flag' else value[index] + 1
            sums.add(int(_checksum(changed)))
    sums |= {int(_checksum(values)), int(_checksum({**values, 'whole': values['whole'][::-1]}))}
    assert len(sums) == 1 + 11 + 2


def test_a_reader_touches_nothing(tmp_path):
    """The half-written folder may be a save in progress; only the trainer, alone in its work folder, may remove it."""
    half = tmp_path / 'checkpoints' / '7.orbax-checkpoint-tmp'
    half.mkdir(parents=True)
    assert latest_step(tmp_path) is None and half.exists()
    _save(tmp_path, FIRST, {'ema': _tree(_meshes()['one'])})
    assert not half.exists()
    assert latest_step(tmp_path / 'nowhere') is None and not (tmp_path / 'nowhere').exists()
    with pytest.raises(FileNotFoundError, match='no checkpoint in .*nowhere.*: train first'):
        _restore(tmp_path / 'nowhere', {'ema': {}})


@pytest.fixture
def started(tmp_path):
    """A run of the default experiment with one checkpoint."""
    save_config(tmp_path, MagiConfig())
    _save(tmp_path, FIRST, {'ema': _tree(_meshes()['one'])})
    return tmp_path


def _with(group, **fields):
    config = MagiConfig()
    return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **fields)})


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (_with('model', width=7), r'model\.width = 1280, not 7: use another --workdir'),
        (_with('data', source='other'), r'data\.source = bouncing_objects/shapes, not other'),
        (_with('train', steps=9), r'train\.steps = 145000, not 9'),
        (_with('masking', noise_std=(0.0,)), r'masking\.noise_std = '),
        (dataclasses.replace(MagiConfig(), seed=1), 'seed = 0, not 1'),
    ],
)
def test_another_experiment_is_refused(started, config, message):
    before = (started / 'config.json').read_bytes()
    with pytest.raises(ConfigError, match=message):
        save_config(started, config)
    assert (started / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
    'config',
    [
        _with('sampler', mask_steps=7), _with('mesh', fsdp=2), _with('data', path='elsewhere', threads=7),
        _with('train', keep_checkpoints=7, checkpoint_every=7, log_every=7, remat='block'),
    ],
)  # fmt: skip
def test_what_a_resumed_run_may_change(started, config):
    save_config(started, config)
    assert load_config(started) == config
    assert [path.name for path in started.iterdir() if path.name.startswith('.')] == []


def test_an_experiment_begins_with_its_first_checkpoint(tmp_path):
    save_config(tmp_path, MagiConfig())
    other = _with('model', width=7)
    save_config(tmp_path, other)
    assert load_config(tmp_path) == other


@pytest.mark.parametrize('text', ['', '{"seed": 3', '[]', '{"seed": "x"}', '{"sede": 3}', '\0'])
def test_a_damaged_config_is_one_line(started, text):
    (started / 'config.json').write_text(text)
    for use in (load_config, lambda workdir: save_config(workdir, MagiConfig())):
        with pytest.raises(ConfigError, match='config') as caught:
            use(started)
        assert 'config' in str(caught.value) and '\n' not in str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    if os.geteuid() != 0:
        pytest.skip('needs root, to mount a file system small enough to fill')
    folder = tmp_path / 'disk'
    folder.mkdir()
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f'this machine lets no file system be mounted: {mounted.stderr.strip()}')
    yield folder
    subprocess.run(['umount', folder], check=True)


def test_a_disk_that_fills_up_is_told_and_spares_the_checkpoint_before(small_disk):
    value = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 30_000, np.uint32))  # 120 kB, incompressible
    checkpoints = Checkpoints(small_disk, keep=2)
    checkpoints.save(1, {'ema': {'w': value}})
    checkpoints.wait()
    with pytest.raises(Exception, match='No space left on device') as caught:
        for step in (2, 3):
            checkpoints.save(step, {'ema': {'w': value + step}})
            checkpoints.wait()
    assert is_disk_full(caught.value) and not is_disk_full(ValueError('another'))
    saved = latest_step(small_disk)
    restored = _restore(small_disk, {'ema': _abstract({'w': value})})['ema']['w']
    np.testing.assert_array_equal(restored, value + (saved if saved > 1 else 0))
