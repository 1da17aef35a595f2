"""What every command shares: progress on the terminal, and errors as one line with a non-zero exit status."""

import contextlib
import errno
import itertools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from tqdm import tqdm

from magi_jax.config import Config, ConfigError, from_config_dict
from magi_jax.config_checks import check_config
from magi_jax.data import cache
from magi_jax.data.video_file import VideoError
from magi_jax.fields import expand_path

from .commands import as_called_here
from .config_flag import config_to_explain, print_config_help

CACHE_VARIABLE = 'MAGI_JAX_CACHE'
CACHE_HELP = f'${CACHE_VARIABLE}, or {cache.CACHE}'
COMPILED_PROGRAMS = 'compilation'  # in the cache folder
DISK_FULL = 'the disk is full: free space and run the same command again; the last complete checkpoint is safe'
OUT_OF_MEMORY = (
    'out of memory ({}): lower data.batch_size or the size of the model for training, --num or --batch for sampling'
)
# Mistakes that a person can mend, and whose message says how; anything else is a bug and keeps its traceback.
EXPECTED = (ConfigError, VideoError, OSError, FloatingPointError)


class Terminal:
    """The training loop's console: plain lines, and a progress bar with rate and time left; of the first process."""

    def line(self, text: str) -> None:
        if is_first():
            tqdm.write(as_called_here(text))

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
        warnings.showwarning = _show_warning
        try:
            read_environment()
            keep_compiled_programs()
            with session or contextlib.nullcontext():
                return main() or 0
        except Exception as error:  # noqa: BLE001, raised again unless expected
            return report(error)

    main_module = sys.modules['__main__']
    main_module.__doc__ = as_called_here(main_module.__doc__ or '')  # the text of --help
    try:
        app.run(guarded, flags_parser=_parse_flags)
    except ConfigError as error:
        sys.exit(_fail(error))


def define_path(name: str, default: str | None, text: str) -> flags.FlagHolder:
    """Define a flag that names a file or folder: `~` in its value stands for the home folder."""
    return flags.DEFINE(_PathParser(), name, default, text)


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return expand_path(argument)


def report(error: Exception) -> int:
    """Print an expected error in one line on stderr and return the exit status 1. Raise any other error again."""
    if is_disk_full(error):
        return _fail(DISK_FULL)
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        return _fail(OUT_OF_MEMORY.format(last_line(error)[:200] if str(error) else 'of this machine'))
    if platforms := _unusable_platforms(error):
        return _fail(f'JAX_PLATFORMS={platforms} is not usable: install that backend of jax, or unset JAX_PLATFORMS')
    if isinstance(error, OSError) and error.filename and _is_unusable_cache(os.fsdecode(error.filename)):
        folder = cache.cache_folder()
        return _fail(f'cannot write to {folder} ({error.strerror}): set {CACHE_VARIABLE} to another folder')
    if isinstance(error, EXPECTED):
        return _fail(error)
    raise error


def _unusable_platforms(error: Exception) -> str:
    """Return JAX_PLATFORMS if `error` comes from starting its backends; of some, jax only fails an assertion."""
    frames = traceback.extract_tb(error.__traceback__)
    started = isinstance(error, (RuntimeError, AssertionError)) and frames and frames[-1].name == 'backends'
    return os.environ.get('JAX_PLATFORMS', '') if started else ''


def _is_unusable_cache(path: str) -> bool:
    """Whether `path` is in the cache folder or above it, and the cache folder cannot be written."""
    folder = cache.cache_folder()
    return (folder.is_relative_to(path) or Path(path).is_relative_to(folder)) and not _is_writable(folder)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def read_environment() -> None:
    """Apply MAGI_JAX_CACHE. Raise ConfigError if JAX_ENABLE_X64 is set."""
    if jax.config.jax_enable_x64:
        raise ConfigError('JAX_ENABLE_X64 is set, but the models compute in float32 and bfloat16: unset it')
    if os.environ.get(CACHE_VARIABLE):
        cache.set_cache_folder(os.environ[CACHE_VARIABLE])


def keep_compiled_programs() -> None:
    """Keep compiled programs in the cache folder, or in JAX_COMPILATION_CACHE_DIR, and read them the next time."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = cache.cache_folder() / COMPILED_PROGRAMS
    except ConfigError:  # the home folder is unknown, and a command may need no other file there
        folder = None
    if folder and _is_writable(folder):
        jax.config.update('jax_compilation_cache_dir', str(folder))
        return
    where = folder or cache.CACHE
    print(
        f'warning: {where} cannot be written, compiled programs are not kept: set {CACHE_VARIABLE} to another folder',
        file=sys.stderr,
    )


def read_config(flag: flags.FlagHolder) -> Config:
    """Return the value of a `--config` flag as a checked `Config`.

    Raises:
      ConfigError: the file is missing, a field is unknown or not allowed, or two fields do not fit.
    """
    try:
        config = from_config_dict(flag.value.to_dict())
    except OSError as error:  # config_flags keeps it for the first use
        raise ConfigError(last_line(error)) from error
    check_config(config)
    return config


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse flags with absl. Raise ConfigError for user mistakes; what else a config file raises is a bug of it."""
    try:
        argv = [_expand_config(word) for word in argv]
        if 'config' in flags.FLAGS and (explained := config_to_explain(argv)):
            print_config_help(explained)
            sys.exit(0)
        _, *strays = flags.FLAGS(argv)
        if strays:
            suggestion = 'set a config field with --config.FIELD=VALUE' if 'config' in flags.FLAGS else 'see --help'
            raise ConfigError(f'{strays[0]!r} is not a flag: {suggestion}')
        return argv[:1]
    except flags.Error as error:
        innermost = error
        while innermost.__context__ is not None:
            innermost = innermost.__context__
        if isinstance(innermost, ConfigError):  # by the config file; config_flags wraps it in its whole traceback
            raise innermost from None
        missing = re.match(r'flag --(\w+)=None: Flag --\1 must have a value', str(error))
        raise ConfigError(_missing(missing[1]) if missing else last_line(error)) from error
    except OSError as error:  # the first use of a --config that cannot be read is an override of one of its fields
        raise ConfigError(last_line(error)) from error
    except AttributeError as error:
        if not isinstance(error.__context__, KeyError):
            raise
        name_and_suggestion = error.__context__.args[0]
        raise ConfigError(f'unknown config field {name_and_suggestion}') from error


def _expand_config(word: str) -> str:
    """Return a command-line word with `~` expanded in `--config=~/FILE.py`, which config_flags does not do."""
    name, equals, value = word.partition('=')
    return name + equals + expand_path(value) if name in ('--config', '-config') else word


def _missing(name: str) -> str:
    """Return the error of a required flag that was not given, with the command's own example."""
    example = re.search(r'python -m (?:magi_jax\.)?launch\..*', sys.modules['__main__'].__doc__ or '')
    return f'--{name} is missing: add --{name} ({flags.FLAGS[name].help})' + (
        f', as in {example[0]}' if example else ''
    )


def last_line(error: Exception) -> str:
    """Return the last line of a message. config_flags puts the place and the traceback before it."""
    return (str(error).strip().splitlines() or [repr(error)])[-1].strip()


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """What the project warns of, in one line; what libraries warn each other of, not at all."""
    if category is UserWarning and is_first():
        print(f'warning: {as_called_here(str(message))}', file=sys.stderr)


def _fail(error: object) -> int:
    print(f'error: {as_called_here(" ".join(str(error).split()))}', file=sys.stderr)
    return 1


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a full disk (`None` is not); TensorStore tells it only in its message."""
    while error is not None:
        if getattr(error, 'errno', None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
