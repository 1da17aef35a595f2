"""All code and pages keep the two rules of tests/readability.py, and the rules complain about bad texts."""

import subprocess

import pytest

from tests import readability


def test_nothing_is_hard_to_read():
    if not (readability.ROOT / '.git').exists():
        pytest.skip('not a git checkout: tracked files are unknown')
    listing = subprocess.run(
        ['git', 'ls-files', '*.py', '*.md'], cwd=readability.ROOT, check=True, capture_output=True, text=True
    )
    names = [name for name in listing.stdout.splitlines() if not name.startswith('tests/')]
    assert [line for name in names for line in readability.outliers(readability.ROOT / name)] == []


def test_rules_complain():
    long = 'A ' + 'word ' * 30 + 'end.'
    source = f'"""{long}"""\n\n\ndef f():\n    """Whether it is so."""\n\n\ndef g():\n    """Return it."""\n'
    assert [words for _, words, _ in readability.long_sentences(readability.python_texts(source))] == [32]
    assert [words for _, words, _ in readability.long_sentences(readability.page_texts(f'# Title\n\n{long}\n'))] == [32]
    assert [name for _, name, _ in readability.verbless_docstrings(source)] == ['f']
