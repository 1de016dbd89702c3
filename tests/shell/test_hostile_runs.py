"""results.json and run.json that are no such thing: every command that reads them says so in one sentence."""

import json
from pathlib import Path

import pytest

from lustral.shell import folder
from mistakes import check, evaluate, text
from reports import pictures, results

BROKEN = {
    "nothing": "",
    "cut": '{"title": "A',
    "no text": b"\xff\xfe\x00",
    "a list": "[]",
    "a word": '"results"',
    "null": "null",
    "no keys": "{}",
    "NaN": '{"title": NaN}',
    "a number of 5000 digits": '{"title": ' + "9" * 5000 + "}",
    "lists in lists": "[" * 100_000,
    "objects in objects": '{"a":' * 100_000,
    "half a character": '{"title": "\\ud800"}',
}
CHANGES = {
    "rows: an object": {"rows": {}},
    "rows: without their keys": {"rows": [{}]},
    "rows: text for accuracy": {"rows": [results()["rows"][0] | {"accuracy": "all"}]},
    "rows: billions of draws": {"rows": [results()["rows"][0] | {"draws": 10**10}]},
    "threat: a list": {"threat": []},
    "eps: null": {"threat": {"norm": "Linf", "eps": None}},
    "data: a text": {"data": "digits"},
    "ordering: null": {"ordering": None},
    "withheld: a list": {"withheld": ["adp"]},
    "details: of a text": {"details": {"adp": "good"}},
    "findings: numbers": {"findings": {"adp": [1]}},
    "paired: one side": {"paired": [{"a": "adp"}]},
    "title: a list": {"title": []},
}
READERS = {
    "report": ["report", "run"],
    "show": ["show", "run"],
    "export": ["export", "run", "a.json"],
    "plot": ["plot", "run", "a.png"],
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_results_that_are_damaged_are_said_to_be(command, content, lustral, tmp_path, tree, capfd):
    folder.publish(Path("run"), results(), pictures())
    text("run/results.json", content)
    check(READERS[command], ["run/results.json", "run the evaluation again"], lustral, tmp_path, tree, capfd)


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_results_of_other_types_are_no_results(command, change, lustral, tmp_path, tree, capfd):
    folder.publish(Path("run"), results(), pictures())
    text("run/results.json", json.dumps(results() | change))
    check(READERS[command], ["run/results.json holds no results of Lustral"], lustral, tmp_path, tree, capfd)


def test_options_of_a_run_that_are_damaged_are_said_to_be(lustral, tmp_path, tree, capfd):
    assert lustral(*evaluate("--stages=[clean]")) == 0
    kept = json.loads(Path("run/run.json").read_text())
    others = [
        kept | change
        for change in ({"images": "two"}, {"purification": []}, {"draws": 10**12}, {"stages": 5}, {"precision": None})
    ]
    others += [kept | {"systems": {"a": 1}}, kept | {"search": {"steps": 10**12}}, {}]
    for content in (*BROKEN.values(), *map(json.dumps, others)):
        text("run/run.json", content)
        for command in (["verify", "run", "--images=1"], ["detect", "run"], ["merge", "whole", "[run]"]):
            check(command, ["run/run.json"], lustral, tmp_path, tree, capfd)
