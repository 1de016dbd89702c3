"""Whether a defence's networks were trained on the images that it is evaluated on, which no attack can tell."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Origin:
    """What is known of a defence's training: how many of the ``images`` each network saw, and any of them.

    ``known``: of every network behind the defence all training images are on record. ``unsaid``: those whose card names
    the evaluated data as what they were trained on, and does not say which of its images.
    """

    images: int = 0
    by: dict[str, int] = field(default_factory=dict)
    seen: int = 0
    known: bool = False
    unsaid: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "seen in training" if self.seen else "known to be unseen" if self.known else "not known"
