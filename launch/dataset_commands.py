"""Shared code of commands that make datasets: the shard of this process, and the final check."""

from tqdm import tqdm

from magi_jax.config import ConfigError
from magi_jax.data import prepared
from magi_jax.data.preparation import dataset, shards

SHOWN = 20  # number of faults that are printed


def parse_shard(text: str) -> tuple[int, int]:
    """Parse a shard: 'i/n' -> (i, n); '' -> (0, 1).

    Raises:
      ConfigError: the text has another form.
    """
    part, _, parts = (text or '0/1').partition('/')
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ConfigError(f'--shard {text!r} is not i/n with i from 0 to n - 1')
    return int(part), int(parts)


def check_dataset(name: str, data_dir: str, processes: int, check_records: dataset.CheckRecords) -> None:
    """Verify a finished dataset, see `dataset.check`.

    Raises:
      ConfigError: there are faults; the first ones are printed.
    """
    found, count = [], 0
    total = len(shards.planned_shards(prepared.dataset_folder(name, data_dir), dataset.read_plan(name, data_dir)))
    lines_of_shards = dataset.check(name, data_dir, processes, check_records)
    for lines in tqdm(lines_of_shards, total=total, unit='shard', dynamic_ncols=True):
        found, count = found + lines, count + 1
    for line in found[:SHOWN]:
        print(line)
    if found:
        raise ConfigError(f'{len(found)} faults in {name}; delete reports/ of the bad shards and run its command again')
    print(f'{name} is whole: {count} shards')
