"""The loop: deterministic, resumed to the bit, over every image once an epoch."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lustral.core.noise import Key, audit
from lustral.training.augment import shift
from lustral.training.batches import Images, Source
from lustral.training.denoising import Denoising
from lustral.training.levels import LogUniform
from lustral.training.loop import train
from lustral.training.objectives import CrossEntropy
from lustral.training.recipe import Recipe
from trainings import DENOISING, RECIPE, N, classifier, data, denoiser, every_kind, finish, same, source


@every_kind
def test_the_loss_falls(make, objective):
    losses = finish(make(), objective, Recipe(steps=60, batch=10, lr=0.01))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@every_kind
def test_training_is_the_same_every_time_whatever_torchs_generator(make, objective):
    one, two = make(), make()
    torch.manual_seed(1)
    first = finish(one, objective)
    torch.manual_seed(2)
    assert finish(two, objective) == first
    assert same(one, two)


@every_kind
@pytest.mark.parametrize("stop", [1, 7, 11])
def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(make, objective, stop):
    whole, first, second = make(), make(), make()
    losses = finish(whole, objective)
    for now in train(first, objective, source(), RECIPE):
        if now.step == stop:
            state = now.state()  # which the steps that follow leave alone, and resuming too
    assert state["step"] == stop
    for model in (second, make()):
        assert finish(model, objective, resume=state) == losses[stop:]
        assert same(whole, model)


def test_what_is_frozen_stays_frozen():
    model = classifier()
    kept = next(p.requires_grad_(False) for p in model.parameters())
    before, rest = kept.clone(), [p.clone() for p in model.parameters() if p.requires_grad]
    finish(model, CrossEntropy())
    assert torch.equal(kept, before)
    changed = [p for p in model.parameters() if p is not kept]
    assert not any(torch.equal(p, q) for p, q in zip(changed, rest, strict=True))


def test_dropout_too_is_the_same_every_time():
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), classifier())

    whole, second = dropping(), dropping()
    torch.manual_seed(1)
    losses = finish(whole, CrossEntropy())
    for now in train(dropping(), CrossEntropy(), source(), RECIPE):
        if now.step == 5:
            state = now.state()
            break
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert finish(second, CrossEntropy(), resume=state) == losses[5:]
    assert torch.equal(torch.get_rng_state(), before), "torch's own stream is left alone"
    plain = classifier()
    assert finish(plain, CrossEntropy()) != losses


def test_a_training_resumed_after_its_last_step_only_averages():
    whole, again = classifier(), classifier()
    for now in train(whole, CrossEntropy(), source(), RECIPE):
        state = now.state()
    assert finish(again, CrossEntropy(), resume=state) == []
    assert same(whole, again)


class Seen:
    """An objective that counts the labels that it is given (here: image numbers)."""

    def __init__(self):
        self.rows: list[list[int]] = []

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng) -> Tensor:
        self.rows.append(y.tolist())
        return model(x).square().sum(dim=1)


@pytest.mark.parametrize("batch", [1, 6, 20, 33])
def test_every_image_is_seen_once_per_epoch(batch):
    """Also where batches do not divide an epoch, or hold several."""
    seen, steps = Seen(), -(-60 // batch)
    list(train(classifier(), seen, Source(Images(data()[0], torch.arange(N))), Recipe(steps=steps, batch=batch)))
    assert {len(rows) for rows in seen.rows} == {batch}
    order = [i for rows in seen.rows for i in rows]
    for epoch in range(len(order) // N):
        assert sorted(order[epoch * N : epoch * N + N]) == list(range(N))
    assert order[:N] != order[N : 2 * N]
    assert max(Counter(order).values()) - min(Counter(order).values()) <= 1


def test_the_final_weights_are_the_running_average():
    """With the decay min(ema, (1 + n)/(10 + n)) at the n-th update, written out."""
    model, recipe = classifier(), Recipe(steps=6, batch=4, ema=0.5)
    average = [p.detach().double() for p in model.parameters()]
    for now in train(model, CrossEntropy(), source(), recipe):
        decay = min(0.5, (1 + now.step) / (10 + now.step))
        last = [p.detach().clone() for p in model.parameters()]
        average = [decay * a + (1 - decay) * p.double() for a, p in zip(average, last, strict=True)]
    for p, a, end in zip(model.parameters(), average, last, strict=True):
        assert torch.allclose(p.double(), a, atol=1e-6)
        assert not torch.allclose(p, end, atol=1e-6)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_without_averaging_the_last_weights_stay():
    model = classifier()
    for _ in train(model, CrossEntropy(), source(), Recipe(steps=4, batch=4, ema=0.0)):
        last = [p.detach().clone() for p in model.parameters()]
    assert all(torch.equal(p, end) for p, end in zip(model.parameters(), last, strict=True))


def test_the_rate_warms_up_and_falls_along_a_cosine():
    model, rates = classifier(), []
    for now in train(model, CrossEntropy(), source(), Recipe(steps=100, batch=2, lr=0.01)):
        rates.append(now.state()["optimiser"]["param_groups"][0]["lr"])
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert rates[52] == pytest.approx(0.005, rel=0.02)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 1e-5


def test_no_noise_is_met_twice():
    """Neither by two steps, nor by augmentation and objective, nor by two images; only an epoch's order may be."""
    # A seed of its own, because the orders of others are kept.
    model, images, recipe = denoiser(), source(), replace(RECIPE, crop=1, flip=True, cutout=2, seed=1234567)
    with audit() as seen:
        list(train(model, DENOISING, images, recipe))
    steps, epochs, uses = 12, 4, ("shift", "crop", "flip", "cutout", "level", "noise")
    assert len(seen) == steps * recipe.batch * len(uses) + epochs
    assert sum(count > 1 for count in seen.values()) <= epochs


def test_seeds_differ():
    one, two = classifier(), classifier()
    finish(one, CrossEntropy())
    finish(two, CrossEntropy(), replace(RECIPE, seed=1))
    assert not same(one, two)


def test_a_caller_may_stop_at_any_step():
    model = classifier()
    steps = train(model, CrossEntropy(), source(), RECIPE)
    assert [next(steps).step for _ in range(3)] == [1, 2, 3]
    steps.close()
    assert model.training


def test_a_shift_by_whole_pixels_moves_the_image():
    class Right:
        def uniform(self, like: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.5]]).expand(len(like), 2)

    x = data()[0]
    moved = shift(x, Right(), 1.0)
    assert torch.allclose(moved[:, :, :, :-1], x[:, :, :, 1:], atol=1e-5)
    assert torch.allclose(moved[:, :, :, -1], x[:, :, :, -1], atol=1e-5)


def test_denoising_of_a_perfect_denoiser_costs_nothing_and_of_none_what_edm_says():
    """λ(s)·s² with λ = (s² + d²)/(s·d)², s = 2·sigma, where the noise is left as it is."""
    x, y = data()
    objective = Denoising(LogUniform(0.1, 0.2), "edm", sigma_data=0.3)
    assert float(objective(lambda noisy, sigma: x, x, y, Key(1).rng(N)).max()) == 0
    sigmas = []

    def lazy(noisy: Tensor, sigma: Tensor) -> Tensor:
        sigmas.append(sigma)
        return noisy

    loss = objective(lazy, x, y, Key(1).rng(N))
    (sigma,) = sigmas
    assert 0.1 <= float(sigma.min()) < 0.13 < 0.16 < float(sigma.max()) <= 0.2
    s, d = 2 * sigma, 0.6
    expected = (s**2 + d**2) / (s * d) ** 2 * s**2
    assert torch.allclose(loss.mean() / expected.mean(), torch.tensor(1.0), atol=0.1)


def test_smoothed_cross_entropy_is_torchs_and_noise_stays_in_range():
    x, y = data()
    model = classifier()
    plain = CrossEntropy(smoothing=0.1)(model, x, y, Key(1).rng(N))
    assert torch.allclose(plain, nn.functional.cross_entropy(model(x), y, label_smoothing=0.1, reduction="none"))
    seen = []
    CrossEntropy(noise=0.5)(lambda v: (seen.append(v), model(v))[1], x, y, Key(1).rng(N))
    assert float(seen[0].min()) >= 0
    assert float(seen[0].max()) <= 1
    level = (seen[0] - x).flatten(1).std(dim=1)
    assert float(level.min()) < 0.1 < 0.2 < float(level.max())
