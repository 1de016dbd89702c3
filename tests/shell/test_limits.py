"""Options, configurations and downloads that are small to write and would cost days, or all memory: refused at once."""

import json

import pytest

from lustral.core.errors import UserError
from lustral.shell import config, limits, transport
from mistakes import check, text

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(9 * [f'*{before}'])}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CONFIGURATIONS = {
    "aliases": (BOMB, ["more than 100,000 values", "use fewer aliases"]),
    "aliases in a text": ("systems: " + json.dumps("{" + BOMB.replace("\n", ", ") + "}"), ["more than 100,000 values"]),
    "aliases of itself": ("systems: &a\n  x: *a\n", ["holds itself in *a"]),
    "lists in lists": ("stages: " + "[" * 5000 + "]" * 5000, ["nested more than 32 levels deep"]),
    "groups in groups": ("systems: " + "{a: " * 5000 + "1" + "}" * 5000, ["nested more than 32 levels deep"]),
    "a long number": ("images: " + "9" * 100_000, ["a number of more than 300 digits"]),
    "a long file": ("#" * 2**21, ["c.yaml is no configuration", "more than 1,048,576 bytes"]),
    "steps of one of several": (
        "systems:\n  mine: {purification: {steps: 100000000}}\n",
        ["--systems.mine.purification.steps is at most 10,000"],
    ),
}
CONFIGURATIONS |= {
    f"an empty {group}": (
        f"images: 2\n{group}:\n",
        [f"{group} is a group of options; say one of them, or leave it out"],
    )
    for group in ("purification", "classification", "threat", "search", "resources")
}


@pytest.mark.parametrize(("said", "words"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_configuration_that_would_grow_is_refused_before_it_does(said, words, lustral, tmp_path, tree, capfd):
    text("c.yaml", said)
    check(["evaluate", "run", "--config=c.yaml"], words, lustral, tmp_path, tree, capfd)


def test_a_few_aliases_are_read(tmp_path):
    text(tmp_path / "c.yaml", "systems:\n  a: {purification: &how {steps: 3}}\n  b: {purification: *how}\n")
    systems = config.read(tmp_path / "c.yaml").systems
    assert systems["a"].purification.steps == systems["b"].purification.steps == 3


MANY = 10**12
COMMANDS = {
    "evaluate": ["draws", "images", "micro_batch", "classification.draws", "search.steps", "search.eot"],
    "evaluate run": ["search.restarts", "purification.steps", "purification.rounds", "resources.batch"],
    "attack": ["images", "search.steps"],
    "tune": ["draws", "over.steps", "over.rounds"],
    "purify": ["batch", "show.images", "purification.steps"],
    "train": ["recipe.steps", "recipe.batch", "recipe.accumulate", "adversary.steps", "network.width", "network.depth"],
    "train net": ["network.levels", "network.blocks", "network.patch", "threads"],
    "demo": ["images"],
    "controls": ["images"],
    "reference": ["images"],
}
POSITIONS = {"purify": ["a.png", "b.png"], "train": ["denoiser", "a.safetensors"], "attack": ["a.npz"]}
POSITIONS |= {"reference": ["digits-unet"], "evaluate": ["run"], "tune": ["run"]}


@pytest.mark.parametrize(("command", "option"), [(name.split()[0], o) for name, some in COMMANDS.items() for o in some])
@pytest.mark.parametrize("value", [MANY, 10**200])
def test_a_number_that_nobody_can_mean_is_refused_by_its_option(command, option, value, lustral, tmp_path, tree, capfd):
    said = f"[{value}]" if option.startswith("over.") else str(value)
    args = [command, *POSITIONS.get(command, []), f"--{option}={said}"]
    check(args, [f"--{option} is at most ", "choose a smaller number"], lustral, tmp_path, tree, capfd)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("option", ["threat.eps", "search.step_size", "search.momentum", "purification.sigma"])
def test_a_number_is_finite(option, value, lustral, tmp_path, tree, capfd):
    check(["evaluate", "run", f"--{option}={value}"], [f"--{option} is a number"], lustral, tmp_path, tree, capfd)


def test_steps_are_no_shorter_than_can_be_taken(lustral, tmp_path, tree, capfd):
    said = ["--purification.dt is at least 1e-05"]
    check(["evaluate", "run", "--purification.dt=1e-12"], said, lustral, tmp_path, tree, capfd)


def test_a_grid_has_no_more_settings_than_can_be_tried(lustral, tmp_path, tree, capfd):
    forty = str(list(range(1, 41)))
    words = ["--over has more than 1,000 combinations"]
    check(["tune", "run", f"--over.steps={forty}", f"--over.rounds={forty}"], words, lustral, tmp_path, tree, capfd)


def test_the_largest_numbers_are_admitted():
    limits.check({"draws": 100_000, "purification": {"steps": 10_000, "dt": 1e-5}, "over": {"steps": [1, 10_000]}})


class Endless:
    """A reply without a length and without an end."""

    status = 200

    def __init__(self, length: str | None = None):
        self.headers, self.sent = {} if length is None else {"Content-Length": length}, 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read1(self, n: int) -> bytes:
        self.sent += n
        assert self.sent < 2**24, "nobody stops"
        return bytes(n)


@pytest.mark.parametrize("length", [None, "99999999999999"])
def test_a_download_ends_where_it_must_be_another_file(length, tmp_path, monkeypatch):
    reply = Endless(length)
    monkeypatch.setattr(transport, "urlopen", lambda *_, **__: reply)
    with pytest.raises(UserError, match="http://a/b sends more than 2 MB, which is not what was asked for; go home"):
        transport.download("http://a/b", tmp_path / "b", "0" * 64, "sha256", "go home", 2_000_000)
    assert list(tmp_path.iterdir()) == []
    assert reply.sent == 0 if length else reply.sent < 3_000_000
