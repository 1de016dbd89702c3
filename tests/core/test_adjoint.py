import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from components import PURIFIERS, Counted, gaussian_mixture, images
from lustral.core.adjoint import Checkpointed, Direct, Identity, Skip, Surrogate
from lustral.core.errors import UserError
from lustral.core.kernel import purify
from lustral.core.lanes import Lanes
from lustral.core.noise import Key, Rng
from lustral.denoisers.base import Denoiser
from lustral.denoisers.ideal import GaussianMixture
from lustral.purifiers.adaptive import Adaptive, UnitField
from lustral.purifiers.compose import chain, from_function
from lustral.purifiers.diffusion import Diffusion
from lustral.purifiers.presets import diffpure, ssni
from lustral.purifiers.sample_specific import Reference
from lustral.samplers import DDIM, DDPM, ODE, SDE, Heun, Langevin
from lustral.schedules import VP, DiscreteVP

SMALL = (1, 2, 2)
KEY = Key(21)


def small_images() -> Tensor:
    """A dark image and a bright one."""
    return images(2, SMALL, torch.float64).requires_grad_()


def gradcheck(function: Callable[..., Tensor], *inputs: Tensor) -> bool:
    """torch's gradcheck, with a run of its own for each of the many backward passes that it takes."""

    class Fresh(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return function(*inputs)

        @staticmethod
        def backward(ctx, upstream: Tensor) -> tuple[Tensor, ...]:
            inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            with torch.enable_grad():
                return torch.autograd.grad(function(*inputs), inputs, upstream)

    return torch.autograd.gradcheck(Fresh.apply, inputs)


@pytest.mark.parametrize("name", PURIFIERS)
def test_gradcheck(name):
    purifier = PURIFIERS[name](gaussian_mixture(SMALL, torch.float64))
    rng = KEY.rng(2)
    assert gradcheck(lambda x: purify(purifier, x, rng), small_images())


def test_gradcheck_through_adaptive_step_sizes():
    """α between its bounds depends on the image, by way of the field at two places."""
    field = UnitField(gaussian_mixture(SMALL, torch.float64), 0.25)
    adaptive = Adaptive(field, 0.05, steps=3, alpha_max=10.0)
    rng = KEY.rng(2)
    state = adaptive.init(small_images(), rng.fold("init"))
    for i in range(3):
        state = adaptive.step(i, state, rng.fold("step", i))
        assert ((state.alpha > adaptive.tau) & (state.alpha < adaptive.alpha_max)).all()
        assert state.alpha.requires_grad
    assert gradcheck(lambda x: purify(adaptive, x, rng), small_images())


@pytest.mark.parametrize(
    ("schedule", "sampler"),
    [
        (VP(), SDE(dt=0.02)),
        (VP(), SDE(steps=3)),
        (VP(), SDE(dt=0.02, mean=True)),
        (VP(), ODE(dt=0.02)),
        (VP(), DDIM(eta=0.5, dt=0.02)),
        (DiscreteVP.linear(n=100), DDPM("small", dt=0.02)),
        (DiscreteVP.linear(n=100), DDPM("large", steps=3)),
        (VP(), Heun(steps=3, sigma_min=0.02)),
        (VP(), Langevin(dt=0.02)),
    ],
)
@pytest.mark.parametrize("adjoint", [Direct(), Checkpointed()], ids=["direct", "checkpointed"])
def test_gradcheck_in_the_time_itself(schedule, sampler, adjoint):
    rng = KEY.rng(2)
    denoiser = gaussian_mixture(SMALL, torch.float64)

    def output(x: Tensor, t: Tensor) -> Tensor:
        return purify(Diffusion(denoiser, schedule, sampler, lambda _: t, t_max=0.11), x, rng, adjoint=adjoint)

    t_star = torch.tensor([0.0523, 0.1018], dtype=torch.float64, requires_grad=True)
    assert gradcheck(output, small_images(), t_star)
    grad = torch.autograd.grad(output(small_images(), t_star).sum(), t_star)[0]
    assert (grad != 0).all()


def vp_sde_by_hand(x: Tensor, mixture: GaussianMixture, rng: Rng, t_star: float, dt: float) -> Tensor:
    """DiffPure on [-1, 1] from its equations: Euler–Maruyama on the reverse VP-SDE with a Gaussian mixture's score."""

    def beta(t: float) -> float:
        return 0.1 + t * (20 - 0.1)

    def alpha_bar(t: float) -> float:
        return math.exp(-0.5 * (20 - 0.1) * t**2 - 0.1 * t)

    def score(v: Tensor, t: float) -> Tensor:
        centres = math.sqrt(alpha_bar(t)) * (2 * mixture.means - 1)
        spread = alpha_bar(t) * 4 * mixture.variances + 1 - alpha_bar(t)
        offset = centres - v[:, None]
        distance = offset.square().flatten(2).sum(2)
        log_p = mixture.weights.log() - 0.5 * v[0].numel() * spread.log() - distance / (2 * spread)
        share = (log_p.softmax(dim=1) / spread)[..., None, None, None]
        return (share * offset).sum(dim=1)

    v = math.sqrt(alpha_bar(t_star)) * (2 * x - 1) + math.sqrt(1 - alpha_bar(t_star)) * rng.fold("init").normal(x)
    t, i = t_star, 0
    while t > 1e-5:
        h = min(dt, t - 1e-5)
        v = v + (0.5 * beta(t) * v + beta(t) * score(v, t)) * h
        v = v + math.sqrt(beta(t) * h) * rng.fold("step", i).normal(x)
        t, i = t_star - (i + 1) * dt, i + 1
    return (v + 1) / 2


def test_diffpure_and_its_exact_gradient_at_100_steps_equal_plain_autograd_on_the_published_equations():
    denoiser = gaussian_mixture(dtype=torch.float64)
    purifier = diffpure(denoiser, t_star=0.1, solver="sde")
    assert purifier.n_steps == 100
    x = images(3, dtype=torch.float64).requires_grad_()
    upstream = KEY.fold("upstream").rng(3).normal(x)
    expected = vp_sde_by_hand(x, denoiser, KEY.rng(3), 0.1, 1e-3)
    expected_grad = torch.autograd.grad(expected, x, upstream)[0].flatten(1)
    for adjoint in (Direct(), Checkpointed()):
        out = purify(purifier, x, KEY.rng(3), adjoint=adjoint)
        grad = torch.autograd.grad(out, x, upstream)[0].flatten(1)
        assert torch.allclose(out, expected, rtol=0, atol=1e-10)
        assert torch.allclose(grad, expected_grad, rtol=1e-8, atol=1e-10)
        assert (1 - torch.cosine_similarity(grad, expected_grad)).abs().max() < 1e-6


def test_bpda_keeps_the_output_and_passes_the_gradient_unchanged(net, x):
    purifier = PURIFIERS["sde"](net)
    x.requires_grad_()
    out = purify(purifier, x, KEY, adjoint=Identity())
    assert torch.equal(out, purify(purifier, x, KEY, adjoint=Direct()))
    upstream = torch.linspace(-1, 1, out.numel()).view_as(out)
    assert torch.equal(torch.autograd.grad(out, x, upstream)[0], upstream)


def test_bpda_costs_forward_calls_alone(net, x):
    counted = Counted(net)
    purify(diffpure(counted, steps=4), x.requires_grad_(), KEY, adjoint=Identity()).sum().backward()
    assert len(counted.rows) == 4


def test_blind_leaves_the_purifier_out(net, x):
    counted = Counted(net)
    assert purify(diffpure(counted), x, KEY, adjoint=Skip()) is x
    assert counted.rows == []


def test_a_surrogate_is_run_instead(net, x):
    x.requires_grad_()
    full, cheap = Counted(net), PURIFIERS["ddim"](net)
    out = purify(diffpure(full), x, KEY, adjoint=Surrogate(cheap))
    expected = purify(cheap, x, KEY)
    assert torch.equal(out, expected)
    assert torch.equal(*(torch.autograd.grad(o.square().sum(), x)[0] for o in (out, expected)))
    assert full.rows == []


class Anchored(NamedTuple):
    """A state with two parts that every step uses several times and passes on as they are."""

    x: Tensor
    near: Tensor
    far: Tensor


class PullToTheInput:
    """Both anchors are the very input, whose gradient is then a long sum that can be taken in many orders."""

    n_steps = 6

    def init(self, x: Tensor, rng: Rng) -> Anchored:
        return Anchored(x + 0.1 * rng.normal(x), x, x)

    def step(self, i: int, state: Anchored, rng: Rng) -> Anchored:
        x, near, far = state
        return state._replace(x=x * near.cos() + 0.3 * far.exp() * x.sin() - near**2 / 7 + far / 3)

    def readout(self, state: Anchored) -> Tensor:
        return state.x + state.near / 3


def test_states_that_are_shared_and_passed_on_have_the_same_bits_under_every_exact_adjoint(x):
    x.requires_grad_()
    outs = [purify(PullToTheInput(), x, KEY, adjoint=a) for a in (Direct(), Checkpointed(), Checkpointed(1 << 40))]
    grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in outs]
    assert all(torch.equal(out, outs[0]) for out in outs)
    assert all(torch.equal(grad, grads[0]) for grad in grads)


def calls(denoiser: Denoiser, budget: int, steps: int = 8) -> tuple[int, int]:
    """Network calls of the forward and of the backward pass."""
    counted = Counted(denoiser)
    out = purify(diffpure(counted, steps=steps), images(5).requires_grad_(), KEY, adjoint=Checkpointed(budget))
    forward = len(counted.rows)
    out.sum().backward()
    return forward, len(counted.rows) - forward


def test_checkpoints_cost_one_recomputation_a_step_and_a_large_budget_none(net):
    assert calls(net, budget=0) == (8, 8)
    assert calls(net, budget=1) == (8, 8)
    assert calls(net, budget=1 << 40) == (8, 0)
    assert calls(net, budget=1 << 40, steps=1) == (1, 0)
    assert calls(net, budget=0, steps=1) == (1, 1)


def test_a_budget_in_between_saves_as_many_recomputations_as_graphs_fit(net):
    sizes = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = net(images(5).requires_grad_(), torch.full((5,), 0.1))
    assert kept.requires_grad
    graph = sum(size for place, size in sizes.items() if place not in weights)
    backward = [calls(net, budget=int(graph * (k + 0.5)))[1] for k in range(8)]
    assert backward == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("first", [from_function(torch.sin), diffpure(gaussian_mixture(), steps=1)])
def test_a_small_step_does_not_stand_for_large_ones(net, first):
    """Going over from one stage of a chain to the next makes no graph to speak of."""
    counted = Counted(net)
    made = chain(first, diffpure(counted, steps=8))
    out = purify(made, images(5).requires_grad_(), KEY, adjoint=Checkpointed(10_000))
    assert len(counted.rows) == 8
    out.sum().backward()
    assert len(counted.rows) == 16


def test_weights_that_want_gradients_cost_no_graph(net, x):
    net.requires_grad_()
    made = diffpure(net, steps=3)
    assert not purify(made, x, KEY).requires_grad
    assert not purify(ssni(made, Reference(1.0, 1.0, 0.5, 1.5, 9)), x, KEY, adjoint=Lanes(1)).requires_grad
    for adjoint in (Direct(), Lanes(1, Direct())):
        assert purify(made, x, KEY, adjoint=adjoint).requires_grad


def test_without_a_gradient_nothing_is_computed_twice(net, x):
    counted = Counted(net)
    assert not purify(diffpure(counted, steps=4), x, KEY).requires_grad
    with torch.no_grad():
        assert not purify(diffpure(counted, steps=4), x.requires_grad_(), KEY).requires_grad
    assert len(counted.rows) == 8


@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_second_backward_pass_finds_the_same_gradient(net, x, budget):
    x.requires_grad_()
    out = purify(diffpure(net, steps=3), x, KEY, adjoint=Checkpointed(budget)).sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@dataclass(frozen=True)
class Remembered:
    """Steps of exp, whose node saves its own output; each output is remembered weakly."""

    made: list[weakref.ref]
    n_steps: int = 4

    def init(self, x: Tensor, rng: Rng) -> Tensor:
        return x

    def step(self, i: int, state: Tensor, rng: Rng) -> Tensor:
        out = (-state).exp()
        self.made.append(weakref.ref(out))
        return out.clone()

    def readout(self, state: Tensor) -> Tensor:
        return state


@pytest.mark.parametrize("budget", [0, 1, 10**9])
def test_no_graph_outlives_the_gradient(x, budget):
    made = []
    purify(Remembered(made), x.requires_grad_(), KEY, adjoint=Checkpointed(budget)).sum().backward()
    assert len(made) >= 4
    assert [ref() for ref in made] == [None] * len(made)


def test_a_second_derivative_is_refused(net, x):
    x.requires_grad_()

    def slope() -> Tensor:
        out = purify(diffpure(net, steps=2), x, KEY)
        return torch.autograd.grad(out.square().sum(), x, create_graph=True)[0].sum()

    for again in (lambda: slope().backward(), lambda: torch.autograd.grad(slope(), x)):
        with pytest.raises(UserError, match=r"exist under lustral\.Direct\(\) only"):
            again()


def test_only_plain_autograd_reaches_the_weights():
    denoiser = gaussian_mixture()
    denoiser.means.requires_grad_()
    x = images(2)
    purify(diffpure(denoiser, steps=2), x, KEY, adjoint=Direct()).sum().backward()
    assert denoiser.means.grad.abs().sum() > 0
