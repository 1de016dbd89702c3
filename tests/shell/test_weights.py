import hashlib
import json
from dataclasses import replace

import pytest
import torch

import lustral
from components import scramble
from digits import digits
from lustral.classifiers.small import SmallCNN
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.denoisers.preconditioning import EDM
from lustral.shell import cards, weights
from lustral.shell.images import data
from lustral.shell.options import Adversary, Network, Noise
from lustral.shell.trainer import tasks
from mirror import serving

CARD = weights.Card(
    name="own",
    kind="denoiser",
    architecture={"type": "EDM", "net": {"type": "UNet", "channels": 1, "width": 4, "mult": [1, 2], "blocks": 1}},
    data="digits",
    image=[1, 8, 8],
    command="lustral train",
)


def net():
    return scramble(weights.build(CARD.architecture))


def test_what_is_saved_is_loaded_frozen_with_the_same_outputs(tmp_path):
    place, model, x = tmp_path / "deep" / "own.safetensors", net(), digits(3).x
    written = weights.save(place, model, CARD)
    found, card = weights.load(str(place), "denoiser")
    sigma = torch.full((3,), 0.2)
    assert torch.equal(found(x, sigma), model(x, sigma))
    assert card == written
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    assert card.parameters == sum(p.numel() for p in model.parameters())
    assert {p.name for p in place.parent.iterdir()} == {"own.safetensors", "own.json"}


def test_half_the_bytes_hold_the_rounded_network_and_what_does_not_fit_stays(tmp_path):
    place, model = tmp_path / "own.safetensors", net()
    with torch.no_grad():
        model.net.last[-1].bias.fill_(1e5)
    weights.save(tmp_path / "whole.safetensors", model, CARD)
    weights.save(place, model, CARD, half=True)
    found, _ = weights.load(str(place), "denoiser")
    for name, had in model.state_dict().items():
        got = found.state_dict()[name]
        assert got.dtype == torch.float32
        assert torch.equal(got, had if name == "net.last.2.bias" else had.half().float())
    assert place.stat().st_size < 0.7 * (tmp_path / "whole.safetensors").stat().st_size


def test_lists_in_a_card_become_the_tuples_that_networks_expect():
    model = weights.build(CARD.architecture | {"net": CARD.architecture["net"] | {"attention": [1]}})
    assert sum("qkv" in name for name in model.state_dict()) > 0


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("VPEps", {"type": "VP", "beta_max": 15.0}),
        ("VPEps", {"type": "DiscreteVP.linear", "n": 100}),
        ("VPredict", {"type": "DiscreteVP.cosine", "n": 50}),
        ("VPredict", {"type": "DiscreteVP", "betas": [0.1, 0.2, 0.3]}),
    ],
)
def test_a_network_on_a_schedule_is_saved_and_loaded(tmp_path, kind, schedule):
    inner = {"type": "DDPM", "channels": 1, "width": 4, "mult": [1, 2], "blocks": 1}
    card = replace(CARD, architecture={"type": kind, "net": inner, "schedule": schedule})
    place, model, x = tmp_path / "own.safetensors", scramble(weights.build(card.architecture)), digits(3).x
    weights.save(place, model, card)
    found, _ = weights.load(str(place), "denoiser")
    sigma = torch.full((3,), 0.2)
    assert found.schedule == model.schedule
    assert torch.equal(found(x, sigma), model(x, sigma))


@pytest.mark.parametrize(
    "architecture",
    [
        {"type": "ResNet", "channels": 1, "width": 4, "mean": [0.1], "std": [0.3], "activation": "celu"},
        {"type": "WideResNet", "channels": 1, "depth": 10, "widen": 1, "activation": "silu"},
        {"type": "NCSN", "net": {"type": "UNet", "channels": 1, "width": 4, "normalised": False, "mult": [2]}},
        {"type": "NCSN", "net": {"type": "RefineNet", "channels": 1, "width": 4}, "sigma_max": 1.0},
    ],
)
def test_every_network_is_saved_and_loaded(tmp_path, architecture):
    place, model, x = tmp_path / "own.safetensors", scramble(weights.build(architecture)), digits(3).x
    kind, more = ("denoiser", (torch.full((3,), 0.2),)) if architecture["type"] == "NCSN" else ("classifier", ())
    weights.save(place, model, replace(CARD, architecture=architecture, kind=kind))
    found, _ = weights.load(str(place), kind)
    assert torch.equal(found(x, *more), model(x, *more))


def test_a_schedule_is_no_network_and_a_network_no_schedule():
    inner, schedule = {"type": "DDPM", "width": 4}, {"type": "VP"}
    for wrong in ({"net": schedule, "schedule": schedule}, {"net": inner, "schedule": inner}):
        with pytest.raises(UserError, match="Unknown architecture"):
            weights.build({"type": "VPEps", **wrong})
    with pytest.raises(UserError, match="does not fit this version"):
        weights.build({"type": "VPEps", "net": inner, "schedule": "VP"})


@pytest.mark.parametrize("name", ["digits-cnn", "digits-unet"])
def test_shipped_weights_are_found_by_name_and_match_their_cards(name):
    card = weights.card(weights.find(name))
    model, loaded = weights.load(name, card.kind)
    assert loaded == card
    assert card.name == name
    assert card.parameters == sum(p.numel() for p in model.parameters())
    assert card.licence
    assert card.command.startswith("lustral train")


def test_the_shipped_classifier_is_as_accurate_as_its_card_says():
    model, card = weights.load("digits-cnn", "classifier")
    test = data.load("digits", "test")
    share = (model(test.x).argmax(dim=1) == test.y).float().mean().item()
    assert share == pytest.approx(card.measured["test_accuracy"], abs=0.002)


def test_the_shipped_denoiser_is_as_good_as_its_card_says():
    """Root mean square error on test digits, with noise of another seed than the card's."""
    model, card = weights.load("digits-unet", "denoiser")
    x = data.load("digits", "test").x
    for sigma in (0.05, 0.1, 0.2, 0.3):
        noisy = x + sigma * Key(8).rng(len(x)).normal(x)
        error = (model(noisy, torch.full((len(x),), sigma)) - x).square().mean().sqrt().item()
        assert error == pytest.approx(card.measured[f"test_rmse_at_{sigma}"], rel=0.03)
        assert error < sigma


def test_a_path_goes_before_a_suggestion(tmp_path):
    assert weights.find(str(tmp_path / "a.safetensors")) == tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="Did you mean 'digits-cnn'"):
        weights.find("digits-cn")


def test_anything_is_loaded_by_its_name(tmp_path, monkeypatch):
    """Shipped, or in the weights folder; a name that ships keeps its meaning."""
    monkeypatch.setenv("LUSTRAL_WEIGHTS", str(tmp_path))
    for name in ("own", "digits-cnn"):
        weights.save(tmp_path / f"{name}.safetensors", net(), CARD)
    (tmp_path / "cardless.safetensors").write_bytes(b"of something else")
    assert "cardless" not in cards.zoo()
    assert isinstance(lustral.load("own"), EDM)
    assert isinstance(lustral.load("digits-cnn"), SmallCNN)
    assert isinstance(lustral.load("digits-unet"), EDM)


def test_weights_from_the_network_are_checked_by_their_card_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LUSTRAL_WEIGHTS", str(tmp_path / "kept"))
    weights.save(tmp_path / "net.safetensors", net(), CARD)
    files = {name: (tmp_path / name).read_bytes() for name in ("net.json", "net.safetensors")}
    card = hashlib.sha256(files["net.json"]).hexdigest()
    images = digits(2).x, torch.tensor([0.1, 0.2])
    with serving(files, "net.safetensors") as server:
        address = f"{server.url}net.json#sha256={card}"
        server.cuts = [1000]  # the connection breaks once
        fetched = lustral.load(address)
        assert torch.equal(fetched(*images), lustral.load(tmp_path / "net.safetensors")(*images))
        asked = len(server.asked)
        lustral.load(address)
        assert len(server.asked) == asked
        with pytest.raises(UserError, match="published checksum"):
            lustral.load(f"{server.url}net.json#sha256={'0' * 64}")
        with pytest.raises(UserError, match="named by card and checksum"):
            lustral.load(f"{server.url}net.safetensors")
        server.files["net.safetensors"] = b"something else"
        (tmp_path / "kept" / card / "net.safetensors").unlink()
        with pytest.raises(UserError, match="published checksum .* put a copy"):
            lustral.load(address)
    assert torch.equal(fetched(*images), lustral.load(str(tmp_path / "net.safetensors"))(*images))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".pkl", ".bin"])
def test_pickles_are_refused_before_they_are_opened(tmp_path, suffix):
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        weights.find(str(tmp_path / f"absent{suffix}"))


def test_one_flipped_bit_is_found(tmp_path):
    place = tmp_path / "own.safetensors"
    weights.save(place, net(), CARD)
    content = bytearray(place.read_bytes())
    content[-5] ^= 1
    place.write_bytes(content)
    with pytest.raises(UserError, match="damaged or was changed"):
        weights.load(str(place), "denoiser")


def test_weights_of_another_shape_are_refused(tmp_path):
    place = tmp_path / "own.safetensors"
    wider = replace(CARD, architecture=CARD.architecture | {"net": CARD.architecture["net"] | {"width": 8}})
    weights.save(place, net(), wider)
    with pytest.raises(UserError, match="does not hold the network that its card describes"):
        weights.load(str(place), "denoiser")


def test_a_card_of_another_version_is_refused(tmp_path):
    place = tmp_path / "own.safetensors"
    weights.save(place, net(), CARD)
    facts = json.loads(place.with_suffix(".json").read_text())
    place.with_suffix(".json").write_text(json.dumps(facts | {"colour": "blue"}))
    with pytest.raises(UserError, match="is no card of this version.*colour"):
        weights.load(str(place), "denoiser")


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {"model": {"w": torch.ones(3)}, "optimiser": {"state": {}}, "average": {"w": torch.zeros(3)}, "step": 7}
    state["identity"] = {"recipe": {"lr": 0.1, "mult": [1, 2]}}
    weights.save_checkpoint(tmp_path / "a.checkpoint", state)
    found = weights.load_checkpoint(tmp_path / "a.checkpoint")
    assert torch.equal(found["model"]["w"], torch.ones(3))
    assert {name: found[name] for name in ("step", "identity", "optimiser")} == {
        name: state[name] for name in ("step", "identity", "optimiser")
    }
    assert [p.name for p in tmp_path.iterdir()] == ["a.checkpoint"]


def test_a_new_network_to_train_has_seen_no_image():
    asked = tasks.Asked("classifier", Network(kind="resnet", width=4), Noise(), Adversary())
    buffers = tasks.make(asked, data.load_bytes("digits", "train")).model.named_buffers()
    seen = [count.item() for name, count in buffers if name.endswith("num_batches_tracked")]
    assert seen == [0] * len(seen) != []
