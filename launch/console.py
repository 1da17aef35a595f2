"""What every command shares: progress on the terminal, and errors as one line with a non-zero exit status."""

import contextlib
import errno
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from tqdm import tqdm

from magi_jax.config import Config, ConfigError, from_config_dict
from magi_jax.data.video_file import VideoError

COMPILED_PROGRAMS = '~/.cache/magi_jax/compilation'
DISK_FULL = 'the disk is full: free space and run the same command again; the last complete checkpoint is safe'
# Mistakes that a person can mend, and whose message says how; anything else is a bug and keeps its traceback.
EXPECTED = (ConfigError, VideoError, OSError, FloatingPointError)


class Terminal:
    """The training loop's console: plain lines, and a progress bar with rate and time left; of the first process."""

    def line(self, text: str) -> None:
        if is_first():
            tqdm.write(text)

    def progress(self, initial: int, total: int) -> tqdm:
        bar = {'unit': 'step', 'dynamic_ncols': True, 'smoothing': 0.05, 'mininterval': 1.0}
        return tqdm(initial=initial, total=total, disable=not is_first(), **bar)


def frame_progress(made: Iterator[Any], total: int) -> Iterator[Any]:
    """A progress bar around newly sampled frames, each waited for: dispatch alone would fill the bar at once."""
    ready = (jax.block_until_ready(frame) for frame in made)
    return tqdm(ready, total=total, unit='frame', dynamic_ncols=True, leave=False, disable=not is_first())


def check_new(*paths: Path) -> None:
    """Raise ConfigError if one of the result files is there already: a measurement is not overwritten."""
    for path in paths:
        if path.exists():
            raise ConfigError(f'{path} exists already: name another place, or remove it')


def free_name(path: Path) -> Path:
    """Return `path`, or if it is there already the first of NAME_2, NAME_3, ... that is not."""
    numbered = (path.with_stem(f'{path.stem}_{number}') for number in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not name.exists())


def is_first() -> bool:
    """Whether this process speaks and writes for all of them."""
    return jax.process_index() == 0


def run(main: Callable[[], int | None], session: contextlib.AbstractContextManager | None = None) -> None:
    """Parses flags, runs `main` and exits with its status; expected errors become one line on stderr and status 1.

    Args:
      main: returns the exit status; None is 0.
      session: entered around it once the flags are parsed: `distributed.session()` where several hosts work together.
    """

    def guarded(_: list[str]) -> int:
        logging.set_verbosity(logging.WARNING)
        # Orbax logs the traceback of a failed save, and then raises it.
        logging.get_absl_handler().addFilter(lambda record: not record.exc_info)
        keep_compiled_programs()
        warnings.showwarning = _show_warning
        try:
            with session or contextlib.nullcontext():
                return main() or 0
        except Exception as error:  # noqa: BLE001, raised again unless expected
            return report(error)

    try:
        app.run(guarded, flags_parser=_parse_flags)
    except ConfigError as error:
        sys.exit(_fail(error))


def report(error: Exception) -> int:
    """Says an expected error in one line on stderr and returns the exit status 1; raises any other."""
    if is_disk_full(error):
        return _fail(DISK_FULL)
    if isinstance(error, EXPECTED):
        return _fail(error)
    raise error


def keep_compiled_programs() -> None:
    """What was compiled once is read from disk the next time; JAX_COMPILATION_CACHE_DIR names another folder."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update('jax_compilation_cache_dir', str(Path(COMPILED_PROGRAMS).expanduser()))


def read_config(flag: flags.FlagHolder) -> Config:
    """The value of a `--config` flag as a checked `Config`.

    Raises:
      ConfigError: the file is missing, or a field is unknown or ill-typed.
    """
    try:
        return from_config_dict(flag.value.to_dict())
    except OSError as error:  # config_flags keeps it for the first use
        raise ConfigError(last_line(error)) from error


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser; what was typed wrong is a ConfigError, what else a config file raises is a bug of that file."""
    try:
        _, *strays = flags.FLAGS(argv)
        if strays:
            way_out = 'a config field is set with --config.FIELD=VALUE' if 'config' in flags.FLAGS else 'see --help'
            raise ConfigError(f'{strays[0]!r} is no flag: {way_out}')
        return argv[:1]
    except flags.Error as error:
        innermost = error
        while innermost.__context__ is not None:
            innermost = innermost.__context__
        if isinstance(innermost, ConfigError):  # by the config file; config_flags wraps it in its whole traceback
            raise innermost from None
        raise ConfigError(last_line(error)) from error
    except OSError as error:  # the first use of a --config that cannot be read is an override of one of its fields
        raise ConfigError(last_line(error)) from error
    except AttributeError as error:
        if not isinstance(error.__context__, KeyError):
            raise
        name_and_suggestion = error.__context__.args[0]
        raise ConfigError(f'unknown config field {name_and_suggestion}') from error


def last_line(error: Exception) -> str:
    """What happened; config_flags puts where and the traceback before it."""
    return str(error).strip().splitlines()[-1].strip()


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """What the project warns of, in one line; what libraries warn each other of, not at all."""
    if category is UserWarning and is_first():
        print(f'warning: {message}', file=sys.stderr)


def _fail(error: object) -> int:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 1


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk (`None` is not); TensorStore tells it only in its message."""
    while error is not None:
        if getattr(error, 'errno', None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
