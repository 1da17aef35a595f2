"""Check the pages: links, commands with their flags and configs, floors, and tables of measured numbers."""

import ast
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from magi_jax.benchmarks import page_tables
from magi_jax.config import Config, ConfigError
from magi_jax.evaluation.protocols import PROTOCOLS
from tests.pages import PAGES, ROOT, anchors, broken_links, commands, links, name_of
from tests.test_structure import FLOORS, config_fields

README = ROOT / 'README.md'
README_LINES, SIX_FILES_LINES = 150, 1400
COMMANDS = [command for page in PAGES for command in commands(page)]
# The test file that runs each command. The commands of launch/tpu run here, with --dry-run.
TESTS = {
    'benchmark': 'tests/launch/test_benchmark.py',
    'compare_systems': 'tests/launch/test_compare_systems.py',
    'compile': 'tests/launch/test_compile.py',
    'convert_weights': 'tests/launch/test_convert_weights.py',
    'encode_latents': 'tests/launch/test_own_videos.py',
    'encode_text': 'tests/launch/test_encode_text.py',
    'evaluate': 'tests/test_readme.py',
    'export': 'tests/launch/test_export.py',
    'frame_times': 'tests/test_readme.py',
    'preflight': 'tests/launch/test_preflight.py',
    'prepare_data': 'tests/launch/test_prepare_data.py',
    'sample': 'tests/test_readme.py',
    'sample_prompts': 'tests/launch/test_sample_prompts.py',
    'study': 'tests/launch/test_study.py',
    'tables': 'tests/test_pages.py',
    'train': 'tests/launch/test_train.py',
}
SCRIPTS = ('bash launch/quickstart.sh', 'bash launch/test.sh', 'source .venv/bin/activate')
MISSING_HERE = {'a TPU', 'a cluster', 'hardware', 'hours of two cores', 'the torch extra', 'the text extra'}

every_page = pytest.mark.parametrize('page', PAGES, ids=name_of)
every_command = pytest.mark.parametrize('command', COMMANDS, ids=lambda c: f'{c.page} {c.text[:60]}')


def module_of(command):
    found = re.match(r'python -m launch\.(\w+)', command.text)
    return found and found[1]


def flags_of(module):
    """Return the names of the flags that a command defines, itself or by launch/distributed.py."""
    source = (ROOT / f'launch/{module}.py').read_text()
    if 'import console, distributed' in source:
        source += (ROOT / 'launch/distributed.py').read_text()
    names = re.findall(r"(?:DEFINE_\w+|define_path|_COUNT)\(\s*'(\w+)'", source)
    names += ['config'] if 'define_config()' in source else []
    return {*names, *(f'no{name}' for name in names), 'config.' if 'config' in names else ''}


def is_command(path):
    return "__name__ == '__main__'" in path.read_text()


def table_after(text, heading):
    """Return the rows of the first table after a heading, as lists of cells."""
    rows = re.search(rf'^#+ {re.escape(heading)}\n.*?(^\|.*?)\n\n', f'{text}\n\n', re.DOTALL | re.MULTILINE)[1]
    return [[cell.strip() for cell in row.strip('|').split('|')] for row in rows.splitlines()[2:]]


def quoted(text):
    return re.findall(r'`([^`]+)`', text)


def test_the_first_page_is_short_and_leads_to_all_others():
    text = README.read_text()
    assert text.count('\n') <= README_LINES
    targets = {(ROOT / link.partition('#')[0]).resolve() for link in links(text) if not link.startswith('http')}
    assert [name_of(page) for page in PAGES if page.name == 'README.md' and page not in {README, *targets}] == []


@every_page
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text()) == []


def test_broken_links_are_found():
    bad = '[a](nowhere.md) [b](README.md#no-heading) [c](#none) [d](/etc/passwd) ![e](no.gif)\n# Some: heading\n'
    good = '[f](README.md#cite) [g](https://example.com) `[h](code)` [i](configs/quickstart.py)\n'
    assert len(broken_links(README, bad + good)) == 5
    assert anchors('# A b\n## `x.y`: (z)\n## A b\n') == {'a-b', 'xy-z', 'a-b-1'}


@every_page
def test_tables_are_those_of_the_results(page):
    text = page.read_text()
    assert page_tables.render(text) == text, f'{name_of(page)} is not what the results say: python -m launch.tables'


def test_every_table_stands_on_a_page_and_an_unknown_one_is_refused():
    shown = ''.join(page.read_text() for page in PAGES)
    assert [name for name in page_tables.TABLES if f'<!-- table: {name} -->' not in shown] == []
    marked = '<!-- table: frame-times -->\n| 1 |\n<!-- /table -->'
    assert '| sliding window |' in page_tables.render(marked)
    with pytest.raises(ConfigError, match='no-such'):
        page_tables.render(marked.replace('frame-times', 'no-such'))


def test_tables_command_finds_nothing_to_change():
    done = subprocess.run([sys.executable, '-m', 'launch.tables', '--check'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@every_command
def test_command_is_tested_or_says_what_it_needs(command):
    assert not command.needs or command.needs in MISSING_HERE
    if command.needs or command.text.startswith((*SCRIPTS, 'bash launch/tpu/')):
        return
    test = TESTS.get(module_of(command))
    assert test, f'{command.text}: add its test to TESTS or mark the command with "  # needs ..."'
    assert f'launch.{module_of(command)}' in (ROOT / test).read_text(), f'{test} does not run it'


@every_command
def test_command_names_flags_fields_and_configs_that_exist(command):
    module, fields = module_of(command), config_fields(Config)
    if not module:
        assert command.text.startswith((*SCRIPTS, 'bash launch/tpu/'))
        return
    words = shlex.split(command.text)
    for word in words:
        name = re.match(r'--([\w.]+)', word)
        if word.startswith('--config.'):
            assert name[1] in fields and 'config.' in flags_of(module), word
        elif name:
            assert name[1] in flags_of(module), word
    for word in words:
        if path := re.match(r'(configs/\w+\.py):?([\w,]*)$', word):
            runpy.run_path(str(ROOT / path[1]))['get_config'](path[2])


@pytest.mark.parametrize('text', [c.text for c in COMMANDS if c.text.startswith('bash launch/tpu/')], ids=str)
def test_cloud_command_knows_its_flags(text):
    words = shlex.split(text)
    done = subprocess.run([*words[:3], '--dry-run', *words[3:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_every_command_has_an_example():
    text = (ROOT / 'launch/README.md').read_text()
    shown = {module_of(command) for command in COMMANDS if command.page == 'launch/README.md'}
    modules = [path.stem for path in sorted((ROOT / 'launch').glob('*.py'))]
    assert [name for name in modules if is_command(ROOT / f'launch/{name}.py') and name not in shown] == []
    assert [name for name in modules if name != '__init__' and f'{name}' not in text] == []


def test_every_config_and_variant_is_listed():
    page = ROOT / 'configs/README.md'
    rows = table_after(page.read_text(), 'Variants')
    listed = {name: set(quoted(variants)) for names, variants in rows for name in quoted(names)}
    files = {path.name: set(runpy.run_path(str(path))['VARIANTS']) for path in (ROOT / 'configs').glob('*.py')}
    assert listed == files
    assert [name for name in files if f']({name})' not in page.read_text()] == []


def test_floors_are_those_that_the_structure_test_walks():
    rows = table_after((ROOT / 'magi_jax/README.md').read_text(), 'Floors: who may import whom')
    assert [tuple(quoted(rooms)) for _, rooms in rows] == list(FLOORS)


def test_the_six_files_are_short():
    rows = table_after((ROOT / 'magi_jax/README.md').read_text(), 'The six files to read')
    six = [quoted(cell)[0] for cell, _ in rows]
    assert len(six) == 6
    assert sum((ROOT / name).read_text().count('\n') for name in six) <= SIX_FILES_LINES


def test_protocols_exist():
    rows = table_after((ROOT / 'magi_jax/evaluation/README.md').read_text(), 'Protocols')
    names = [name for cell, *_ in rows for name in quoted(cell) if not name.startswith('...')]
    assert len(names) > 10 and [name for name in names if name not in PROTOCOLS] == []


def test_library_example_compiles():
    (example,) = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
    ast.parse(example)
