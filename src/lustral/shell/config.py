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


def read(path: Path) -> Evaluation:
    """The evaluation that a file describes; what it leaves out is as on the command line."""
    parser = Parser(exit_on_error=False)
    parser.add_function_arguments(evaluate, skip={"out"})
    with reading(path):
        text = path.read_text(encoding="utf-8")
    try:
        said = parser.parse_string(text)
        limits.check(said)
        said = parser.instantiate(said)
    except ArgumentError as e:
        raise UserError(f"{path} is no configuration for `lustral evaluate`: {' '.join(str(e).split())}") from e
    return Evaluation(**{field.name: said[field.name] for field in fields(Evaluation) if field.name in said})


def recommended() -> dict[str, Path]:
    """The configurations that are recommended, by the data set's name."""
    return {path.stem: path for path in sorted(Path(str(files("lustral") / "zoo")).glob("*.yaml"))}
