"""Which room may import which, and what only some rooms may do. Every file that exists is scanned."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lustral

ROOT = Path(lustral.__file__).parent
# A room imports itself and rooms of a lower rank.
RANK = {
    "core": 0,
    "schedules": 1,
    "samplers": 2,
    "denoisers": 3,
    "classifiers": 3,
    "purifiers": 4,
    "export": 4,
    "defence": 5,
    "attacks": 6,
    "certify": 6,
    "detect": 6,
    "training": 7,
    "evaluate": 7,
    "shell": 8,
    "__main__": 9,
}
ANYWHERE = {"torch", "numpy", "scipy"}
DISK_NETWORK_PROCESSES = {
    *("asyncio", "ctypes", "glob", "http", "io", "multiprocessing", "os", "pathlib", "pickle", "random", "shutil"),
    *("signal", "socket", "sqlite3", "subprocess", "tempfile", "urllib"),
}
RANDOM = ("torch.rand", "torch.normal", "torch.bernoulli", "torch.multinomial", "torch.poisson", "torch.Generator")
RANDOM_IN_PLACE = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_"}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = [path for path in sorted(ROOT.rglob("*.py")) if room(path) != "__init__"]
TREES = {path: ast.parse(path.read_text()) for path in FILES}
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def imports(path: Path) -> Iterator[str]:
    """The full names of all modules (or names in them) that a file imports, at its top or inside functions."""
    package = ["lustral", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an expression made of names and attributes; empty for any other."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(TREES[path]) if isinstance(node, ast.Call))


def test_the_scan_sees_imports_of_every_form(tmp_path):
    path = ROOT / "purifiers" / "imagined.py"
    TREES[path] = ast.parse(
        "import os.path\nfrom ..core import noise\ndef f():\n from . import x\n from .. import shell"
    )
    found = list(imports(path))
    del TREES[path]
    assert found == ["os.path", "lustral.core.noise", "lustral.purifiers.x", "lustral.shell"]


def test_every_room_has_a_rank():
    assert {room(path) for path in FILES} <= RANK.keys(), "give the new room a place in RANK"
    assert {"core", "schedules", "samplers", "denoisers", "purifiers", "defence"} <= {room(path) for path in FILES}


@every_file
def test_a_room_imports_only_rooms_below_it(path):
    here = room(path)
    for name in imports(path):
        if name.split(".")[0] == "lustral":
            there = (name.split(".") + ["__version__"])[1]
            if there == "__version__":
                assert here == "shell", "rooms import from each other, not from the façade"
            else:
                assert there == here or RANK[there] < RANK[here], f"{here} may not import {name}"


@every_file
def test_only_the_shell_imports_other_libraries_or_touches_the_world(path):
    packages = {name.split(".")[0] for name in imports(path)}
    foreign = packages - sys.stdlib_module_names - {"lustral"}
    if room(path) == "core":
        assert foreign <= {"torch", "numpy"}
    elif RANK[room(path)] < RANK["shell"]:
        assert foreign <= ANYWHERE
    if RANK[room(path)] < RANK["shell"]:
        watched = {"random"} if path.name == "generators.py" else set()  # which looks whether others drew from it
        assert not packages & DISK_NETWORK_PROCESSES - watched


@every_file
def test_only_the_shell_prints_and_opens_files(path):
    if RANK[room(path)] < RANK["shell"]:
        used = {dotted(call.func) for call in calls(path)}
        assert not used & {"print", "input", "open", "torch.save", "torch.load", "np.save", "np.load", "exec", "eval"}


@every_file
def test_all_noise_has_an_address(path):
    attributes = [node for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)]
    names = [dotted(node) for node in attributes]
    assert not [name for name in names if name.startswith(RANDOM)]
    in_place = [dotted(node) for node in attributes if node.attr in RANDOM_IN_PLACE]
    assert not [name for name in in_place if not name.startswith(("nn.init.", "torch.nn.init."))]
    if path != ROOT / "core" / "noise.py":
        assert not [name for name in names if name.startswith(("np.random", "numpy.random"))]


def test_every_name_of_the_facade_is_there():
    assert all(getattr(lustral, name) is not None for name in lustral.__all__)
    with pytest.raises(AttributeError, match="no attribute 'purifyer'"):
        lustral.purifyer  # noqa: B018


def test_type_checkers_see_the_names_of_the_facade():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and dotted(n.test) == "TYPE_CHECKING"]
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(lustral.__all__) - {"__version__"}
