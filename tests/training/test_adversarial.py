"""Adversarial training: what the model sees, and losses written out."""

import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats
from torch import Tensor, nn

from lustral.core.noise import Key, Rng
from lustral.core.threat import L2, Linf
from lustral.training.adversarial import PGDAT, TRADES, _kl, _log_softmax

N = 10
X = Key(1).rng(N).uniform(torch.empty(N, 1, 4, 4))
Y = torch.arange(N) % 3
OBJECTIVES = {
    "pgd-at": PGDAT(Linf(0.05), steps=4, size=0.02),
    "pgd-at-l2": PGDAT(L2(0.3), steps=4, size=0.1),
    "trades": TRADES(Linf(0.05), steps=4, size=0.02),
    "trades-l2": TRADES(L2(0.3), steps=4, size=0.1),
}
every = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


class Watched(nn.Module):
    """A classifier that keeps what it saw, in which mode, and its running statistics then."""

    def __init__(self, normalise: bool = True):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if normalise else nn.Identity()
        self.frozen, self.out = nn.Dropout(0.5).eval(), nn.Linear(16, 3)
        self.seen: list[Tensor] = []
        self.modes: list[tuple[bool, bool, bool]] = []
        self.statistics: list[Tensor] = []
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.8 * Key(3, (i,)).rng(1).normal(p[None])[0])
        self.train()
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        self.modes.append((self.training, self.norm.training, self.frozen.training))
        if isinstance(self.norm, nn.BatchNorm2d):
            self.statistics.append(torch.cat([self.norm.running_mean, self.norm.running_var]).clone())
        return self.out(self.frozen(torch.relu(self.norm(self.conv(x)))).flatten(1))


def rng() -> Rng:
    return Key(2).rng(N)


@every
def test_adversarial_images_keep_to_the_threat(objective):
    model = Watched()
    loss = objective(model, X, Y, rng())
    assert loss.shape == (N,)
    for x in model.seen:
        assert float(objective.threat.distance(x, X).max()) <= objective.threat.eps + 1e-6
        assert float(x.min()) >= 0
        assert float(x.max()) <= 1
    last = objective.threat.distance(model.seen[-1], X)
    assert float(last.min()) > 0.9 * objective.threat.eps  # most go to the edge of the ball


@every
def test_the_search_is_in_evaluation_mode_and_the_real_pass_in_training_mode(objective):
    """Each part's own mode comes back: here dropout was in evaluation mode all along."""
    model = Watched()
    objective(model, X, Y, rng())
    trades = isinstance(objective, TRADES)
    searches = 4 + trades  # TRADES starts with the clean prediction
    assert model.modes == [(False, False, False)] * searches + [(True, True, False)] * (1 + trades)
    assert (model.training, model.norm.training, model.frozen.training) == (True, True, False)


@every
def test_the_search_leaves_running_statistics_alone(objective):
    """They are those of the passes in training mode: m ← 0.9·m + 0.1·(mean or unbiased variance) of what these saw."""
    model = Watched()
    start = torch.cat([torch.zeros(4), torch.ones(4)])
    objective(model, X, Y, rng())
    real = 2 if isinstance(objective, TRADES) else 1
    assert all(torch.equal(s, start) for s in model.statistics[: len(model.seen) - real + 1])
    expected = start
    for x in model.seen[-real:]:
        with torch.no_grad():
            maps = model.conv(x).transpose(0, 1).flatten(1)
        expected = 0.9 * expected + 0.1 * torch.cat([maps.mean(1), maps.var(1)])
    assert torch.allclose(torch.cat([model.norm.running_mean, model.norm.running_var]), expected, atol=1e-6)


@every
def test_nothing_is_left_on_the_weights_before_the_real_pass(objective):
    model = Watched()
    loss = objective(model, X, Y, rng())
    assert all(p.grad is None for p in model.parameters())
    loss.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@every
def test_the_search_climbs(objective):
    """The searched images cost more than the start of the search, and than random ones of the threat."""
    model = Watched(normalise=False)
    objective(model, X, Y, rng())
    adversarial, random = model.seen[-1], objective.threat.start(X, Key(9).rng(N))
    trades = isinstance(objective, TRADES)

    def cost(x: Tensor) -> float:
        with torch.no_grad():
            if trades:
                p, q = model(X).softmax(1).numpy(), model(x).softmax(1).numpy()
                return float(special.rel_entr(p, q).sum())
            return float(F.cross_entropy(model(x), Y))

    assert cost(adversarial) > 1.2 * max(cost(random), cost(model.seen[int(trades)]))


# ----------------------------------------------------------------------------------------------------------- PGD-AT


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pgd_at_is_cross_entropy_on_the_images_that_it_found(smoothing):
    """−Σ q_k·log p_k with q = (1 − smoothing)·onehot + smoothing/3."""
    model = Watched(normalise=False)
    found = PGDAT(Linf(0.05), steps=3, size=0.02, smoothing=smoothing)(model, X, Y, rng())
    logits = model(model.seen[-1]).detach().double().numpy()
    q = (1 - smoothing) * F.one_hot(Y, 3).double().numpy() + smoothing / 3
    assert found.tolist() == pytest.approx((-(q * special.log_softmax(logits, axis=1)).sum(1)).tolist(), rel=1e-5)


class Linear(nn.Module):
    """Two classes: logits (0, w·x + c)."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(Key(5).rng(1).normal(torch.empty(1, 16, dtype=torch.float64))[0])

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1) @ self.w + 0.2
        return torch.stack([torch.zeros_like(z), z], dim=1)


@pytest.mark.parametrize(("threat", "size", "dual"), [(Linf(0.1), 0.03, 1), (L2(0.4), 0.2, 2)], ids=["linf", "l2"])
def test_the_worst_case_of_a_linear_classifier_is_reached(threat, size, dual):
    """The true class's margin m falls to m − eps·‖w‖_1 (Linf; ‖w‖_2 for L2); the loss is log(1 + e^−margin)."""
    model, y = Linear(), Y % 2
    x = 0.5 + 0.1 * (Key(6).rng(N).uniform(X.double()) - 0.5)
    found = PGDAT(threat, steps=40, size=size)(model, x, y, rng())
    margin = (model(x)[:, 1] * (2 * y - 1)).detach()
    worst = margin - threat.eps * torch.linalg.vector_norm(model.w.detach(), dual)
    assert found.tolist() == pytest.approx(F.softplus(-worst).tolist(), rel=1e-5 if dual == 2 else 1e-9)
    found.sum().backward()
    direction = model.w.detach().sign() if dual == 1 else model.w.detach() / model.w.detach().norm()
    moved = x.flatten(1) - threat.eps * (2 * y - 1)[:, None] * direction
    gradient = (-(2 * y - 1) * torch.sigmoid(-worst))[:, None] * moved
    assert torch.allclose(model.w.grad, gradient.sum(0), rtol=1e-3 if dual == 2 else 1e-9)


# ----------------------------------------------------------------------------------------------------------- TRADES


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trades_without_beta_is_cross_entropy(smoothing):
    model = Watched(normalise=False)
    found = TRADES(Linf(0.05), beta=0.0, steps=2, smoothing=smoothing)(model, X, Y, rng())
    expected = F.cross_entropy(model(X), Y, label_smoothing=smoothing, reduction="none")
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("beta", [1.0, 6.0])
def test_trades_is_cross_entropy_and_beta_times_the_divergence(beta):
    """KL(clean ‖ adversarial) by scipy."""
    model = Watched(normalise=False)
    found = TRADES(Linf(0.05), beta=beta, steps=3, size=0.02)(model, X, Y, rng())
    moved = model.seen[-1]
    clean, adversarial = (model(v).detach().double().numpy() for v in (X, moved))
    p, q = special.softmax(clean, axis=1), special.softmax(adversarial, axis=1)
    divergence = stats.entropy(p, q, axis=1)
    assert divergence.mean() > 0.01
    expected = -special.log_softmax(clean, axis=1)[range(N), Y.numpy()] + beta * divergence
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_divergence_of_logits_in_bfloat16_is_that_of_float32():
    """Of near distributions it is a small difference, of which log-probabilities in bfloat16 leave nothing."""
    logits = 3 * rng().fold("logits").normal(torch.empty(N, 10))
    p, q = (v.bfloat16() for v in (logits, logits + 0.05 * rng().fold("near").normal(logits)))
    with torch.autocast("cpu", torch.bfloat16):
        found = _kl(_log_softmax(p), q)
    expected = stats.entropy(*(special.softmax(v.double().numpy(), axis=1) for v in (p, q)), axis=1)
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-6)


def test_trades_differentiates_the_clean_branch_too():
    """Its gradient is that of CE + beta·Σ p·(log p − log q), and not that with p held fixed."""
    model = Watched(normalise=False)
    TRADES(Linf(0.05), steps=3, size=0.02)(model, X, Y, rng()).sum().backward()
    moved, weights = model.seen[-1], list(model.parameters())

    def gradients(detach: bool) -> Tensor:
        log_p, log_q = model(X).log_softmax(1), model(moved).log_softmax(1)
        target = log_p.detach() if detach else log_p
        loss = -log_p[range(N), Y].sum() + 6 * (target.exp() * (target - log_q)).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    found = torch.cat([p.grad.flatten() for p in weights])
    assert torch.allclose(found, gradients(detach=False), rtol=1e-3, atol=1e-4 * float(found.abs().max()))
    assert float((found - gradients(detach=True)).norm()) > 0.02 * float(found.norm())


def test_trades_starts_a_thousandth_away():
    """0.001·N(0, 1), without which the gradient of the divergence is zero."""
    model = Watched()
    x = 0.1 + 0.8 * X
    TRADES(Linf(0.05), steps=1)(model, x, Y, rng())
    assert torch.equal(model.seen[0], x)
    start = model.seen[1] - x
    assert torch.allclose(start, 0.001 * rng().normal(x), atol=1e-7)


@pytest.mark.parametrize("gap", [5.0, 110.0])
def test_trades_has_a_gradient_where_a_probability_underflows(gap):
    net = nn.Linear(1, 3).double() if gap < 100 else nn.Linear(1, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[gap], [0.0], [-gap]]))
        net.bias.zero_()
    model = nn.Sequential(nn.Flatten(), net)
    x = torch.ones(4, 1, 1, 1, dtype=net.weight.dtype)
    loss = TRADES(Linf(0.5), steps=2, size=0.3)(model, x, torch.zeros(4, dtype=torch.long), Key(0).rng(4))
    (grad,) = torch.autograd.grad(loss.sum(), net.weight)
    assert bool(loss.isfinite().all())
    assert bool(grad.isfinite().all())
    if gap < 100:  # against the divergence written with probabilities
        p, q = (F.softmax(model(x * scale), dim=1) for scale in (1.0, 0.5))
        wanted = -torch.log(p[:, 0]) + 6 * (p * (p / q).log()).sum(dim=1)
        torch.testing.assert_close(loss, wanted)
