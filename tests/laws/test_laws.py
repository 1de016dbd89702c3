"""What every purifier promises. To be in ``PURIFIERS`` is to be tested here."""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from components import IN_RANGE, PURIFIERS, WITHOUT_NET, images
from lustral.core.adjoint import Checkpointed, Direct
from lustral.core.kernel import purify, trace
from lustral.core.noise import Key, audit
from lustral.core.purifier import Purifier
from lustral.core.spec import ROLES, canonical, digest, role, spec
from lustral.denoisers import preconditioning
from lustral.denoisers.base import Autocast, FixedBatch, Meter
from lustral.purifiers.adaptive import Adaptive
from lustral.samplers import SAMPLERS
from lustral.schedules import VP

IDS = torch.tensor([5, 3, 2**40, 7, 0])
KEY = Key(11)

every_purifier = pytest.mark.parametrize("name", PURIFIERS)


@pytest.fixture
def purifier(name, net) -> Purifier:
    return PURIFIERS[name](net)


def run(purifier: Purifier, x: Tensor, rng, adjoint) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of a loss in which every pixel has another weight."""
    x = x.clone().requires_grad_()
    out = purify(purifier, x, rng, adjoint=adjoint)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    return out.detach(), torch.autograd.grad((weight * out + out.square()).sum(), x)[0]


def saved_bytes(purifier: Purifier, x: Tensor) -> int:
    """Bytes of all that plain autograd keeps for one backward pass."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = purify(purifier, x.clone().requires_grad_(), KEY.rng(IDS), adjoint=Direct())
    assert kept.requires_grad
    return sum(storages.values())


def parts(obj: object) -> Iterator[object]:
    """Every dataclass inside ``obj``, itself included."""
    if isinstance(obj, tuple | list):
        for part in obj:
            yield from parts(part)
    elif dataclasses.is_dataclass(obj):
        yield obj
        for f in dataclasses.fields(obj):
            yield from parts(getattr(obj, f.name))


@every_purifier
def test_pure(name, purifier, x):
    before = torch.get_rng_state()
    first = purify(purifier, x, KEY.rng(IDS))
    assert torch.equal(first, purify(purifier, x, KEY.rng(IDS)))
    assert torch.equal(torch.get_rng_state(), before)


@every_purifier
def test_images_in_images_out(name, purifier, x):
    kept = x.clone()
    out = purify(purifier, x, KEY.rng(IDS))
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.isfinite(out).all()
    assert not torch.equal(out, x)
    assert torch.equal(x, kept)
    if name in IN_RANGE:
        assert float(out.min()) >= 0
        assert float(out.max()) <= 1


@every_purifier
def test_independent_of_batch_and_order(name, purifier, x):
    rng = KEY.rng(IDS)
    whole = purify(purifier, x, rng)
    adaptive = any(isinstance(part, Adaptive) for part in parts(purifier))
    for rows in ([3, 1], [2], [4, 3, 2, 1, 0]):
        rows = torch.tensor(rows)
        part = purify(purifier, x[rows], rng[rows])
        assert torch.allclose(part, whole[rows], rtol=0, atol=1e-4 if adaptive else 1e-5)


@every_purifier
def test_independent_of_neighbours_to_the_last_digits_in_float64(name, net, x):
    """In float32 ADP's finite difference magnifies rounding by 1/delta, and rounding depends on the batch."""
    purifier = PURIFIERS[name](copy.deepcopy(net).double())
    rng, x = KEY.rng(IDS), x.double()
    whole = purify(purifier, x, rng)
    for others in (torch.zeros_like(x), images(9)[4:].flip(0).double()):
        for kept in ([2], [0, 3, 4], [1]):
            among_others = others.index_copy(0, torch.tensor(kept), x[kept])
            assert torch.allclose(purify(purifier, among_others, rng)[kept], whole[kept], rtol=0, atol=1e-10)
            assert torch.allclose(purify(purifier, x[kept], rng[torch.tensor(kept)]), whole[kept], rtol=0, atol=1e-10)


@every_purifier
def test_no_noise_is_used_twice_and_recomputation_uses_the_same(name, purifier, x):
    rng = KEY.rng(IDS)
    with audit() as direct:
        run(purifier, x, rng, Direct())
    assert all(count == 1 for count in direct.values())
    with audit() as checkpointed:
        run(purifier, x, rng, Checkpointed())
    assert checkpointed == direct
    assert bool(direct) == (name != "function-plain")


@every_purifier
def test_exact_adjoints_agree_bit_for_bit(name, purifier, x):
    rng = KEY.rng(IDS)
    out, grad = run(purifier, x, rng, Direct())
    size = saved_bytes(purifier, x)
    for budget in (0, size // 2, 1 << 40):
        other_out, other_grad = run(purifier, x, rng, Checkpointed(budget))
        assert torch.equal(other_out, out), budget
        assert torch.equal(other_grad, grad), budget


@every_purifier
def test_the_gradient_reaches_every_image(name, purifier, x):
    _, grad = run(purifier, x, KEY.rng(IDS), None)
    assert torch.isfinite(grad).all()
    assert (grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("name", sorted(PURIFIERS.keys() - WITHOUT_NET))
def test_the_gradient_goes_through_the_network(name, net, x):
    def through(denoiser) -> Tensor:
        return run(PURIFIERS[name](denoiser), x, KEY.rng(IDS), None)[1]

    def cut(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x.detach(), sigma)

    cut.sigma_min, cut.sigma_max = net.sigma_min, net.sigma_max
    assert not torch.allclose(through(net), through(cut), rtol=1e-3)


@every_purifier
def test_trace_shows_every_step_and_ends_with_the_result(name, purifier, x):
    seen = list(trace(purifier, x, KEY.rng(IDS)))
    assert len(seen) == purifier.n_steps + 1
    assert all(images.shape == x.shape for images in seen)
    assert torch.equal(seen[-1], purify(purifier, x, KEY.rng(IDS)))


@every_purifier
def test_spec_round_trips_and_names_equal_objects_alike(name, purifier, net):
    text = canonical(purifier)
    assert json.loads(text) == spec(purifier)
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=True) == text
    assert digest(purifier) == digest(copy.deepcopy(purifier)) == digest(PURIFIERS[name](net))


@every_purifier
def test_every_field_has_a_role_and_networks_are_weights(name, purifier):
    for part in parts(purifier):
        for f in dataclasses.fields(part):
            assert role(f) in ROLES, f"{type(part).__name__}.{f.name}"
            if isinstance(getattr(part, f.name), nn.Module):
                assert role(f) == "weights", f"{type(part).__name__}.{f.name}"


def changed(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    return "another" if value is None or isinstance(value, str) else None


@every_purifier
def test_the_digest_changes_with_every_field_but_runtime_ones(name, purifier):
    purifier = copy.deepcopy(purifier)
    before = digest(purifier)
    for part in parts(purifier):
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            object.__setattr__(part, f.name, changed(value))
            assert (digest(purifier) != before) == (role(f) != "runtime"), f"{type(part).__name__}.{f.name}"
            object.__setattr__(part, f.name, value)
    assert digest(purifier) == before


def test_digests_tell_all_purifiers_apart(net):
    digests = {name: digest(make(net)) for name, make in PURIFIERS.items()}
    assert len(set(digests.values())) == len(digests)


def test_the_digest_changes_with_any_weight(net):
    net = copy.deepcopy(net)
    purifier = PURIFIERS["sde"](net)
    seen = {digest(purifier)}
    for p in net.parameters():
        with torch.no_grad():
            p.view(-1)[-1] += 1e-3
        seen.add(digest(purifier))
    assert len(seen) == 1 + len(list(net.parameters()))


def test_the_digest_changes_with_what_a_network_holds_beside_its_weights(net):
    inner = net.net
    made = [
        preconditioning.EDM(inner, sigma_data=0.5),
        preconditioning.EDM(inner, sigma_data=0.25),
        preconditioning.VPEps(inner, VP()),
        preconditioning.VPEps(inner, VP(beta_max=19.0)),
        preconditioning.VPEps(inner, VP(), time_scale=1000.0),
        preconditioning.VPEps(inner, VP(), discrete=True),
        preconditioning.VPredict(inner, VP()),
        preconditioning.NCSN(inner),
    ]
    assert len({digest(PURIFIERS["ddim"](denoiser)) for denoiser in made}) == len(made)
    changing = preconditioning.EDM(inner, sigma_data=0.5)
    before = digest(changing)
    changing.sigma_data = 0.25
    assert digest(changing) != before


class Held(nn.Module):
    """A network that holds a value as an attribute, or as a buffer that is not saved."""

    def __init__(self, value: object, buffer: bool = False):
        super().__init__()
        if buffer:
            self.register_buffer("value", value, persistent=False)
        else:
            self.value = value


def scaled(factor: float) -> Callable:
    def scale(x: torch.Tensor, *, by: float = factor) -> torch.Tensor:
        return by * x

    return scale


@pytest.mark.parametrize(
    ("one", "other", "buffer"),
    [
        (torch.ones(2), torch.zeros(2), True),
        (torch.ones(2), torch.zeros(2), False),
        (torch.relu, torch.tanh, False),
        (scaled(1.0), scaled(2.0), False),
        ({"gain": 1.0}, {"gain": 2.0}, False),
    ],
    ids=["unsaved buffer", "tensor", "library function", "own function", "mapping"],
)
def test_the_digest_changes_with_all_that_a_module_holds(one, other, buffer):
    assert digest(Held(one, buffer)) == digest(Held(one, buffer)) != digest(Held(other, buffer))


def test_the_digest_sees_weights_that_changed_behind_autograds_back(net):
    net = copy.deepcopy(net)
    before = digest(net)
    next(net.parameters()).data.add_(1)
    assert digest(net) != before


def test_a_module_that_refers_to_itself_has_a_digest():
    knot = Held(None)
    knot.value = knot.forward
    assert digest(knot) == digest(knot)


def test_runtime_fields_do_not_change_the_digest(net):
    assert digest(Checkpointed(0)) == digest(Checkpointed(1 << 20))
    used = Meter()
    used.here.forward = 3
    assert digest(Meter().watch(net)) == digest(used.watch(net))
    assert digest(FixedBatch(net, 4)) != digest(FixedBatch(net, 8))
    assert digest(Autocast(net)) != digest(Autocast(net, "float16"))


def test_adp_freezes_some_images_here_and_others_not(net, x):
    """Otherwise the laws above would not see the difference between a sample and its neighbours."""
    purifier = PURIFIERS["adp"](net)
    state = purifier.init(x, KEY.rng(IDS).fold("init"))
    moving = []
    for i in range(purifier.n_steps):
        state = purifier.step(i, state, KEY.rng(IDS))
        moving.append(int(state.moving.sum()))
    assert len(x) > moving[0] > moving[-1] > 0
    assert 0 < int(PURIFIERS["adp-gated"](net).condition(x).sum()) < len(x)


def test_every_sampler_is_here(net):
    used = {type(part) for make in PURIFIERS.values() for part in parts(make(net))}
    assert {getattr(sampler, "func", sampler) for sampler in SAMPLERS.values()} <= used


def test_lambdas_closures_and_partials_of_one_place_are_told_apart():
    def scaled(factor: float):
        return lambda x: factor * x

    same = [lambda x: x + 1, lambda x: x + 2, scaled(1.0), scaled(2.0), partial(torch.add, 1), partial(torch.add, 2)]
    assert len({digest(f) for f in same}) == len(same)
    assert digest(scaled(2.0)) == digest(scaled(2.0))
