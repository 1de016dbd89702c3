"""Purification systems by name: all can be run, SSNI wraps them, and its reference lies in the card."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import lustral as library
from components import Counted
from digits import digits
from lustral.core.errors import UserError
from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.purifiers.presets import adbm, gdmp, gnsp, ssni
from lustral.purifiers.rounds import Rounds
from lustral.purifiers.sample_specific import Reference, score_norm
from lustral.shell import names, systems, weights
from lustral.shell.options import Method, Purification
from lustral.shell.systems import Networks

CHEAP = {"gdmp": {"steps": 1, "rounds": 1}, "adbm": {"steps": 1}, "diffpure": {"steps": 1}, "adp": {"steps": 1}}


@pytest.fixture(scope="module")
def unet():
    return weights.load("digits-unet", "denoiser")


def test_every_method_has_a_line_and_a_maker(lustral, capsys):
    assert set(systems.METHODS) == set(Method.__args__)
    assert lustral("list") == 0
    said = capsys.readouterr().out
    for name, about in names.METHODS.items():
        assert any(row.startswith("method") and name in row and about in row for row in said.splitlines())


@pytest.mark.parametrize("method", [name for name in systems.METHODS if name not in ("none", "gnsp", "agdm")])
def test_methods_purify_from_the_command_line(lustral, method):
    x = digits(2).x
    np.save("in.npy", x.numpy())
    given = CHEAP[method]
    options = [f"--purification.{name}={value}" for name, value in given.items()]
    assert lustral("purify", "in.npy", "out.npy", f"--purification.method={method}", *options, "--seed=3") == 0
    denoiser, about = weights.load("digits-unet", "denoiser")
    made = systems.purifier(Purification(method=method, **given), Networks(denoiser, about))
    assert np.allclose(np.load("out.npy"), purify(made, x, Key(3).rng(2)).clamp(0, 1).numpy(), atol=1e-6)


def test_names_mean_the_presets(unet):
    denoiser, about = unet
    assert systems.purifier(Purification(method="gnsp"), Networks(denoiser)) == gnsp(denoiser)
    assert systems.purifier(Purification(method="gdmp"), Networks(denoiser)) == gdmp(denoiser)
    assert systems.purifier(Purification(method="adbm", t_star=0.05), Networks(denoiser)) == adbm(denoiser, 0.05)
    wanted = ssni(gnsp(denoiser), systems.reference(about), bias=0.02, norm=score_norm(denoiser))
    assert (
        systems.purifier(Purification(method="gnsp", ssni="logistic", bias=0.02), Networks(denoiser, about)) == wanted
    )
    single = systems.reference(about, "single"), score_norm(denoiser, "single")
    wanted = ssni(gdmp(denoiser, dt=0.01), single[0], law="linear", norm=single[1])
    given = Networks(denoiser, about)
    assert systems.purifier(Purification("gdmp", dt=0.01, ssni="linear", norm="single"), given) == wanted


def test_a_cleaner_image_takes_fewer_steps_of_a_given_length(unet):
    """And one score for its level, where that is asked for."""
    signs = Key(1).rng(3).uniform(digits(3).x).sub(0.5).sign()
    x = torch.cat([digits(3).x, (digits(3).x + 0.19 * signs).clamp(0, 1)])
    counted = Counted(unet[0])
    how = Purification(solver="ddpm", dt=0.01, ssni="logistic", norm="single")
    made = systems.purifier(how, Networks(counted, unet[1]))
    assert made.measure(x[3:], Key(0).rng(3)).mean() > made.measure(x[:3], Key(0).rng(3)).mean()
    counted.rows.clear()
    purify(made, x[:3], Key(0).rng(3))
    few, _ = sum(counted.rows), counted.rows.clear()
    purify(made, x[3:], Key(0).rng(3))
    assert 3 < few < sum(counted.rows) <= 3 * 11


@pytest.mark.parametrize("solver", ["one-shot", "langevin"])
def test_solvers_without_a_number_of_steps_say_so(unet, solver):
    with pytest.raises(UserError, match="no steps to choose; leave steps out"):
        systems.purifier(Purification(solver=solver, steps=10), Networks(*unet))
    systems.purifier(Purification(solver=solver), Networks(*unet))


def test_a_robust_classifier_guides(unet):
    x, rng = digits(3).x, Key(1).rng(3)

    def clean(**how):
        return purify(systems.purifier(Purification(steps=3, solver="ddim", **how), Networks(unet[0])), x, rng)

    guided = {"method": "agdm", "guide": "digits-cnn"}
    assert not torch.allclose(clean(**guided), clean(), atol=1e-4)
    assert torch.equal(clean(**guided, class_weight=0, latent_weight=0), clean())


def test_the_reference_is_measured_into_the_card_and_ssni_reads_it(lustral):
    source = weights.find("digits-unet")
    for path in (source, source.with_suffix(".json")):
        shutil.copy(path, Path(f"mine{path.suffix}"))
    card = json.loads(Path("mine.json").read_text())
    card["measured"] = {"test_rmse_at_0.1": 1.0}
    Path("mine.json").write_text(json.dumps(card))
    denoiser, about = weights.load("mine.safetensors", "denoiser")
    with pytest.raises(UserError, match="run `lustral reference`"):
        systems.purifier(Purification(ssni="linear"), Networks(denoiser, about))
    assert lustral("reference", "mine.safetensors", "--images=40") == 0
    _, about = weights.load("mine.safetensors", "denoiser")
    found = systems.reference(about)
    assert about.measured["test_rmse_at_0.1"] == 1.0
    assert found.images == 40
    train = library.data("digits", "train")
    train = train[torch.arange(40) * len(train.ids) // 40]  # from all over a set that may be sorted
    norms = score_norm(denoiser)(train.x, Key(0).fold("reference").rng(train.ids))
    assert found[:-1] == pytest.approx(Reference.of(norms)[:-1], rel=1e-4)
    assert found.kind == "eps"
    made = systems.purifier(Purification(ssni="linear"), Networks(denoiser, about))
    assert isinstance(made, Rounds)
    assert (made.stages[0].t_star.low, made.stages[0].t_star.high) == (found.low, found.high)


def test_what_ssni_cannot_wrap_is_refused(unet):
    with pytest.raises(UserError, match="adp does not diffuse"):
        systems.purifier(Purification(method="adp", ssni="logistic"), Networks(*unet))


def test_a_reference_of_other_images_is_refused(lustral, capsys):
    np.savez("other.npz", x=np.zeros((4, 1, 12, 12), np.float32), y=np.zeros(4, int))
    assert lustral("reference", "digits-unet", "--data=other.npz") == 2
    assert "takes images of shape [1, 8, 8], not [1, 12, 12]" in capsys.readouterr().err
