"""Configurations: YAML files of what ``lustral evaluate --config`` takes, read without running them."""

from dataclasses import fields
from importlib.resources import files
from pathlib import Path

from jsonargparse import ArgumentError

from ..core.errors import UserError
from . import limits
from .cli import evaluate
from .files import reading
from .options import Evaluation
from .parser import Parser


def parser() -> Parser:
    """What reads the options of an evaluation."""
    made = Parser(exit_on_error=False)
    made.add_function_arguments(evaluate, skip={"out"})
    return made


def read(path: Path) -> Evaluation:
    """The evaluation that a file describes; what it leaves out is as on the command line."""
    reader = parser()
    with reading(path):
        text = path.read_text(encoding="utf-8")
    try:
        said = reader.parse_string(text)
        limits.check(said)
        said = reader.instantiate(said)
    except ArgumentError as e:
        raise UserError(f"{path} is no configuration for `lustral evaluate`: {' '.join(str(e).split())}") from e
    return Evaluation(**{field.name: said[field.name] for field in fields(Evaluation) if field.name in said})


def recommended() -> dict[str, Path]:
    """The configurations that are recommended, by the data set's name."""
    return {path.stem: path for path in sorted(Path(str(files("lustral") / "zoo")).glob("*.yaml"))}
