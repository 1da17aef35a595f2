"""Metrics of a run: JSON lines for programs, TensorBoard event files for people.

`metrics.jsonl` holds one object per line, such as {"step": 3, "time": 1.7e9, "values": {"loss": 0.5}}. A resumed run
writes {"resumed_at": 2}. That line cancels every earlier line of a later step. Dimension key: T frames, H, W pixels.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator

import jax
import numpy as np
import tensorboardX.summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from magi_jax.data.video_file import encode_gif

FILE = 'metrics.jsonl'


class MetricWriter:
    """Appends to `workdir/metrics.jsonl` and `workdir/tensorboard/`. Every call flushes to disk before it returns.

    Only process 0 writes, so every process of a pod can run the same code.

    Args:
      workdir: local or mounted folder, created if missing.
      resume_step: step of the restored checkpoint; lines of later steps are cancelled. None keeps all lines.
    """

    def __init__(self, workdir: str, resume_step: int | None = None):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        path = os.path.join(workdir, FILE)
        events = os.path.join(workdir, 'tensorboard')
        os.makedirs(events, exist_ok=True)
        _drop_torn_line(path)
        self._lines = open(path, 'a', encoding='utf-8')  # noqa: SIM115, closed by close()
        # tensorboardX names files by the second, so a quick restart would overwrite the previous file.
        self._events = EventsWriter(os.path.join(events, 'events'), f'.{time.time_ns()}')
        if resume_step is not None:
            self._write_line({'resumed_at': resume_step})
            start = SessionLog(status=SessionLog.START)  # TensorBoard drops events from this step on
            self._write_event(Event(step=resume_step + 1, session_log=start))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one line with all `values` (anything that `float()` accepts) of an optimizer step."""
        if not self._active:
            return
        values = {name: float(value) for name, value in values.items()}
        self._write_line({'step': int(step), 'time': round(time.time(), 3), 'values': values})
        self._write_summary(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def video(self, step: int, name: str, video: np.ndarray, fps: float) -> None:
        """Write uint8 [T,H,W,3] as an animated image, to TensorBoard only."""
        if not self._active:
            return
        _, height, width, _ = video.shape
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_gif(video, fps))
        self._write_summary(step, [Summary.Value(tag=name, image=image)])

    def text(self, step: int, name: str, text: str) -> None:
        """Write text, to TensorBoard only. Its lines and indentation are kept."""
        if self._active:
            code = ''.join(f'    {line}\n' for line in text.splitlines())  # code block in Markdown
            self._write_summary(step, tensorboardX.summary.text(name, code).value)

    def close(self) -> None:
        """Close both files."""
        if self._active:
            self._lines.close()
            self._events.close()

    def _write_line(self, line: dict) -> None:
        self._lines.write(json.dumps(line) + '\n')
        self._lines.flush()

    def _write_summary(self, step: int, values: list[Summary.Value]) -> None:
        self._write_event(Event(step=int(step), summary=Summary(value=values)))

    def _write_event(self, event: Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
        self._events.flush()


class StepRate:
    """Measures steps per second, without the time spent in `paused`."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def per_second(self, steps: int) -> float:
        """Return the rate of the `steps` steps since the last call, or since the start."""
        now = time.perf_counter()
        rate = steps / max(now - self._since, 1e-9)
        self._since = now
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Ignore the time spent in this context."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before


def read_metrics(workdir: str) -> dict[str, dict[int, float]]:
    """Read all scalars of a run as {name: {step: value}} with ascending steps.

    The last of repeated values counts. Lines that a resumed run cancelled are skipped, and so is a half-written last
    line.

    Raises:
      FileNotFoundError: the run has no metrics file.
      ValueError: a line before the last is damaged; the message names it.
    """
    path = os.path.join(workdir, FILE)
    with open(path, encoding='utf-8', errors='replace') as file:
        lines = file.read().split('\n')[:-1]  # text after the last newline is empty or half-written
    latest: dict[tuple[int, str], float] = {}
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path} line {number} is damaged ({error}): delete that line') from error
        if 'resumed_at' in line:
            latest = {key: value for key, value in latest.items() if key[0] <= line['resumed_at']}
        else:
            latest |= {(line['step'], name): value for name, value in line['values'].items()}
    metrics: dict[str, dict[int, float]] = {}
    for (step, name), value in sorted(latest.items()):
        metrics.setdefault(name, {})[step] = value
    return metrics


def _drop_torn_line(path: str) -> None:
    """Truncate the file after its last newline.

    The next line must not be appended to a line that a killed run left half-written.
    """
    if not os.path.exists(path):
        return
    with open(path, 'r+b') as file:
        file.truncate(file.read().rfind(b'\n') + 1)
