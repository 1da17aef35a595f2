"""The rules of the house: who may import whom, how large things may grow, and that nothing is there for show.

Each rule is a pure function from source to a list of complaints, with a test that it complains about a bad source.
"""

import ast
import dataclasses
import pathlib
import re
import subprocess
import typing

import jax
import jax.numpy as jnp
import pytest

from magi_jax import config as schema

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Imports go down only. `magi_jax` is the package's own __init__, which offers the generator.
FLOORS = (
    ('fields',),
    ('config',),
    ('config_checks', 'config_files', 'layers', 'diffusion', 'masking'),
    ('tokenizers', 'models', 'text_encoders'),
    ('objectives', 'sampling'),
    ('parallel', 'data', 'checkpoint'),
    ('training', 'evaluation'),
    ('pretrained', 'video_output'),
    ('generator', 'benchmarks'),
    ('magi_jax',),
    ('launch',),
)
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
BELOW_LAUNCH = {
    'absl.flags': 'flags belong in launch/',
    'os.environ': 'environment variables belong in launch/',
    'os.getenv': 'environment variables belong in launch/',
    'jax.distributed.initialize': 'jax.distributed belongs in launch/',
}
TOP_LEVEL = {
    *('magi_jax', 'configs', 'launch', 'tests', 'requirements.txt', 'README.md', 'pyproject.toml', 'LICENSE'),
    'CITATION.cff',
}
VAGUE_NAMES = {'utils.py', 'helpers.py', 'misc.py', 'common.py'}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ARGUMENTS = 350, 60, 9


def python_files(*folders):
    assert all((ROOT / folder).is_dir() for folder in folders)
    return [path.relative_to(ROOT) for folder in folders for path in sorted((ROOT / folder).rglob('*.py'))]


def complaints(rule, *folders):
    """`rule(source, path)` over every Python file of the folders."""
    return [line for path in python_files(*folders) for line in rule((ROOT / path).read_text(), path.as_posix())]


def room(module):
    """magi_jax.layers.attention -> layers, magi_jax -> magi_jax, launch.train -> launch, numpy.linalg -> None."""
    package, *rest = module.split('.')
    if package == 'launch':
        return 'launch'
    return (rest or ['magi_jax'])[0] if package == 'magi_jax' else None


def module_of(path):
    return path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


def imported_names(tree, path):
    """(line number, dotted name) of every import; `from a import b` gives a.b, relative ones are resolved."""
    folder = module_of(path).split('.') if path.endswith('__init__.py') else module_of(path).split('.')[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else []
            module = '.'.join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f'{module}.{alias.name}') for alias in node.names)


def used_names(tree, path):
    """Imports, and the dotted names written out in expressions."""
    yield from imported_names(tree, path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r'[\w.]+', ast.unparse(node)):
            yield node.lineno, ast.unparse(node)


def floor_complaints(source, path):
    """Imports that do not go down: up, or sideways to another room of the same floor."""
    own, found = room(module_of(path)), []
    if own not in FLOOR_OF:
        return [f'{path}: {own} is on no floor; give it one in FLOORS']
    for line, name in imported_names(ast.parse(source), path):
        # `from magi_jax import layers` names the room, `from magi_jax import load` something of the package itself.
        other = room(name)
        if name.startswith('magi_jax.') and name.count('.') == 1 and other not in FLOOR_OF:
            other = 'magi_jax'
        if other in (None, own):
            continue
        if other not in FLOOR_OF:
            found.append(f'{path}:{line}: imports {name}, which is on no floor')
        elif FLOOR_OF[other] >= FLOOR_OF[own]:
            found.append(f'{path}:{line}: {own} imports {other} ({name}), which is not below it')
    return found


def effect_complaints(source, path):
    """What only launch/ may touch, and the frameworks that nobody or only the benchmarks may import."""
    tree, found = ast.parse(source), []
    for line, name in used_names(tree, path):
        top = name.split('.')[0]
        if top == 'tensorflow' or (top == 'torch' and not path.startswith('magi_jax/benchmarks/')):
            found.append(f'{path}:{line}: {top} must not be imported here')
        for prefix, reason in BELOW_LAUNCH.items():
            if (name == prefix or name.startswith(prefix + '.')) and not path.startswith('launch/'):
                found.append(f'{path}:{line}: {prefix}: {reason}')
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
        if called == 'print' and not path.startswith('launch/'):
            found.append(f'{path}:{node.lineno}: print belongs in launch/')
    return found


def size_complaints(source, path):
    """Files, functions and argument lists too long to hold in mind, and names that say nothing."""
    found = []
    if path.rsplit('/', 1)[-1] in VAGUE_NAMES:
        found.append(f'{path}: name the file by what it holds')
    if (lines := len(source.splitlines())) > MAX_FILE_LINES:
        found.append(f'{path}: {lines} lines, at most {MAX_FILE_LINES}')
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if (lines := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES:
            found.append(f'{path}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}')
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if (count := len([n for n in names if n not in ('self', 'cls')])) > MAX_ARGUMENTS:
            found.append(f'{path}:{node.lineno}: {node.name} has {count} arguments, at most {MAX_ARGUMENTS}')
    return found


def docstring_complaints(source, path):
    """Public functions and classes of a module without a docstring."""
    return [
        f'{path}:{node.lineno}: {node.name} has no docstring'
        for node in ast.parse(source).body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith('_')
        and not ast.get_docstring(node)
    ]


def attributes_read(source):
    """Names of all attributes that a source reads."""
    nodes = ast.walk(ast.parse(source))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def config_fields(cls, path='config'):
    """{dotted path: field name} of a config dataclass and the groups in it."""
    fields = {}
    for name, hint in typing.get_type_hints(cls).items():
        fields[f'{path}.{name}'] = name
        if dataclasses.is_dataclass(hint):
            fields |= config_fields(hint, f'{path}.{name}')
    return fields


def unread_fields(cls, sources):
    read = set().union(*map(attributes_read, sources))
    return [path for path, name in config_fields(cls).items() if name not in read]


def stray_top_level(tracked):
    """Tracked files whose first path component has no place at the top."""
    tops = {path.split('/')[0] for path in tracked}
    return sorted(top for top in tops if top not in TOP_LEVEL and not top.startswith('.'))


def unnamed_by_package(source, path):
    """Imports of launch/ and configs/ by these names, which only exist in a checkout."""
    names = imported_names(ast.parse(source), '_/' + path)  # a relative import does not give the bare name
    return [f'{path}:{line}: imports {name}' for line, name in names if name.split('.')[0] in ('launch', 'configs')]


def fail_on(lines):
    assert not lines, '\n' + '\n'.join(lines)


def test_guards_are_on():
    assert jax.device_count() == 8 and jax.default_backend() == 'cpu'
    with pytest.raises(ValueError, match='rank_promotion'):
        jnp.ones((2, 3)) + jnp.ones(3)


def test_imports_go_down():
    fail_on(complaints(floor_complaints, 'magi_jax', 'launch'))


def test_effects_stay_in_launch():
    fail_on(complaints(effect_complaints, 'magi_jax', 'launch', 'configs'))


def test_sizes():
    fail_on(complaints(size_complaints, 'magi_jax', 'launch', 'configs', 'tests'))


def test_public_names_have_docstrings():
    fail_on(complaints(docstring_complaints, 'magi_jax', 'launch'))


def test_every_config_field_is_read():
    files = [path for path in python_files('magi_jax', 'launch') if not path.name.startswith('config')]
    unread = unread_fields(schema.Config, [(ROOT / path).read_text() for path in files])
    fail_on([f'{path} is read nowhere: use it or remove it' for path in unread])


def test_top_level_holds_only_what_it_should():
    if not (ROOT / '.git').exists():
        pytest.skip('not a git checkout: tracked files are unknown')
    listing = subprocess.run(['git', 'ls-files'], cwd=ROOT, check=True, capture_output=True, text=True)
    fail_on(stray_top_level(listing.stdout.splitlines()))


def test_launch_and_configs_do_not_rely_on_their_names_in_a_checkout():
    fail_on(complaints(unnamed_by_package, 'magi_jax', 'launch', 'configs'))


@pytest.mark.parametrize(
    ('path', 'source'),
    [
        ('magi_jax/layers/a.py', 'from magi_jax.models import magi'),  # up
        ('magi_jax/layers/a.py', 'from magi_jax import models'),
        ('magi_jax/layers/a.py', 'import magi_jax.masking.tokens'),  # sideways
        ('magi_jax/data/a.py', 'from magi_jax.parallel.mesh import make_mesh'),
        ('magi_jax/data/builders/a.py', 'from ...parallel import mesh'),
        ('magi_jax/data/__init__.py', 'from ..parallel import mesh'),
        ('magi_jax/checkpoint.py', 'def f():\n    from magi_jax import data'),  # hidden in a function
        ('magi_jax/config.py', 'import magi_jax'),
        ('magi_jax/training/loop.py', 'from magi_jax import load'),
        ('magi_jax/generator.py', 'from launch import train'),
        ('magi_jax/layers/a.py', 'from magi_jax.unheard_of import a'),
        ('magi_jax/unheard_of/a.py', ''),
    ],
)
def test_floor_rule_complains(path, source):
    assert len(floor_complaints(source, path)) == 1


@pytest.mark.parametrize(
    ('path', 'source'),
    [
        ('magi_jax/layers/a.py', 'import jax\nfrom magi_jax.config import Config\nfrom magi_jax.layers import b'),
        ('magi_jax/data/builders/a.py', 'from ..sources import open_source\nfrom . import b'),
        ('magi_jax/training/loop.py', 'from magi_jax import config\nfrom magi_jax.parallel import mesh'),
        ('magi_jax/__init__.py', 'from magi_jax.generator import load'),
        ('launch/train.py', 'import magi_jax\nfrom launch.progress import bar'),
    ],
)
def test_floor_rule_is_content(path, source):
    assert floor_complaints(source, path) == []


@pytest.mark.parametrize(
    'source',
    [
        'from absl import flags',
        'import absl.flags',
        'import os\nx = os.environ["A"]',
        'from os import environ',
        'import os\nx = os.getenv("A")',
        'import jax\njax.distributed.initialize()',
        'print(1)',
        'import torch.nn',
        'def f():\n    import tensorflow as tf',
    ],
)
def test_effect_rule_complains(source):
    assert effect_complaints(source, 'magi_jax/training/loop.py')


def test_effect_rule_knows_where_things_belong():
    assert effect_complaints('from absl import flags\nimport os\nprint(os.environ)', 'launch/train.py') == []
    assert effect_complaints('import torch', 'magi_jax/benchmarks/reference.py') == []
    assert effect_complaints('import torch', 'launch/benchmark.py')
    assert effect_complaints('import tensorflow_datasets as tfds\nx.print()', 'magi_jax/data/a.py') == []


def test_size_rule_complains():
    def function(lines, arguments=''):
        return f'def f({arguments}):\n' + '    x = 1\n' * (lines - 1)

    nine = 'a, b, c, d, e, f, g, *, h, i'
    assert size_complaints(function(60, 'self, ' + nine), 'magi_jax/a.py') == []
    assert len(size_complaints(function(61), 'magi_jax/a.py')) == 1
    assert len(size_complaints(function(3, nine + ', j'), 'magi_jax/a.py')) == 1
    assert size_complaints('x = 1\n' * 350, 'magi_jax/a.py') == []
    assert len(size_complaints('x = 1\n' * 351, 'magi_jax/a.py')) == 1
    assert len(size_complaints('', 'magi_jax/data/utils.py')) == 1


def test_docstring_rule_complains():
    source = 'def f(): pass\nclass A: pass\ndef _g(): pass\ndef h():\n    "doc"\n'
    assert docstring_complaints(source, 'a.py') == ['a.py:1: f has no docstring', 'a.py:2: A has no docstring']


def test_unread_field_rule_complains():
    @dataclasses.dataclass
    class Group:
        width: int = 1
        depth: int = 2

    # Writing a field or naming it in a string is not reading it.
    sources = ['def f(config):\n    return config.width', 'x.depth = 3', '"config.depth"']
    assert unread_fields(Group, sources) == ['config.depth']


def test_top_level_rule_complains():
    assert stray_top_level(['magi_jax/a.py', '.gitignore', 'scripts/b.py', 'notes.md']) == ['notes.md', 'scripts']


def test_name_rule_complains():
    for source in ('from launch import console', 'import launch.fit', 'from configs.quickstart import get_config'):
        assert len(unnamed_by_package(source, 'launch/a.py')) == 1
    assert unnamed_by_package('from . import console\nfrom .fit import lines', 'launch/a.py') == []
