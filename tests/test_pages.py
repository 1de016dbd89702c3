"""The pages of results are what the stored results say, and a changed number is seen."""

import re
import shutil
from pathlib import Path

import pytest
from benchmarks import pages, store

ROOT = Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in pages.pages(ROOT)}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_its_stored_results_say(name: str):
    assert not pages.faults(PAGES[name], store.DATA)


def changed(text: str) -> str:
    """The same with the last digit of its last number raised."""
    (*_, last) = re.finditer(r"\d(?=\D*$)", text)
    return text[: last.start()] + str((int(last[0]) + 1) % 10) + text[last.end() :]


@pytest.mark.parametrize(
    ("name", "file", "entry"), [(n, f, e) for n in PAGES for _, f, e, _, _ in pages.BLOCK.findall(PAGES[n])]
)
def test_one_number_that_changed_is_seen(name: str, file: str, entry: str, tmp_path: Path):
    page, known = PAGES[name], store.load(file)
    row = next(part for part in known[entry] if isinstance(part, store.Table)).rows[-1]
    column = max(i for i, cell in enumerate(row) if re.search(r"\d", cell))
    row[column] = changed(row[column])
    shutil.copytree(store.DATA, tmp_path, dirs_exist_ok=True)
    assert not pages.faults(page, tmp_path)
    store.keep(file, known, tmp_path)
    assert pages.faults(page, tmp_path)  # a stored result
    (block,) = (found for found in pages.BLOCK.finditer(page) if (found[2], found[3]) == (file, entry))
    assert pages.faults(page[: block.start(4)] + changed(block[4]) + page[block.end(4) :], store.DATA)  # a page's table


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if pages.SEAL.search(page)])
def test_a_number_in_a_sentence_that_changed_is_seen(name: str):
    page = PAGES[name]
    first = next(pages.NUMBER.finditer(page)).end()
    assert pages.faults(changed(page[:first]) + page[first:], store.DATA)


def test_every_table_of_results_is_a_stored_one():
    for path in [ROOT / "docs/results.md", *sorted((ROOT / "docs/results").glob("*.md"))]:
        rest = pages.BLOCK.sub("", path.read_text(encoding="utf-8"))
        assert not re.search(r"^\|.*\|$", rest, re.MULTILINE), f"{path.name} has a table that no command writes"


def test_what_is_kept_comes_back(tmp_path: Path):
    table = store.Table(["a", "b"], [["1", "x “y”"], ["2", "—"]])
    store.keep("page", {"first": [table, "A sentence."]}, tmp_path)
    store.keep("page", {"second": [table]}, tmp_path)
    assert store.load("page", tmp_path) == {"first": [table, "A sentence."], "second": [table]}
    assert '["1", "x “y”"],\n' in (tmp_path / "page.json").read_text(encoding="utf-8")
    assert str(table) == "| a | b |\n| --- | --- |\n| 1 | x “y” |\n| 2 | — |"
