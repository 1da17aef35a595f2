"""Prints what is hard to read: python -m tests.readability [FILE ...]

Two rules (magi_jax/README.md, "How we write"): a sentence has at most 30 words, and the docstring of a function starts
with a verb in the imperative. Tables, code, lists of arguments and the licence are left out.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_WORDS = 30
VERB_LIST = """
accept accumulate add advance aggregate align allocate allow announce append apply arrange ask assert assign attend
augment average average-pool begin bind block bound broadcast build cache call cap cast change check choose chunk
classify clean clip close collect combine commit compare compile compose compress compute concatenate condition
configure connect continue convert copy count create crop cut decide decode decompress define delete denoise
describe detach detect determine digest discard dispatch display distribute divide download draw drop dump embed
emit enable encode end enlarge ensure enter enumerate erase estimate evaluate evict exchange execute exit expand
explain export express extend extract fail fetch fill filter find fit flatten flip fold follow forget format fuse
gather generate get give group guard guide handle hash hold identify ignore import index infer initialize insert
inspect install interpolate invert iterate join keep label launch lay layout limit link list load locate lock log
look lower make map mark mask match measure merge mirror mix move multiply name normalize observe open order
orthogonalize overlay override pack pad paint parse partition pass patch perturb pick place play plot point
postpone predict prefetch prefill prepare preprocess print probe process produce project propagate prune publish
pull push put quantize query raise rank read rearrange rebuild recompute reconstruct record re-encode reduce refuse
register release remember remove rename render reorder repeat replace replicate report request require rescale
reset reshape resize resolve respace restart restore resume return reveal reverse rotate round run sample save scale
scan scatter score search select send separate serve set shard shift show shrink shuffle shut skip slice slide sort
split stack start state step stop store stream strip subtract sum summarize switch synchronize take tell terminate
test tile time tokenize trace track train transform translate transpose treat trim truncate try turn unpack
unpatchify patchify unstack update upsample downsample use validate verify view visit wait walk warm warn widen
wrap write yield zero normalise summarise initialise dilate reshard restrict corrupt all-gather
"""
VERBS = set(VERB_LIST.split())


def python_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every docstring paragraph and comment block of a Python source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                prose = re.split(r'\n\s*(?:Args|Returns|Raises|Attributes|Yields):', text)[0]
                for paragraph in re.split(r'\n\s*\n', prose):
                    if not re.match(r'\s{4}|\s*(python |bash |Dimension key|  JAX)', paragraph):
                        yield getattr(node, 'lineno', 1), paragraph
    block, start, last = [], 0, -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        inline = bool(token.line[: token.start[1]].strip())  # beside code: a text of its own
        if block and (inline or token.start[0] != last + 1):
            yield start, ' '.join(block)
            block = []
        if not block:
            start = token.start[0]
        block.append(token.string.lstrip('# '))
        last = -1 if inline else token.start[0]
    if block:
        yield start, ' '.join(block)


def page_texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, paragraph) of a Markdown page, without code blocks, tables, headings and pictures."""
    source = re.sub(r'```.*?```', lambda match: '\n' * match.group().count('\n'), source, flags=re.S)
    line = 1
    for paragraph in re.split(r'(\n\s*\n)', source):
        if paragraph.strip() and not re.match(r'\s*(\||#|!\[|<)', paragraph):
            for item in re.split(r'\n(?=\s*[-*] |\s*\d+\. )', paragraph):
                yield line, item
        line += paragraph.count('\n')


def long_sentences(texts: Iterator[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """Return (line, words, sentence) of every sentence of more than MAX_WORDS words."""
    found = []
    for line, text in texts:
        for sentence in re.split(r'(?<=[.;:!?*])\s+(?=[A-Z`(\[*])', ' '.join(text.split())):
            if len(words := sentence.split()) > MAX_WORDS:
                found.append((line, len(words), sentence))
    return found


def verbless_docstrings(source: str) -> list[tuple[int, str, str]]:
    """Return (line, name, first line) of every function whose docstring does not start with a verb of VERBS."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (text := ast.get_docstring(node)):
            if 'property' in ''.join(map(ast.unparse, node.decorator_list)):
                continue  # named like a value, described like one
            first = text.split(maxsplit=1)[0].strip('`.,:').lower()
            if first not in VERBS:
                found.append((node.lineno, node.name, text.splitlines()[0]))
    return found


def outliers(path: Path) -> list[str]:
    """Return one line for each outlier of a file."""
    source, name = path.read_text(), path.relative_to(ROOT).as_posix()
    texts = page_texts(source) if path.suffix == '.md' else python_texts(source)
    found = [f'{name}:{line}: {words} words: {sentence[:100]}' for line, words, sentence in long_sentences(texts)]
    if path.suffix == '.py':
        found += [
            f'{name}:{line}: {function}: no verb: {text[:90]}' for line, function, text in verbless_docstrings(source)
        ]
    return found


def main(arguments: list[str]) -> None:
    """Print the outliers of the files, by default of all tracked code and pages, and their number."""
    listing = subprocess.run(['git', 'ls-files', '*.py', '*.md'], cwd=ROOT, check=True, capture_output=True, text=True)
    names = arguments or [name for name in listing.stdout.splitlines() if not name.startswith('tests/')]
    found = [line for name in names for line in outliers(ROOT / name)]
    print('\n'.join(found))
    print(f'{len(found)} outliers in {len(names)} files')


if __name__ == '__main__':
    main(sys.argv[1:])
