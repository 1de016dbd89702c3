"""Commands on runs that are there already; like ``cli``, this imports nothing heavy."""

from pathlib import Path
from typing import Literal

from . import names, stored
from .number import Number
from .options import Resources


def merge(out: Path, parts: list[Path], allow_red: bool = False) -> None:
    """Put the shards of one evaluation together: the ledger and the numbers that one process would have made.

    Args:
        out: Folder to write.
        parts: Folders of the shards.
        allow_red: Print numbers that a red finding withholds, marked.
    """
    stored.check(*parts)
    from . import commands, show

    show.table(commands.merge(out, parts, allow_red))
    show.places(out)


def compare(a: Path, b: Path) -> None:
    """Compare two runs on the same images: paired tests for every pair of systems, stage by stage.

    Args:
        a: Folder of a run.
        b: Folder of another run.
    """
    stored.check(a, b)
    from . import comparison, show

    show.comparison(comparison.runs(a, b))


def verify_run(run: Path, images: int = 4, resources: Resources = Resources()) -> None:
    """Run a random handful of a run's images again, and check that its ledger says the same.

    Args:
        run: Folder of a finished run.
        images: How many images; others are chosen every time.
        resources: What may be spent.
    """
    stored.check(run)
    from . import review, show

    show.line(review.verify(run, images, resources))


def detect(
    run: Path,
    denoiser: str | None = None,
    statistic: Literal["field", "eps", "single"] = "field",
    sigma: Number | None = None,
    resources: Resources = Resources(),
) -> None:
    """Tell a run's attacked images from clean ones by how a denoiser sees them: AUROC, ROC curves.

    Args:
        run: Folder of a finished run.
        denoiser: A name from `lustral list`, or a .safetensors file with its card; default: the run's own.
        statistic: field (ADP's norm of the score field at one noise level), or eps, single (SSNI's score norms).
        sigma: field: the noise level; default: that of the run's ADP, or 0.25.
        resources: What may be spent.
    """
    stored.check(run)
    names.networks(denoiser)
    from . import detect as detection
    from . import show

    show.detection(detection.run(run, denoiser, statistic, sigma, resources))
    for name in ("detection.json", "detection.png"):
        show.done(run / name)


def plot(run: Path, out: Path, what: Literal["stages", "eps", "cost", "t-star", "trajectory"] = "stages") -> None:
    """Draw a plot of a run's report into a file of its own, for a paper or slides.

    Args:
        run: Folder of a finished run.
        out: The .pdf, .png or .svg file to write.
        what: Accuracy by stage, by eps, by what the attacker pays, or by t*; or the distance to the clean image while
            purifying. A run has those that it has numbers for.
    """
    from . import figures, show

    show.done(figures.write(run, out, what))


def export(run: Path, out: Path) -> None:
    """Write a run for other tools: .parquet (every draw), or .json (RobustBench's model info and what it lacks).

    Args:
        run: Folder of a finished run.
        out: The .parquet or .json file to write.
    """
    stored.check(run)
    from . import exported, show

    show.done(exported.export(run, out))


def report(run: Path) -> None:
    """Write report.html again from what a run folder holds.

    Args:
        run: Folder of a finished run.
    """
    stored.check(run)
    from . import commands, show

    show.done(commands.report(run))
