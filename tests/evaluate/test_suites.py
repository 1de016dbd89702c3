"""The suites: which attacks, in which order, who leaves, and what the worst case is."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from components import images, net_denoiser
from lustral.attacks.anatomy import effort, inside, summary
from lustral.attacks.gradients import Gradient, Selection
from lustral.attacks.pgd import RandomSign
from lustral.core.adjoint import Checkpointed, Identity, Skip
from lustral.core.errors import UserError
from lustral.core.noise import Key, audit
from lustral.core.threat import L2, Linf
from lustral.core.vote import MeanLogits, Single
from lustral.defence import Defence
from lustral.evaluate import protocol, sizes, suites
from lustral.evaluate.protocol import Data, Job, Memory, Stage, System, evaluate, levels, pending
from lustral.purifiers.presets import diffpure

KEY = Key(4)


def classifier(x: Tensor) -> Tensor:
    return x.flatten(1)[:, ::6]


def system(name: str = "net", **options) -> System:
    return System(name, Defence(classifier, diffpure(net_denoiser(), 0.1, "sde", steps=2), **options))


BARE = System("bare", Defence(classifier), random=False)


def names(suite: str, of: System, threat=Linf(0.1)) -> list[str]:
    return [job.stage.name for job in suites.jobs(suite, [of], threat, 64)]


def attacks(suite: str, of: System) -> dict[str, object]:
    return {job.stage.name: job.stage.attack for job in suites.jobs(suite, [of], Linf(0.1), 64)}


def test_a_number_names_its_suite():
    assert sizes.title("standard") == "lustral-standard-1"
    with pytest.raises(UserError, match="Did you mean 'standard'"):
        suites.jobs("standart", [system()], Linf(0.1), 8)


def test_without_noise_the_standard_suite_contains_autoattacks_standard_set():
    found = attacks("standard", BARE)
    cascade = [name for name in found if name.startswith(("apgd", "fab", "square"))]
    assert cascade == ["apgd-margin", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert [summary(found[name])["steps"] for name in cascade] == [100, 100, 100, 100, 5000]
    assert summary(found["apgd-t"])["targets"] == summary(found["fab-t"])["targets"] == 9
    assert all(summary(found[name])["eot"] in (1, None) for name in cascade)
    assert all(part.draws == 1 for name in cascade for part in inside(found[name]) if isinstance(part, Selection))


def test_cheap_attacks_come_before_long_ones():
    found = attacks("standard", system())
    cheap = [effort(found[name]) for name in ("transfer", "apgd-bpda")]
    long = [effort(found[name]) for name in ("apgd-margin", "apgd-ce", "apgd-t", "fab-t", "square")]
    assert names("standard", system()).index("apgd-bpda") < names("standard", system()).index("apgd-margin")
    assert cheap == sorted(cheap)
    assert max(cheap) < min(long)


def test_a_vote_of_many_draws_spends_as_many_purifications():
    one, four = attacks("standard", system()), attacks("standard", system(vote=MeanLogits(4)))
    assert summary(one["apgd-margin"])["eot"] == 10
    assert summary(four["apgd-margin"])["eot"] == 2


def test_the_null_control_looks_as_often_as_the_longest_single_search():
    for suite in ("smoke", "quick", "standard", "gold"):
        found = attacks(suite, system())
        assert isinstance(found["null"], RandomSign)
        assert found["null"].looks >= found["apgd-margin"].looks


def test_other_norms_have_queries_too():
    assert "square" not in names("standard", system(), L2(0.5))
    assert "spsa" in names("standard", system(), L2(0.5))


def test_gold_adds_what_adaptive_reviewers_ask_for_and_lets_no_image_go():
    of = replace(system(), surrogate=diffpure(net_denoiser(), 0.1, "sde", steps=1))
    found = suites.jobs("gold", [of], Linf(0.1), 8)
    stages = {job.stage.name: job.stage for job in found}
    extra = {"apgd-growing", "pgd-200", "low-frequency", "deviated", "surrogate", "known init", "known step", "stadv"}
    assert extra <= stages.keys()
    assert not any(stage.after for stage in stages.values())
    for name, adjoint in (("bpda", Identity), ("blind", Skip), ("exact", Checkpointed)):
        parts = inside(stages[name].attack)
        assert [type(part.adjoint) for part in parts if isinstance(part, Gradient)] == [adjoint]


def test_attack_selection_and_judge_never_meet_the_same_noise():
    """Every address is drawn once, but for selection, which shows all iterates the same noise on purpose."""
    data = Data(torch.tensor([5, 3]), images(2), torch.tensor([0, 1]))
    for job in suites.jobs("smoke", [system()], Linf(0.1), 2):
        if job.stage.choose or job.stage.name in ("fixed", "transfer"):
            continue
        place = KEY.fold(job.system.name, job.stage.name)
        with audit() as seen:
            protocol.run(protocol.Task(job, data, data.x), KEY)
        select = set(_keys(place.fold("attack", "select")))
        others = Counter({address: n for address, n in seen.items() if address[0] not in select})
        assert max(others.values()) == 1, job.stage.name
        judged = {address for address in seen if address[0] in set(_keys(place.fold("judge")))}
        assert len(judged) == 2 * job.draws * 3


def _keys(place: Key) -> list[bytes]:
    """The noise keys of a purification of two steps at a place."""
    purify = place.fold("purify")
    return [purify.fold(*where).philox("normal").tobytes() for where in (("init",), ("step", 0), ("step", 1))]


class Scripted:
    """An attack that marks its candidates with a number, which the defence below understands."""

    threat, looks = Linf(1.0), 0

    def __init__(self, mark: dict[int, float]):
        self.mark = mark

    def run(self, victim, x0, y, rng):
        marks = torch.tensor([self.mark[image] for image in rng.ids.tolist()])
        return protocol.nothing(torch.ones_like(x0) * marks.view(-1, 1, 1, 1))


def marked(*marks: dict[int, float]) -> tuple[list[Job], Data]:
    """A defence that is right (class 0) in the share of draws that an image's brightness says, and a cascade on it."""

    class Coin:
        n_steps = 0

        def init(self, x, rng):
            return (torch.where(rng.uniform(x[:, :, :1, :1]) < x.mean(dim=(1, 2, 3), keepdim=True), 0.0, 1.0) + 0 * x,)

        def step(self, i, state, rng):
            return state

        def readout(self, state):
            return state[0]

    of = System("coin", Defence(lambda x: torch.stack([1 - x.mean((1, 2, 3)), x.mean((1, 2, 3))], dim=1), Coin()))
    names = [f"attack {k}" for k in range(len(marks))]
    stages = [
        Stage(n, Scripted(m), 40, after=tuple(names[:k])) for k, (n, m) in enumerate(zip(names, marks, strict=True))
    ]
    stages.append(Stage("worst", None, 400, choose=tuple(names), threat=Linf(1.0)))
    ids = torch.tensor(sorted(marks[0]))
    return [Job(of, stage, 99) for stage in stages], Data(ids, torch.full((len(ids), 1, 4, 4), 0.5), 0 * ids)


def test_decided_images_leave_and_the_worst_candidate_of_the_others_is_judged_anew():
    jobs, data = marked({1: 0.0, 2: 0.5, 3: 0.9}, {1: 1.0, 2: 0.9, 3: 0.3})
    found = {chunk.job.stage.name: chunk for chunk in evaluate(jobs, data, KEY)}
    assert found["attack 0"].ids.tolist() == [1, 2, 3]
    assert found["attack 1"].ids.tolist() == [2, 3]
    worst = found["worst"]
    assert worst.x[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.5, 0.3])
    share = (worst.logits.argmax(dim=-1) == 0).double().mean(dim=1)
    assert share.tolist() == pytest.approx([0.0, 0.5, 0.3], abs=0.1)
    before = (found["attack 1"].logits.argmax(dim=-1) == 0).double().mean(dim=1)
    assert len({*share.tolist(), *before.tolist()}) == 5, "the worst case is judged on draws of its own"


def test_levels_put_every_stage_after_those_that_it_builds_on():
    jobs, _ = marked({1: 0.0}, {1: 0.5}, {1: 0.5})
    assert [[job.stage.name for job in level] for level in levels(jobs)] == [
        ["attack 0"],
        ["attack 1"],
        ["attack 2"],
        ["worst"],
    ]
    with pytest.raises(UserError, match="needs attack 1 to come before it"):
        list(levels([jobs[0], jobs[2]]))


def test_a_resumed_cascade_leaves_out_what_was_decided_before():
    jobs, data = marked({1: 0.0, 2: 0.5}, {1: 0.5, 2: 0.5})
    store = Memory()
    for task in pending(jobs[:1], data, store):
        store.write(protocol.run(task, KEY))
    assert [task.data.ids.tolist() for task in pending(jobs[1:2], data, store)] == [[2]]
    assert list(pending(jobs[:1], data, store)) == []


def test_a_stage_that_chooses_has_a_threat_and_no_attack():
    with pytest.raises(UserError, match="their threat"):
        Stage("worst", None, choose=("exact",))


def test_an_image_that_only_the_vote_gets_right_does_not_leave():
    """Every draw is wrong, another class each time, and the mean of their logits is right."""
    logits = torch.tensor([[[1.0, 2.0, -5.0], [1.0, -5.0, 2.0]] * 4])
    at = protocol.standings([7], logits, torch.tensor([0]), MeanLogits(4))[7]
    assert (at.decisions, at.draws) == (1.0, 0.0)
    assert protocol.standings([7], logits, torch.tensor([0]), Single())[7][:2] == (0.0, 0.0)


def test_the_worst_case_may_be_the_clean_image():
    for of in (system(), BARE):
        (worst,) = [job.stage for job in suites.jobs("quick", [of], Linf(0.1), 8) if job.stage.name == "worst"]
        assert {"clean", "null", "exact", "apgd-margin"} <= set(worst.choose)


@pytest.mark.parametrize("eps", [0.3, 0.6, 1.0])
def test_a_large_threat_keeps_its_curve_inside_the_pixel_range(eps):
    jobs = suites.jobs("quick", [system()], Linf(eps), 8)
    sizes = [job.stage.bound.eps for job in jobs if "@eps" in job.stage.name]
    assert max(sizes) <= 1
    assert len({*sizes, eps}) == len(sizes) + 1
    (widest,) = [job.stage.bound.eps for job in jobs if job.stage.name == "unbounded"]
    assert widest >= max(0.5, eps)
