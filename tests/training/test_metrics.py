"""What a run writes can be read back, also after it was killed."""

import io
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from magi_jax.data.video_file import encode_gif
from magi_jax.training import metrics
from magi_jax.training.hooks import LABEL_HEIGHT, labelled_rows, row_names
from magi_jax.training.metrics import FILE, MetricWriter, StepRate, read_metrics


def events(workdir):
    """All events of a workdir, in the order of their files; parses the TFRecord framing, checksums left aside."""
    found = []
    for path in sorted((workdir / 'tensorboard').iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], 'little')
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def noise(frames=7, height=11, width=13):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def test_scalars_come_back_from_both_files(tmp_path):
    writer = MetricWriter(str(tmp_path))
    writer.scalars(3, {'loss': np.float32(0.25), 'rate': jax.numpy.float32(2.0)})
    writer.scalars(5, {'loss': 1})
    # Not closed: what was written must be readable while the run goes on.
    assert read_metrics(str(tmp_path)) == {'loss': {3: 0.25, 5: 1.0}, 'rate': {3: 2.0}}
    written = [(e.step, v.tag, v.simple_value) for e in events(tmp_path) for v in e.summary.value]
    assert written == [(3, 'loss', 0.25), (3, 'rate', 2.0), (5, 'loss', 1.0)]
    writer.close()


def test_infinite_and_missing_numbers_come_back(tmp_path):
    writer = MetricWriter(str(tmp_path))
    writer.scalars(1, {'inf': float('inf'), 'nan': float('nan')})
    written = read_metrics(str(tmp_path))
    assert written['inf'] == {1: float('inf')} and np.isnan(written['nan'][1])


def test_text_keeps_its_lines(tmp_path):
    MetricWriter(str(tmp_path)).text(7, 'config', '{\n "seed": 0\n}')
    ((step, value),) = [(e.step, v) for e in events(tmp_path) for v in e.summary.value]
    assert (step, value.metadata.plugin_data.plugin_name) == (7, 'text') and value.tag.startswith('config')
    assert value.tensor.string_val[0].decode() == '    {\n     "seed": 0\n    }\n'


def test_the_rate_of_steps_leaves_out_what_is_paused(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, 'perf_counter', lambda: now[0])
    rate = StepRate()
    now[0] += 2.0
    with rate.paused():
        now[0] += 1000.0
    now[0] += 3.0
    assert rate.per_second(10) == 2.0
    now[0] += 4.0
    assert rate.per_second(1) == 0.25


def test_only_a_true_clip_is_called_real():
    video, latents = {'video': noise()}, {'mean': noise()}
    assert row_names('masked_diffusion', video) == ('real', 'generated')
    assert row_names('masked_diffusion', latents) == ('reconstruction', 'generated')
    assert row_names('autoencoder', video) == ('real', 'reconstruction')


@pytest.mark.parametrize('names', [('real', 'generated'), ('reconstruction', 'generated')])
def test_rows_of_a_preview_are_under_their_names(names):
    clips = {name: np.stack([noise(3, 16, 48), noise(3, 16, 48)[:, ::-1]]) for name in names}
    shown = labelled_rows(clips)
    assert shown.shape == (3, 2 * (LABEL_HEIGHT + 16), 96, 3)
    strips = [shown[:, i * (LABEL_HEIGHT + 16) :][:, :LABEL_HEIGHT] for i in range(2)]
    assert all(strip.max() > 200 and (strip == strip[:1]).all() for strip in strips)
    assert (strips[0] != strips[1]).any()
    for i, name in enumerate(names):
        rows = shown[:, i * (LABEL_HEIGHT + 16) + LABEL_HEIGHT :][:, :16]
        np.testing.assert_array_equal(rows, np.concatenate(list(clips[name]), axis=2))


def test_video_is_a_gif_of_that_size(tmp_path):
    MetricWriter(str(tmp_path)).video(4, 'sample', noise(), fps=8)
    (value,) = [v for e in events(tmp_path) for v in e.summary.value]
    gif = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert value.tag == 'sample' and (value.image.height, value.image.width) == (11, 13)
    assert (gif.format, gif.size, gif.n_frames) == ('GIF', (13, 11), 7)


@pytest.mark.parametrize(('fps', 'milliseconds'), [(8, 120), (25, 40), (50, 20), (1000, 20)])
def test_gif_speed(fps, milliseconds):
    assert Image.open(io.BytesIO(encode_gif(noise(), fps))).info['duration'] == milliseconds


def test_gif_keeps_flat_colours():
    video = np.zeros((3, 5, 7, 3), np.uint8)
    video[np.arange(3), :, :, np.arange(3)] = 255  # a red, a green and a blue frame
    gif = Image.open(io.BytesIO(encode_gif(video, 10)))
    for index in range(3):
        gif.seek(index)
        np.testing.assert_array_equal(np.asarray(gif.convert('RGB')), video[index])


def test_half_written_last_line_is_ignored_then_cut(tmp_path):
    MetricWriter(str(tmp_path)).scalars(1, {'loss': 1.0})
    with open(tmp_path / FILE, 'a') as file:
        file.write('{"step": 2, "values": {"lo')
    assert read_metrics(str(tmp_path)) == {'loss': {1: 1.0}}
    MetricWriter(str(tmp_path)).scalars(3, {'loss': 3.0})
    assert read_metrics(str(tmp_path)) == {'loss': {1: 1.0, 3: 3.0}}


def test_damage_in_the_middle_is_named(tmp_path):
    MetricWriter(str(tmp_path)).scalars(1, {'loss': 1.0})
    with open(tmp_path / FILE, 'a') as file:
        file.write('garbage\n{"resumed_at": 1}\n')
    with pytest.raises(ValueError, match=f'{FILE} line 2 is damaged'):
        read_metrics(str(tmp_path))


def test_resume_takes_back_later_steps(tmp_path):
    first = MetricWriter(str(tmp_path))
    for step in (10, 20, 30):
        first.scalars(step, {'loss': step})
    second = MetricWriter(str(tmp_path), resume_step=20)
    assert read_metrics(str(tmp_path)) == {'loss': {10: 10.0, 20: 20.0}}
    second.scalars(25, {'loss': 0.5})
    assert read_metrics(str(tmp_path)) == {'loss': {10: 10.0, 20: 20.0, 25: 0.5}}
    (start,) = [e for e in events(tmp_path) if e.session_log.status == SessionLog.START]
    assert start.step == 21


def test_a_value_written_twice_counts_once(tmp_path):
    writer = MetricWriter(str(tmp_path))
    writer.scalars(10, {'a': 1, 'b': 1})
    writer.scalars(10, {'b': 2})
    assert read_metrics(str(tmp_path)) == {'a': {10: 1.0}, 'b': {10: 2.0}}


def test_quick_restarts_do_not_overwrite_event_files(tmp_path):
    for step in range(3):
        writer = MetricWriter(str(tmp_path))
        writer.scalars(step, {'loss': step})
        writer.close()
    assert [e.step for e in events(tmp_path) if e.summary.value] == [0, 1, 2]


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    writer = MetricWriter(str(tmp_path / 'run'))
    writer.scalars(1, {'loss': 1.0})
    writer.video(1, 'sample', noise(), fps=8)
    writer.close()
    assert not (tmp_path / 'run').exists()


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=FILE):
        read_metrics(str(tmp_path))


def test_kill_9_loses_nothing_that_was_written(tmp_path):
    program = (
        'import os, signal, sys\n'
        'from magi_jax.training.metrics import MetricWriter\n'
        'writer = MetricWriter(sys.argv[1])\n'
        'for step in range(5): writer.scalars(step, {"loss": step})\n'
        'os.kill(os.getpid(), signal.SIGKILL)\n'
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    done = subprocess.run([sys.executable, '-c', program, str(tmp_path)], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_metrics(str(tmp_path)) == {'loss': {step: float(step) for step in range(5)}}
    assert [e.step for e in events(tmp_path) if e.summary.value] == list(range(5))
