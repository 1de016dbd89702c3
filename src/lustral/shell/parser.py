"""The parser of the command line, and what it takes beside what signatures say; imports nothing heavy."""

import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from jsonargparse import ArgumentParser

from ..core.errors import UserError, unknown
from . import limits, plain
from .files import reading

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

    def parse_args(self, args: Sequence[str] | None = None, *rest, **options):
        """Refuses beforehand what would be read without end, and afterwards numbers that nobody can mean."""
        _readable(args or ())
        found = super().parse_args(args, *rest, **options)
        limits.check(found.get(found.get("subcommand"), found))
        return found

    def _print_message(self, message: str, file: TextIO | None = None) -> None:
        """Raises an OSError where help cannot be written, which argparse would keep to itself."""
        print(message, end="", file=file or sys.stderr)


def _readable(args: Sequence[str]) -> None:
    """Refuses values that are pipes or devices, configurations that are too long, and YAML that multiplies itself."""
    for before, arg in pairwise(["", *args]):
        name, equals, value = arg.partition("=")
        value = value if equals else arg
        plain.check(value)
        option = name if equals else before
        if option.startswith("--") and os.path.exists(value) and not os.path.isdir(value):
            with reading(Path(value)):
                size = os.path.getsize(value)
            if option == "--config" and size > plain.LONGEST:
                raise UserError(f"{value} is no configuration: it has more than {plain.LONGEST:,} bytes.")


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


KINDS = {
    "Number": "a number or a fraction such as 8/255",
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
}


def plainly(said: str, args: Sequence[str]) -> str:
    """What the parser says of a mistake, as one sentence and with options as they were typed."""
    said = " ".join(said.split())
    command = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", said)
    if command:
        return str(unknown("command", command[1], re.findall(r"'([^']*)'", command[2])))
    key, value = re.search(r'Parser key "([^"]+)"', said), re.search(r"(?:Given|Got) value: (.*)$", said)
    if key and value:
        option, text = key[1], value[1].strip("'")
        choices = re.search(r"Literal\[([^\]]*)\]", said)
        if choices:
            known = re.findall(r"'([^']*)'", choices[1])
            wrong = [word for word in re.findall(r"[^\[\],'\"]+", text) if word.strip() not in known] or [text]
            return str(unknown(f"value of --{option}", wrong[0].strip(), known))
        kind = next((name for mark, name in KINDS.items() if mark in said), None)
        if kind:
            return f"--{option} is {kind}, not {text}."
    for arg in args:
        typed = arg.partition("=")[0]
        said = said.replace(typed.replace("-", "_").replace("__", "--", 1), typed) if typed.startswith("--") else said
    return f"{said} (--help lists the options of a command)"
