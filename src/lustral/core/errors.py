"""The one exception for mistakes that a caller can mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the caller can mend; the message is one sentence that says what to do."""


def unknown(kind: str, name: object, known: Iterable[str]) -> UserError:
    """The error for an unknown name, with the closest known one as a suggestion."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")
