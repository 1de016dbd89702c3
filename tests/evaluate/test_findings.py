"""Every alarm goes off exactly when it should, on evidence made for it; and is silent where nothing was measured."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lustral.evaluate.findings import CHECKS, Evidence, Finding, findings, withheld
from lustral.evaluate.findings.base import Seen
from lustral.evaluate.findings.consequences import CONSEQUENCES
from lustral.evaluate.witness import Probe

N = 40


def seen(
    share: float, n: int = N, *, draws: int = 20, wrong: float | None = None, wrongs=None, losses=None, **rest
) -> Seen:
    """A stage that leaves ``share`` of the images right in every draw, the first ones."""
    right = (torch.arange(n) < round(share * n)).double()
    history = [np.array([0.0, 0.5, 1.0])] * n
    return Seen(
        rest.get("ids", torch.arange(n)),
        right,
        torch.arange(n) < rest.get("repaired", 0),
        torch.full((n,), rest.get("distance", 0.1)),
        1 - right if wrong is None else torch.full((n,), wrong),
        losses or history,
        wrongs or history,
        draws,
        rest.get("labels", 10),
    )


BASE = Evidence(eps=0.1, classes=10, random=True, bare=False, eot=8)


def say(name: str, evidence: Evidence) -> Finding | None:
    return CHECKS[name](evidence)


def level(name: str, certificate: dict | None = None, stages: dict[str, Seen] | None = None, **changes) -> str | None:
    evidence = replace(BASE, certificate=certificate or {}, stages=stages or {}, **changes)
    found = say(name, evidence)
    return found and found.level


@pytest.mark.parametrize("name", CHECKS)
def test_what_was_not_measured_is_not_judged(name):
    assert say(name, BASE) is None


@pytest.mark.parametrize(
    ("name", "certificate", "expected"),
    [
        ("gradient-exists", {"gradient_zero": 0.0}, "green"),
        ("gradient-exists", {"gradient_zero": 0.05}, "amber"),
        ("gradient-exists", {"gradient_zero": 0.25}, "red"),
        ("gradient-finite", {"gradient_finite": True}, "green"),
        ("gradient-finite", {"gradient_finite": False}, "red"),
        ("replayed-states", {"replays_states": True}, "green"),
        ("replayed-states", {"replays_states": False}, "red"),
        ("autograd-match", {"autograd": 0.0}, "green"),
        ("autograd-match", {"autograd": 1e-4}, "amber"),
        ("autograd-match", {"autograd": 0.5}, "red"),
        ("finite-difference", {"finite_difference": 1e-9}, "green"),
        ("finite-difference", {"finite_difference": 5e-3}, "amber"),
        ("finite-difference", {"finite_difference": float("inf")}, "red"),
        ("finite-difference", {"finite_difference": 1e-9, "deployed": [(1.0, 1.0)] * 12}, "green"),
        ("finite-difference", {"finite_difference": 1e-9, "deployed": [(1.0, -1.0)] * 12}, "red"),
        ("finite-difference", {"finite_difference": 0.9, "deployed": [(1.0, 1.1)] * 12}, "amber"),
        ("finite-difference", {"finite_difference": 0.9, "deployed": [(1.0, 1.0)] * 9 + [(1.0, 3.0)] * 3}, "red"),
        ("finite-difference", {"deployed": [(1.0, 1.0)] * 12, "across": [(0.0, 9.0, 0.1)] * 12}, "red"),
        ("finite-difference", {"deployed": [(1.0, 1.0)] * 12, "across": [(0.0, 9.0, 8.0)] * 12}, "amber"),
        ("finite-difference", {"finite_difference": None, "deployed": [(1.0, 1.0)] * 12}, "amber"),
        ("finite-difference", {"finite_difference": None, "deployed": [(1.0, 0.0)] * 12}, "red"),
        ("finite-difference", {"finite_difference": None, "deployed": [(1.0, 1.0)] * 9 + [(1.0, 3.0)] * 3}, "amber"),
        ("path-integral", {"ways": [(-9.9, -10.0, 0.3), (-4.0, -4.1, 0.3)]}, "green"),
        ("path-integral", {"ways": [(-6.0, -10.0, 0.1), (-3.0, -4.1, 0.1)]}, "amber"),
        ("path-integral", {"ways": [(-0.1, -10.0, 0.1), (0.2, -4.1, 0.1)]}, "red"),
        ("path-integral", {"ways": [(-60.0, -10.0, 30.0)]}, "green"),
        ("path-integral", {"ways": [(float("nan"), -10.0, 0.1)]}, "red"),
        ("asked-alike", {"places": 0.5}, "green"),
        ("asked-alike", {"places": 0.005}, "amber"),
        ("asked-alike", {"places": 0.0002}, "red"),
        ("noise-addresses", {"replays_addresses": True}, "green"),
        ("noise-addresses", {"replays_addresses": False}, "red"),
        ("gradient-profile", {"norms": [(1, 1.0), (9, 0.1)]}, "green"),
        ("gradient-profile", {"norms": [(1, 1.0), (9, 1e-5)]}, "amber"),
        ("bpda-cosine", {"cosine_bpda": 0.4}, "green"),
        ("bpda-cosine", {"cosine_bpda": -0.1}, "amber"),
        ("clipping", {"clipped": 0.1}, "green"),
        ("clipping", {"clipped": 0.7}, "amber"),
        ("replayable", {"replays": True}, "green"),
        ("replayable", {"replays": False}, "red"),
        ("declared-random", {"random": True}, "green"),
        ("eot-agreement", {"agreement": [(2, 0.1), (8, 0.9), (32, 0.2)]}, "green"),
        ("eot-agreement", {"agreement": [(2, 0.9), (8, 0.2), (32, 0.9)]}, "amber"),
        ("roughness", {"roughness": 0.2}, "green"),
        ("roughness", {"roughness": 3.0}, "amber"),
        ("binarisation", {"binarisation": {"images": 16, "attack": 1.0, "chance": 0.1}}, "green"),
        ("binarisation", {"binarisation": {"images": 16, "attack": 0.8, "chance": 0.1}}, "amber"),
        ("binarisation", {"binarisation": {"images": 16, "attack": 1.0, "chance": 1.0}}, "amber"),
        ("binarisation", {"binarisation": {"images": 16, "attack": 0.25, "chance": 0.1}}, "red"),
        ("binarisation", {"binarisation": {"images": 0, "attack": 0.0, "chance": 0.0}}, None),
        ("undefended-twin", {"undefended": 0.0, "undefended_unbounded": 0.0}, "green"),
        ("undefended-twin", {"undefended": 0.7, "undefended_unbounded": 0.0}, "amber"),
        ("undefended-twin", {"undefended": 0.7, "undefended_unbounded": 0.6}, "red"),
        ("logits", {"probabilities": False}, "green"),
        ("logits", {"probabilities": True}, "amber"),
        ("logits", {"probabilities": False, "finite": False}, "red"),
        ("neighbours", {"neighbours": float("nan")}, "red"),
        ("roughness", {"roughness": float("inf")}, "amber"),
        ("neighbours", {"neighbours": 1e-7}, "green"),
        ("neighbours", {"neighbours": 1e-3}, "amber"),
        ("neighbours", {"neighbours": 0.3}, "red"),
        ("purification-drift", {"drift": 0.02, "moved": 0.1, "steps": 10}, "green"),
        ("purification-drift", {"drift": 0.3, "moved": 0.1, "steps": 10}, "amber"),
    ],
)
def test_certificates_are_judged_by_their_bars(name, certificate, expected):
    assert level(name, certificate) == expected


def probes(kind: str, *numbers: tuple[float, ...], stage: str = "exact") -> dict[str, list[Probe]]:
    return {stage: [Probe(image, kind, 1, *pair) for image, pair in enumerate(numbers)]}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (probes("step", *[(2.0, 2.1)] * 12), "green"),
        (probes("step", *[(2.0, 2.1)] * 8, *[(2.0, 9.0)] * 3), "amber"),
        (probes("step", *[(2.0, 2.1)] * 4, *[(2.0, -2.0)] * 8), "red"),
        (probes("step", *[(2.0, 2.1)] * 30) | probes("step", *[(2.0, 0.0)] * 3, stage="unbounded"), "red"),
        (probes("step", *[(2.0, 2.1)] * 30) | probes("step", (2.0, 0.0), stage="unbounded"), "amber"),
        (probes("step", *[(0.0, 1.0)] * 12), "red"),
        (probes("step", *[(2.0, float("nan"))] * 12), "red"),
        (probes("step", (0.0, 0.0)), None),
    ],
)
def test_a_gradient_must_predict_what_steps_do(found, expected):
    assert level("followed-gradient", probes=found) == expected
    capped = level("followed-gradient", probes=found, probabilities=True)
    assert capped == ("amber" if expected == "red" else expected)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [("asked-alike", "asked", {0.0: "green", 1e-3: "amber", 0.5: "red", float("nan"): "red"})]
    + [("replayable", "later", {0.0: "green", 1e-6: "amber", 0.5: "red", float("nan"): "red"})],
)
def test_one_question_has_one_answer(name, kind, expected):
    assert {off: level(name, probes=probes(kind, (0.0, 0.0), (0.0, off))) for off in expected} == expected


def test_a_way_to_a_candidate_counts_like_one_of_the_certificate():
    assert level("path-integral", {"ways": [(-10.0, -10.0, 0.1)]}, probes=probes("path", (0.0, -9.0, 0.1))) == "red"


def test_noise_that_was_declared_absent_is_an_alarm():
    assert level("declared-random", {"random": True}, random=False) == "red"
    assert level("declared-random", {"random": False}, random=False) == "green"


@pytest.mark.parametrize(
    ("name", "weak", "strong"),
    [
        ("blind-over-bpda", "blind", "bpda"),
        ("bpda-over-exact", "bpda", "exact"),
        ("black-box", "black-box", "exact"),
        ("transfer", "transfer", "exact"),
        ("random-noise", "null", "exact"),
        ("null-control", "null", "worst"),
    ],
)
def test_an_attack_that_should_be_weaker_and_does_more_harm_is_an_alarm(name, weak, strong):
    better, reversed_, chance = ({weak: seen(a), strong: seen(b)} for a, b in ((0.9, 0.4), (0.4, 0.9), (0.475, 0.5)))
    assert level(name, stages=better) == "green"
    assert level(name, stages=reversed_) == "red"
    assert level(name, stages=chance) == "amber"


def test_a_reversal_on_a_handful_of_images_is_no_proof():
    assert level("bpda-over-exact", stages={"bpda": seen(0.0, 4), "exact": seen(1.0, 4)}) == "amber"


def test_only_images_that_faced_both_are_compared():
    few = seen(0.0, 10, ids=torch.arange(30, 40))
    assert level("bpda-over-exact", stages={"bpda": few, "exact": seen(0.75)}) == "green"
    assert level("bpda-over-exact", stages={"bpda": seen(0.0, 5, ids=torch.arange(90, 95)), "exact": seen(0.7)}) is None


def test_known_noise_must_help_the_attacker():
    assert level("fixed-noise", stages={"fixed": seen(0.1), "exact": seen(0.5)}) == "green"
    assert level("fixed-noise", stages={"fixed": seen(0.5), "exact": seen(0.5)}) == "amber"
    assert level("fixed-noise", stages={"fixed": seen(0.9), "exact": seen(0.5)}) == "red"
    assert level("fixed-noise", stages={"fixed": seen(0.0), "exact": seen(0.0)}) == "green"


def test_an_attack_without_bounds_must_leave_no_more_than_chance():
    shares = {0.0: "green", 0.1: "green", 0.15: "amber", 0.6: "red"}
    assert {share: level("unbounded", stages={"unbounded": seen(share)}) for share in shares} == shares


def test_accuracy_may_not_rise_with_eps():
    def curve(*shares: float) -> dict[str, Seen]:
        names = ("exact@eps=0.05", "exact", "exact@eps=0.2")
        return dict(zip(names, map(seen, shares), strict=True))

    assert level("monotone-curve", stages=curve(0.9, 0.5, 0.1)) == "green"
    assert level("monotone-curve", stages=curve(0.5, 0.6, 0.1)) == "amber"
    assert level("monotone-curve", stages=curve(0.2, 0.9, 0.1)) == "red"


def test_a_few_images_are_no_proof_that_the_attack_beats_chance():
    few = {"null": seen(1.0, 3), "worst": seen(0.0, 3)}
    assert level("null-control", stages=few) == "amber"
    assert level("null-control", stages={"null": seen(1.0), "worst": seen(0.0)}) == "green"


def test_two_classes_can_have_a_red_undefended_twin():
    found = {"undefended": 0.9, "undefended_unbounded": 0.9}
    assert level("undefended-twin", found, classes=2) == "red"


def test_looks_alone_must_not_be_mistaken_for_an_attack():
    often = [np.array([0.0, 0.0, 0.1])] * N
    never = [np.zeros(3)] * N
    assert level("looks-inflation", stages={"null": seen(1.0, wrongs=often)}) == "amber"
    assert level("looks-inflation", stages={"null": seen(1.0, wrongs=never)}) == "green"


def test_what_the_attack_saw_must_be_what_the_judge_sees():
    assert level("selection-bias", stages={"exact": seen(0.5)}) == "green"
    assert level("selection-bias", stages={"exact": seen(0.5, wrong=0.9)}) == "amber"
    assert level("selection-bias", stages={"exact": seen(0.5, wrong=0.9)}, random=False) is None


def test_a_search_that_still_climbs_has_not_converged():
    climbing, done = [np.linspace(0, 1, 40)] * N, [np.minimum(np.linspace(0, 2, 40), 1)] * N
    assert level("converged", stages={"exact": seen(0.5, losses=climbing)}) == "amber"
    assert level("converged", stages={"exact": seen(0.5, losses=done)}) == "green"
    assert level("converged", stages={"exact": seen(0.0, losses=climbing)}) is None, "all left because they were broken"


def test_one_attack_should_nearly_reach_the_worst_case_of_all():
    def stages(worst: float) -> dict[str, Seen]:
        return {"apgd-margin": seen(0.8), "worst": seen(worst)}

    assert level("attacks-agree", stages=stages(0.75)) == "green"
    assert level("attacks-agree", stages=stages(0.2)) == "amber"
    assert level("attacks-agree", stages={"apgd-margin": seen(0.8)}) is None


def test_successes_must_be_handed_in():
    fooled, not_fooled = [np.array([0.5, 1.0, 0.0])] * N, [np.array([0.5, 0.4])] * N
    assert level("silent-success", stages={"exact": seen(0.9, wrongs=fooled)}, eot=8) == "amber"
    assert level("silent-success", stages={"exact": seen(0.9, wrongs=not_fooled)}, eot=8) == "green"
    assert level("silent-success", stages={"exact": seen(0.9, wrongs=fooled)}, random=False) == "amber"
    assert level("silent-success", stages={"exact": seen(0.9, wrongs=fooled)}, eot=2) is None, "chance, not a loss"


def test_the_worst_case_lies_below_every_attack():
    stages = {"apgd-margin": seen(0.5), "square": seen(0.2), "worst": seen(0.5)}
    assert level("worst-case", stages=stages, cascade=("apgd-margin", "square")) == "amber"
    assert level("worst-case", stages=stages | {"worst": seen(0.2)}, cascade=("apgd-margin", "square")) == "green"
    few = {"square": seen(0.5, 2), "worst": seen(1.0)}
    assert level("worst-case", stages=few, cascade=("square",)) == "green", "one image proves nothing"
    apart = {"square": seen(0.0, 2, ids=torch.tensor([900, 901])), "worst": seen(1.0)}
    assert level("worst-case", stages=apart, cascade=("square",)) is None


def test_candidates_outside_the_threat_are_counted():
    found = {n: level("threat-kept", stages={"exact": seen(0.5, 200, repaired=n)}) for n in (0, 1, 10)}
    assert found == {0: "green", 1: "amber", 10: "red"}


def test_eight_bits_may_take_candidates_out_of_the_threat():
    assert level("eight-bit", stages={"worst": seen(0.5, distance=0.1)}) == "green"
    assert level("eight-bit", stages={"worst": seen(0.5, distance=0.1 + 0.5 / 255)}) == "amber"


@pytest.mark.parametrize(
    ("classes", "clean", "expected"),
    [
        (10, seen(0.9), "green"),
        (10, seen(0.0), "red"),
        (10, seen(0.1), "red"),
        (100, seen(0.0), "red"),
        (100, seen(0.1), "green"),
        (10, seen(0.15), "red"),
        (10, seen(0.25, 16), "amber"),
        (10, seen(1.0, 1), "amber"),
        (2, seen(0.5), "red"),
        (2, seen(0.6), "red"),
        (2, seen(0.625, 16), "amber"),
        (2, seen(0.8), "green"),
        (2, seen(0.8, labels=1), "red"),
        (2, seen(0.75, 4, labels=1), "amber"),
        (10, seen(1.0, labels=1), "green"),
    ],
)
def test_a_clean_accuracy_no_better_than_guessing_is_an_alarm(classes, clean, expected):
    assert level("above-chance", stages={"clean": clean}, classes=classes) == expected


def test_clean_and_robust_accuracy_need_the_same_rule():
    assert level("same-rule", stages={"clean": seen(1.0), "worst": seen(0.5)}) == "green"
    assert level("same-rule", stages={"clean": seen(1.0, draws=1), "worst": seen(0.5)}) == "amber"


def test_few_images_have_wide_intervals():
    assert level("enough-images", stages={"worst": seen(0.5, 16)}) == "amber"
    assert level("enough-images", stages={"worst": seen(0.5, 400)}) == "green"


def test_a_red_finding_withholds_the_number_and_others_do_not():
    stages = {"bpda": seen(0.4), "exact": seen(0.9), "clean": seen(1.0, draws=1)}
    found = findings(replace(BASE, stages=stages))
    assert withheld(found) == ["bpda-over-exact"]
    assert {f.name: f.level for f in found}["same-rule"] == "amber"
    assert [f.name for f in found] == [name for name in CHECKS if name in {f.name for f in found}]


def test_what_is_not_green_says_what_follows():
    assert set(CONSEQUENCES) == set(CHECKS)
    found = findings(
        Evidence(eps=0.1, classes=10, random=True, bare=False, certificate={"clipped": 0.9, "replays": True})
    )
    assert {f.name: f.so for f in found} == {"clipping": CONSEQUENCES["clipping"], "replayable": ""}


def test_there_are_at_least_25_checks():
    assert len(CHECKS) >= 25
