"""Follow CONTRIBUTING (magi_jax/README.md) word for word: add its tokenizer and its dataset to a copy of the code."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from magi_jax.data.video_file import write_mp4
from tests import test_structure
from tests.compilation import FAST_COMPILATION
from tests.pages import ROOT, blocks

PAGE = (ROOT / 'magi_jax/README.md').read_text()
MOST_LINES = 60
TOKENIZER, DATASET = 'A tokenizer', 'A dataset'


def section(heading):
    return re.search(rf'^### {heading}\n(.*?)(?=^### |\Z)', PAGE, re.DOTALL | re.MULTILINE)[1]


def code(heading):
    """Return {file: source} of a section's python blocks, which name their file in the first line."""
    named = (block.partition('\n') for block in blocks(section(heading), 'python'))
    return {name.removeprefix('# '): source for name, _, source in named}


def insertions(heading):
    """Return (file, text in it, text to insert after that) for each row of a section's table."""
    return re.findall(r'^\| `(.+?)` \| `(.+?)` \| `(.+?)` \|$', section(heading), re.MULTILINE)


def add(root, heading):
    """Apply a section to a copy of the repository."""
    for name, source in code(heading).items():
        path = root / name
        if path.exists():  # a function: insert it behind the functions that the file has
            before, after = path.read_text().split('\n\n@dataclasses.dataclass(frozen=True)\nclass Recipe', 1)
            source = f'{before}\n\n{source}\n\n@dataclasses.dataclass(frozen=True)\nclass Recipe{after}'
        path.write_text(source)
    for name, anchor, text in insertions(heading):
        before, found, after = (root / name).read_text().partition(anchor)
        assert found and anchor not in after, f'{anchor!r} must be in {name} once'
        (root / name).write_text(before + found + text + after)


@pytest.fixture(scope='module')
def changed(tmp_path_factory):
    """Return a copy of the repository with both additions."""
    root = tmp_path_factory.mktemp('changed')
    for name in ('magi_jax', 'launch', 'configs', 'tests'):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns('__pycache__', 'fixtures', 'results'))
    shutil.copy(ROOT / 'pyproject.toml', root)
    for heading in (TOKENIZER, DATASET):
        add(root, heading)
    return root


def run(root, *command):
    environment = {**os.environ, 'PYTHONPATH': str(root), 'XLA_FLAGS': FAST_COMPILATION}
    done = subprocess.run([sys.executable, '-m', *command], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize('heading', [TOKENIZER, DATASET])
def test_an_addition_is_short(heading):
    lines = sum(source.count('\n') for source in code(heading).values()) + len(insertions(heading))
    assert 10 < lines <= MOST_LINES


def test_additions_keep_the_rules_of_the_house(changed):
    edited = {
        name for heading in (TOKENIZER, DATASET) for name in (*code(heading), *(x for x, *_ in insertions(heading)))
    }
    run(changed, 'ruff', 'format', '--no-cache', *edited)
    run(changed, 'ruff', 'check', '--no-cache', *edited)
    for name in edited:
        source, rules = (changed / name).read_text(), [test_structure.size_complaints]
        if not name.startswith('tests/'):
            rules += [test_structure.floor_complaints, test_structure.effect_complaints]
            rules.append(test_structure.docstring_complaints)
        test_structure.fail_on([line for rule in rules for line in rule(source, name)])


def test_tests_of_the_additions_pass(changed):
    tests = [name for name in code(TOKENIZER) | code(DATASET) if name.startswith('tests/')]
    assert '2 passed' in run(changed, 'pytest', '-q', '-p', 'no:cacheprovider', '-n', '0', *tests)


@pytest.mark.slow
def test_toy_tokenizer_trains_on_the_toy_dataset(changed, tmp_path):
    clips, lines = tmp_path / 'clips', ['name,class,split']
    clips.mkdir()
    for number in range(12):
        clip = np.random.default_rng(number).integers(0, 256, (20, 64, 64, 3), np.uint8)
        write_mp4(clips / f'clip{number}.mp4', clip, 8)
        lines.append(f'clip{number},{"red" if number % 2 else "blue"},{"train" if number < 8 else "val"}')
    (clips / 'labels.csv').write_text('\n'.join(lines))
    data = [f'--data_dir={tmp_path}/data', '--dataset=toy_clips']
    assert '12 videos = 12 prepared' in run(changed, 'launch.prepare_data', *data, f'--source={clips}')
    fields = ['data.source=toy_clips', f'data.path={tmp_path}/data', 'tokenizer.kind=patch_linear']
    config = ['--config=configs/quickstart_autoencoder.py:runlocal', *(f'--config.{field}' for field in fields)]
    run(changed, 'launch.train', *config, f'--workdir={tmp_path}/run')
    assert (tmp_path / 'run/tokenizer/params.npz').exists()
