"""Every command from end to end, on tiny settings."""

import json
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch

from digits import EPS, digits
from lustral.classifiers.whitened import Whitening
from lustral.evaluate import metrics
from lustral.shell import runner, weights
from lustral.shell.cli import COMMANDS, main
from lustral.shell.images import data
from lustral.shell.ledger import Ledger
from mistakes import OWN

SMALL = ["--purification.steps=2", "--seed=3"]
RUN = ["--images=5", "--stages=[clean, null, bpda, exact, fixed]", "--purification.steps=2", "--search.steps=2"]
RUN += ["--search.eot=2", "--draws=6", "--micro_batch=16", "--resources.threads=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "made" / "here"
    threads = torch.get_num_threads()
    assert main(["evaluate", str(folder), *RUN]) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 1.0), ("l1", 4.0)])
def test_attack_writes_candidates_within_eps(lustral, capsys, norm, eps):
    search = ["--purification.steps=2", "--search.steps=4", "--search.eot=2", "--resources.batch=3"]
    assert lustral("attack", "out.npz", "--images=5", *search, f"--threat.norm={norm}", f"--threat.eps={eps}") == 0
    with np.load("out.npz") as found:
        x, x0, y, ids = (found[name] for name in ("x", "x0", "y", "ids"))
    assert np.array_equal(x0, digits(5).x)
    assert np.array_equal(y, digits(5).y)
    assert np.array_equal(ids, digits(5).ids)
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    distance = np.linalg.norm((x - x0).reshape(5, -1), order, axis=1)
    assert (distance <= eps + 1e-5).all()
    assert (distance > eps / 2).all()
    assert x.min() >= 0
    assert x.max() <= 1
    assert "fresh draws on each of 5 images are still right" in capsys.readouterr().out


def test_attacked_images_can_be_evaluated(lustral):
    assert lustral("attack", "out.npz", "--images=3", "--purification.method=none", "--search.steps=3") == 0
    few = ["--stages=[clean]", "--purification.steps=1", "--draws=2"]
    assert lustral("evaluate", "run", "--data=out.npz", *OWN, *few) == 0
    assert json.loads(Path("run/results.json").read_text())["data"]["images"] == 3


def test_evaluate_leaves_a_ledger_results_pictures_and_a_page(run):
    names = {"ledger.sqlite", "run.json", "results.json", "pictures.npz", "report.html"}
    assert {p.name for p in run.iterdir()} == names
    page = (run / "report.html").read_text()
    assert page.lstrip().startswith("<!")
    found = json.loads((run / "results.json").read_text())
    assert found["ledger_digest"] in page or found["run"] in page


def test_results_hold_all_that_is_promised(run):
    found = json.loads((run / "results.json").read_text())
    assert {"lustral", "run", "ledger_digest", "versions", "title", "command", "seed"} <= found.keys()
    assert {"data", "threat", "seconds", "rows", "ordering", "paired", "notes"} <= found.keys()
    assert {"name", "split", "images", "sha256"} <= found["data"].keys()
    assert found["threat"] == {"norm": "linf", "eps": 0.1875, "why": ""}
    assert [row["stage"] for row in found["rows"]] == ["clean", "null", "bpda", "exact", "fixed"]
    fields = "system stage gradient loss norm eps steps eot looks restarts knowledge images draws vote accuracy low"
    fields += " high single_draw worst_of majority_of mean_logit_of null seconds forward backward repaired max_distance"
    for row in found["rows"]:
        assert set(fields.split()) <= row.keys()
        assert 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert row["images"] == 5
        assert row["null"] == pytest.approx(found["rows"][1]["accuracy"], abs=1e-12)
        assert row["max_distance"] <= 0.1875 + 1e-6
        assert row["repaired"] == 0
    assert found["rows"][0]["max_distance"] == 0
    assert found["rows"][3]["max_distance"] > 0.1


def test_results_are_folds_of_the_ledger(run):
    found = json.loads((run / "results.json").read_text())
    with Ledger(run / "ledger.sqlite") as ledger:
        assert ledger.digest() == found["ledger_digest"]
        for row in found["rows"]:
            held = ledger.outcomes("diffpure", row["stage"])
            right = held.logits.argmax(dim=-1) == held.y[:, None]
            assert row["draws"] == right.shape[1] == (1 if row["stage"] == "fixed" else 6)
            assert row["accuracy"] == pytest.approx(float(right.double().mean()))
            assert row["worst_of"] == {str(k): metrics.worst_of(right, k).value for k in (5,) if k <= right.shape[1]}


def test_the_meters_count_what_the_network_did(run):
    """Two network rows per purification: 5 images × 6 judging draws, and 3 looks × 2 draws before that."""
    rows = {row["stage"]: row for row in json.loads((run / "results.json").read_text())["rows"]}
    assert (rows["clean"]["forward"], rows["clean"]["backward"]) == (5 * 6 * 2, 0)
    assert (rows["null"]["forward"], rows["null"]["backward"]) == (5 * (6 + 3 * 2) * 2, 0)
    assert rows["bpda"]["backward"] == 0
    assert 0 < rows["exact"]["backward"] <= 5 * 2 * 2 * 2
    assert rows["exact"]["forward"] <= 5 * (6 + 3 * 2 + 2 * 2) * 2


def test_a_finished_run_is_not_run_again(run, tmp_path, monkeypatch, lustral):
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    before = json.loads((folder / "results.json").read_text())
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("a finished stage was run again"))
    assert lustral("evaluate", folder, *RUN) == 0
    after = json.loads((folder / "results.json").read_text())
    for name in ("run", "ledger_digest", "rows", "ordering", "seconds"):
        assert after[name] == before[name]


def test_other_noise_is_another_run(run, tmp_path, capsys, lustral):
    shutil.copytree(run, tmp_path / "copy")
    assert lustral("evaluate", tmp_path / "copy", *RUN, "--seed=6") == 2
    assert "It differs in key.seed" in capsys.readouterr().err


def test_null_needs_no_quotes_in_a_list_of_stages(run):
    """YAML reads it as nothing there; the run above was asked for [clean, null, bpda, exact, fixed]."""
    assert json.loads((run / "results.json").read_text())["rows"][1]["stage"] == "null"


def test_report_makes_the_same_page_again(run, tmp_path, lustral):
    shutil.copytree(run, tmp_path / "copy")
    page = tmp_path / "copy" / "report.html"
    before = page.read_text()
    page.unlink()
    assert lustral("report", tmp_path / "copy") == 0
    assert page.read_text() == before


def test_list_names_everything(lustral, capsys):
    assert lustral("list") == 0
    said = capsys.readouterr().out
    for name in [
        "digits-cnn",
        "digits-unet",
        "diffpure",
        "adp",
        "sde",
        "heun",
        "majority",
        "mean-logits",
        "fixed",
        "null",
    ]:
        assert name in said


def test_show_prints_a_card_as_json(lustral, capsys):
    assert lustral("show", "digits-unet") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["name"] == "digits-unet"
    assert card["kind"] == "denoiser"
    assert {"sha256", "licence", "command", "measured", "recipe", "versions"} <= card.keys()


def test_show_prints_the_table_of_a_run(run, lustral, capsys):
    assert lustral("show", run) == 0
    said = capsys.readouterr().out
    found = json.loads((run / "results.json").read_text())
    for row in found["rows"]:
        assert any(row["stage"] in line and f"{row['accuracy']:.1%}" in line for line in said.splitlines())
    assert "null ≥ exact" in said


def test_train_writes_weights_that_can_be_used_at_once(lustral, capsys):
    options = ["--network.width=8", "--recipe.steps=60", "--recipe.batch=64", "--recipe.lr=0.01"]
    assert lustral("train", "classifier", "net.safetensors", *options) == 0
    assert {p.name for p in Path().iterdir()} == {"net.safetensors", "net.json", "net.csv", "net.png"}
    card = json.loads(Path("net.json").read_text())
    assert card["measured"]["test_accuracy"] > 0.5
    assert card["recipe"]["steps"] == 60
    arguments = ["--classification.classifier=net.safetensors", "--purification.method=none", "--stages=[clean]"]
    assert lustral("evaluate", "run", *arguments, "--images=597") == 0
    row = json.loads(Path("run/results.json").read_text())["rows"][0]
    assert row["accuracy"] == pytest.approx(card["measured"]["test_accuracy"], abs=1e-4)


@pytest.mark.parametrize("normalised", ["true", "false"])
def test_a_denoiser_can_be_trained_and_purifies(lustral, normalised):
    options = ["--network.width=4", "--recipe.steps=3", "--recipe.batch=8", f"--network.normalised={normalised}"]
    assert lustral("train", "denoiser", "net.safetensors", *options) == 0
    card = json.loads(Path("net.json").read_text())
    assert card["measured"].keys() >= {"test_rmse_at_0.1"}
    assert card["architecture"]["net"].get("normalised", True) == json.loads(normalised)
    np.save("in.npy", digits(2).x.numpy())
    assert lustral("purify", "in.npy", "out.npy", "--purification.denoiser=net.safetensors", *SMALL) == 0


def test_a_network_that_is_not_told_the_noise_has_one_field_for_all_levels(lustral):
    options = ["--noise.objective=dsm", "--network.width=4", "--recipe.steps=3", "--recipe.batch=8"]
    assert lustral("train", "denoiser", "field.safetensors", *options) == 0
    model, card = weights.load("field.safetensors", "denoiser")
    assert (card.architecture["type"], card.architecture["net"]["type"]) == ("NCSN", "UNet")
    x, levels = digits(2).x, (0.05, 0.2)
    fields = [(model(x, torch.full((2,), sigma)) - x) / sigma for sigma in levels]
    torch.testing.assert_close(*fields, atol=1e-5, rtol=1e-4)
    assert fields[0].abs().max() > 1e-3


def test_a_whitened_network_is_fitted_to_the_training_images(lustral):
    x = np.random.default_rng(0).uniform(size=(60, 3, 12, 12)).astype(np.float32).cumsum(axis=3) / 12
    np.savez("images.npz", x=x, y=np.arange(60) % 3)
    options = ["--data=images.npz", "--network.kind=whitened", "--network.width=4", "--recipe.steps=2"]
    assert lustral("train", "classifier", "net.safetensors", *options, "--recipe.batch=8") == 0
    fresh = Whitening(3)
    fresh.fit(data.load("images.npz", "train").x)
    model, _ = weights.load("net.safetensors", "classifier")
    torch.testing.assert_close(model.first.filters, fresh.filters)
    assert not torch.equal(model.first.bias, fresh.bias)
    options[3:3] = ["--network.mirror=true"]
    assert lustral("train", "classifier", "both.safetensors", *options, "--recipe.batch=8") == 0
    assert Path("both.safetensors").read_bytes() == Path("net.safetensors").read_bytes()
    assert weights.load("both.safetensors", "classifier")[0].mirror


def test_printed_configurations_are_read_back(lustral):
    """--print_config of some options gives a file that means the same options."""
    options = ["--search.steps=7", "--threat.eps=0.1", "--stages=[clean, exact]", "--micro_batch=null", "--seed=9"]
    texts = []
    for arguments in (options, ["--config=c.yaml"]):
        printed = StringIO()
        with redirect_stdout(printed), pytest.raises(SystemExit) as end:
            lustral("evaluate", "run", *arguments, "--print_config")
        assert end.value.code in (0, None)
        texts.append(printed.getvalue())
        Path("c.yaml").write_text(texts[-1])
    assert texts[0] == texts[1]
    assert "steps: 7" in texts[0]


def test_a_configuration_file_runs(lustral):
    Path("c.yaml").write_text(
        "images: 2\nstages: [clean, null]\ndraws: 2\npurification: {steps: 1}\nsearch: {steps: 1, eot: 1}\nseed: 4\n"
    )
    assert lustral("evaluate", "run", "--config=c.yaml", "--seed=5") == 0
    found = json.loads(Path("run/results.json").read_text())
    assert [row["stage"] for row in found["rows"]] == ["clean", "null"]
    assert found["seed"] == 5


def test_an_interrupted_command_says_how_to_go_on(lustral, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    assert lustral("evaluate", "run", *RUN) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert lustral("attack", "a.npz", "--images=1") == 130
    assert "starts from the beginning" in capsys.readouterr().err


def test_a_request_to_end_is_an_interruption(tmp_path):
    """SIGTERM, as a scheduler sends it, in the middle of a training."""
    words = ["train", "classifier", "net.safetensors", "--recipe.steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lustral", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "loss" in line:
            break
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in process.communicate(timeout=60)[1]
    assert process.returncode == 130


def test_finished_weights_are_not_trained_again(lustral, capfd):
    words = ["train", "classifier", "net.safetensors", "--recipe.steps=1", "--network.width=4", "--recipe.batch=4"]
    assert lustral(*words) == 0
    assert json.loads(Path("net.json").read_text())["licence"] == "not stated", "it is its maker's to say"
    before = Path("net.safetensors").stat().st_mtime_ns
    assert lustral(*words) == 0
    assert "is finished already" in "".join(capfd.readouterr())
    assert Path("net.safetensors").stat().st_mtime_ns == before


def test_weights_of_other_images_are_not_taken_for_finished(lustral, capfd):
    words = ["train", "classifier", "net.safetensors", "--data=d.npz", "--recipe.steps=1", "--network.width=4"]
    x, y = digits(8).x.numpy(), digits(8).y.numpy()
    np.savez("d.npz", x=x, y=y)
    assert lustral(*words, "--recipe.batch=4", "--licence=CC-BY-4.0") == 0
    assert json.loads(Path("net.json").read_text())["licence"] == "CC-BY-4.0"
    np.savez("d.npz", x=1 - x, y=y)
    assert lustral(*words, "--recipe.batch=4") == 2
    assert "holds the weights of another training" in capfd.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert COMMANDS[command].__doc__.splitlines()[0] in " ".join(said.split())


def test_choices_are_made_on_validation_images(lustral):
    of = ["--purification.method=none", "--stages=[clean]", "--images=3", "--draws=1"]
    assert lustral("evaluate", "chosen", *of, "--split=validation") == 0
    found = json.loads(Path("chosen/results.json").read_text())
    assert found["data"]["split"] == "validation"
    with Ledger(Path("chosen/ledger.sqlite")) as ledger:
        (name,) = {row["system"] for row in found["rows"]}
        x = ledger.outcomes(name, "clean").x
    assert torch.equal(x, data.load("digits", "validation")[:3].x)
    assert lustral("evaluate", "chosen", *of, "--split=train") == 2
