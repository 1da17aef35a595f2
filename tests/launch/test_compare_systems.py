"""The comparison of systems: its table from stored results, its times, and the whole command as a real run."""

import dataclasses
import json
import statistics

import pytest

from magi_jax.benchmarks import system_times
from magi_jax.benchmarks.system_table import ROWS, format_table, read_results
from magi_jax.config import MagiConfig, VideomarConfig, from_config_dict
from magi_jax.config_files import import_config
from tests.launch.commands import ROOT, module, run

CONFIG = ROOT / 'configs/compare_systems.py'
PREDICTION = {'psnr_model': 18.841, 'psnr_repeat': 13.7}
ROLLOUT = {'colour': 0.94, 'shape': 0.85, 'count': 0.881, 'moving': 0.7}


def store(folder, frechet):
    """The metrics.json of both protocols, as launch.evaluate writes them, as far as the table reads them."""
    rollout = {f'{name}_model_end': value for name, value in ROLLOUT.items()}
    metrics = {
        'bouncing_shapes': [{'numbers': PREDICTION, 'curves': {}}, {'numbers': rollout | {'colour_real_end': 1.0}}],
        'shapes_five_frame': {'frechet': {'mean': frechet, 'std': 1.25, 'floor': 2.04, 'draws': [frechet]}},
    }
    for protocol, values in metrics.items():
        (folder / protocol).mkdir(parents=True)
        (folder / protocol / 'metrics.json').write_text(json.dumps(values))


def test_the_table_shows_the_stored_results(tmp_path):
    times = {
        'magi': {'parameters': 1_100_000, 'step': 0.1104, 'frame': 0.0149},
        'videomar': {'parameters': 987_654, 'step': 0.2, 'frame': 0.25},
    }
    results = {}
    for name, frechet in (('magi', 19.06), ('videomar', 23.0)):
        store(tmp_path / name, frechet)
        results[name] = read_results(tmp_path / name) | times[name]
    heading, _, *lines = format_table(results).splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in (heading, *lines)]
    assert cells[0] == ['', 'MAGI', 'VideoMAR'] and [row[0] for row in cells[1:]] == list(ROWS)
    assert [row[1] for row in cells[1:]] == [
        '1,100,000', '18.84 dB', '19.1 ± 1.2', '2.0', '0.94', '0.85', '0.88', '0.70', '110 ms', '15 ms',
    ]  # fmt: skip
    assert [row[2] for row in cells[1:4]] == ['987,654', '18.84 dB', '23.0 ± 1.2'] and cells[-1][2] == '250 ms'


def test_both_systems_have_the_same_data_steps_loss_and_sampler():
    configs = import_config(str(CONFIG))
    magi, videomar = (from_config_dict(configs.get_config(variants)) for variants in configs.SYSTEMS.values())
    assert (type(magi), type(videomar)) == (MagiConfig, VideomarConfig) and not videomar.text.encoder
    for group in ('data', 'tokenizer', 'optim', 'seed'):
        assert getattr(magi, group) == getattr(videomar, group), group
    assert magi.train.steps == videomar.train.steps
    for field, value in dataclasses.asdict(videomar.model.head).items():
        assert getattr(magi.model.head, field) == value, field
    assert magi.masking.target_frames == videomar.masking.target_frames == 'every'
    for field in ('mask_steps', 'denoise_steps', 'temperature', 'guidance', 'x0_clip', 'start'):
        assert getattr(magi.sampler, field) == getattr(videomar.sampler, field), field
    assert magi.sampler.opening_temperature == magi.sampler.temperature  # VideoMAR has no other for the first frames
    for field in ('solver', 'long_video', 'keep_frames', 'token_clip', 'temperature_decay'):
        assert getattr(magi.sampler, field) == getattr(videomar.sampler, field), field


class Clocked:
    """A model whose calls take the next of these seconds, on a clock that only they move."""

    def __init__(self, name, clock, step, frame):
        self.name, self.clock, self.seconds = name, clock, {'step': iter(step), 'frame': iter(frame)}
        self.train_inputs = (type('State', (), {'params': {}}),)

    def _call(self, kind):
        self.clock.calls.append((self.name, kind))
        self.clock.now += next(self.seconds[kind])

    def train(self):
        self._call('step')

    def sample(self):
        self._call('frame')


def test_models_take_turns_and_the_median_counts(monkeypatch):
    class Clock:
        now, calls = 0.0, []

    models = {
        'magi': Clocked('magi', Clock, step=(99, 1, 3, 8), frame=(99, 0.5, 0.25, 4)),
        'videomar': Clocked('videomar', Clock, step=(99, 2, 4, 64), frame=(99, 16, 8, 8)),
    }
    monkeypatch.setattr(system_times, '_prepare', models.get)
    monkeypatch.setattr(system_times.resources.time, 'perf_counter', lambda: Clock.now)
    times = system_times.time_systems({name: name for name in models}, repeats=3)
    assert times['magi'] == {'step': statistics.median((1, 3, 8)), 'frame': 0.5, 'parameters': 0}
    assert times['videomar'] == {'step': 4, 'frame': 8, 'parameters': 0}
    turn = [(name, kind) for kind in ('step', 'frame') for name in models]
    assert Clock.calls[4:] == 3 * turn and sorted(Clock.calls[:4]) == sorted(turn)  # the first calls do not count


@pytest.mark.slow
def test_small_models_are_timed():
    configs = import_config(str(CONFIG))
    get_config, systems = configs.get_config, configs.SYSTEMS.items()
    small = {name: from_config_dict(get_config(f'{variants},runlocal')) for name, variants in systems}
    times = system_times.time_systems(small, repeats=2)
    assert set(times) == {'magi', 'videomar'}
    for result in times.values():
        assert 0 < result['frame'] < 60 and 0 < result['step'] < 60 and result['parameters'] > 1000


@pytest.mark.slow
def test_a_small_comparison_from_nothing_to_its_table(environment, tmp_path):
    command = [*module('launch.compare_systems'), f'--config={CONFIG}:runlocal', f'--workdir={tmp_path}', '--repeats=2']
    result = run(command, environment)
    assert result.returncode == 0, result.stderr
    table = (tmp_path / 'systems.md').read_text()
    assert table in result.stdout and '| MAGI | VideoMAR |' in table and table.count('\n') == len(ROWS) + 2
    written = json.loads((tmp_path / 'systems.json').read_text())
    assert written['steps'] == {'magi': 4, 'videomar': 4} and set(written['systems']) == {'magi', 'videomar'}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('metrics.json')}
    assert len(before) == 4
    again = run(command, environment)  # nothing is trained or evaluated again
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('metrics.json')} == before
