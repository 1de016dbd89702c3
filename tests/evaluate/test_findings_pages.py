"""Every check has a page that says what its levels mean, and the index lists them all."""

import inspect
import re
from pathlib import Path

import pytest

from lustral.evaluate.findings import CHECKS

PAGES = Path(inspect.getfile(CHECKS["logits"])).parent / "pages"


def can(name: str, level: str) -> bool:
    """Whether the code of a check can give a level, by its source."""
    source = inspect.getsource(CHECKS[name])
    bars = re.search(r"\b(bar|measured)\(", source) and not (level == "red" and re.search(r"\binf,", source))
    return f'"{level}"' in source or "stronger(" in source or bool(bars) or ("must(" in source and level == "red")


def text(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def test_every_check_has_a_page_and_every_page_a_check():
    assert {page.stem for page in PAGES.glob("*.md")} - {"README"} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_page_names_its_check_and_the_levels_that_the_code_has(name):
    page = text(name)
    assert page.startswith(f"# {name}: ")
    assert "- **green**: " in page
    for level in ("amber", "red"):
        assert (f"- **{level}**: never" in page) != can(name, level)


def test_the_index_lists_all_in_their_order_and_says_which_can_withhold():
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\.md\) \| .+ \| (yes|no) \|$", text("README"), re.MULTILINE)
    assert [(name, name, "yes" if can(name, "red") else "no") for name in CHECKS] == rows


def test_links_lead_somewhere():
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
