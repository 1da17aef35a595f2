"""Functions that every command shares: progress on the terminal, and errors as one line with a non-zero exit status."""

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
from ml_collections.config_flags import config_path
from tqdm import tqdm

from magi_jax.config import Config, ConfigError, from_config_dict
from magi_jax.config.stages import STAGE_FIELDS
from magi_jax.config_checks import check_config
from magi_jax.data import cache
from magi_jax.data.video_file import VideoError
from magi_jax.fields import expand_path

from .commands import qualify_commands
from .config_flag import config_to_explain, print_config_help

flags.disclaim_key_flags()  # --help then lists a flag of `define_path` under the command that defines it

CACHE_VARIABLE = 'MAGI_JAX_CACHE'
CACHE_HELP = f'${CACHE_VARIABLE}, or {cache.CACHE}'
COMPILED_PROGRAMS = 'compilation'  # subfolder of the cache folder
DISK_FULL = 'the disk is full: free space and run the same command again; the last complete checkpoint is safe'
OUT_OF_MEMORY = (
    'out of memory ({}): lower data.batch_size or the size of the model for training, --num or --batch for sampling'
)
# User errors, whose messages say what to do. Any other exception is a bug and keeps its traceback.
EXPECTED_ERRORS = (ConfigError, VideoError, OSError, FloatingPointError)


class Terminal:
    """Show the console output of the training loop: lines, and a progress bar with rate and time left.

    Only the first process prints.
    """

    def line(self, text: str) -> None:
        if is_first():
            tqdm.write(qualify_commands(text))

    def progress(self, initial: int, total: int) -> tqdm:
        bar = {'unit': 'step', 'dynamic_ncols': True, 'smoothing': 0.05, 'mininterval': 1.0}
        return tqdm(initial=initial, total=total, disable=not is_first(), **bar)


def frame_progress(frames: Iterator[Any], total: int) -> Iterator[Any]:
    """Show a progress bar over newly sampled frames.

    Wait for each frame: dispatch returns at once, so it would fill the bar too early.
    """
    ready = (jax.block_until_ready(frame) for frame in frames)
    return tqdm(ready, total=total, unit='frame', dynamic_ncols=True, leave=False, disable=not is_first())


def check_new(*paths: Path) -> None:
    """Raise ConfigError if one of the result files already exists. Measurements are never overwritten."""
    for path in paths:
        if path.exists():
            raise ConfigError(f'{path} exists already: name another file, or remove it')


def unused_path(path: Path) -> Path:
    """Return `path` if it does not exist, else the first of NAME_2, NAME_3, ... that does not exist."""
    numbered = (path.with_stem(f'{path.stem}_{number}') for number in itertools.count(2))
    return next(name for name in itertools.chain([path], numbered) if not name.exists())


def is_first() -> bool:
    """Return True in the process that prints and writes files for all processes."""
    return jax.process_index() == 0


def run(main: Callable[[], int | None], session: contextlib.AbstractContextManager | None = None) -> None:
    """Parse flags, run `main` and exit with its status.

    Print an expected error as one line on stderr and exit with status 1.

    Args:
      main: function that returns the exit status; None means 0.
      session: context in which `main` runs, entered after flag parsing: `distributed.session()` for several hosts.
    """

    def guarded(_: list[str]) -> int:
        logging.set_verbosity(logging.WARNING)
        # Orbax logs the traceback of a failed save before it raises the same error.
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
    main_module.__doc__ = qualify_commands(main_module.__doc__ or '')  # the text of --help
    try:
        app.run(guarded, flags_parser=_parse_flags)
    except ConfigError as error:
        sys.exit(_fail(error))


def define_path(name: str, default: str | None, text: str) -> flags.FlagHolder:
    """Define a flag that names a file or folder. A leading `~` in its value is the home folder."""
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
    if isinstance(error, EXPECTED_ERRORS):
        return _fail(error)
    raise error


def _unusable_platforms(error: Exception) -> str:
    """Return JAX_PLATFORMS if `error` comes from starting these backends, else ''.

    For some platforms JAX raises only an AssertionError without a text.
    """
    frames = traceback.extract_tb(error.__traceback__)
    started = isinstance(error, (RuntimeError, AssertionError)) and frames and frames[-1].name == 'backends'
    return os.environ.get('JAX_PLATFORMS', '') if started else ''


def _is_unusable_cache(path: str) -> bool:
    """Return True if the cache folder is not writable and `path` is inside it or above it."""
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
    """Cache compiled programs on disk: in JAX_COMPILATION_CACHE_DIR, or else in the cache folder."""
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = cache.cache_folder() / COMPILED_PROGRAMS
    except ConfigError:  # the home folder is unknown; the command may not need it otherwise
        folder = None
    if folder and _is_writable(folder):
        jax.config.update('jax_compilation_cache_dir', str(folder))
        return
    where = folder or cache.CACHE
    print(
        f'warning: {where} cannot be written, compiled programs are not cached: set {CACHE_VARIABLE} to another folder',
        file=sys.stderr,
    )


def read_config(flag: flags.FlagHolder) -> Config:
    """Return the value of a `--config` flag as a checked `Config`.

    Raises:
      ConfigError: the file is missing, a field or its value is invalid, or two fields contradict.
    """
    try:
        config = from_config_dict(flag.value.to_dict())
    except OSError as error:  # config_flags raises it at the first use of the value
        raise ConfigError(last_line(error)) from error
    check_config(config)
    return config


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse flags with absl. Raise ConfigError for user mistakes; let other exceptions of a config file propagate."""
    try:
        argv = [_expand_config(argument) for argument in argv]
        if 'config' in flags.FLAGS and (explained := config_to_explain(argv)):
            print_config_help(explained)
            sys.exit(0)
        _, *unknown = flags.FLAGS(argv)
        if unknown:
            suggestion = 'set a config field with --config.FIELD=VALUE' if 'config' in flags.FLAGS else 'see --help'
            raise ConfigError(f'{unknown[0]!r} is not a flag: {suggestion}')
        return argv[:1]
    except flags.Error as error:
        innermost = error
        while innermost.__context__ is not None:
            innermost = innermost.__context__
        if isinstance(innermost, ConfigError):  # raised in the config file; config_flags wraps it in a full traceback
            raise innermost from None
        missing = re.match(r'flag --(\w+)=None: Flag --\1 must have a value', str(error))
        raise ConfigError(_missing_flag_message(missing[1]) if missing else last_line(error)) from error
    except OSError as error:  # an override of a field is the first use of a --config that cannot be read
        raise ConfigError(last_line(error)) from error
    except AttributeError as error:
        if not isinstance(error.__context__, KeyError):
            raise
        name_and_suggestion = error.__context__.args[0]
        raise ConfigError(f'unknown config field {name_and_suggestion}') from error
    except LookupError as error:
        if traceback.extract_tb(error.__traceback__)[-1].filename != config_path.__file__:
            raise
        raise ConfigError(
            f'a flag --config.stages[I].FIELD has no place in the config ({error}): stages are counted from 0,'
            f' fields are {", ".join(STAGE_FIELDS)}'
        ) from error


def _expand_config(argument: str) -> str:
    """Expand `~` in a command-line argument `--config=~/FILE.py`, which config_flags does not do."""
    name, equals, value = argument.partition('=')
    return name + equals + expand_path(value) if name in ('--config', '-config') else argument


def _missing_flag_message(name: str) -> str:
    """Return the error message for a missing required flag, with the example of the command."""
    example = re.search(r'python -m (?:magi_jax\.)?launch\..*', sys.modules['__main__'].__doc__ or '')
    return f'--{name} is missing: add --{name} ({flags.FLAGS[name].help})' + (
        f', as in {example[0]}' if example else ''
    )


def last_line(error: Exception) -> str:
    """Return the last line of an error message. config_flags puts a location and a traceback before it."""
    return (str(error).strip().splitlines() or [repr(error)])[-1].strip()


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Print a warning of this project in one line; suppress the warnings of libraries."""
    if category is UserWarning and is_first():
        print(f'warning: {qualify_commands(str(message))}', file=sys.stderr)


def _fail(error: object) -> int:
    print(f'error: {qualify_commands(" ".join(str(error).split()))}', file=sys.stderr)
    return 1


def is_disk_full(error: BaseException | None) -> bool:
    """Return True if an error or one of its causes is a full disk; `None` is not.

    TensorStore reports a full disk only in the text of its message.
    """
    while error is not None:
        if getattr(error, 'errno', None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
