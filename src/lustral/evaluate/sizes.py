"""How much each suite spends, as plain data; imports nothing heavy, so that the command line can name them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """How much a suite spends: iterations and draws (purifications) for controls and attacks, judging draws, images."""

    controls: int
    ladder: int
    eot: int
    iterations: int
    targets: int
    targeted: int
    queries: int
    judge: int
    final: int
    patience: int = 3


SIZES = {
    "smoke": Size(controls=8, ladder=5, eot=4, iterations=5, targets=0, targeted=0, queries=0, judge=10, final=20),
    "quick": Size(controls=16, ladder=10, eot=8, iterations=20, targets=0, targeted=0, queries=100, judge=20, final=50),
    "standard": Size(
        controls=32, ladder=20, eot=10, iterations=100, targets=5, targeted=20, queries=500, judge=20, final=100
    ),
    "gold": Size(
        controls=64, ladder=40, eot=20, iterations=100, targets=9, targeted=50, queries=5000, judge=40, final=200,
        patience=0,
    ),
}  # fmt: skip
VERSION = 1


def title(name: str) -> str:
    """What a number made by this suite is called by: ``lustral-standard-1``."""
    return f"lustral-{name}-{VERSION}"


def named(called: str | None) -> str | None:
    """The suite that is called so; None for a run of none, and for suites of other versions."""
    return next((name for name in SIZES if title(name) == called), None)


CAVEATS = {
    "smoke": "The suite smoke shows that everything runs: longer attacks leave less, so quote a number of standard.",
    "quick": "The suite quick is for work on a defence: longer attacks leave less, so quote a number of standard.",
}


def caveat(title: str | None) -> str | None:
    """What a number of a suite, by the name it is called by, cannot be quoted for; None where nothing is to be said."""
    return next((said for name, said in CAVEATS.items() if f"lustral-{name}-" in (title or "")), None)
