"""Auto-PGD against its paper (Croce and Hein 2020), written out image by image."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from math import prod

import pytest
import torch
from torch import Tensor

from components import SHAPE, images, jitter
from lustral.attacks.apgd import APGD, checkpoints
from lustral.attacks.gradients import Gradient, Look, Selection, exact
from lustral.attacks.losses import cross_entropy, margin
from lustral.core.adjoint import Skip
from lustral.core.errors import UserError
from lustral.core.noise import Key, audit
from lustral.core.threat import L2, Linf
from lustral.defence import Defence
from lustral.purifiers.compose import from_function

KEY = Key(11)
PUBLISHED = [22, 41, 57, 70, 80, 87, 93, 99]
THREATS = [Linf(0.1), L2(0.6)]
Y = torch.tensor([0, 1, 2])
both = pytest.mark.parametrize("threat", THREATS, ids=["linf", "l2"])


@cache
def weights(name: str, rows: int, columns: int) -> Tensor:
    return Key(2, (name,)).rng(rows).normal(torch.empty(rows, columns, dtype=torch.float64)) / columns**0.5


def wavy(x: Tensor) -> Tensor:
    """A classifier on whose loss long steps overshoot."""
    return 4 * torch.sin(8 * x.double().flatten(1) @ weights("in", 24, prod(SHAPE)).T) @ weights("out", 3, 24).T


def grey(n: int = 3) -> Tensor:
    return 0.4 + 0.2 * Key(3).rng(n).uniform(torch.empty(n, *SHAPE, dtype=torch.float64))


class Seen:
    """A victim that remembers the images of its looks with a gradient, or of those without."""

    def __init__(self, victim: Defence, graded: bool = True):
        self.victim, self.graded, self.x = victim, graded, []

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        if torch.is_grad_enabled() == self.graded:
            self.x.append(x.detach().clone())
        return self.victim.logits(x, rng, adjoint)


def paper(
    value: Callable[[Tensor], float], slope: Callable[[Tensor], Tensor], threat, x0: Tensor, start: Tensor, a: float
) -> tuple[list[Tensor], list[int]]:
    """Algorithm 1 for one image and 100 steps: all iterates, and the checkpoints at which the step was halved.

    As in the authors' code, the return to the best point is made at a checkpoint's own iterate, not one step later.
    """

    def project(x: Tensor) -> Tensor:
        d, eps = x - x0, threat.eps
        d = d.clamp(-eps, eps) if isinstance(threat, Linf) else d * min(1.0, eps / max(float(d.norm()), 1e-12))
        return (x0 + d).clamp(0, 1)

    def climb(x: Tensor, g: Tensor) -> Tensor:
        return project(x + eta * (g.sign() if isinstance(threat, Linf) else g / g.norm()))

    eta, x, previous, halved = 2 * threat.eps, start, start, []
    f = [value(x)]
    iterates, best, best_f = [x], x, f[0]
    window, last_eta, last_best = 0, eta, best_f
    for k in range(100):
        if k in PUBLISHED:
            rises = sum(f[i + 1] > f[i] for i in range(window, k))
            eta_now, best_now = eta, best_f
            if rises < 0.75 * (k - window) or (last_eta == eta and last_best == best_f):
                eta, x = eta / 2, best
                halved.append(k)
            window, last_eta, last_best = k, eta_now, best_now
        z = climb(x, slope(x))
        x, previous = (z if k == 0 else project(x + a * (z - x) + (1 - a) * (x - previous))), x
        iterates.append(x)
        f.append(value(x))
        if f[-1] > best_f:
            best, best_f = x, f[-1]
    return iterates, halved


def written_out(victim: Defence, threat, x0: Tensor, rng, select: Selection | None, a: float = 0.75) -> list:
    """The paper's run of every image, from the attack's own starts: the classifier's gradient, the loss of select."""
    chosen = select or Selection(1, Skip())
    start = threat.start(x0, rng.fold("start"))
    runs = []
    for i in range(len(x0)):
        rows, y = slice(i, i + 1), Y[i : i + 1]
        runs.append(
            paper(
                lambda x, r=rng[rows], y=y: float(chosen(victim, x[None], y, cross_entropy, r.fold("select")).loss),
                lambda x, r=rng[rows], y=y: Gradient(Skip())(victim, x[None], y, cross_entropy, r).grad[0],
                threat,
                x0[i],
                start[i],
                a,
            )
        )
    return runs


def test_the_checkpoints_of_100_steps_are_the_published_ones():
    found = checkpoints(100)
    assert list(found) == PUBLISHED
    assert list(found.values()) == [after - before for before, after in zip([0, *PUBLISHED], PUBLISHED, strict=False)]


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 1000])
def test_every_checkpoint_closes_the_window_since_the_one_before(steps):
    at = 0
    for checkpoint, window in checkpoints(steps).items():
        assert window >= max(1, int(0.06 * steps))
        at += window
        assert checkpoint == at < steps


@both
def test_all_iterates_are_the_papers(threat):
    x0, victim = grey(), Seen(Defence(wavy))
    APGD(threat, Gradient(Skip()), patience=0).run(victim, x0, Y, KEY.rng(3))
    runs = written_out(victim.victim, threat, x0, KEY.rng(3), None)
    assert len({tuple(halved) for _, halved in runs}) > 1, "images must differ in when their step is halved"
    assert all(halved for _, halved in runs)
    assert len(victim.x) == 101
    for i, (iterates, _) in enumerate(runs):
        assert torch.allclose(torch.stack([x[i] for x in victim.x]), torch.stack(iterates), atol=1e-9)


def test_the_momentum_is_not_zero():
    """The third iterate, by hand; without the term (1 − a)(x − last) it lies elsewhere."""
    x0, threat, victim = grey(), THREATS[1], Seen(Defence(wavy))
    APGD(threat, Gradient(Skip()), steps=3, patience=0).run(victim, x0, Y, KEY.rng(3))
    first, second, third = victim.x[:3]
    grad = Gradient(Skip())(victim.victim, second, Y, cross_entropy, KEY.rng(3)).grad
    z = threat.project(second + 2 * threat.eps * grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1), x0)
    assert torch.allclose(third, threat.project(second + 0.75 * (z - second) + 0.25 * (second - first), x0), atol=1e-9)
    assert not torch.allclose(third, threat.project(second + 0.75 * (z - second), x0), atol=1e-2)


@both
def test_with_selection_the_schedule_follows_the_mean_over_its_draws(threat):
    x0, victim = grey(), Seen(Defence(wavy, from_function(jitter)))
    APGD(threat, Gradient(Skip()), patience=0, select=Selection(4)).run(victim, x0, Y, KEY.rng(3))
    runs = written_out(victim.victim, threat, x0, KEY.rng(3), Selection(4))
    for i, (iterates, _) in enumerate(runs):
        assert torch.allclose(torch.stack([x[i] for x in victim.x]), torch.stack(iterates[:-1]), atol=1e-9)
    plain = written_out(victim.victim, threat, x0, KEY.rng(3), None)
    assert [halved for _, halved in runs] != [halved for _, halved in plain], "the classifier's own loss must differ"


def test_with_selection_the_candidate_is_the_best_iterate_on_its_draws():
    x0, victim, select = grey(), Seen(Defence(wavy, from_function(jitter)), graded=False), Selection(4)
    attack = APGD(Linf(0.02), exact(2), steps=12, patience=0, select=select)
    found = attack.run(victim, x0, Y, KEY.rng(3))
    iterates = [x[::4] for x in victim.x]
    looks = [select(victim.victim, x, Y, cross_entropy, KEY.rng(3).fold("select")) for x in iterates]
    score = [[(float(seen.wrong[i]), float(seen.loss[i])) for seen in looks] for i in range(3)]
    best = [max(range(13), key=row.__getitem__) for row in score]
    assert len(set(best)) > 1
    assert torch.equal(found.x, torch.stack([iterates[k][i] for i, k in enumerate(best)]))
    assert torch.allclose(found.loss, torch.tensor([score[i][k][1] for i, k in enumerate(best)], dtype=torch.float64))
    assert found.looks.tolist() == [attack.looks] * 3 == [12] * 3


def test_selection_meets_the_same_noise_at_every_iterate_and_none_of_a_gradients():
    victim, met = Defence(wavy, from_function(jitter)), {True: Counter(), False: Counter()}

    class Auditor:
        def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
            with audit() as seen:
                out = victim.logits(x, rng, adjoint)
            met[torch.is_grad_enabled()].update(seen)
            return out

    APGD(Linf(0.1), exact(2), steps=5, patience=0, select=Selection(3)).run(Auditor(), grey(), Y, KEY.rng(3))
    assert len(met[False]) == 3 * 3
    assert set(met[False].values()) == {6}
    assert len(met[True]) == 5 * 3 * 2
    assert set(met[True].values()) == {1}
    assert not met[True].keys() & met[False].keys()


@both
def test_a_linear_classifier_is_brought_to_its_worst_case(threat):
    """The dual norm: within the ball ⟨w, x⟩ can rise by eps·|w|_q."""
    w, x0 = weights("linear", 1, prod(SHAPE))[0], grey()
    victim = Defence(lambda x: torch.stack([-x.flatten(1) @ w, x.flatten(1) @ w], dim=1) / 2)
    found = APGD(threat, exact(), margin, patience=0).run(victim, x0, torch.zeros(3, dtype=torch.long), KEY.rng(3))
    gain = threat.eps * (w.abs().sum() if isinstance(threat, Linf) else w.norm())
    assert torch.allclose(found.loss, x0.flatten(1) @ w + gain, rtol=1e-5)
    assert torch.allclose(found.x.flatten(1) @ w, found.loss)


@both
def test_every_image_that_the_victim_sees_keeps_to_the_threat(threat):
    x0, victim = (2 * images(3).double() - 0.5).clamp(0, 1), Seen(Defence(wavy))
    found = APGD(threat, exact(), steps=30, patience=0).run(victim, x0, Y, KEY.rng(3))
    for x in (*victim.x, found.x):
        assert (threat.distance(x, x0) <= threat.eps + 1e-9).all()
        assert ((x >= 0) & (x <= 1)).all()
    assert (threat.distance(found.x, x0) > 0.5 * threat.eps).all()


def test_a_loss_that_never_rises_halves_the_step_at_every_checkpoint_back_at_the_start():
    """The steps of an estimator that points one way are what its iterates move by."""
    moved = []

    def downhill(victim, x, y, loss, rng):
        moved.append(x.clone())
        return Look(torch.ones_like(x), torch.full((len(x),), -float(len(moved))), torch.zeros(len(x)))

    x0 = torch.full((1, *SHAPE), 0.5)
    APGD(Linf(0.4), downhill, steps=100, patience=0).run(None, x0, Y[:1], KEY.rng(1))
    for k, checkpoint in enumerate(PUBLISHED, start=1):
        # After the return to the start: 0.75 of the step, and 0.25 of the way back from the last iterate but one.
        z = (moved[0] + 0.8 / 2**k).clamp_max(0.9)
        x = moved[0] + 0.75 * (z - moved[0]) + 0.25 * (moved[0] - moved[checkpoint - 1])
        assert torch.allclose(moved[checkpoint + 1], x.clamp(0.1, 0.9), atol=1e-6)


def test_images_that_leave_do_not_change_the_others():
    x0, victim = grey(), Seen(Defence(wavy))
    attack = APGD(Linf(0.004), Gradient(Skip()), steps=40, patience=2)
    together = attack.run(victim, x0, Y, KEY.rng(3))
    stay = (together.looks == attack.looks).nonzero()[:, 0]
    assert 0 < len(stay) < 3
    alone = attack.run(victim.victim, x0[stay], Y[stay], KEY.rng(3)[stay])
    for a, b in zip(together, alone, strict=True):
        assert torch.allclose(a[stay], b, atol=1e-12)


@pytest.mark.parametrize("options", [{"steps": 0}, {"patience": -1}], ids=str)
def test_parameters_without_a_meaning_are_refused(options):
    with pytest.raises(UserError, match="APGD"):
        APGD(Linf(0.1), exact(), **options)
