"""The pages of the repository: their code blocks, commands, links and headings."""

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / 'README.md',
    *sorted(p for top in ('configs', 'launch', 'magi_jax') for p in (ROOT / top).rglob('*.md')),
]
FENCED = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Command:
    """A line of a bash block.

    Attributes:
      page: name of the page, relative to the root.
      text: the command without its comment; continued lines are joined.
      needs: what a comment `# needs ...` says that a test machine lacks, such as 'a TPU'; '' if there is none.
    """

    page: str
    text: str
    needs: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return [block for kind, block in FENCED.findall(text) if kind == language]


def commands(page: Path) -> list[Command]:
    """Return every command of a page's bash blocks."""
    found = []
    for block in blocks(page.read_text(), 'bash'):
        for line in block.replace('\\\n', ' ').splitlines():
            text, _, comment = line.partition('  # ')
            needs = re.match(r'needs ([^:;,]+)', comment)
            if text.strip() and not text.startswith('#'):
                found.append(Command(name_of(page), ' '.join(text.split()), needs[1].strip() if needs else ''))
    return found


def links(text: str) -> list[str]:
    """Return the targets of all links and pictures outside of code."""
    prose = re.sub(r'`[^`\n]*`', '`', FENCED.sub('', text))
    return re.findall(r'\]\(([^)\s]+)\)', prose)


def anchors(text: str) -> set[str]:
    """Return the anchors that a forge makes of a page's headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r'^#{1,6} +(.+?) *$', FENCED.sub('', text), re.MULTILINE):
        slug = re.sub(r'[^\w\- ]', '', re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).lower()).replace(' ', '-')
        found[slug] = found.get(slug, -1) + 1
    return {f'{slug}-{n}' if n else slug for slug, count in found.items() for n in range(count + 1)}


def broken_links(page: Path, text: str) -> list[str]:
    """Return the links to files and headings that do not exist. Web addresses are not opened."""
    broken = []
    for link in links(text):
        if re.match(r'\w+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        bad_anchor = anchor and (target.suffix != '.md' or anchor not in anchors(target.read_text()))
        if not target.exists() or not target.is_relative_to(ROOT) or bad_anchor:
            broken.append(f'{name_of(page)}: {link}')
    return broken
