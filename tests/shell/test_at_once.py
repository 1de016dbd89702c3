"""What needs no network is answered without loading torch, and names what the networks' own tables name."""

import subprocess
import sys
from pathlib import Path

from lustral.shell import build, names, options, stages, systems
from lustral.shell.images import names as sets
from lustral.shell.images import readers

HEAVY = {"torch", "numpy", "scipy", "matplotlib", "PIL", "sklearn"}
LIGHT = [
    ["--help"],
    ["evaluate", "--help"],
    ["list"],
    ["show", "digits-unet"],
    ["show", "run"],
    ["show", "digits-unte"],
    ["purifi"],
    ["evaluate", "out", "--imagess=3"],
    ["evaluate", "out", "--images=x"],
    ["evaluate", "out", "--suite=standart"],
    ["evaluate", "out", "--stages=[clean,exakt]"],
    ["evaluate", "out", "--data=digit"],
    ["evaluate", "out", "--data=no/where"],
    ["evaluate", "out", "--data=absent.npz"],
    ["evaluate", "out", "--classification.classifier=digits-cn"],
    ["evaluate", "out", "--config=absent.yaml"],
    ["tune", "out", "--purification.denoiser=digits-unte"],
    ["tune", "out", "--data=digit"],
    ["attack", "out.npz", "--stage=exakt"],
    ["attack", "out.npz", "--data=digit"],
    ["attack", "out.npz", "--purification.method=agdm", "--purification.guide=digits-trade"],
    ["purify", "a.png", "b.png", "--purification.denoiser=digits-unte"],
    ["purify", "a.png", "b.png", "--show.classifier=digits-cn"],
    ["train", "classifer", "a.safetensors"],
    ["train", "classifier", "a.safetensors", "--data=digit"],
    ["train", "addt", "a.safetensors", "--adversary.guide=digits-cn"],
    ["train", "classifier", "a.safetensors", "--recipe.lr=-1"],
    ["reference", "digits-unte"],
    ["data", "cifar"],
    *[[command, "absent"] for command in ("verify", "detect", "report")],
    ["merge", "out", "absent"],
    ["compare", "absent", "run"],
    ["export", "absent", "out.json"],
]
PROGRAM = """
import sys
from lustral.shell.cli import main
for words in {words!r}:
    try:
        code = main(words)
    except SystemExit as e:  # --help
        code = e.code
    print("###", code, sorted({heavy!r} & sys.modules.keys()), *words)
"""


def test_names_help_and_typos_need_no_torch(tmp_path):
    Path(tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(
        '{"title": "t", "seed": 0, "data": {"images": 1}, "threat": {"norm": "linf", "eps": 0.1}, "rows": [], '
        '"ordering": []}'
    )
    program = PROGRAM.format(words=LIGHT, heavy=HEAVY)
    asked = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    found = [line.split(maxsplit=2)[1:] for line in asked.stdout.splitlines() if line.startswith("### ")]
    right = [0] * 5 + [2] * (len(LIGHT) - 5)
    assert found == [[str(code), f"[] {' '.join(words)}"] for code, words in zip(right, LIGHT, strict=True)]


def test_names_are_those_of_what_they_name():
    assert set(names.METHODS) == set(systems.METHODS) == set(options.Method.__args__)
    assert set(stages.ATTACKS) == set(options.StageName.__args__)
    assert {"single", *build.VOTES} == set(options.VoteName.__args__)
    assert {"digits", *readers.FORMS} == set(sets.NAMES)
