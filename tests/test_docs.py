"""README, guide and CONTRIBUTING run as written."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lustral
from lustral.shell.systems import METHODS

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def run(page: str, namespace: dict) -> dict:
    found = blocks(page)
    assert found
    for code in found:
        exec(compile(code, page, "exec"), namespace)
    return namespace


def test_the_guide_runs():
    assert run("docs/guide.md", {})["accuracy"] > 0.5


def test_the_page_on_other_libraries_runs():
    for library in ("foolbox", "art", "pyautoattack", "torchattacks"):
        pytest.importorskip(library)
    namespace = run("docs/interop.md", {})
    assert np.abs(namespace["gradient"]).max() > 0
    assert namespace["shares"].keys() == namespace["attacks"].keys()
    assert max(namespace["shares"].values()) > 0


def test_the_readme_purifies_and_attacks_something():
    namespace = run("README.md", {})
    assert namespace["logits"].shape == (8, 10)
    assert namespace["clean"].shape == namespace["images"].shape
    assert 0 < (namespace["adversarial"] - namespace["images"]).abs().max() <= 3 / 16 + 1e-6


def test_the_purifier_of_contributing_is_a_purifier():
    namespace = run("CONTRIBUTING.md", {"dataclass": dataclasses.dataclass})
    x = torch.full((2, 1, 4, 4), 0.3, requires_grad=True)
    clean = lustral.purify(namespace["Fade"](), x, 0)
    (grad,) = torch.autograd.grad(clean.sum(), x)
    assert torch.allclose(grad, torch.full_like(x, 0.9**3))


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_system_has_a_card():
    cards = dict(re.findall(r"^## (\w+)(.*?)(?=^## |\Z)", (ROOT / "docs/systems.md").read_text("utf-8"), re.M | re.S))
    assert set(cards) == set(METHODS) - {"none"} | {"SSNI"}
    for name, card in cards.items():
        last = "Scales" if name == "agdm" else "Faults of the public code"  # agdm has no public code
        for part in ("Source", "Equations", "Calls", "The gradient passes", last):
            assert f"**{part}**" in card, f"{name} does not say: {part}"
