"""What ``assess`` returns: a run's results, which read as the dict that they are, and what people want first."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from .verdict import sentence

SHOWN = ("system", "stage", "accuracy", "low", "high", "null", "images", "draws", "eot", "looks")


class Assessment(dict):
    """The results of a run: ``found["rows"]`` and the rest as in results.json, and the folder where they are kept."""

    def __init__(self, found: Mapping[str, Any], folder: Path | None = None):
        super().__init__(found)
        self.folder = folder

    @property
    def summary(self) -> str:
        """What was attacked, how much is left, and why a number is withheld: the first words of the report."""
        return " ".join([sentence(self), *self.withheld.values()])

    @property
    def withheld(self) -> dict[str, str]:
        """For every system with a red finding, what it says."""
        said = self["findings"]
        red = {name: [f["text"] for f in said[name] if f["level"] == "red"] for name in self["withheld"]}
        return {name: f"{name} is withheld because of this: {' '.join(texts)}" for name, texts in red.items()}

    @property
    def rows(self) -> Any:
        """The rows as a pandas DataFrame, one for each system and stage."""
        try:
            import pandas
        except ImportError as e:
            raise UserError(
                "A table of rows needs pandas: pip install pandas; result['rows'] is a list of dicts."
            ) from e
        return pandas.DataFrame(self["rows"])

    def __repr__(self) -> str:
        return self.summary

    def _repr_html_(self) -> str:
        """What notebooks show."""
        lines = [[_cell(row.get(name)) for name in SHOWN] for row in self["rows"] if row["group"] != "eps"]
        head = "".join(f"<th>{name}</th>" for name in SHOWN)
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
        place = "" if self.folder is None else f"<p>{escape(str(self.folder / 'report.html'))}</p>"
        return f"<p>{escape(self.summary)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{place}"


def _cell(value: Any) -> str:
    """A value of a table, shares in percent."""
    return "—" if value is None else f"{value:.1%}" if isinstance(value, float) else escape(str(value))
