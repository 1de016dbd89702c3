"""Which files below a folder are data. What is hidden or goes along with data is none, and links are followed."""

from collections.abc import Iterator
from pathlib import Path

ASIDE = (".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".html", ".log")
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")
PAPERS = ("readme", "read.me", "licen", "copying")
"""How the names of texts begin that may have any suffix, or none."""


def aside(path: Path) -> bool:
    """Whether a file or a folder is no data: hidden, the system's, or (files) a text that goes along with data."""
    name = path.name.casefold()
    if name.startswith(".") or name in SYSTEM:
        return True
    return (name.endswith(ASIDE) or name.startswith(PAPERS)) and not path.is_dir()


def below(folder: Path, within: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of data below a folder; a link to a folder that it lies in is not followed."""
    here = folder.resolve()
    if here in within:
        return
    for path in sorted(folder.iterdir()):
        if aside(path):
            continue
        if path.is_dir():
            yield from below(path, (*within, here))
        else:
            yield path


def named(paths: list[Path]) -> str:
    """The first few of some paths, and how many there are besides."""
    few = ", ".join(map(str, paths[:3]))
    return few if len(paths) <= 3 else f"{few} and {len(paths) - 3} more"
