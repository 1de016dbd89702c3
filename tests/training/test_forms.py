"""The same training in parts, in several processes, in other precisions and memory layouts, compiled."""

import threading
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from components import scramble
from lustral.core.noise import Key
from lustral.denoisers.nets.unet import GroupNorm
from lustral.training.adbm import ADBM
from lustral.training.addt import ADDT
from lustral.training.adversarial import PGDAT, TRADES
from lustral.training.batches import Images, Source
from lustral.training.loop import train
from lustral.training.objectives import CrossEntropy
from lustral.training.recipe import Recipe
from trainings import DENOISING, RECIPE, N, classifier, data, denoiser, every_kind, finish, same, source, weights


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
        decay = min(0.6, (1 + now.step) / (10 + now.step))
        average = decay * average + (1 - decay) * model[1].running_mean
    assert torch.allclose(model[1].running_mean, average, atol=1e-6)
    assert int(model[1].num_batches_tracked) == 5


def test_training_with_an_accelerator_is_training_alone():
    one, two = classifier(), classifier()
    losses = finish(one, CrossEntropy())
    again = train(two, CrossEntropy(), source(), RECIPE, workers=Accelerator(cpu=True))
    assert [now.loss for now in again] == losses


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [5, 12, 48])
def test_compiled_normalisation_is_torchs(channels, layout):
    """By sums over channels and a product that spreads them over groups: values and gradients of the eager one."""
    rng, norm = Key(3).rng(3), scramble(GroupNorm(channels)).requires_grad_(True)
    x = (3 + rng.fold("x").normal(torch.empty(3, channels, 4, 6))).contiguous(memory_format=layout)
    seen = []
    for call in (norm, torch.compile(norm, backend="aot_eager")):
        norm.zero_grad()
        leaf = x.clone().requires_grad_()
        out = call(leaf)
        out.backward(rng.fold("seed").normal(x))
        seen.append((out.detach(), leaf.grad, norm.weight.grad, norm.bias.grad))
    for eager, compiled in zip(*seen, strict=True):
        torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)


def test_compiled_normalisation_in_bfloat16_is_near_that_in_float32():
    """Its variance is a difference, of which bfloat16 would leave nothing where the mean is large."""
    norm = scramble(GroupNorm(16))
    x = (10 + Key(4).rng(3).normal(torch.empty(3, 16, 8, 8))).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(norm, backend="aot_eager")(x)
    expected = norm(x.float())
    assert float((found - expected).norm()) < 0.01 * float(expected.norm())


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
