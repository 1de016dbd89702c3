"""What a recipe says: rates, decays, optimisers, clipping."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from lustral.core.errors import UserError
from lustral.training.loop import train
from lustral.training.objectives import CrossEntropy
from lustral.training.recipe import Recipe
from trainings import N, classifier, data, source

MEANINGLESS = [
    {"steps": 0},
    {"batch": 0},
    {"lr": 0.0},
    {"ema": 1.0},
    {"ema": -0.1},
    {"accumulate": 0},
    {"accumulate": 7, "batch": 6},
    {"warmup": 1.0},
    {"extra_share": 1.0},
    {"clip": -1.0},
]


@pytest.mark.parametrize("options", MEANINGLESS, ids=str)
def test_recipes_without_a_meaning_are_refused(options):
    with pytest.raises(UserError, match="A recipe needs|accumulate must lie"):
        Recipe(**options)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_rates_of_every_schedule(schedule):
    """20 steps of warm-up from lr/20, and then, at a share p of the rest: ½(1 + cos πp), 1 − p or 1."""
    recipe = Recipe(steps=220, lr=0.3, warmup=20 / 220, schedule=schedule)
    assert [recipe.rate(i) for i in range(20)] == pytest.approx([0.3 * (i + 1) / 20 for i in range(20)])
    at = {"cosine": [1, 0.5 + math.sqrt(2) / 4, 0.5, 0.0], "linear": [1, 0.75, 0.5, 0.0], "constant": [1, 1, 1, 1]}
    assert [recipe.rate(i) for i in (20, 70, 120, 220)] == pytest.approx([0.3 * v for v in at[schedule]], abs=1e-12)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_warm_up_the_first_step_has_the_peak_rate(schedule):
    recipe = Recipe(steps=10, lr=0.3, warmup=0.0, schedule=schedule)
    assert recipe.rate(0) == 0.3


def test_decays_of_the_three_laws():
    """The first decay is 2/11 in score_sde, which counts from 1, and 0 in diffusers and EDM, which count from 0."""
    assert [Recipe(ema=0.9).decay(i) for i in (0, 2, 10**6)] == pytest.approx([2 / 11, 4 / 13, 0.9])
    power = Recipe(ema=0.9999, ema_power=0.75)
    assert [power.decay(i) for i in (0, 15, 10**7)] == pytest.approx([0, 1 - 1 / 8, 0.9999])
    half = Recipe(batch=50, ema_half_life=1000.0)
    assert half.decay(10**6) == pytest.approx(0.5 ** (50 / 1000))
    assert half.decay(10**6) ** (1000 / 50) == pytest.approx(0.5)
    # While only m images were seen, a weight counts half after 5 % of m.
    assert half.decay(0) == 0
    assert half.decay(40) == pytest.approx(0.5 ** (50 / (0.05 * 2000)))
    assert half.decay(400) == pytest.approx(half.decay(10**6)) == pytest.approx(half.decay(401))
    assert half.decay(399) < half.decay(401)


class Nothing:
    """An objective whose gradient is zero: only weight decay moves weights."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng) -> Tensor:
        return 0 * model(x).sum(dim=1)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_weight_decay_spares_biases_and_normalisations(optimiser):
    """Without gradients: matrices and filters shrink by (1 − lr·decay) a step (AdamW), the others stay to the bit."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = Recipe(
        steps=3, batch=4, lr=0.1, weight_decay=0.5, schedule="constant", warmup=0, ema=0, optimiser=optimiser
    )
    list(train(model, Nothing(), source(), recipe))
    shapes = {p.dim() for p in model.parameters()}
    assert shapes == {1, 2, 4}
    for name, p in model.named_parameters():
        if p.dim() == 1:
            assert torch.equal(p, before[name])
        elif optimiser == "adamw":
            assert torch.allclose(p, before[name] * 0.95**3, atol=1e-7)
        else:
            assert float(p.norm()) < 0.95 * float(before[name].norm())


def test_sgd_is_nesterovs_written_out():
    """m ← 0.9·m + g, w ← w − lr·(g + 0.9·m), with the gradient of the plain loss; neither clipped nor decayed."""
    model, twin = classifier(), classifier()
    recipe = Recipe(
        steps=3, batch=N, lr=0.05, optimiser="sgd", weight_decay=0, schedule="constant", warmup=0, clip=0, ema=0
    )
    list(train(model, CrossEntropy(), source(), recipe))
    momentum = [torch.zeros_like(p) for p in twin.parameters()]
    for _ in range(3):
        x, y = data()
        grads = torch.autograd.grad(CrossEntropy()(twin, x, y, None).mean(), list(twin.parameters()))
        for p, m, g in zip(twin.parameters(), momentum, grads, strict=True):
            m.mul_(0.9).add_(g)
            p.data -= 0.05 * (g + 0.9 * m)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-6)


def test_gradients_are_clipped_to_the_stated_norm():
    """One SGD step of rate 1 with Nesterov momentum moves the weights by 1.9 gradients."""
    for clip, length in ((0.01, 0.019), (1e6, None)):
        model, before = classifier(), [p.detach().clone() for p in classifier().parameters()]
        recipe = Recipe(
            steps=1, batch=N, lr=1.0, optimiser="sgd", weight_decay=0, schedule="constant", warmup=0, clip=clip, ema=0
        )
        list(train(model, CrossEntropy(), source(), recipe))
        moved = torch.cat([(p - q).flatten() for p, q in zip(model.parameters(), before, strict=True)]).norm()
        assert float(moved) == pytest.approx(length, rel=1e-3) if length else float(moved) > 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "bf16"}, "Unknown precision 'bf16'. Did you mean 'bfloat16'"),
        ({"optimiser": "SGD"}, "Unknown optimiser 'SGD'"),
        ({"schedule": "cos"}, "Unknown schedule 'cos'"),
        ({"ema_half_life": math.nan}, "ema_half_life must be a finite number, not nan"),
        ({"lr": math.inf}, "lr must be a finite number, not inf"),
    ],
)
def test_what_a_recipe_does_not_know_is_said(options, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Recipe(**options)
