"""The command line. Signatures here are the options, their docstrings the help; everything heavy is imported on use."""

import os
import signal
import sys
from pathlib import Path

from jsonargparse import auto_cli, set_parsing_settings

from .. import __version__
from ..core.errors import UserError
from . import exits, names, streams
from .finished import compare, detect, export, merge, plot, report, verify_run
from .networks import get_data, measure_reference, train
from .options import (
    Classification,
    Entry,
    Evaluation,
    Grid,
    Precision,
    Purification,
    Resources,
    Search,
    Shown,
    Split,
    StageName,
    ThreatModel,
)
from .parser import Parser, spelt


def demo(
    out: Path = Path("lustral-demo"), images: int = 64, seed: int = 0, resources: Resources = Resources(batch=64)
) -> None:
    """Evaluate undefended, ADP and DiffPure on handwritten digits: a few minutes, ending in a report.

    Args:
        out: Folder for the ledger, results.json and report.html; an interrupted demo goes on there.
        images: Test images.
        seed: Seed of all noise.
        resources: What may be spent.
    """
    from . import demo as demonstration
    from . import show

    show.table(demonstration.main(out, images, seed, resources))
    show.places(out)


def purify_files(
    source: Path,
    target: Path,
    purification: Purification = Purification(),
    seed: int | None = None,
    batch: int = 64,
    precision: Precision = "float32",
    device: str = "cpu",
    show: Shown = Shown(),
) -> None:
    """Clean images: a picture, an npy or npz file, or a folder of them; the same formats are written.

    Pictures are PNG, JPEG, BMP, WebP, TIFF, GIF or PPM, of any size. What is transparent is laid on white.

    Args:
        source: File or folder to read.
        target: File or folder to write.
        purification: How images are purified.
        seed: Seed of the noise; default: fresh noise that nobody can replay.
        batch: Images at a time; fewer where memory does not suffice.
        precision: Of the networks' arithmetic; bfloat16 is faster where a processor computes in it.
        device: Where networks compute: cpu, cuda, cuda:1.
        show: A film strip of it.
    """
    names.system(purification)
    names.networks(show.classifier)
    from . import commands
    from . import show as shower

    for path in commands.purify(source, target, purification, seed, batch, show, device, precision):
        shower.done(path)


def attack(
    out: Path,
    data: str = "digits",
    images: int = 64,
    stage: StageName = "exact",
    purification: Purification = Purification(),
    classification: Classification = Classification(),
    threat: ThreatModel = ThreatModel(),
    search: Search = Search(),
    seed: int = 0,
    precision: Precision = "float32",
    resources: Resources = Resources(),
) -> None:
    """Attack a defence and write adversarial images (.npz: x adversarial, x0 clean, y labels, ids).

    Args:
        out: The .npz file to write.
        data: digits, cifar10, cifar100, mnist or fashion-mnist (the test images), a folder, an .npz file, or hf:NAME.
        images: How many, from the first on.
        stage: What the attacker knows and does.
        purification: How images are purified.
        classification: How they are classified.
        threat: What the attacker may change.
        search: How the attacker searches.
        seed: Seed of all noise.
        precision: Of the networks' arithmetic, as for evaluate.
        resources: What may be spent.
    """
    names.images.check(data)
    names.system(purification, classification)
    from . import commands, show

    system = purification, classification
    found = commands.attack(out, data, images, stage, *system, threat, search, seed, precision, resources)
    show.line(found)
    show.done(out)


def evaluate(
    out: Path,
    data: str = "digits",
    images: int = 64,
    suite: str | None = None,
    stages: list[StageName | None] = ["clean", "null", "blind", "bpda", "exact", "fixed"],
    systems: dict[str, Entry] | None = None,
    purification: Purification = Purification(),
    classification: Classification = Classification(),
    threat: ThreatModel = ThreatModel(),
    search: Search = Search(),
    draws: int = 20,
    seed: int = 0,
    micro_batch: int | None = 64,
    split: Split = "test",
    corruption: str | None = None,
    precision: Precision = "float32",
    shard: str | None = None,
    stop_width: float | None = None,
    allow_red: bool = False,
    resources: Resources = Resources(),
) -> None:
    """Evaluate defences into a ledger, and fold it into results.json and report.html. Resumes where it stopped.

    Args:
        out: Folder of the run. It belongs to one evaluation; another one is refused.
        data: digits, cifar10, cifar100, mnist or fashion-mnist (the test images), a folder, an .npz file, or hf:NAME.
        images: How many, from the first on.
        suite: smoke, quick, standard or gold: a fixed list of attacks with a version, so that a number says how it was
            found; replaces stages, search and draws.
        stages: Without a suite: what the defence faces, in order.
        systems: Several defences by name (in YAML), each with a purification and a classification, or those below.
        purification: How images are purified.
        classification: How they are classified.
        threat: What the attacker may change.
        search: Without a suite: how the attacker searches.
        draws: Without a suite: judging purifications per image and stage.
        seed: Seed of all noise.
        micro_batch: Rows that networks see at a time, so that results are the same to the bit for any batch size;
            null lets them see whatever comes.
        split: Images for the number (test), or for choices that are made before it (validation).
        corruption: One of CIFAR-10-C's in front of everything, with its severity: fog-3.
        precision: Of the networks' arithmetic, for the attacker and the judge alike. bfloat16 is two to four times as
            fast where a processor computes in it; ADP's denoiser, whose differences it would spoil, keeps float32.
        shard: One part of the images, like 1/2, into a folder of its own; `lustral merge` puts parts together.
        stop_width: Stop once the anytime-valid 95 % interval of the worst case is narrower than this (0.1: ten points).
        allow_red: Print numbers that a red finding withholds, marked.
        resources: What may be spent.
    """
    named = [stage or "null" for stage in stages]  # YAML reads null as nothing where it is not quoted
    options = Evaluation(
        *(data, images, suite, named, systems, purification, classification, threat, search, draws, seed, micro_batch),
        split=split,
        corruption=corruption,
        precision=precision,
    )
    names.evaluation(options)
    from . import commands, show

    found = commands.evaluate(options, out, resources, shard, stop_width, allow_red)
    if found is None:
        show.done(out / "ledger.sqlite")
    else:
        show.table(found)
        show.places(out)


def tune(
    out: Path,
    data: str = "digits",
    images: int = 64,
    over: Grid = Grid(),
    purification: Purification = Purification(),
    classification: Classification = Classification(),
    threat: ThreatModel = ThreatModel(),
    search: Search = Search(),
    draws: int = 10,
    seed: int = 0,
    precision: Precision = "float32",
    resources: Resources = Resources(),
) -> None:
    """Choose a purifier's settings on validation images: a table, a plot and a YAML for evaluate. Resumes.

    Args:
        out: Folder of the run.
        data: A set with validation images: a standard one, or a folder or file that `lustral train` splits.
        images: How many validation images, from the first on.
        over: What to tune over.
        purification: How images are purified otherwise.
        classification: How they are classified.
        threat: What the attacker may change.
        search: How the attacker searches.
        draws: Judging purifications per image.
        seed: Seed of all noise.
        precision: Of the networks' arithmetic, as for evaluate.
        resources: What may be spent.
    """
    names.images.check(data)
    names.system(purification, classification)
    from . import show
    from . import tune as tuning

    system = purification, classification
    made = tuning.run(out, data, images, over, *system, threat, search, draws, seed, precision, resources)
    show.settings(made, tuning.seen_before(*system, data))
    show.chosen(tuning.chosen(made), images)
    for name in ("best.yaml", "tune.png", "report.html"):
        show.done(out / name)


def check_controls(
    suite: str = "smoke", images: int = 8, thorough: bool = False, resources: Resources = Resources()
) -> None:
    """Put cheats and broken attacks through a suite, and say whether it catches them: half a minute for smoke.

    Args:
        suite: smoke, quick, standard or gold.
        images: Test digits.
        thorough: Every cheat that ships, and honest systems of every kind, which must raise no alarm: some minutes.
        resources: What may be spent.
    """
    from . import controls, show

    chosen = controls.THOROUGH if thorough else controls.CONTROLS
    if not show.controls(controls.main(suite, images, resources, chosen)):
        raise UserError("A control passed unnoticed, or a sound one did not pass; do not trust this installation.")


def list_all() -> None:
    """List what Lustral knows by name: weights, purification methods, solvers, votes, stages."""
    from . import show

    show.names()


def show_one(name: str) -> None:
    """Show the card of some weights, or the table of a run.

    Args:
        name: A name from `lustral list`, a .safetensors file, or the folder of a run.
    """
    from . import cards, show, stored

    if Path(name).is_dir():
        show.table(stored.results(Path(name)))
    else:
        show.card(cards.card(cards.find(name)))


DESCRIPTION = "Lustral cleans attacked images before a classifier sees them, and measures honestly how much that helps."
# Functions here must not bear a name of the lazy façade: the parser would look it up there and load torch for --help.
COMMANDS = {
    "demo": demo,
    "data": get_data,
    "train": train,
    "reference": measure_reference,
    "purify": purify_files,
    "attack": attack,
    "evaluate": evaluate,
    "tune": tune,
    "merge": merge,
    "compare": compare,
    "verify": verify_run,
    "controls": check_controls,
    "detect": detect,
    "export": export,
    "report": report,
    "plot": plot,
    "list": list_all,
    "show": show_one,
}


def main(args: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0, 2 for a mistake that the message explains, 130 for Ctrl-C.

    1 says that nobody could be told what the command has to say.
    """
    # Threads that spin for long while they wait make everything ten times slower beside a busy neighbour, and ones that
    # sleep at once cost as much on a quiet machine (measured on two cores). This must be said before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    given = sys.argv[1:] if args is None else args
    # a parser for all options of all commands takes five times as long as one for the command that is asked for
    asked = {given[0]: COMMANDS[given[0]]} if given and given[0] in COMMANDS else COMMANDS
    told = {"description": DESCRIPTION, "prog": "lustral", "version": __version__}
    try:
        try:
            auto_cli(asked, args=spelt(given), exit_on_error=False, parser_class=Parser, **told)
        except SystemExit:  # --help and --version
            streams.finish()
            raise
        streams.finish()
    except exits.EXPLAINED as e:
        found = exits.explained(e, given)
        if found is None:
            raise
        said, code = found
        # of several processes with the same mistake, one says it
        if not isinstance(e, UserError) or os.environ.get("RANK", "0") == "0":
            streams.say(f"lustral: {said}")
        return code
    return 0


def entry() -> None:
    """The console script. A request to end (SIGTERM) is answered like Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    streams.prepare()
    code = main()
    if code == exits.INTERRUPTED:  # a batch that still runs in a thread would hold the process until it ends
        os._exit(code)
    sys.exit(code)
