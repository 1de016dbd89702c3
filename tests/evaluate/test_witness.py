"""A witness sees false gradients and split faces where they are, says nothing of honest ones, and changes nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from digits import digits
from lustral.attacks.apgd import APGD
from lustral.attacks.gradients import Gradient, KnownNoise, Selection, blind, bpda, exact
from lustral.attacks.losses import cross_entropy, margin
from lustral.attacks.pgd import PGD
from lustral.core.adjoint import Direct
from lustral.core.noise import Key, audit
from lustral.core.threat import L1, L2, Linf
from lustral.core.vote import MeanLogits
from lustral.defence import Defence, defend
from lustral.evaluate import cheats, deployed
from lustral.evaluate.findings.witnessed import hidden
from lustral.evaluate.protocol import Job, Stage, System, Task, run
from lustral.evaluate.witness import Later, Witness, paths
from lustral.evaluate.witness import watched as witness_of
from lustral.shell import weights

KEY, THREAT, N = Key(5), Linf(3 / 16), 4


@pytest.fixture(scope="module")
def net() -> Callable[[Tensor], Tensor]:
    return weights.load("digits-cnn", "classifier")[0]


def blurred(x: Tensor, rng) -> Tensor:
    return torch.nn.functional.avg_pool2d(x + 0.1 * rng.normal(x), 3, stride=1, padding=1)


def watched(defence: Defence, attack: APGD | PGD, part: str | None = None) -> Witness:
    """A witness after a search."""
    few, witness = digits(N), Witness(defence, attack.threat)
    victim = witness if part is None else KnownNoise(witness, KEY, part)
    attack.run(victim, few.x, few.y, KEY.rng(few.ids))
    return witness


def ratios(witness: Witness) -> list[float]:
    return [probe.measured / probe.predicted for probe in witness.probes() if probe.kind == "step"]


@pytest.mark.parametrize("threat", [THREAT, L2(1.0), L1(4.0), Linf(0.5)], ids=str)
@pytest.mark.parametrize("loss", [margin, cross_entropy])
@pytest.mark.parametrize("gradient", [exact(2), Gradient(None, 2), Gradient(Direct(), 2)])
def test_an_honest_gradient_predicts_the_steps_of_every_search(threat, loss, gradient, net):
    found = ratios(watched(defend(net, blurred, MeanLogits(2)), APGD(threat, gradient, loss, 4, select=Selection(2))))
    assert len(found) >= 3
    assert all(0.85 < ratio < 1.18 for ratio in found)


@pytest.mark.parametrize("part", ["all", "init", "step"])
def test_noise_that_is_known_is_known_to_the_witness_too(part, net):
    found = ratios(watched(defend(net, blurred), APGD(THREAT, exact(), steps=4, patience=0), part))
    assert all(0.85 < ratio < 1.18 for ratio in found)


@pytest.mark.parametrize("gradient", [bpda(2), blind()])
def test_what_claims_nothing_is_not_asked(gradient, net):
    assert watched(defend(net, blurred), APGD(THREAT, gradient, steps=3)).probes() == []


@pytest.mark.parametrize("bend", [cheats.garbage32, cheats.reversed32, cheats.After(1)], ids=["0", "1", "2"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_false_gradient_is_seen_where_it_is(bend, closed, net):
    front = cheats.bent(bend)
    defence = Defence(lambda x: net(front(x))) if closed else defend(net, front)
    probes = watched(defence, APGD(THREAT, exact(), margin, 9, patience=0)).probes()
    found = [probe.measured / probe.predicted for probe in probes if probe.kind == "step" and probe.look > 1]
    assert sum(0.8 <= ratio <= 1.25 for ratio in found) <= len(found) / 2


def slopes(witness: Witness) -> list[tuple[float, float, float]]:
    return [probe[3:6] for probe in witness.probes() if probe.kind == "across"]


@pytest.mark.parametrize("threat", [THREAT, L2(1.0), L1(4.0)], ids=str)
def test_a_gradient_that_shows_a_part_of_itself_does_not_foretell_slopes_across_it(threat, net):
    attack = APGD(threat, exact(), margin, 6, patience=0)
    assert hidden(slopes(watched(defend(net, blurred), attack))) == ("green", 0.0)
    few = defend(net, cheats.bent(cheats.partly(digits(N).x, 10.0)))
    part = watched(few, attack)
    assert hidden(slopes(part))[0] == "red"
    later = [probe for probe in part.probes() if probe.kind == "step" and probe.look > 1]
    assert all(0.8 <= probe.measured / probe.predicted <= 1.25 for probe in later), "its own step it does predict"


def test_only_the_key_says_which_looks_are_watched():
    looks = range(1, 101)
    seen = [[look for look in looks if witness_of(look, Key(k).rng(3))] for k in range(40)]
    assert all(found[0] == 1 for found in seen)
    assert len({tuple(found) for found in seen}) == 40
    assert 6 < sum(map(len, seen)) / 40 < 9, "1 + Σ 1.5/look"
    assert witness_of(7, Key(1).rng(3)) == witness_of(7, Key(1).rng(torch.tensor([5])))


def test_a_system_that_knows_the_judge_by_its_batch_is_not_asked_alike(net):
    sure = System("s", defend(lambda x: net(x) if len(x) <= 3 * N else 5 * net(1 - x), blurred))
    stage = Stage("exact", PGD(THREAT, exact(), steps=2), 20)
    for system, alike in ((System("s", defend(net, blurred)), True), (sure, False)):
        probes = run(Task(Job(system, stage, N), digits(N), digits(N).x), KEY).probes
        assert all((probe.measured < 1e-4) == alike for probe in probes if probe.kind == "asked" and probe.look == 0)


def test_a_witness_changes_neither_the_search_nor_the_noise_that_it_draws(net):
    few, defence, found = digits(N), defend(net, blurred), []
    attack = APGD(THREAT, exact(2), margin, 5, select=Selection(2))
    for victim in (defence, Witness(defence, THREAT)):
        with audit() as seen:
            found.append((attack.run(victim, few.x, few.y, KEY.rng(few.ids)), seen))
    (plain, before), (under, after) = found
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(plain, under, strict=True))
    assert before == after


def test_gradients_add_up_on_honest_ways_and_not_over_steps(net):
    few = digits(N)
    far, rng = few.x.roll(1, 0), KEY.rng(few.ids)
    honest = paths(defend(net, blurred), few.x, far, few.y, rng)
    assert all(abs(p.predicted - p.measured) < 6 * p.error + 0.05 * abs(p.measured) for p in honest)
    leaky = paths(Defence(cheats.leaking(net, few.x, 0.5)), few.x, far, few.y, rng)
    missing = sum(abs(p.predicted - p.measured) for p in leaky) / sum(abs(p.measured) for p in leaky)
    assert missing > 0.5
    assert all(p.error < abs(p.measured) / 6 for p in leaky)


def test_a_question_has_the_same_answer_later(net):
    few = digits(1)
    honest, counting = defend(net, blurred), defend(net, cheats.Counting(3))
    for defence, same in ((honest, True), (counting, False)):
        later = Later(defence, few.x, KEY.rng(few.ids))
        for _ in range(4):
            defence.logits(few.x, KEY.rng(few.ids))
        assert (later.again()[0].measured == 0) == same


@pytest.mark.parametrize(("purifier", "alike"), [(blurred, True), (cheats.knows_caller, False)])
def test_search_and_judge_ask_one_system(purifier, alike, net):
    system = System("s", defend(net, purifier))
    probes = watched(system.defence, APGD(THREAT, exact(2), steps=1)).probes()
    assert [probe.measured < 1e-5 for probe in probes if probe.kind == "asked"] == [alike]
    assert (deployed.places(system, digits(N), KEY) > 0.01) == alike


def test_a_face_for_those_who_want_gradients_is_seen(net):
    two_faced = Defence(lambda x: net(1 - x) if torch.is_grad_enabled() else net(x))
    probes = watched(two_faced, APGD(THREAT, exact(), steps=1)).probes()
    assert [probe.measured > 0.1 for probe in probes if probe.kind == "asked"] == [True]
