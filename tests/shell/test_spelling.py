"""Options as people spell them: hyphens, flags, lists, fractions, the version."""

import subprocess
import sys

import pytest

import lustral as library
from lustral import __version__
from lustral.shell import cli, options
from lustral.shell.number import number
from lustral.shell.parser import spelt

SAME = {
    "a hyphen": (["--allow-red"], ["--allow_red"]),
    "a hyphen within": (["--purification.t-star=0.1"], ["--purification.t_star=0.1"]),
    "and its value": (["--data", "my-data.npz", "--micro-batch", "4"], ["--data", "my-data.npz", "--micro_batch", "4"]),
    "values are the user's": (["--data=my-data.npz"], ["--data=my-data.npz"]),
    "so are systems": (["--systems.a-b={}"], ["--systems.a-b={}"]),
    "a list": (["--stages=clean,known init"], ["--stages=[clean,known init]"]),
    "a list apart": (["--stages", "clean,exact", "run-1"], ["--stages", "[clean,exact]", "run-1"]),
    "a list of one": (["--over.t-star", "0.1"], ["--over.t_star", "[0.1]"]),
    "a list as ever": (["--stages=[clean, exact]"], ["--stages=[clean, exact]"]),
}


@pytest.mark.parametrize("case", SAME)
def test_arguments_are_read_as_they_are_meant(case):
    said, meant = SAME[case]
    assert spelt(said) == meant


def given(monkeypatch, name: str, *args: str) -> dict:
    """What the function of a command is called with."""
    taken: dict = {}
    command = cli.COMMANDS[name]

    def note(**options):
        taken.update(options)

    note.__wrapped__, note.__doc__ = command, command.__doc__
    note.__signature__ = __import__("inspect").signature(command)
    monkeypatch.setitem(cli.COMMANDS, name, note)
    assert cli.main([name, *args]) == 0
    return taken


def test_flags_stand_alone_and_stages_are_a_list(monkeypatch):
    asked = given(monkeypatch, "evaluate", "run", "--allow-red", "--stages", "clean,exact", "--stop-width=0.2")
    assert asked["allow_red"] is True
    assert asked["stages"] == ["clean", "exact"]
    assert asked["stop_width"] == 0.2
    assert given(monkeypatch, "merge", "out", "[a,b]", "--allow_red", "false")["allow_red"] is False


COMPUTING = {
    "demo": [],
    "purify": ["in", "out"],
    "attack": ["out.npz"],
    "evaluate": ["run"],
    "tune": ["run"],
    "verify": ["run"],
    "controls": [],
    "detect": ["run"],
    "reference": ["digits-unet"],
    "train": ["classifier", "a.safetensors"],
}


@pytest.mark.parametrize("option", ["--device", "--resources.device"])
@pytest.mark.parametrize("name", COMPUTING)
def test_every_command_that_computes_takes_a_device(name, option, monkeypatch):
    asked = given(monkeypatch, name, *COMPUTING[name], f"{option}=cuda")
    assert (asked["device"] if "device" in asked else asked["resources"].device) == "cuda"


def test_a_fraction_is_a_number_wherever_pixels_are_counted(monkeypatch, tmp_path):
    asked = given(monkeypatch, "evaluate", "run", "--threat.eps=8/255", "--search.step_size=2/255")
    assert asked["threat"].eps == 8 / 255
    assert asked["search"].step_size == 2 / 255
    assert given(monkeypatch, "train", "trades", "a.safetensors", "--adversary.eps=8/255")["adversary"].eps == 8 / 255
    assert given(monkeypatch, "tune", "run", "--over.sigma=25/255,0.5")["over"].sigma == [25 / 255, 0.5]
    assert given(monkeypatch, "detect", "run", "--sigma=25/255")["sigma"] == 25 / 255
    (tmp_path / "c.yaml").write_text("threat: {eps: 4/255}\n")
    assert given(monkeypatch, "evaluate", "run", f"--config={tmp_path / 'c.yaml'}")["threat"] == options.ThreatModel(
        eps=4 / 255
    )


@pytest.mark.parametrize("said", ["x", "8/", "/255", "8/0", "8/255/2", True])
def test_what_is_no_number_is_refused(said):
    with pytest.raises(ValueError, match="8/255"):
        number(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "o", "--threat.eps", "8/0"], "--threat.eps is a number or a fraction such as 8/255, not 8/0."),
        (["purify", "a", "b", "--seed", "0.7"], "--seed is a whole number, not 0.7."),
        (["evaluate", "o", "--stages", "clean,known-init"], "'known-init'. Did you mean 'known init'? Known: apgd, "),
        (["evaluate", "o", "--threat.norm", "L2"], "Unknown value of --threat.norm 'L2'. Known: l1, l2, linf."),
        (["train", "clasifier", "a"], "Unknown value of --task 'clasifier'. Did you mean 'classifier'?"),
        (["evaluat"], "Unknown command 'evaluat'. Did you mean 'evaluate'?"),
        (["evaluate", "o", "--threat-eps", "1"], "unrecognized arguments: --threat-eps 1"),
    ],
)
def test_a_mistake_is_said_in_a_sentence_and_as_it_was_typed(words, said, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not any(word in error for word in ("typing.", "<class", "Subtypes"))


def test_the_version_comes_without_torch():
    script = (
        "import sys; from lustral.shell.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert found.stdout.split("\n")[:2] == [f"lustral {__version__}", "0 False"]


def test_no_command_bears_a_name_of_the_facade():
    """The parser would look it up there, which loads torch for every help."""
    assert not {command.__name__ for command in cli.COMMANDS.values()} & set(library.__all__)
