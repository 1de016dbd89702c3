"""The parser of the command line, and what it takes beside what signatures say; imports nothing heavy."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser

DEVICE = ("--resources.device", "--device")
LISTS = ("--stages", "--over.")
"""Options that take several values."""


class Parser(ArgumentParser):
    """Spells options as people would: ``--from``, ``--device`` for any command that computes, flags without a value."""

    def add_argument(self, *names, **options):
        if names == ("--from_",):
            names, options = ("--from",), options | {"dest": "from_", "metavar": "FOLDER_OR_URL"}
        if names in ((name,) for name in DEVICE):
            names = (*names, *(name for name in DEVICE if name not in names))
        if options.get("type") is bool:
            options = options | {"nargs": "?", "const": True}
        return super().add_argument(*names, **options)


def spelt(args: Sequence[str]) -> list[str]:
    """The arguments as the parser knows them: options with underscores, lists of values in brackets."""
    made: list[str] = []
    for arg in args:
        name, equals, value = arg.partition("=")
        if not arg.startswith("--"):
            takes = made and "=" not in made[-1] and made[-1].startswith(LISTS)
            made.append(_listed(arg) if takes else arg)
            continue
        if not name.startswith("--systems."):  # whose names are the user's
            name = "--" + name[2:].replace("-", "_")
        made.append(name + equals + (_listed(value) if equals and name.startswith(LISTS) else value))
    return made


def _listed(value: str) -> str:
    """Values with commas between them, as a list."""
    return value if value.startswith("[") else f"[{value}]"
