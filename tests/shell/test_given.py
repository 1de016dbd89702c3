"""What is handed to ``assess``: images of many kinds, attacks of one's own; and what comes back."""

import copy
import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SubsetRandomSampler, TensorDataset

import lustral
from digits import digits
from lustral.attacks.search import Outcome
from lustral.evaluate import certificate
from lustral.evaluate.protocol import nothing
from lustral.shell import folder, given, stored
from lustral.shell.assessment import Assessment
from lustral.shell.ledger import Ledger
from lustral.shell.options import Resources


@pytest.fixture(autouse=True)
def _short_certificates(monkeypatch):
    monkeypatch.setattr(certificate, "DRAWS", (2,))
    monkeypatch.setattr(certificate, "DIRECTIONS", 4)


FEW = digits(5)
X, Y = FEW.x, FEW.y


NAMES = [f"digit {i}" for i in range(10)]


class Pictures(Dataset):
    """Items as torchvision's sets have them: arrays and plain numbers, with the names of the classes."""

    def __init__(self):
        self.classes = NAMES

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return (X[i, 0] * 255).round().byte().numpy(), int(Y[i])


KINDS = {
    "tensors": (X, Y),
    "a list of two": [X, Y.int()],
    "arrays": (X.numpy(), Y.numpy()),
    "channels last": (X.permute(0, 2, 3, 1).numpy(), Y.numpy()),
    "a data set": TensorDataset(X, Y),
    "a loader": DataLoader(TensorDataset(X, Y), batch_size=2),
    "a loader of bytes": DataLoader(TensorDataset((X * 255).round().byte(), Y), batch_size=2),
    "pictures": Pictures(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [None, 3])
def test_images_are_taken_as_people_have_them(kind, images):
    found = given.data(KINDS[kind], images)
    count = images or 5
    assert found.ids.tolist() == list(range(count))
    assert torch.equal(found.y, Y[:count])
    assert found.x.dtype == torch.float32
    assert (found.x - X[:count]).abs().max() <= 0.51 / 255


def test_names_of_classes_come_along():
    names = ["zero", *"123456789"]
    assert given.data(Pictures()).classes == tuple(NAMES)
    assert given.data(DataLoader(Pictures(), batch_size=2)).classes == tuple(NAMES)
    assert given.data((X, Y), classes=names).classes == tuple(names)
    assert given.data(lustral.data("digits")[:2]).classes == given.data(lustral.data("digits")).classes
    with pytest.raises(lustral.UserError, match="There are 2 names of classes, but labels up to"):
        given.data((X, Y), classes=["a", "b"])


WRONG = {
    "a shuffling loader": (DataLoader(TensorDataset(X, Y), shuffle=True), "shuffle=False"),
    "images alone": (X, "pair"),
    "a loader by chance": (DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler(range(5))), "without a sampler"),
    "batches by chance": (
        DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(RandomSampler(X), 2, False)),
        "without a sampler",
    ),
    "a loader that leaves images out": (DataLoader(TensorDataset(X, Y), 2, drop_last=True), "drop_last=False"),
    "a name": ("digits", "lustral.data"),
    "labels that are fractions": ((X, Y.float()), "whole numbers"),
    "a set of images alone": (TensorDataset(X), "pairs"),
    "an empty set": (TensorDataset(X[:0], Y[:0]), "at least one"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_labelled_images_is_refused(case):
    wrong, said = WRONG[case]
    with pytest.raises(lustral.UserError, match=said):
        given.data(wrong)


class Ruin:
    """An attack of a user's own: no dataclass, no looks; black images, which are far beyond the threat."""

    def __init__(self, threat):
        self.threat = threat

    def run(self, victim, x0, y, rng) -> Outcome:
        return nothing(torch.zeros_like(x0))


@dataclass(frozen=True)
class Wide:
    """One that says it keeps to a wider threat, and does."""

    threat: lustral.Linf

    @property
    def looks(self) -> int:
        return 1

    def run(self, victim, x0, y, rng) -> Outcome:
        return nothing(self.threat.project(1 - x0, x0))


def darker(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    assert model(x).shape == (len(x), 10)
    return x - 0.05


@pytest.fixture(scope="module")
def assessed(tmp_path_factory) -> tuple[Assessment, dict, dict, Path]:
    torchattacks = pytest.importorskip("torchattacks")
    place, net = tmp_path_factory.mktemp("assessed") / "run", lustral.classifier("digits-cnn")
    threat = lustral.Linf(0.3)
    pgd = torchattacks.PGD(torch.nn.Linear(1, 1), eps=0.3, alpha=0.1, steps=3)
    own = {"mine": Ruin(threat), "wide": Wide(lustral.Linf(1.0)), "pgd": pgd, "darker": darker}
    defences = {"net": lustral.defend(net)}
    asked = {"attacks": own, "resources": Resources(batch=1)}
    # What of mine must be mended is a red finding.
    with pytest.MonkeyPatch.context() as short:
        short.setattr(certificate, "DRAWS", (2,))
        short.setattr(certificate, "DIRECTIONS", 4)
        given_all = {"out": place, "classes": NAMES, "allow_red": True}
        found = lustral.assess(defences, (X[:4], Y[:4]), threat, "smoke", **given_all, **asked)
    return found, defences, asked, place


def test_attacks_of_ones_own_are_stages_of_the_report_and_of_the_ledger(assessed):
    found, _, asked, place = assessed
    rows = {row["stage"]: row for row in found["rows"]}
    assert asked["attacks"].keys() <= rows.keys()
    assert rows["mine"]["images"] == rows["mine"]["attacked"] == 4
    assert rows["mine"]["repaired"] == 4
    assert rows["mine"]["max_distance"] <= 0.3 + 1e-6
    assert rows["pgd"]["accuracy"] < rows["clean"]["accuracy"]
    assert rows["pgd"]["gradient"] == "of another library"
    with Ledger(place / "ledger.sqlite") as ledger:
        (chosen,) = {tuple(job["stage"]["choose"]) for job in ledger.spec()["jobs"] if job["stage"]["name"] == "worst"}
        assert {"mine", "pgd", "darker"} < set(chosen)
        assert "wide" not in chosen, "its images are not within the threat of the number"
        assert ledger.done("net", "pgd") == {0, 1, 2, 3}
    assert found["suite"] == "lustral-smoke-1 and mine and wide and pgd and darker"
    assert "darker" in (place / "report.html").read_text()


def test_results_say_what_they_are(assessed):
    found, _, _, place = assessed
    assert "changed within Linf ε = 0.3" in found.summary
    assert "so quote a number of standard." in found.summary, "smoke says what it is no evidence of"
    assert repr(found) == found.summary
    assert dict(found).keys() == stored.results(place).keys()
    assert found["data"]["classes"] == stored.results(place)["data"]["classes"] == NAMES
    page = found._repr_html_()
    assert "<table>" in page
    assert "<td>mine</td>" in page
    assert str(place) in page
    assert isinstance(found, dict)
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert copied == found
        assert copied.folder == place
    assert json.loads(json.dumps(folder.finite(found))).keys() == found.keys()
    assert (found | {"rows": []})["rows"] == []


def test_rows_are_a_table(assessed, monkeypatch):
    found = assessed[0]
    pandas = pytest.importorskip("pandas")
    assert isinstance(found.rows, pandas.DataFrame)
    assert found.rows.to_dict("records")[0]["stage"] == found["rows"][0]["stage"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(lustral.UserError, match="pip install pandas"):
        _ = found.rows


def test_a_number_that_a_red_finding_withholds_says_why():
    text = "The attack does not converge."
    red = {"name": "converged", "level": "red", "text": text}
    found = {
        "title": "mine",
        "seed": 0,
        "data": {"name": "given", "split": "given", "images": 4},
        "threat": {"norm": "linf", "eps": 0.1, "why": ""},
        "rows": [],
        "ordering": [],
        "findings": {"mine": [red, {"name": "other", "level": "green", "text": "Fine."}]},
        "withheld": {"mine": ["converged"]},
    }
    said = Assessment(found).summary
    assert "The robust accuracy of mine is withheld." in said
    assert f"mine is withheld because of this: {text}" in said
    assert "Fine" not in said


def test_a_run_of_assess_is_verified_in_python(assessed):
    _, defences, asked, place = assessed
    said = lustral.verify(place, defences, images=2, **asked)
    assert "Verified images 0, 1, 2, 3: " in said, "all, where another library's noise is that of whole batches"
    with Ledger(place / "ledger.sqlite") as ledger:
        assert {probe.image for probe in ledger.probes("net")["pgd"]} == {0, 1, 2, 3}, "and none is another's"
    with pytest.raises(lustral.UserError, match="cannot be run again as it was"):
        lustral.verify(place, {"net": lustral.defend(lambda x: x.flatten(1)[:, :10])}, images=1, **asked)
    with pytest.raises(lustral.UserError, match=r"lustral.verify\(run, defences\)"):
        lustral.verify(place)


def test_other_settings_of_an_attack_are_another_run(assessed):
    torchattacks = pytest.importorskip("torchattacks")
    _, defences, asked, place = assessed
    longer = torchattacks.PGD(torch.nn.Linear(1, 1), eps=0.3, alpha=0.1, steps=4)
    with pytest.raises(lustral.UserError, match="holds another run"):
        lustral.assess(
            defences, (X[:4], Y[:4]), lustral.Linf(0.3), "smoke", out=place, attacks=asked["attacks"] | {"pgd": longer}
        )


@pytest.mark.parametrize("wrong", [3, torch.nn.Linear(1, 1), Ruin])
def test_what_is_no_attack_is_refused(wrong):
    with pytest.raises(lustral.UserError, match="mine is no attack"):
        given.attacks({"mine": wrong}, lustral.Linf(0.1), 1)


def test_arrays_are_cast_whatever_their_floats():
    assert given.data((np.asarray(X, dtype=np.float64), Y)).x.dtype == torch.float32


def assess_with(**attacks) -> Assessment:
    defences = {"net": lustral.defend(lustral.classifier("digits-cnn"))}
    return lustral.assess(defences, (X, Y), lustral.Linf(0.3), "smoke", attacks=attacks, allow_red=True)


def test_what_an_attack_leaves_outside_of_the_threat_is_counted_and_not_hidden():
    found = assess_with(mine=lambda model, x, y: (x + 0.5).clamp(0, 1))
    (row,) = (row for row in found["rows"] if row["stage"] == "mine")
    assert row["repaired"] == len(X)
    assert "threat-kept" in {f["name"] for f in found["findings"]["net"] if f["level"] == "red"}
    found = assess_with(mine=lambda model, x, y: (x + 0.3 + 1e-6).clamp(0, 1))  # rounding is none
    assert {row["repaired"] for row in found["rows"] if row["stage"] == "mine"} == {0}


@pytest.mark.parametrize("wrong", [lambda m, x, y: x[:1], lambda m, x, y: x.numpy(), lambda m, x, y: None])
def test_an_attack_returns_images_like_those_that_it_got(wrong):
    with pytest.raises(lustral.UserError, match=r"An attack returns images \[5, 1, 8, 8\]"):
        assess_with(mine=wrong)


def test_an_attack_of_torchattacks_for_another_threat_is_refused():
    torchattacks = pytest.importorskip("torchattacks")
    net = lustral.classifier("digits-cnn")
    for wrong in (torchattacks.PGD(net, eps=1 / 255), torchattacks.PGDL2(net, eps=0.3)):
        with pytest.raises(
            lustral.UserError, match=r"and this evaluation for Linf eps 0\.3; make it for the same threat"
        ):
            assess_with(mine=wrong)
    with pytest.raises(lustral.UserError, match="given by name"):
        lustral.assess(lustral.defend(net), (X, Y), lustral.Linf(0.3), "smoke", attacks=[net])


def test_a_threat_is_none_of_plain_numbers():
    with pytest.raises(lustral.UserError, match=r"A threat is lustral\.Linf"):
        lustral.assess(lustral.defend(lustral.classifier("digits-cnn")), (X, Y), 8 / 255, "smoke")
