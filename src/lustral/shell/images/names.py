"""What may be named as data; imports nothing heavy."""

import difflib
from pathlib import Path

from ...core.errors import UserError
from ..files import saying
from ..options import SetName

NAMES = SetName.__args__
HUGGINGFACE = "hf:"


def check(name: str) -> None:
    """Refuses what is neither a set's name, nor a file or folder that is there, nor a set of Hugging Face's."""
    path = Path(name).expanduser()
    if name in NAMES or name.startswith(HUGGINGFACE) or (path.exists() and (path.is_dir() or path.suffix)):
        return
    if path.suffix == ".npz" or (len(path.parts) > 1 and not path.exists()):
        with saying(path, "read"):
            path.stat()
    raise unknown(name)


def unknown(name: str) -> UserError:
    """The error for what is no data, with the closest name as a suggestion."""
    close = difflib.get_close_matches(name, NAMES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(
        f"Unknown data {name!r}.{hint} It is one of {', '.join(map(repr, NAMES))}, a folder or archive of a set, "
        "the path of an .npz file with arrays x and y, or hf: and a name on Hugging Face."
    )
