"""Writes the tables of measured numbers in all README.md pages from the committed result files.

python -m launch.tables           update every table of every README.md
python -m launch.tables --check   only compare; exit status 1 if a page differs from the results
"""

from pathlib import Path

from absl import flags

from magi_jax.benchmarks import page_tables

from . import console

CHECK = flags.DEFINE_bool('check', False, 'compare the pages with the results and write nothing')

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Write the pages. Return 0, or 1 if --check finds a page that differs from the results."""
    status = 0
    for path in sorted([ROOT / 'README.md', *(p for top in ('configs', 'launch', 'magi_jax') for p in pages(top))]):
        text = path.read_text()
        if (new := page_tables.render(text)) == text:
            continue
        print(f'{"differs" if CHECK.value else "written"}: {path.relative_to(ROOT)}')
        if CHECK.value:
            status = 1
        else:
            path.write_text(new)
    return status


def pages(top: str) -> list[Path]:
    """Return the README.md of a top-level folder and of all folders in it."""
    return list((ROOT / top).rglob('README.md'))


if __name__ == '__main__':
    console.run(main)
