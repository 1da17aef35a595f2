"""What every command shares: progress on the terminal, and errors as one line with a non-zero exit status."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging
from tqdm import tqdm

from magi_jax.config import Config, ConfigError, from_config_dict

# Mistakes that a person can mend, and whose message says how; anything else is a bug and keeps its traceback.
EXPECTED = (ConfigError, FileNotFoundError, FloatingPointError)


class Terminal:
    """The training loop's console: plain lines, and a progress bar with rate and time left."""

    def line(self, text: str) -> None:
        tqdm.write(text)

    def progress(self, initial: int, total: int) -> tqdm:
        return tqdm(initial=initial, total=total, unit='step', dynamic_ncols=True, smoothing=0.05, mininterval=1.0)


def frame_progress(made: Iterator[Any], total: int) -> Iterator[Any]:
    """A progress bar around newly sampled frames."""
    return tqdm(made, total=total, unit='frame', dynamic_ncols=True)


def run(main: Callable[[], int | None]) -> None:
    """Parses flags, runs `main` and exits with its status; expected errors become one line on stderr and status 1."""
    def guarded(_: list[str]) -> int:
        logging.set_verbosity(logging.WARNING)
        try:
            return main() or 0
        except EXPECTED as error:
            return _fail(error)
        except Exception as error:
            if _is_disk_full(error):
                return _fail('the disk is full: free space and run the same command again; the last complete checkpoint is safe')
            raise

    try:
        app.run(guarded, flags_parser=_parse_flags)
    except (ConfigError, FileNotFoundError) as error:  # raised by a config file while flags are parsed
        sys.exit(_fail(error))


def read_config(flag: flags.FlagHolder) -> Config:
    """The value of a `--config` flag as a checked `Config`.

    Raises:
      ConfigError: the file is missing or broken, or a field is unknown or ill-typed.
    """
    try:
        values = flag.value.to_dict()
    except ConfigError:
        raise
    except Exception as error:  # whatever the config file raised comes out at the first use
        raise ConfigError(f'--config: {_last_line(error)}') from error
    return from_config_dict(values)


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with mistakes as one line (config_flags puts a whole traceback into its messages)."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(_last_line(error)) from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).replace('\\n', '\n').strip('\'" ').splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _fail(error: object) -> int:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    return 1


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, 'errno', None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
