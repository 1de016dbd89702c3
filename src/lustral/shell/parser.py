"""The parser of the command line; imports nothing heavy."""

from jsonargparse import ArgumentParser


class Parser(ArgumentParser):
    """Spells the option ``from_``, whose name Python keeps for itself, as people would."""

    def add_argument(self, *names, **options):
        if names == ("--from_",):
            names, options = ("--from",), options | {"dest": "from_", "metavar": "FOLDER_OR_URL"}
        return super().add_argument(*names, **options)
