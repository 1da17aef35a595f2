"""Shared code of the commands that make datasets: the part of the work of this process, and the final check."""

from tqdm import tqdm

from magi_jax.config import ConfigError
from magi_jax.data import prepared
from magi_jax.data.preparation import dataset, plans, shards

PRINTED_FAULTS = 20


def parse_shard(text: str) -> tuple[int, int]:
    """Parse the flag --shard: 'i/n' -> (i, n); '' -> (0, 1).

    Raises:
      ConfigError: the text is not of this form.
    """
    part, _, parts = (text or '0/1').partition('/')
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise ConfigError(f'--shard={text!r} is not a valid part: give i/n with i from 0 to n - 1')
    return int(part), int(parts)


def check_dataset(name: str, data_dir: str, processes: int, check_records: dataset.CheckRecords) -> None:
    """Verify a finished dataset with `dataset.check`, and print the first faults.

    Raises:
      ConfigError: the dataset has faults.
    """
    faults, count = [], 0
    total = len(shards.planned_shards(prepared.dataset_folder(name, data_dir), plans.read_plan(name, data_dir)))
    lines_of_shards = dataset.check(name, data_dir, processes, check_records)
    for lines in tqdm(lines_of_shards, total=total, unit='shard', dynamic_ncols=True):
        faults, count = faults + lines, count + 1
    for line in faults[:PRINTED_FAULTS]:
        print(line)
    if faults:
        raise ConfigError(
            f'{name} has {len(faults)} faults: delete the reports/ of the bad shards and run the same command again'
        )
    print(f'{name} is complete: {count} shards')
