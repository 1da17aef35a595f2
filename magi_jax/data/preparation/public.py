"""Public datasets by name, as their owners hand them out: files on the disk -> rows, with the official splits.

Annotated clips that are not on the disk become skips with the reason `missing`; video files that no annotation names
are listed as ignored.
"""

import csv
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable

from magi_jax.config import ConfigError
from magi_jax.data import splits
from magi_jax.data.preparation import robot_records
from magi_jax.data.preparation.listing import (
    Listing,
    Row,
    Skip,
    Usable,
    is_video,
    list_source,
    make_listing,
    walk,
)


def list_dataset(name: str, source: str, usable: Usable = lambda _: True) -> Listing:
    """The rows of a dataset, named ones by their own rules, all others as `listing.list_source`.

    Args:
      name: 'ucf101/split1' (2, 3), 'kinetics600', 'something_something_v2', 'bair_robot_pushing', or any other.
      source: folder of the files as the dataset's owner distributes them, unpacked.
      usable: as in `listing.list_source`.

    Raises:
      ConfigError: the folder or a file of annotations is missing, or the name is not complete.
    """
    dataset, _, variant = name.partition('/')
    if dataset not in DATASETS:
        return list_source(source, usable)
    root = pathlib.Path(source).expanduser()
    if not root.is_dir():
        raise ConfigError(f'source {source!r} is not a folder; {dataset} needs the folder with its files')
    recipe = DATASETS[dataset]
    if variant not in recipe.variants:
        names = ', '.join(f'{dataset}/{v}' if v else dataset for v in recipe.variants)
        raise ConfigError(f'there is no dataset {name!r}; there is: {names}')
    return recipe.make(root, variant)


def list_ucf101(root: pathlib.Path, variant: str) -> Listing:
    """UCF-101: folders of .avi files by class, and the lists of `ucfTrainTestlist`; `variant` is 'split1' to 'split3'.

    The files of class HandstandPushups are called v_HandStandPushups_*, and not every copy of the lists spells them so:
    names are compared without regard to case.
    """
    number = int(variant.removeprefix('split'))
    files = walk(root)
    classes = [line.split()[1] for line in _lines(root, _find(files, 'classInd.txt', 'ucfTrainTestlist'))]
    of_class = {name.casefold(): name for name in classes}
    videos = {stem.casefold(): path for stem, path in _by_stem(files).items()}
    rows, missing = [], []
    for split in ('train', 'test'):
        for line in _lines(root, _find(files, f'{split}list{number:02d}.txt', 'ucfTrainTestlist')):
            folder, _, file = line.split()[0].partition('/')
            stem, label = pathlib.PurePath(file).stem, of_class.get(folder.casefold())
            if label is None:
                raise ConfigError(f'{split}list{number:02d}.txt names a class {folder!r} that classInd.txt does not')
            path = videos.get(stem.casefold())
            _add(rows, missing, Row(f'{label}/{stem}', path or line.split()[0], split, label), path)
    return _finish(root, rows, missing, classes, files)


def list_kinetics600(root: pathlib.Path, _: str) -> Listing:
    """Kinetics-600: CSV files label,youtube_id,time_start,time_end,split and clips <id>_<start>_<end>.mp4 anywhere.

    The clips may be sorted into folders of any kind (split, class, parts of an archive); a clip named by its id alone
    is taken as well, an id being in the dataset once. MAGI trains and tests on these splits (section 5.1).
    """
    files = walk(root)
    tables = [name for name in files if re.search(r'(^|[/_-])(train|val|validate|test)\.csv$', name.lower())]
    if not tables:
        raise ConfigError(f'{root} has no annotations: train.csv, val.csv or test.csv, there or in annotations/')
    videos = _by_stem(files)
    rows, missing, labels = [], [], set()
    for table in tables:
        for line in _table(root / table, ('youtube_id', 'time_start', 'time_end')):
            start, end = (int(float(line[key])) for key in ('time_start', 'time_end'))
            stem = f'{line["youtube_id"]}_{start:06d}_{end:06d}'
            split = splits.split_name(line.get('split') or re.split(r'[/_-]', table.lower())[-1].removesuffix('.csv'))
            path = videos.get(stem) or videos.get(line['youtube_id'])
            label = line.get('label') or None
            labels |= {label} - {None}
            _add(rows, missing, Row(stem, path or f'{stem}.mp4', split, label), path)
    return _finish(root, rows, missing, sorted(labels), files)


def list_something_something_v2(root: pathlib.Path, _: str) -> Listing:
    """Something-Something V2: <id>.webm files, and JSON files of labels, train, validation and (unlabelled) test."""
    files = walk(root)
    table = json.loads((root / _find(files, 'labels.json', 'labels')).read_text())
    labels = sorted(table, key=lambda name: int(table[name]))
    of_template = {name.casefold(): name for name in labels}
    videos = _by_stem(files)
    rows, missing = [], []
    for split in ('train', 'validation', 'test'):
        for entry in json.loads((root / _find(files, f'{split}.json', 'labels')).read_text()):
            template, number = entry.get('template'), str(entry['id'])
            label = of_template.get(re.sub(r'[\[\]]', '', template).casefold()) if template else None
            if template and label is None:
                raise ConfigError(f'{split}.json names a template {template!r} that labels.json does not')
            path = videos.get(number)
            _add(rows, missing, Row(number, path or f'{number}.webm', split, label), path)
    return _finish(root, rows, missing, labels, files)


def list_bair(root: pathlib.Path, _: str) -> Listing:
    """BAIR robot pushing, small: softmotion30_44k/{train,test}/*.tfrecords of 64x64 trajectories, camera aux1."""
    rows = []
    for split in ('train', 'test'):
        paths = [name for name in walk(root) if re.search(rf'(^|/){split}/[^/]+\.tfrecords$', name)]
        if not paths:
            raise ConfigError(f'{root} has no {split}/*.tfrecords; give the folder softmotion30_44k or the one above')
        for path in paths:
            name = f'{split}/{pathlib.PurePath(path).stem}'
            offsets = robot_records.offsets(root / path)
            rows += [Row(f'{name}/{n:03d}', path, split, offset=offset) for n, offset in enumerate(offsets)]
    return make_listing(root, rows)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the rows of a public dataset are found."""

    make: Callable[[pathlib.Path, str], Listing]
    variants: tuple[str, ...] = ('',)


DATASETS = {
    'ucf101': Recipe(list_ucf101, ('split1', 'split2', 'split3')),
    'kinetics600': Recipe(list_kinetics600),
    'something_something_v2': Recipe(list_something_something_v2),
    'bair_robot_pushing': Recipe(list_bair),
}


def _find(files: list[str], name: str, folder: str) -> str:
    """The file called `name`, or something-`name`."""
    ends = (f'/{name}'.lower(), f'-{name}'.lower())
    found = [file for file in files if f'/{file}'.lower().endswith(ends)]
    if len(found) == 1:
        return found[0]
    what = f'two files {found[0]} and {found[1]}' if found else f'no file {name}'
    raise ConfigError(f'there is {what} in the source folder; put exactly one there or into {folder}/')


def _by_stem(files: Iterable[str]) -> dict[str, str]:
    return {pathlib.PurePath(name).stem: name for name in files if is_video(name)}


def _lines(root: pathlib.Path, name: str) -> list[str]:
    return [line.strip() for line in (root / name).read_text().splitlines() if line.strip()]


def _table(path: pathlib.Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    with open(path, newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if lacking := [name for name in needed if name not in (reader.fieldnames or [])]:
            raise ConfigError(f'{path} has no column {lacking[0]!r}')
        return list(reader)


def _add(rows: list[Row], missing: list[Skip], row: Row, path: str | None) -> None:
    if path is not None:
        rows.append(row)
    else:
        missing.append(Skip(row.video_id, row.path, row.split, 'missing', 'annotated, but not on the disk'))


def _finish(
    root: pathlib.Path, rows: list[Row], missing: list[Skip], labels: Iterable[str], files: list[str]
) -> Listing:
    if not rows:
        raise ConfigError(f'{root}: none of the {len(missing)} annotated clips is there, {missing[0].path} for one')
    unnamed = set(filter(is_video, files)) - {row.path for row in rows}
    listing = make_listing(root, rows, tuple(labels), unnamed)
    return dataclasses.replace(listing, skipped=(*missing, *listing.skipped))
