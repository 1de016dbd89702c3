"""Whole evaluations by suites: shards, early stops, reviews, exports, and numbers that are withheld."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lustral.evaluate import certificate
from lustral.evaluate.findings import Finding
from lustral.shell import claims, comparison, early, plan, results, review, views
from lustral.shell.images import data as datasets
from lustral.shell.ledger import Ledger
from lustral.shell.options import Resources
from lustral.shell.run import Run
from mistakes import OWN

SUITE = ["--suite=smoke", "--images=4", "--purification.steps=2", "--resources.threads=1"]
BARE = ["--suite=smoke", "--images=4", "--purification.method=none", "--resources.threads=1"]
NUMBERS = ("system", "stage", "accuracy", "low", "high", "single_draw", "worst_of", "attacked", "images", "draws")


def read(folder: str) -> dict:
    return json.loads(Path(folder, "results.json").read_text())


def rows(found: dict) -> list[dict]:
    return [{name: row[name] for name in NUMBERS} for row in found["rows"]]


@pytest.fixture(scope="module", autouse=True)
def _short_certificates():
    """Certificates have tests of their own, and are no part of a run's identity."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificate, "DRAWS", (2,))
        patch.setattr(certificate, "TWINS", 2)
        patch.setattr(certificate, "DIRECTIONS", 4)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run of the smoke suite."""
    from lustral.shell.cli import main

    folder = tmp_path_factory.mktemp("suite") / "whole"
    assert main(["evaluate", str(folder), *SUITE]) == 0
    return folder


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def test_a_suite_leaves_its_name_findings_and_every_metric(whole):
    found = read(whole)
    assert found["suite"] == "lustral-smoke-1"
    stages = [row["stage"] for row in found["rows"]]
    assert stages[:2] == ["clean", "null"]
    assert stages[-4:] == ["transfer", "apgd-bpda", "apgd-margin", "worst"]
    assert len(found["findings"]["diffpure"]) >= 25
    details = found["details"]["diffpure"]
    assert details["stage"] == "worst"
    assert {item["source"] for item in details["published"]} >= {"DiffHammer", "DiffBreak", "Fixed-AutoAttack"}
    assert {(risk["rule"], risk["k"], risk["m"]) for risk in details["risks"]} >= {
        ("single", 1, 1),
        ("single", 1, 10),
        ("majority", 5, 1),
        ("mean logits", 10, 1),
    }
    assert found["certificates"]["diffpure"]["finite_difference"] < 1e-6
    assert all(row["null_looked"]["looks"] <= row["looks"] for row in found["rows"] if row.get("null_looked"))


def test_two_shards_merged_are_one_process(whole, lustral):
    for k in (1, 2):
        assert lustral("evaluate", f"part{k}", *SUITE, f"--shard={k}/2", "--resources.batch=2") == 0
        assert not Path(f"part{k}", "results.json").exists()
    assert lustral("merge", "merged", "[part1,part2]") == 0
    merged, expected = read("merged"), read(whole)
    assert merged["ledger_digest"] == expected["ledger_digest"]
    assert rows(merged) == rows(expected)
    assert merged["certificates"] == expected["certificates"]


def test_merging_what_does_not_belong_together_is_refused(whole, lustral, capfd):
    assert lustral("evaluate", "other", *SUITE, "--seed=1", "--shard=1/2") == 0
    assert lustral("merge", "merged", f"[{whole},other]") == 2
    assert "another run; it differs in key.seed: 0 → 1" in capfd.readouterr().err
    Path("other/run.json").unlink()
    assert lustral("merge", "elsewhere", f"[other,{whole}]") == 2
    assert "There are no options in other" in capfd.readouterr().err
    assert not Path("elsewhere").exists()


@pytest.mark.parametrize("part", ["2", "3/2", "0/2", "a/b", "1/0"])
def test_a_shard_that_makes_no_sense_is_refused(part, lustral, capfd):
    assert lustral("evaluate", "run", *SUITE, f"--shard={part}") == 2
    assert "A shard is named like 1/2" in capfd.readouterr().err


def test_verify_runs_images_again_and_finds_the_same(whole, lustral, capsys):
    assert lustral("verify", str(whole), "--images=2") == 0
    assert "equal to the bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE draws SET logits = (SELECT logits FROM draws WHERE draw = 3 LIMIT 1)", "where it never was"),
        ("DELETE FROM candidates WHERE stage = 'null' AND image % 2 = 0", "its ledger lacks stages of 2 images"),
        ("UPDATE candidates SET x = (SELECT x FROM candidates WHERE stage = 'clean' LIMIT 1)", "The ledger differs at"),
        ("UPDATE candidates SET wrongs = losses WHERE stage = 'exact'", "The ledger differs at diffpure, exact"),
    ],
)
def test_verify_notices_a_ledger_that_was_changed(run, lustral, capfd, change, words):
    with Ledger(run / "ledger.sqlite") as ledger:
        ledger._db.execute(change)
    if "DELETE" not in change:  # whoever changes a ledger can have its results written anew
        (run / "results.json").unlink()
        assert lustral("evaluate", str(run), *SUITE) == 0
    assert lustral("verify", str(run), "--images=4") == 2
    assert words in capfd.readouterr().err


@pytest.mark.parametrize("part", ["rows", "withheld", "findings", "threat", "details"])
def test_verify_notices_results_that_the_ledger_does_not_give(run, lustral, capfd, monkeypatch, part):
    said = json.loads((run / "results.json").read_text())
    if part == "rows":
        said["rows"][0]["accuracy"] = 0.97
    elif part == "threat":
        said["threat"]["eps"] = 0.5
    elif part == "details":
        said["details"]["diffpure"]["bootstrap"][1] += 0.01
    else:
        said[part] = {"diffpure": []}
    (run / "results.json").write_text(json.dumps(said))
    with monkeypatch.context() as patch:  # known before anything is run
        patch.setattr(review.runner, "execute", pytest.fail)
        assert lustral("verify", str(run)) == 2
    assert "does not say what its ledger does" in capfd.readouterr().err


def test_verify_refuses_what_it_cannot_repeat(run, lustral, capfd):
    stored = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(stored | {"seed": 7}))
    assert lustral("verify", str(run)) == 2
    assert "was run with other options, data, networks or code" in (said := capfd.readouterr().err)
    assert "what differs is key.seed: 0 → 7" in said


def test_verify_checks_the_finished_images_of_an_unfinished_run(run, lustral, capsys):
    with Ledger(run / "ledger.sqlite") as ledger:
        kept = max(ledger.done("diffpure", "worst"))
        for table in ("candidates", "draws"):
            ledger._db.execute(f"DELETE FROM {table} WHERE stage = 'worst' AND image != ?", (kept,))
        for row in ledger.probes("diffpure")["worst"]:
            if row.image != kept:
                ledger._db.execute("DELETE FROM probes WHERE stage = 'worst' AND image = ?", (row.image,))
    for name in ("results.json", "pictures.npz", "report.html"):
        (run / name).unlink()
    assert lustral("verify", str(run), "--images=4") == 0
    assert f"Verified images {kept}:" in (said := capsys.readouterr().out)
    assert "not finished, so nothing is said of its numbers" in said


@pytest.mark.parametrize("options", [["--resources.batch=0"], ["--resources.threads=-1"], ["--resources.device=tpu"]])
def test_verify_refuses_resources_that_there_are_not(options, whole, lustral, capfd):
    assert lustral("verify", str(whole), *options) == 2
    assert capfd.readouterr().err.startswith("lustral: ")


def test_runs_on_other_images_are_not_compared(lustral, capfd):
    x, y = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32), np.arange(4)
    few = ["--data=mine.npz", "--images=4", "--stages=[clean]", "--purification.method=none", *OWN]
    np.savez("mine.npz", x_test=x, y_test=y)
    assert lustral("evaluate", "a", *few) == 0
    np.savez("mine.npz", x_test=1 - x, y_test=y)
    assert lustral("evaluate", "b", *few) == 0
    assert lustral("compare", "a", "b") == 2
    assert "no image in common" in capfd.readouterr().err


def test_a_comparison_says_where_attacks_were_not_alike(lustral, capsys):
    few = ["--images=4", "--stages=[clean,exact]", "--purification.method=none", "--draws=1"]
    assert lustral("evaluate", "short", *few, "--search.steps=1") == 0
    assert lustral("evaluate", "long", *few, "--search.steps=3") == 0
    capsys.readouterr()
    assert lustral("compare", "short", "long") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "exact: short: undefended and long: undefended were not attacked alike: steps 1 and 3, looks" in said
    assert "clean: short" not in said


def test_half_of_the_shards_is_no_run(whole, lustral, capfd):
    assert lustral("evaluate", "part", *SUITE, "--shard=1/2") == 0
    assert lustral("merge", "merged", "[part]") == 2
    assert "is not complete: 2 images of diffpure, clean are missing" in capfd.readouterr().err
    assert not Path("merged", "results.json").exists()


def test_compare_refuses_other_images_under_the_same_ids_and_other_threats(whole, lustral, capfd):
    data = datasets.load("digits", "test")[:4]
    np.savez("other.npz", x=data.x.flip(0).numpy(), y=data.y.flip(0).numpy())
    assert lustral("evaluate", "other", *SUITE, *OWN, "--data=other.npz") == 0
    assert lustral("compare", "other", str(whole)) == 2
    assert "no image in common" in capfd.readouterr().err
    assert lustral("evaluate", "weaker", *SUITE, "--threat.eps=0.05") == 0
    capfd.readouterr()
    assert lustral("compare", "weaker", str(whole)) == 0
    shown = capfd.readouterr().out
    assert "clean" in shown
    assert "worst" not in shown


def test_compare_keeps_withheld_numbers_to_itself(run, lustral, capsys):
    found = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(found | {"withheld": {"diffpure": ["unbounded"]}}))
    assert lustral("compare", str(run), str(run)) == 0
    shown = capsys.readouterr().out
    assert "clean" in shown
    assert "worst" not in shown


def test_compare_pairs_systems_on_the_same_images(whole, lustral, capsys):
    assert lustral("evaluate", "other", *SUITE, "--purification.t_star=0.05") == 0
    capsys.readouterr()
    assert lustral("compare", str(whole), "other") == 0
    shown = capsys.readouterr().out
    assert "worst" in shown
    assert "other: diffpure" in shown
    assert lustral("compare", str(whole), str(whole)) == 0
    assert "+0.0" in capsys.readouterr().out
    shutil.copytree("other", f"again/{whole.name}")
    lines = comparison.runs(whole, Path("again", whole.name))
    assert {(line["a"], line["b"]) for line in lines} >= {(f"{whole}: diffpure", f"again/{whole.name}: diffpure")}
    same = next(line for line in comparison.runs(whole, whole) if line["stage"] == "clean")
    assert (same["difference"], same["p_flip"]) == ([0, 0, 0], 1)  # a run does not differ from itself


def test_parquet_holds_every_draw(whole, lustral):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert lustral("export", str(whole), "draws.parquet") == 0
    table = parquet.read_table("draws.parquet")
    clean = [row for row in table.to_pylist() if row["stage"] == "clean"]
    share = sum(row["label"] == row["truth"] for row in clean) / len(clean)
    assert share == pytest.approx(read(whole)["rows"][0]["single_draw"][0])
    assert {len(logits) for logits in table["logits"].to_pylist()} == {10}


def test_json_extends_robustbenchs_model_info(whole, lustral):
    assert lustral("export", str(whole), "info.json") == 0
    (info,) = json.loads(Path("info.json").read_text())
    theirs = ["link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue"]
    theirs += ["architecture", "eps", "clean_acc", "reported", "autoattack_acc"]
    assert list(info)[: len(theirs)] == theirs
    worst = next(row for row in read(whole)["rows"] if row["stage"] == "worst")
    assert info["reported"] == f"{100 * worst['accuracy']:.2f}"
    assert info["stochastic"] is True
    assert info["autoattack_acc"] is None


def test_an_unknown_export_is_refused(whole, lustral, capfd):
    assert lustral("export", str(whole), "out.csv") == 2
    assert "exported as .parquet or .json" in capfd.readouterr().err


def test_an_early_stop_ends_with_a_narrow_interval_and_fewer_images(lustral, monkeypatch, capfd):
    monkeypatch.setattr(early, "WAVE", 2)
    monkeypatch.setattr(early, "narrow", lambda jobs, ledger, ids, width: len(ids) >= 2)
    assert lustral("evaluate", "run", *SUITE, "--stop_width=0.5") == 0
    found = read("run")
    worst = next(row for row in found["rows"] if row["stage"] == "worst")
    assert worst["images"] == found["data"]["images"] == 2
    assert [worst["low"], worst["high"]] == found["details"]["diffpure"]["sequence"][1:]
    assert found["stopped_at_width"] == 0.5
    assert lustral("verify", "run", "--images=1") == 0, "its rule says where it stops"
    monkeypatch.setattr(early, "narrow", lambda jobs, ledger, ids, width: len(ids) > 2)
    assert lustral("verify", "run", "--images=1") == 2
    assert "not one that its rule would have stopped there" in capfd.readouterr().err


def test_a_run_with_images_beyond_where_it_would_stop_goes_on_to_its_end(lustral, monkeypatch):
    """Or the images of its numbers would be those that happened to be done."""
    monkeypatch.setattr(early, "WAVE", 1)
    monkeypatch.setattr(early, "narrow", lambda jobs, ledger, ids, width: len(ids) >= (3 if width < 0.9 else 1))
    assert lustral("evaluate", "run", *BARE, "--stop_width=0.5") == 0
    assert (read("run")["data"]["images"], read("run")["stopped_at_width"]) == (3, 0.5)
    assert lustral("evaluate", "run", *BARE, "--stop_width=0.95") == 0
    assert (read("run")["data"]["images"], read("run")["stopped_at_width"]) == (3, 0.5), "the narrower one counts"
    with Ledger(Path("run/ledger.sqlite")) as ledger:
        ledger.note(width=None)
    assert lustral("evaluate", "run", *BARE, "--stop_width=0.95") == 0
    assert read("run")["data"]["images"] == 4


def test_the_anytime_interval_decides_when_to_stop(whole):
    planned = plan.load(whole, Resources())
    with Ledger(whole / "ledger.sqlite") as ledger:
        for width, narrow in ((1.01, True), (0.05, False)):
            assert early.narrow(planned.jobs, ledger, planned.data.ids.tolist(), width) is narrow


@pytest.mark.parametrize("options", [["--stop_width=2"], ["--stop_width=0.1", "--shard=1/2"]])
def test_an_early_stop_that_makes_no_sense_is_refused(options, lustral, capfd):
    assert lustral("evaluate", "run", *SUITE, *options) == 2
    assert "a width between 0 and 1, and no shards" in capfd.readouterr().err


def test_a_red_finding_withholds_the_number_until_one_asks_for_it(run, lustral, monkeypatch, capsys):
    monkeypatch.setattr(results, "findings", lambda evidence: [Finding("red", 0.0, "Something is wrong.", "unbounded")])
    assert lustral("merge", "held", f"[{run}]") == 0
    held = read("held")
    left = {row["stage"] for row in held["rows"] if row["group"] != "eps"}
    assert not {"worst", "apgd-margin", "exact"} & left
    assert {"clean", "null", "bpda"} <= left, "what shows why a number is withheld stays"
    assert held["details"] == {}
    assert "WITHHELD: the robust accuracy of diffpure, because of unbounded." in capsys.readouterr().out
    assert lustral("merge", "marked", f"[{run}]", "--allow_red=true") == 0
    shown = capsys.readouterr().out
    assert "MARKED: the robust accuracy of diffpure" in shown
    assert all(row["held"] for row in read("marked")["rows"] if row["stage"] == "worst")


def test_several_systems_are_evaluated_and_compared_in_one_run(lustral):
    Path("two.yaml").write_text(
        "suite: smoke\nimages: 3\nsystems:\n  undefended: {purification: {method: none}}\n"
        "  twin: {purification: {steps: 2, fixed_noise: true}}\n"
    )
    assert lustral("evaluate", "run", "--config=two.yaml") == 0
    found = read("run")
    assert {row["system"] for row in found["rows"]} == {"undefended", "twin"}
    assert {row["draws"] for row in found["rows"]} == {1}
    assert "fixed" not in {row["stage"] for row in found["rows"]}
    (test,) = found["paired"]
    assert {test["a"], test["b"]} == {"undefended", "twin"}


def test_the_page_shows_the_images_that_the_attack_cost_most(whole):
    planned = plan.load(whole, Resources())
    with Ledger(whole / "ledger.sqlite") as ledger:
        shown = views.pictures(ledger, planned.jobs, planned.data, planned.key)
        clean, worst = (ledger.outcomes("diffpure", stage) for stage in ("clean", "worst"))
    right = [(each.logits.argmax(-1) == each.y[:, None]).double().mean(1) for each in (clean, worst)]
    assert clean.ids.tolist() == worst.ids.tolist()
    order = (right[1] - right[0]).argsort(stable=True)
    assert shown["y"].tolist() == clean.y[order].tolist()
    assert np.array_equal(shown["diffpure/attacked"], worst.x[order].numpy())


@pytest.mark.parametrize("stage", ["clean", "blind"])
def test_every_run_has_pictures(stage, lustral):
    assert lustral("evaluate", "run", "--images=3", f"--stages=[{stage}]", "--search.steps=2", "--draws=2") == 0
    with np.load("run/pictures.npz") as shown:
        assert shown["diffpure/purified"].shape == (3, 1, 8, 8)
        assert np.array_equal(shown["diffpure/clean"], shown["diffpure/attacked"]) is (stage == "clean")
    about = read("run")["about"]["diffpure"]
    assert "denoiser digits-unet, solver ddpm; classifier digits-cnn, one decision" in about


@pytest.mark.parametrize(
    ("bpda", "exact", "holds", "chance"),
    [
        ([0.9] * 40, [0.4] * 40, True, False),
        ([0.4] * 40, [0.9] * 40, False, False),
        ([0.5] * 40, [0.5] * 40, True, False),
        ([1.0, 0.5], [1.0, 0.6], True, True),
    ],
    ids=["kept", "broken", "equal", "too few to tell"],
)
def test_an_order_of_attacks_fails_only_where_chance_does_not_explain_it(
    bpda, exact, holds, chance, whole, monkeypatch
):
    planned, given = plan.load(whole, Resources()), {"bpda": bpda, "exact": exact}
    monkeypatch.setattr(claims, "decisions", lambda run, job: dict(enumerate(given.get(job.stage.name, bpda))))
    with Ledger(whole / "ledger.sqlite") as ledger:
        (claim,) = [c for c in claims.ordering(Run(ledger, planned.jobs)) if "bpda ≥ exact" in c["claim"]]
    assert (claim["holds"], claim["chance"]) == (holds, chance)


def test_a_system_without_a_part_has_the_evaluations_and_so_when_run_again(lustral, capsys):
    Path("parts.yaml").write_text(
        "stages: [clean]\nimages: 2\ndraws: 2\nclassification: {vote: majority, draws: 2}\n"
        "purification: {solver: one-shot}\nsystems:\n  named: {}\n"
        "  judged: {classification: {vote: single}}\n  other: {purification: {solver: ddim, steps: 2}}\n"
    )
    assert lustral("evaluate", "run", "--config=parts.yaml") == 0
    with Ledger(Path("run/ledger.sqlite")) as ledger:
        described = ledger.spec()["systems"]
    votes = {name: system["vote"]["type"].rsplit(".")[-1] for name, system in described.items()}
    assert votes == {"named": "Majority", "judged": "Single", "other": "Majority"}
    solvers = {name: system["purifier"]["sampler"]["type"].rsplit(".")[-1] for name, system in described.items()}
    assert solvers == {"named": "OneShot", "judged": "OneShot", "other": "DDIM"}
    assert lustral("verify", "run", "--images=1") == 0
    assert "equal to the bit" in capsys.readouterr().out


@pytest.mark.parametrize(("shift", "level"), [(0, "green"), (1, "red")])
def test_a_list_of_stages_says_when_labels_do_not_match_the_images(shift, level, lustral):
    few = datasets.load("digits", "test")[:6]
    np.savez("data.npz", x=few.x.numpy(), y=(few.y.numpy() + shift) % 10)
    args = ["--data=data.npz", "--images=6", "--stages=[clean]", "--purification.method=none", *OWN]
    assert lustral("evaluate", "run", *args) == 0
    (found,) = (f for said in read("run")["findings"].values() for f in said if f["name"] == "above-chance")
    assert found["level"] == level
