import copy
import math
import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from components import scramble
from lustral.classifiers.small import SmallCNN
from lustral.core.errors import UserError
from lustral.core.noise import Key, audit
from lustral.denoisers.nets.unet import UNet
from lustral.denoisers.preconditioning import EDM
from lustral.training.adbm import ADBM
from lustral.training.addt import ADDT
from lustral.training.adversarial import PGDAT, TRADES
from lustral.training.augment import shift
from lustral.training.batches import Images, Source
from lustral.training.denoising import Denoising
from lustral.training.levels import LogUniform
from lustral.training.loop import train
from lustral.training.objectives import CrossEntropy
from lustral.training.recipe import Recipe

N = 20
RECIPE = Recipe(steps=12, batch=6, shift=0.5)


def data(n: int = N) -> tuple[Tensor, Tensor]:
    """Two kinds of images, bright on the left or on the right."""
    y = torch.arange(n) % 2
    x = 0.2 * Key(1).rng(n).uniform(torch.empty(n, 1, 8, 8))
    x[y == 0, :, :, :4] += 0.6
    x[y == 1, :, :, 4:] += 0.6
    return x, y


def source(n: int = N) -> Source:
    return Source(Images(*data(n)))


def classifier() -> nn.Module:
    return scramble(SmallCNN(width=4, classes=2)).requires_grad_(True)


def denoiser() -> nn.Module:
    return scramble(EDM(UNet(channels=1, width=4, mult=(1, 2), blocks=1), 0.3)).requires_grad_(True)


DENOISING = Denoising(LogUniform(0.005, 0.5), "edm", sigma_data=0.25)
KINDS = {"classifier": (classifier, CrossEntropy(noise=0.1)), "denoiser": (denoiser, DENOISING)}
every_kind = pytest.mark.parametrize(("make", "objective"), KINDS.values(), ids=KINDS.keys())


def finish(model: nn.Module, objective, recipe: Recipe = RECIPE, resume=None) -> list[float]:
    return [now.loss for now in train(model, objective, source(), recipe, resume)]


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))


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
            state = copy.deepcopy(now.state())
            break
    assert state["step"] == stop
    assert finish(second, objective, resume=state) == losses[stop:]
    assert same(whole, second)


def test_a_training_resumed_after_its_last_step_only_averages():
    whole, again = classifier(), classifier()
    for now in train(whole, CrossEntropy(), source(), RECIPE):
        state = copy.deepcopy(now.state())
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
    """With the decay min(ema, (1 + step)/(10 + step)), written out."""
    model, recipe = classifier(), Recipe(steps=6, batch=4, ema=0.5)
    average = [p.detach().double() for p in model.parameters()]
    for now in train(model, CrossEntropy(), source(), recipe):
        decay = min(0.5, now.step / (9 + now.step))
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


# ------------------------------------------------------------------------------------------------------- the recipe


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
    assert [Recipe(ema=0.9).decay(i) for i in (0, 2, 10**6)] == pytest.approx([1 / 10, 3 / 12, 0.9])
    power = Recipe(ema=0.9999, ema_power=0.75)
    assert [power.decay(i) for i in (0, 15, 10**7)] == pytest.approx([0, 1 - 1 / 8, 0.9999])
    half = Recipe(batch=50, ema_half_life=1000.0)
    assert half.decay(10**6) == pytest.approx(0.5 ** (50 / 1000))
    assert half.decay(10**6) ** (1000 / 50) == pytest.approx(0.5)
    # While only m images were seen, a weight counts half after 5 % of m.
    assert half.decay(39) == pytest.approx(0.5 ** (50 / (0.05 * 2000)))
    assert half.decay(399) == pytest.approx(half.decay(10**6)) == pytest.approx(half.decay(400))
    assert half.decay(398) < half.decay(400)


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


# ----------------------------------------------------------------------------------- parts, processes, precision, speed


@every_kind
def test_accumulated_parts_make_the_same_training(make, objective):
    """The batch of 7 does not divide by 3. Neither network has batch normalisation."""
    one, three = make(), make()
    recipe = Recipe(steps=6, batch=7, shift=0.5, flip=True, optimiser="sgd", lr=0.02)
    losses = finish(one, objective, recipe)
    assert finish(three, objective, replace(recipe, accumulate=3)) == pytest.approx(losses, abs=1e-5)
    for p, q in zip(weights(one), weights(three), strict=True):
        assert torch.allclose(p, q, atol=1e-5)
    assert not same(one, make())


class Process:
    """One of several processes, here threads: what is reduced is summed where all of them meet."""

    def __init__(self, index: int, of: int, meet: threading.Barrier, table: dict[int, Tensor]):
        self.process_index, self.num_processes, self.meet, self.table = index, of, meet, table
        self.device = torch.device("cpu")

    def reduce(self, flat: Tensor, how: str) -> Tensor:
        assert how == "sum"
        self.table[self.process_index] = flat.clone()
        self.meet.wait(30)
        total = torch.stack([self.table[i] for i in range(self.num_processes)]).sum(0)
        self.meet.wait(30)
        return total


@every_kind
@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (3, 2)])
def test_several_processes_make_the_same_training(make, objective, processes, accumulate):
    recipe = Recipe(steps=4, batch=7, shift=0.5, optimiser="sgd", lr=0.02)
    one = make()
    losses = finish(one, objective, recipe)
    meet, table, models, found = threading.Barrier(processes), {}, [make() for _ in range(processes)], {}
    recipe = replace(recipe, accumulate=accumulate)

    def work(i: int) -> None:
        process = Process(i, processes, meet, table)
        found[i] = [now.loss for now in train(models[i], objective, source(), recipe, workers=process)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(processes):
        assert found[i] == pytest.approx(losses, abs=1e-5)
        for p, q in zip(weights(one), weights(models[i]), strict=True):
            assert torch.allclose(p, q, atol=1e-5)


class Record:
    """An objective that keeps the images, the labels and the noise addresses that it is given."""

    def __init__(self):
        self.x, self.y, self.ids, self.noise = [], [], [], []

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, rng) -> Tensor:
        self.x.append(x)
        self.y.append(y)
        self.ids.append(rng.ids)
        self.noise.append(rng.normal(x))
        return model(x).square().sum(dim=1)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("processes", [2, 3])
def test_parts_of_processes_tile_the_batch(processes, accumulate):
    """Images, labels and noise, in order, of a batch of 11 with a share of extra images."""
    extra = Images(Key(2).rng(9).uniform(torch.empty(9, 1, 8, 8)), 100 + torch.arange(9))
    both = Source(Images(data()[0], torch.arange(N)), extra, 0.4)
    recipe = Recipe(steps=3, batch=11, crop=1, flip=True, extra_share=0.4)
    whole = Record()
    list(train(classifier(), whole, both, recipe))
    parts = []
    for i in range(processes):
        part = Record()
        alone = Process(i, processes, threading.Barrier(1), {})
        alone.reduce = lambda flat, how: flat
        list(train(classifier(), part, both, replace(recipe, accumulate=accumulate), workers=alone))
        parts.append(part)
        assert len(part.x) == 3 * accumulate
    for step in range(3):
        for name in ("x", "y", "ids", "noise"):
            pieces = [t for p in parts for t in getattr(p, name)[step * accumulate : (step + 1) * accumulate]]
            assert torch.equal(torch.cat(pieces), getattr(whole, name)[step])
        assert int((whole.y[step] >= 100).sum()) == 4


@every_kind
def test_bfloat16_learns_and_keeps_its_weights_in_float32(make, objective):
    model, exact = make(), make()
    recipe = Recipe(steps=60, batch=10, lr=0.01)
    losses = finish(model, objective, replace(recipe, precision="bfloat16"))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    reference = finish(exact, objective, recipe)
    assert losses != reference
    assert losses[0] == pytest.approx(reference[0], rel=0.05)
    assert {p.dtype for p in weights(model)} == {torch.float32}


def adversarial() -> dict:
    guide = classifier().requires_grad_(False)
    return {
        "pgd-at": (classifier, PGDAT(steps=2)),
        "trades": (classifier, TRADES(steps=2)),
        "addt": (denoiser, ADDT(DENOISING, guide, iterations=2)),
        "adbm": (denoiser, ADBM(DENOISING, guide, iterations=2)),
    }


@pytest.mark.parametrize("name", ["pgd-at", "trades", "addt", "adbm"])
def test_bfloat16_searches_leave_the_gradients_of_weights_alive(name):
    """Autocast keeps cast weights; a copy made inside a search without gradients would cut the real pass off."""
    make, objective = adversarial()[name]
    moved = []
    for precision in ("float32", "bfloat16"):
        model = make()
        before = [p.clone() for p in weights(model)]
        recipe = Recipe(steps=1, batch=10, lr=1e-3, weight_decay=0, warmup=0, ema=0, clip=0, precision=precision)
        finish(model, objective, replace(recipe, optimiser="sgd"))
        moved.append([p - q for p, q in zip(weights(model), before, strict=True)])
    full, half = (torch.cat([t.flatten() for t in parts]) for parts in moved)
    assert float((half - full).norm()) < 0.5 * float(full.norm())
    for p, q in zip(*moved, strict=True):
        assert float(q.norm()) > 0 or float(p.norm()) < 1e-6  # a bias before a normalisation has no gradient


@every_kind
def test_channels_last_is_only_another_order_of_memory(make, objective):
    one, two = make(), make()
    recipe = Recipe(steps=4, batch=6, optimiser="sgd", lr=0.02)
    losses = finish(one, objective, recipe)
    assert finish(two, objective, replace(recipe, channels_last=True)) == pytest.approx(losses, abs=1e-5)


def test_running_statistics_are_averaged_too():
    """The average of a batch normalisation's statistics is that of its weights; whole numbers stay as they are."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2))
    average = model[1].running_mean.clone()
    for now in train(model, CrossEntropy(), source(), Recipe(steps=5, batch=6, ema=0.6)):
        decay = min(0.6, now.step / (9 + now.step))
        average = decay * average + (1 - decay) * model[1].running_mean
    assert torch.allclose(model[1].running_mean, average, atol=1e-6)
    assert int(model[1].num_batches_tracked) == 5


def test_training_with_an_accelerator_is_training_alone():
    one, two = classifier(), classifier()
    losses = finish(one, CrossEntropy())
    again = train(two, CrossEntropy(), source(), RECIPE, workers=Accelerator(cpu=True))
    assert [now.loss for now in again] == losses


@pytest.mark.slow
@every_kind
def test_compiled_training_has_the_losses_of_the_eager_one(make, objective):
    recipe = Recipe(steps=5, batch=6)
    losses = finish(make(), objective, recipe)
    assert finish(make(), objective, replace(recipe, compile=True)) == pytest.approx(losses, abs=1e-4)


@pytest.mark.parametrize("name", ["pgd-at", "adbm"])
def test_compiled_networks_change_modes_in_searches(name, monkeypatch):
    """The wrapper of torch.compile, with its back end left out, has the losses of the network itself."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="eager"))
    results = []
    for flag in (False, True):
        make, objective = adversarial()[name]
        model = make()
        modes = []
        model.register_forward_pre_hook(lambda m, _, modes=modes: modes.append(m.training))
        torch._dynamo.reset()
        results.append(finish(model, objective, Recipe(steps=2, batch=4, compile=flag)))
        assert model.training is False
        if not flag:
            assert True in modes
            assert False in modes
    assert results[1] == pytest.approx(results[0], abs=1e-4)
