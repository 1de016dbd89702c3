"""``python -m lustral`` is ``lustral``."""

from .shell.cli import entry

entry()
