"""Findings: what an evaluation says of its own soundness. One function per check; each has a page in docs/findings."""

from . import gradient, hygiene, optimisation, ordering, origin, randomness, witnessed
from .base import Evidence, Finding
from .consequences import CONSEQUENCES

CHECKS = {
    **gradient.CHECKS,
    **witnessed.CHECKS,
    **randomness.CHECKS,
    **optimisation.CHECKS,
    **ordering.CHECKS,
    **hygiene.CHECKS,
    **origin.CHECKS,
}


def findings(evidence: Evidence) -> list[Finding]:
    """Every check that the evidence allows, in a fixed order."""
    found = [(name, check(evidence)) for name, check in CHECKS.items()]
    return [
        finding._replace(name=name, so="" if finding.level == "green" else CONSEQUENCES[name])
        for name, finding in found
        if finding is not None
    ]


def withheld(found: list[Finding]) -> list[str]:
    """The red findings: while there is one, the run's robust accuracy is not to be quoted."""
    return [finding.name for finding in found if finding.level == "red"]
