"""Do the networks know the images by heart? (no number in the list of checks)"""

from .base import Evidence, Finding, bar


def seen_in_training(e: Evidence) -> Finding | None:
    """Images that a network was trained on say nothing of others; silent where nobody knows the training images."""
    origin = e.origin
    if not origin.seen and origin.unsaid:
        return Finding(
            "amber", None, f"{' and '.join(origin.unsaid)} was trained on this data; which images is not on record."
        )
    if not origin.seen and not origin.known:
        return None
    names = [f"{name} ({count})" for name, count in origin.by.items() if count]
    text = f"Of {origin.images} images {origin.seen} are among those that {' and '.join(names)} was trained on."
    if not origin.seen:
        text = (
            f"Known to be unseen: none of the {origin.images} images is one, to the pixel, that {', '.join(origin.by)} "
            "was trained on. Near copies are not told."
        )
    return bar(origin.seen / origin.images, 0, 0.01, text)


CHECKS = {"seen-in-training": seen_in_training}
