"""A defence has no mode of its own, switches nobody's, and shows no network whose mode changes what it says."""

import os
import random
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from components import images
from lustral.attacks.foreign import Averaged
from lustral.core.errors import UserError
from lustral.core.kernel import purify, trace
from lustral.core.noise import Key, audit
from lustral.core.spec import spec
from lustral.defence import defend
from lustral.denoisers.base import Meter
from lustral.denoisers.ideal import FiniteSet
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM, NCSN, VPEps, VPredict
from lustral.purifiers.compose import from_function
from lustral.purifiers.presets import diffpure
from lustral.schedules import VP

KEY = Key(5)


class Dropping(nn.Module):
    """Drops by a function that goes by the module's mode."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.dropout(x.flatten(1), 0.5, self.training))


class OfTheBatch(nn.Module):
    """Normalises by a function that goes by the module's mode, and keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("var", torch.ones(1))
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.batch_norm(x, self.mean, self.var, training=self.training).flatten(1))


class Plain(nn.Module):
    """Says the same in every mode."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.flatten(1))


def flat(part: nn.Module) -> nn.Module:
    return nn.Sequential(part, nn.Flatten(), nn.Linear(64, 3))


def torchs() -> nn.Module:
    return flat(nn.BatchNorm2d(1, momentum=0.5))


def snapshot(net: nn.Module) -> tuple:
    return {name: t.clone() for name, t in net.state_dict().items()}, [part.training for part in net.modules()]


def unchanged(net: nn.Module, before: tuple) -> bool:
    state, modes = snapshot(net)
    return modes == before[1] and all(torch.equal(t, before[0][name]) for name, t in state.items())


@pytest.mark.parametrize("make", [torchs, lambda: flat(nn.Dropout(0.5)), Dropping, OfTheBatch])
def test_whoever_switches_the_mode_of_a_defence_switches_no_network(make):
    net, x = make().eval(), images(4)
    defence, before = defend(net, from_function(lambda x: x)), snapshot(net)
    said = defence.decide(x, KEY).logits
    faces = [defence, defence.bind(KEY), Averaged(defence, KEY), nn.Sequential(defence)]
    for face in faces:
        assert not face.train()(x).isnan().any()
        assert not face[0].training if isinstance(face, nn.Sequential) else not face.training
        face.eval()
    assert unchanged(net, before)
    assert torch.equal(defence.decide(x, KEY).logits, said)


def closed_over(net: nn.Module):
    return lambda x: net(x)


NET = nn.Module()


def from_globals(net: nn.Module):
    global NET
    NET = net
    return lambda x: NET(x)


class Holding:
    """A plain object that keeps its network in a dictionary."""

    def __init__(self, net: nn.Module):
        self.parts = {"net": net}

    def __call__(self, x: Tensor) -> Tensor:
        return self.parts["net"](x)


class Slotted:
    __slots__ = ("net",)

    def __init__(self, net: nn.Module):
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


class Listing(nn.Module):
    """A module that hides another one from torch in a list."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.training, self.nets = False, [net]

    def forward(self, x: Tensor) -> Tensor:
        return self.nets[0](x)


def within_a_class(net: nn.Module):
    class Local:
        def __call__(self, x: Tensor) -> Tensor:
            return net(x)

    return Local()


@dataclass(frozen=True)
class Field:
    net: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)


HIDDEN = {
    "itself": lambda net: net,
    "closure": closed_over,
    "closure in a closure": lambda net: closed_over(closed_over(net)),
    "global": from_globals,
    "method": lambda net: net.forward,
    "partial": lambda net: partial(lambda model, x: model(x), net),
    "default": lambda net: lambda x, model=net: model(x),
    "object": Holding,
    "slots": Slotted,
    "list in a module": Listing,
    "class in a function": within_a_class,
    "field": Field,
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN.keys())
@pytest.mark.parametrize("make", [Dropping, OfTheBatch, torchs], ids=["function", "batch statistics", "torch's"])
def test_a_network_in_training_mode_is_refused_wherever_it_is(make, hide):
    net, x = make(), images(2)
    before = snapshot(net)
    with pytest.raises(UserError, match=r"in training mode.*call \.eval\(\) on it first"):
        defend(hide(net)).decide(x, 0)
    assert unchanged(net, before), "or looking has changed it"
    defence = defend(hide(net.eval()))
    assert torch.equal(defence.decide(x, 0).logits, net(x))
    net.train()
    for call in (lambda: defence.decide(x, 0), lambda: defence.bind(0)(x), lambda: defence(x)):
        with pytest.raises(UserError, match="in training mode"):
            call()


@pytest.mark.parametrize("part", [nn.BatchNorm2d(1), nn.Dropout(0.5), nn.AlphaDropout(0.1), nn.RReLU()])
def test_torchs_own_are_refused_before_any_image_is_seen(part):
    net = flat(part)
    with pytest.raises(UserError, match=r"in training mode.*call \.eval\(\)"):
        defend(net)
    with pytest.raises(UserError, match="in training mode"):
        defend(closed_over(net))
    with pytest.raises(UserError, match="in training mode"):
        defend(nn.Flatten(), from_function(part))
    assert defend(net.eval()).decide(images(1), 0).label.shape == (1,)


@pytest.mark.parametrize("pack", [torch.jit.script, nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_packed_networks_are_seen_through(pack):
    packed, x = pack(flat(nn.Dropout(0.5))), images(2)
    with pytest.raises(UserError, match="in training mode"):
        defend(packed).decide(x, 0)
    assert torch.equal(defend(packed.eval()).decide(x, 0).logits, packed(x))


def test_a_network_that_says_the_same_in_training_mode_is_taken_as_it_is():
    net, x = Plain(), images(3)
    assert torch.equal(defend(net).decide(x, 0).logits, net(x))
    assert net.training
    silent = nn.Sequential(nn.Dropout(0.0), nn.Flatten(), nn.Linear(64, 3))
    assert torch.equal(defend(silent).decide(x, 0).logits, silent(x))


class Noisy(nn.Module):
    """A denoiser's network with dropout by a function."""

    def __init__(self, drop: bool):
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training) if self.drop else 0.1 * x


def test_purifying_by_hand_takes_no_denoiser_in_training_mode():
    x = images(2)
    for net in (Noisy(True), nn.Sequential(nn.Dropout(0.5))):
        purifier = diffpure(NCSN(net) if isinstance(net, nn.Sequential) else EDM(net), 0.1, steps=2)
        for call in (purify, lambda *given: list(trace(*given))):
            with pytest.raises(UserError, match="in training mode"):
                call(purifier, x, 0)
        net.eval()
        assert torch.equal(purify(purifier, x, 0), purify(purifier, x, 0))


def test_looking_at_modes_is_not_counted_draws_no_noise_and_leaves_torchs_generator():
    meter, x = Meter(), images(3)
    net = Plain()
    defence = defend(meter.watch(net), from_function(lambda x, rng: x + 0.1 * rng.normal(x)))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    with audit() as seen:
        defence.decide(x, KEY)
    assert set(seen.values()) == {1}
    assert meter.here.forward == 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("wrap", [EDM, NCSN, lambda net: VPEps(net, VP()), lambda net: VPredict(net, VP())])
def test_a_denoiser_begins_in_the_mode_of_its_network(wrap):
    net = UNet(channels=1, width=8, mult=(1,), blocks=1)
    assert wrap(net).training
    assert not wrap(net.eval()).training
    assert not wrap(lambda x, t=None: x).training
    assert all(part.training for part in wrap(net).train().modules()), "training one trains its network"


def never_again(x: Tensor) -> Tensor:
    """A user's own noise, out of reach of any seed."""
    return x + 0.1 * torch.randn_like(x)


def numpys_noise(x: Tensor) -> Tensor:
    return x + 0.1 * torch.from_numpy(np.random.rand(*x.shape)).to(x)


def pythons_noise(x: Tensor) -> Tensor:
    return x + 0.1 * random.random()


def rarely(x: Tensor) -> Tensor:
    return x + 0.1 if torch.rand(()) < 1e-6 else x


def of_the_system(x: Tensor) -> Tensor:
    return x + 0.1 * int.from_bytes(os.urandom(4), "big") / 2**32


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x.flatten(1), 0.5)[:, :3]


def test_what_cannot_be_repeated_is_refused_where_it_is_to_be_and_shown_where_it_is_not():
    x, plain = images(2), Plain().eval()
    makes = [lambda f=f, **o: defend(plain, f, **o) for f in (never_again, numpys_noise, rarely, pythons_noise)]
    for make in (*makes, lambda **o: defend(AlwaysDropping().eval(), **o)):
        for call in (lambda d: d.decide(x, 0), lambda d: d.decide(x, KEY.rng(2)), lambda d: d.bind(0)(x)):
            with pytest.raises(UserError, match="which the seed given here does not repeat"):
                call(make())
        with pytest.raises(UserError, match="draws from a generator of torch, NumPy or Python"):
            make(key=KEY)(x)
        assert make()(x).shape == make().decide(x).logits.shape == (2, 3)
    with pytest.raises(UserError, match="two things of the same image under the same noise"):
        defend(plain, of_the_system).decide(x, 0)


def test_noise_that_is_seeded_anew_at_every_call_is_repeated():
    defence, x = (
        defend(Plain().eval(), lambda x: x + 0.1 * torch.randn(x.shape, generator=torch.manual_seed(3))),
        images(2),
    )
    assert torch.equal(defence.decide(x, 0).logits, defence.decide(x, 0).logits)


class Skipping(nn.Module):
    """Leaves itself out now and then in training mode: seldom enough that one look sees nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        left_out = self.training and torch.rand(()) < 1e-6
        return x.flatten(1)[:, :3] * (0 if left_out else 1)


@pytest.mark.parametrize("dress", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_what_changes_its_weights_or_draws_in_training_mode_is_refused(dress):
    x = images(2)
    for net in (nn.Sequential(nn.Flatten(), dress(nn.Linear(64, 3))), Skipping()):
        with pytest.raises(UserError, match=r"in training mode.*call \.eval\(\) on it first"):
            defend(net.train()).decide(x, 0)
        assert torch.equal(defend(net.eval()).decide(x, 0).logits, net(x))


def test_dropout_that_an_export_keeps_is_refused():
    x = images(2)
    any_batch = ({0: torch.export.Dim.AUTO},)
    kept = torch.export.export(flat(nn.Dropout(0.5)), (x,), dynamic_shapes=any_batch).module()
    with pytest.raises(UserError, match="which the seed given here does not repeat"):
        defend(kept).decide(x, 0)
    assert spec(defend(kept))["type"] == "lustral.defence.Defence"


def test_repeating_is_asked_once_of_a_users_own_code_and_never_of_ours():
    rows = []

    def noting(x: Tensor) -> Tensor:
        rows.append(len(x))
        return x

    x, defence = images(3), defend(Plain().eval(), noting)
    state = torch.get_rng_state()
    for _ in range(2):
        defence.decide(x, 0)
    assert rows == [1, 1, 3, 3]
    assert torch.equal(torch.get_rng_state(), state)
    assert defend(flat(nn.Identity()).eval(), diffpure(FiniteSet(x), steps=2))._repeats
