"""Lists the rows of public datasets by name, from the files that their owners distribute, with the official splits.

Annotated clips that are not on the disk become skips with the reason `missing`. Video files without an annotation are
listed as ignored.
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
    """List the rows of a dataset: public datasets by their own rules, other names as in `listing.list_source`.

    Args:
      name: 'ucf101/split1' (2, 3), 'kinetics600', 'something_something_v2', 'bair_robot_pushing', or any other.
      source: folder of the unpacked files, as the owner of the dataset distributes them.
      usable: function as in `listing.list_source`.

    Raises:
      ConfigError: the folder or an annotation file is missing, or the name has no valid variant.
    """
    dataset, _, variant = name.partition('/')
    if dataset not in DATASETS:
        return list_source(source, usable)
    root = pathlib.Path(source).expanduser()
    if not root.is_dir():
        raise ConfigError(f'source {source!r} is not a folder: give the folder with the files of {dataset}')
    recipe = DATASETS[dataset]
    if variant not in recipe.variants:
        names = ', '.join(f'{dataset}/{v}' if v else dataset for v in recipe.variants)
        raise ConfigError(f'there is no dataset {name!r}: choose {names}')
    return recipe.make(root, variant)


def list_ucf101(root: pathlib.Path, variant: str) -> Listing:
    """List UCF-101: folders of .avi files by class, and the lists of `ucfTrainTestlist`.

    `variant` is 'split1' to 'split3'. Names are compared case-insensitively: files of class HandstandPushups are called
    v_HandStandPushups_*, and the spelling in the lists varies between copies.
    """
    number = int(variant.removeprefix('split'))
    files = walk(root)
    classes = [line.split()[1] for line in _lines(root, _find(files, 'classInd.txt', 'ucfTrainTestlist'))]
    class_names = {name.casefold(): name for name in classes}
    videos = {stem.casefold(): path for stem, path in _by_stem(files).items()}
    rows, missing = [], []
    for split in ('train', 'test'):
        for line in _lines(root, _find(files, f'{split}list{number:02d}.txt', 'ucfTrainTestlist')):
            folder, _, file = line.split()[0].partition('/')
            stem, label = pathlib.PurePath(file).stem, class_names.get(folder.casefold())
            if label is None:
                table = f'{split}list{number:02d}.txt'
                raise ConfigError(f'{table} names a class {folder!r} that classInd.txt lacks: copy both files again')
            path = videos.get(stem.casefold())
            _add(rows, missing, Row(f'{label}/{stem}', path or line.split()[0], split, label), path)
    return _finish(root, rows, missing, classes, files)


def list_kinetics600(root: pathlib.Path, _: str) -> Listing:
    """List Kinetics-600: CSV files label,youtube_id,time_start,time_end,split and clips <id>_<start>_<end>.mp4.

    Clips may be in any folders (split, class, parts of an archive). A clip named only by its id is accepted too,
    because an id occurs once in the dataset. MAGI trains and tests on these splits (section 5.1).
    """
    files = walk(root)
    tables = [name for name in files if re.search(r'(^|[/_-])(train|val|validate|test)\.csv$', name.lower())]
    if not tables:
        raise ConfigError(f'{root} has no annotations: put train.csv, val.csv or test.csv there or in annotations/')
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
    """List Something-Something V2: <id>.webm files and JSON files.

    The JSON files hold the labels and the splits train, validation and test; test has no labels.
    """
    files = walk(root)
    table = json.loads((root / _find(files, 'labels.json', 'labels')).read_text())
    labels = sorted(table, key=lambda name: int(table[name]))
    template_labels = {name.casefold(): name for name in labels}
    videos = _by_stem(files)
    rows, missing = [], []
    for split in ('train', 'validation', 'test'):
        for entry in json.loads((root / _find(files, f'{split}.json', 'labels')).read_text()):
            template, number = entry.get('template'), str(entry['id'])
            label = template_labels.get(re.sub(r'[\[\]]', '', template).casefold()) if template else None
            if template and label is None:
                raise ConfigError(f'{split}.json names a template {template!r} that labels.json lacks: copy both again')
            path = videos.get(number)
            _add(rows, missing, Row(number, path or f'{number}.webm', split, label), path)
    return _finish(root, rows, missing, labels, files)


def list_bair(root: pathlib.Path, _: str) -> Listing:
    """List BAIR robot pushing (small): 64x64 trajectories of camera aux1.

    The files are softmotion30_44k/{train,test}/*.tfrecords.
    """
    rows = []
    for split in ('train', 'test'):
        paths = [name for name in walk(root) if re.search(rf'(^|/){split}/[^/]+\.tfrecords$', name)]
        if not paths:
            raise ConfigError(f'{root} has no {split}/*.tfrecords: give the folder softmotion30_44k or its parent')
        for path in paths:
            name = f'{split}/{pathlib.PurePath(path).stem}'
            offsets = robot_records.offsets(root / path)
            rows += [Row(f'{name}/{n:03d}', path, split, offset=offset) for n, offset in enumerate(offsets)]
    return make_listing(root, rows)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to list a public dataset: a function of (root, variant), and the allowed variants."""

    make: Callable[[pathlib.Path, str], Listing]
    variants: tuple[str, ...] = ('',)


DATASETS = {
    'ucf101': Recipe(list_ucf101, ('split1', 'split2', 'split3')),
    'kinetics600': Recipe(list_kinetics600),
    'something_something_v2': Recipe(list_something_something_v2),
    'bair_robot_pushing': Recipe(list_bair),
}


def _find(files: list[str], name: str, folder: str) -> str:
    """Find the one file called `name` or <prefix>-`name`."""
    ends = (f'/{name}'.lower(), f'-{name}'.lower())
    found = [file for file in files if f'/{file}'.lower().endswith(ends)]
    if len(found) == 1:
        return found[0]
    what = f'two files {found[0]} and {found[1]}' if found else f'no file {name}'
    raise ConfigError(f'there is {what} in the source folder: put exactly one there or into {folder}/')


def _by_stem(files: Iterable[str]) -> dict[str, str]:
    return {pathlib.PurePath(name).stem: name for name in files if is_video(name)}


def _lines(root: pathlib.Path, name: str) -> list[str]:
    return [line.strip() for line in (root / name).read_text().splitlines() if line.strip()]


def _table(path: pathlib.Path, required: tuple[str, ...]) -> list[dict[str, str]]:
    with open(path, newline='', encoding='utf-8-sig') as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        if absent := [name for name in required if name not in (reader.fieldnames or [])]:
            raise ConfigError(f'{path} has no column {absent[0]!r}: add the column')
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
        raise ConfigError(f'{root} has none of the {len(missing)} annotated clips: add them, first {missing[0].path}')
    unannotated = set(filter(is_video, files)) - {row.path for row in rows}
    listing = make_listing(root, rows, tuple(labels), unannotated)
    return dataclasses.replace(listing, skipped=(*missing, *listing.skipped))
