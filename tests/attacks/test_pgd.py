from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from components import SHAPE, images, net_denoiser
from lustral.attacks.gradients import Gradient, Selection, blind, exact
from lustral.attacks.losses import cross_entropy, margin
from lustral.attacks.pgd import PGD, RandomSign
from lustral.attacks.search import Restarts
from lustral.core.adjoint import Skip
from lustral.core.errors import UserError
from lustral.core.noise import Key, audit
from lustral.core.threat import L1, L2, Linf
from lustral.defence import Defence
from lustral.evaluate.judge import judge
from lustral.purifiers.presets import diffpure

KEY = Key(6)
WEIGHTS = Key(2).rng(1).normal(torch.empty(1, *SHAPE))[0]
THREATS = {"linf": Linf(0.1), "l2": L2(0.6), "l1": L1(1.5)}
every_threat = pytest.mark.parametrize("threat", THREATS.values(), ids=THREATS.keys())


class Linear:
    """Two classes; class 1 leads by ⟨weights, x − 1/2⟩. Remembers all the images that it sees."""

    def __init__(self):
        self.seen: list[Tensor] = []

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        self.seen.append(x.detach().clone())
        lead = (WEIGHTS * (x - 0.5)).flatten(1).sum(dim=1)
        return torch.stack([-lead / 2, lead / 2], dim=1)


class Scripted:
    """Is wrong about class 0 in the looks that the script names, and remembers which images it was asked about."""

    def __init__(self, wrong: Callable[[int, Tensor], Tensor]):
        self.wrong, self.asked = wrong, []

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        self.asked.append(rng.ids.tolist())
        said = nn.functional.one_hot(self.wrong(rng.key.path[-1], rng.ids).long(), 2).float()
        return said + 0 * x.flatten(1).sum(dim=1, keepdim=True)


class Noisy:
    """A defence that remembers its looks, with a gradient or without: images, their wrong draws and mean loss."""

    def __init__(self, y: Tensor, eot: int, graded: bool = True):
        net = Defence(lambda x: 20 * x.flatten(1)[:, ::16], diffpure(net_denoiser(), 0.1, "sde", steps=2))
        self.net, self.y, self.eot, self.graded, self.looks = net, y, eot, graded, []

    def logits(self, x: Tensor, rng, adjoint=None) -> Tensor:
        out = self.net.logits(x, rng, adjoint)
        if torch.is_grad_enabled() == self.graded:
            y = self.y.repeat_interleave(self.eot)
            loss = cross_entropy(out.detach(), y).view(-1, self.eot).mean(dim=1)
            wrong = (out.argmax(dim=1) != y).view(-1, self.eot).float().mean(dim=1)
            self.looks.append((x.detach()[:: self.eot].clone(), wrong, loss))
        return out

    def best(self) -> list[int]:
        """The look at which each image was wrong in most draws, and among those had the largest loss."""
        score = [[(float(wrong[i]), float(loss[i])) for _, wrong, loss in self.looks] for i in range(len(self.y))]
        return [max(range(len(row)), key=row.__getitem__) for row in score]

    def at(self, best: list[int]) -> list[Tensor]:
        """Images, mean losses and wrong draws of those looks, in the order of an outcome."""
        return [torch.stack([self.looks[k][part][i] for i, k in enumerate(best)]) for part in (0, 2, 1)]


def grey(n: int = 3) -> Tensor:
    """Images far from black and white, where the pixel range does not bind."""
    return 0.4 + 0.2 * Key(3).rng(n).uniform(torch.empty(n, *SHAPE))


def lead(x: Tensor) -> Tensor:
    return (WEIGHTS * (x - 0.5)).flatten(1).sum(dim=1)


def climb(threat, **options) -> PGD:
    return PGD(threat, Gradient(Skip()), margin, **({"steps": 60, "patience": 0} | options))


@pytest.mark.parametrize(
    ("threat", "gain"),
    [
        (Linf(0.1), 0.1 * WEIGHTS.abs().sum()),
        (L2(0.3), 0.3 * WEIGHTS.square().sum().sqrt()),
        (L1(0.3, share=1 / 64), 0.3 * WEIGHTS.abs().max()),
    ],
    ids=["linf", "l2", "l1"],
)
def test_a_linear_classifier_is_brought_to_its_worst_case(threat, gain):
    """The dual norm: within the ball ⟨w, x⟩ can rise by eps·|w|_q."""
    x0 = grey()
    found = climb(threat, step_size=threat.eps / 5).run(Linear(), x0, torch.zeros(3, dtype=torch.long), KEY.rng(3))
    assert torch.allclose(found.loss, lead(x0) + gain, rtol=1e-3)
    assert torch.allclose(lead(found.x), found.loss, atol=1e-5)


def test_the_pixel_range_bounds_the_linf_worst_case():
    x0, eps = images(3), 0.3
    room = torch.where(WEIGHTS > 0, 1 - x0, x0).clamp_max(eps)
    assert (room < eps).any()
    found = climb(Linf(eps)).run(Linear(), x0, torch.zeros(3, dtype=torch.long), KEY.rng(3))
    assert torch.allclose(found.loss, lead(x0) + (WEIGHTS.abs() * room).flatten(1).sum(dim=1), atol=1e-4)


def test_the_pixel_range_makes_the_l1_worst_case_a_knapsack():
    """The pixels of the largest weights are filled up to the edge of the range, one by one, until eps is spent."""
    x0, eps = grey(), 2.0
    best = []
    for x in x0:
        left, gain = eps, 0.0
        pixels = zip(WEIGHTS.flatten().tolist(), x.flatten().tolist(), strict=True)
        for w, v in sorted(pixels, key=lambda pixel: -abs(pixel[0])):
            spent = min(left, 1 - v if w > 0 else v)
            left, gain = left - spent, gain + abs(w) * spent
        best.append(gain)
    attack = climb(L1(eps, share=1 / 64), steps=150, step_size=0.1, random_start=False)
    found = attack.run(Linear(), x0, torch.zeros(3, dtype=torch.long), KEY.rng(3))
    assert torch.allclose(found.loss, lead(x0) + torch.tensor(best), rtol=1e-2)
    assert (found.loss <= lead(x0) + torch.tensor(best) + 1e-4).all()


@every_threat
def test_candidates_keep_to_the_threat(threat):
    x0 = (2 * images(4) - 0.5).clamp(0, 1)
    found = climb(threat, steps=5, step_size=3.0).run(Linear(), x0, torch.tensor([0, 1, 0, 1]), KEY.rng(4))
    assert (threat.distance(found.x, x0) <= threat.eps + 1e-6).all()
    assert ((found.x >= 0) & (found.x <= 1)).all()
    assert (threat.distance(found.x, x0) > 0.5 * threat.eps).all()


@every_threat
def test_every_image_that_the_victim_sees_keeps_to_the_threat(threat):
    x0, victim = (2 * images(4) - 0.5).clamp(0, 1), Linear()
    climb(threat, steps=4).run(victim, x0, torch.zeros(4, dtype=torch.long), KEY.rng(4))
    assert len(victim.seen) == 5
    for x in victim.seen:
        assert (threat.distance(x, x0) <= threat.eps + 1e-6).all()
        assert ((x >= 0) & (x <= 1)).all()


def check_candidates(found, victim: Noisy) -> None:
    """The candidates are the best of the looks, which are not all of one step (ties and ranks: test_search)."""
    best = victim.best()
    assert len(set(best)) > 1
    for value, expected in zip(found, victim.at(best), strict=False):
        assert torch.equal(value, expected)


def test_the_candidate_is_the_iterate_that_is_wrong_in_most_draws_and_then_of_the_largest_loss():
    y, x0 = torch.tensor([0, 1, 2, 3]), images(4)
    victim = Noisy(y, eot=2)
    found = PGD(Linf(0.2), exact(2), steps=6, step_size=0.2, patience=0).run(victim, x0, y, KEY.rng(4))
    assert len(victim.looks) == 7
    assert min(victim.best()) < 6, "the last look must not be the best one for all images"
    check_candidates(found, victim)


def test_with_selection_the_candidate_is_the_best_on_the_selections_noise():
    y, x0 = torch.tensor([0, 1, 2, 3]), images(4)
    attack = PGD(Linf(0.2), exact(2), steps=6, step_size=0.2, patience=0, select=Selection(3))
    victim = Noisy(y, eot=3, graded=False)
    found = attack.run(victim, x0, y, KEY.rng(4))
    assert len(victim.looks) == 7
    check_candidates(found, victim)
    noted = Noisy(y, eot=2)
    attack.run(noted, x0, y, KEY.rng(4))
    assert torch.equal(found.losses, torch.stack([loss for _, _, loss in noted.looks], dim=1))
    assert torch.equal(found.wrongs, torch.stack([wrong for _, wrong, _ in noted.looks], dim=1))
    assert found.looks.tolist() == [attack.looks] * 4 == [6] * 4


def test_selection_meets_the_same_noise_at_every_iterate_and_none_of_a_gradients():
    defence = Defence(lambda x: x.flatten(1)[:, :4], diffpure(net_denoiser(), 0.1, "sde", steps=2))
    met = {True: Counter(), False: Counter()}

    class Recorder:
        def logits(self, x, rng, adjoint=None):
            with audit() as seen:
                out = defence.logits(x, rng, adjoint)
            met[torch.is_grad_enabled()].update(seen)
            return out

    attack = PGD(Linf(0.2), exact(2), steps=4, patience=0, select=Selection(3))
    attack.run(Recorder(), images(2), torch.tensor([0, 1]), KEY.rng(2))
    assert set(met[True].values()) == {1}
    assert len(met[True]) == 4 * len(met[False]) * 2 / 3
    assert set(met[False].values()) == {5}
    assert not met[True].keys() & met[False].keys()


def test_one_step_of_linf_is_the_sign_of_the_gradient():
    x0, y = grey(), torch.zeros(3, dtype=torch.long)
    found = climb(Linf(0.1), steps=1, step_size=0.07, random_start=False).run(Linear(), x0, y, KEY.rng(3))
    assert torch.allclose(found.x, x0 + 0.07 * WEIGHTS.sign(), atol=1e-6)


def test_decided_images_leave_the_batch_after_patience_looks():
    victim = Scripted(lambda look, ids: ids == 7)
    ids = torch.tensor([4, 7, 9])
    attack = PGD(Linf(0.1), Gradient(Skip()), steps=5, patience=3)
    found = attack.run(victim, grey(), torch.zeros(3, dtype=torch.long), KEY.rng(ids))
    assert victim.asked == [[4, 7, 9]] * 3 + [[4, 9]] * 3
    assert found.looks.tolist() == [6, 3, 6]


def test_patience_counts_looks_in_a_row():
    victim = Scripted(lambda look, ids: torch.full_like(ids, look in (0, 1, 3, 4, 5)))
    attack = PGD(Linf(0.1), Gradient(Skip()), steps=9, patience=3)
    assert attack.run(victim, grey(1), torch.zeros(1, dtype=torch.long), KEY.rng(1)).looks.tolist() == [6]


def test_an_image_is_decided_only_if_all_its_draws_are_wrong():
    class OneDrawIsRight:
        def logits(self, x, rng, adjoint=None):
            return nn.functional.one_hot((rng.draws > 0).long(), 2) + 0 * x.flatten(1).sum(dim=1, keepdim=True)

    attack = PGD(Linf(0.1), Gradient(Skip(), 3), steps=5, patience=1)
    assert attack.run(OneDrawIsRight(), grey(1), torch.zeros(1, dtype=torch.long), KEY.rng(1)).looks.tolist() == [6]


def test_without_patience_every_look_is_taken():
    victim = Scripted(lambda look, ids: torch.ones_like(ids))
    attack = Restarts(PGD(Linf(0.1), Gradient(Skip()), steps=4, patience=0), 2, leave=False)
    found = attack.run(victim, grey(), torch.zeros(3, dtype=torch.long), KEY.rng(3))
    assert found.looks.tolist() == [attack.looks] * 3 == [10] * 3


def test_images_that_leave_do_not_change_the_others():
    y, side = torch.tensor([0, 1, 0, 1]), torch.tensor([1, -1, -1, 1]).view(-1, 1, 1, 1)
    x0 = grey(4) + 0.3 * side * WEIGHTS.sign()  # two are wrong and two are right whatever the attack does
    attack, victim = climb(Linf(0.02), steps=6, patience=2), Linear()
    together = attack.run(victim, x0, y, KEY.rng(4))
    assert [len(x) for x in victim.seen] == [4, 4, 2, 2, 2, 2, 2]
    alone = attack.run(Linear(), x0[2:], y[2:], KEY.rng(torch.tensor([2, 3])))
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a[2:], b)


def test_the_best_of_all_restarts_is_kept():
    y, x0, rng = torch.tensor([0, 1, 2, 3]), images(4), KEY.rng(4)
    attack = Restarts(PGD(Linf(0.2), exact(), steps=2, patience=0), 3, leave=False)
    victim = Noisy(y, eot=1)
    found = attack.run(victim, x0, y, rng)
    assert len(victim.looks) == attack.looks == 9
    best = victim.best()
    for value, expected in zip(found, victim.at(best), strict=False):
        assert torch.equal(value, expected)
    assert len({k // 3 for k in best}) > 1, "one restart must not be the best for all images"
    starts = [victim.looks[k][0] for k in (0, 3, 6)]
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])


def test_decided_images_are_not_restarted():
    victim = Scripted(lambda look, ids: ids == 0)
    attack = Restarts(PGD(Linf(0.1), Gradient(Skip()), steps=3, patience=2), 3)
    assert attack.run(victim, grey(2), torch.zeros(2, dtype=torch.long), KEY.rng(2)).looks.tolist() == [2, 12]


def test_a_streak_does_not_outlive_its_restart():
    victim = Scripted(lambda look, ids: torch.full_like(ids, look in (0, 2)))
    attack = Restarts(PGD(Linf(0.1), Gradient(Skip()), steps=2, patience=2), 3, leave=False)
    assert attack.run(victim, grey(1), torch.zeros(1, dtype=torch.long), KEY.rng(1)).looks.tolist() == [9]


def test_momentum_is_mi_fgsm():
    """Dong et al. (2018), algorithm 1, written out."""
    y, x0, eps, size, mu = torch.tensor([0, 1, 2, 3]), images(4), 0.2, 0.05, 0.8
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
    for name, p in model.named_parameters():
        p.data = Key(4, (name,)).rng(1).normal(p[None])[0]
    x, g, iterates = x0.clone(), torch.zeros_like(x0), []
    for _ in range(5):
        leaf = x.requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(model(leaf), y).sum(), leaf)
        g = mu * g + grad / grad.abs().sum(dim=(1, 2, 3), keepdim=True)
        x = (x0 + (leaf.detach() + size * g.sign() - x0).clamp(-eps, eps)).clamp(0, 1)
        iterates.append(x)
    seen = []

    class Recorder:
        def logits(self, x, rng, adjoint=None):
            seen.append(x.detach().clone())
            return model(x)

    PGD(Linf(eps), blind(), steps=5, step_size=size, momentum=mu, random_start=False, patience=0).run(
        Recorder(), x0, y, KEY.rng(4)
    )
    assert torch.allclose(torch.stack(seen[1:]), torch.stack(iterates), atol=1e-6)


def test_random_sign_looks_at_the_clean_image_and_then_moves_every_pixel_by_eps():
    x0, victim = images(3), Linear()
    RandomSign(Linf(0.1), looks=5).run(victim, x0, torch.zeros(3, dtype=torch.long), KEY.rng(3))
    assert len(victim.seen) == 5
    assert torch.equal(victim.seen[0], x0)
    for x in victim.seen[1:]:
        up, down = (x0 + 0.1).clamp_max(1), (x0 - 0.1).clamp_min(0)
        assert torch.minimum((x - up).abs(), (x - down).abs()).max() < 1e-6
        assert 0.3 < float((x > x0).float().mean()) < 0.7
    assert not torch.equal(victim.seen[1], victim.seen[2])


@every_threat
def test_random_sign_keeps_the_worst_of_its_looks(threat):
    x0, victim = images(3), Linear()
    found = RandomSign(threat, looks=6, loss=margin).run(victim, x0, torch.zeros(3, dtype=torch.long), KEY.rng(3))
    losses = torch.stack([lead(x) for x in victim.seen])
    assert torch.allclose(found.loss, losses.amax(dim=0), atol=1e-5)
    assert torch.equal(found.x, torch.stack([victim.seen[k][i] for i, k in enumerate(losses.argmax(dim=0).tolist())]))
    assert found.looks.tolist() == [6] * 3
    assert (threat.distance(found.x, x0) <= threat.eps + 1e-6).all()


def test_random_sign_meets_the_defence_itself_and_asks_for_no_gradient():
    adjoints = []

    class Recorder(Linear):
        def logits(self, x, rng, adjoint=None):
            adjoints.append((adjoint, torch.is_grad_enabled()))
            return Linear.logits(self, x, rng)

    RandomSign(Linf(0.1), looks=2).run(Recorder(), images(3), torch.zeros(3, dtype=torch.long), KEY.rng(3))
    assert adjoints == [(None, False)] * 2


@pytest.mark.parametrize(
    "attack",
    [Restarts(PGD(Linf(0.2), exact(2), steps=3), 2), RandomSign(Linf(0.2), looks=3, select=Selection(2))],
    ids=["pgd", "random-sign"],
)
def test_no_noise_is_met_twice_by_attack_and_judge(attack):
    """A second use of an address would let the attack see the judge's noise, or count one draw as two."""
    defence = Defence(lambda x: x.flatten(1)[:, :4], diffpure(net_denoiser(), 0.1, "sde", steps=2))
    x0, y = images(3), torch.tensor([0, 1, 2])
    with audit() as seen:
        found = attack.run(defence, x0, y, KEY.fold("attack").rng(3))
        judge(defence, found.x, KEY.fold("judge").rng(3), draws=4)
    assert len(seen) > 50
    assert max(seen.values()) == 1


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"patience": -1}, {"momentum": 1.5}, {"momentum": -0.1}, {"momentum": float("nan")}]
    + [{"step_size": 0.0}, {"step_size": -1.0}, {"step_size": float("nan")}],
    ids=str,
)
def test_parameters_without_a_meaning_are_refused(options):
    with pytest.raises(UserError, match="PGD"):
        PGD(Linf(0.1), exact(), **options)


def test_a_null_control_that_never_looks_is_refused():
    with pytest.raises(UserError, match="look"):
        RandomSign(Linf(0.1), looks=0)
