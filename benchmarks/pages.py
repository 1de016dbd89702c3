"""Writes every table of results under docs/ from the stored results.

python -m benchmarks.pages [--check] [--read PAGE …]

A page has blocks, `<!-- results: FILE/ENTRY -->` … `<!-- end -->`, whose inside is written from the entry of
docs/results/data/FILE.json; the command that measured it stands there. `<!-- sentences: SEAL -->` seals the numbers of
a page's sentences together with its blocks: where either changes, someone has to read the sentences again, and says
so with --read. --check writes nothing and exits with 1 if a page is not what its data say.
"""

import argparse
import hashlib
import re
import sys
from pathlib import Path

from benchmarks import store

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- results: (\S+?)/(.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SEAL = re.compile(r"<!-- sentences: (\w+) -->")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def pages(root: Path) -> list[Path]:
    """Every page with blocks."""
    return [path for path in sorted((root / "docs").rglob("*.md")) if BLOCK.search(path.read_text(encoding="utf-8"))]


def write(page: str, data: Path) -> str:
    """The page with its blocks written anew."""

    def block(found: re.Match) -> str:
        start, file, entry, _, end = found.groups()
        return f"{start}\n{store.text(store.load(file, data)[entry])}\n\n{end}"

    return BLOCK.sub(block, page)


def seal(page: str) -> str:
    """What the sentences' numbers and the blocks are together."""
    blocks, rest = [found[3] for found in BLOCK.findall(page)], SEAL.sub("", BLOCK.sub("", page))
    return hashlib.sha256("\n".join([*blocks, *NUMBER.findall(rest)]).encode()).hexdigest()[:12]


def faults(page: str, data: Path) -> list[str]:
    """What is wrong with a page."""
    found = (
        []
        if write(page, data) == page
        else ["its tables are not those of the stored results; run this without --check"]
    )
    kept = SEAL.search(page)
    if kept and kept[1] != seal(page):
        found.append("numbers changed; read its sentences against its tables again, then run this with --read PAGE")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--read", nargs="+", type=Path, default=[], metavar="PAGE")
    given, good = parser.parse_args(), True
    read = {path.resolve() for path in given.read}
    for path in pages(ROOT):
        page = path.read_text(encoding="utf-8")
        if not given.check:
            page = write(page, store.DATA)
            page = SEAL.sub(f"<!-- sentences: {seal(page)} -->", page) if path in read else page
            path.write_text(page, encoding="utf-8")
        for fault in faults(page, store.DATA):
            print(f"{path.relative_to(ROOT)}: {fault}")
            good = False
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
