from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from components import finite_set, images, net_denoiser, scramble
from digits import EPS, digits
from lustral.attacks.gradients import exact
from lustral.attacks.pgd import PGD, RandomSign
from lustral.core.errors import UserError
from lustral.core.noise import Key, audit
from lustral.core.spec import digest
from lustral.core.threat import Linf
from lustral.core.vote import MeanLogits
from lustral.defence import Defence
from lustral.evaluate import protocol
from lustral.evaluate.protocol import Chunk, Data, Job, Memory, Stage, System, Task, describe, evaluate, pending
from lustral.purifiers.presets import diffpure
from lustral.shell import build, standard, weights
from lustral.shell.options import Classification, Purification, Resources, Search, ThreatModel

KEY = Key(4)
N = 3
ATTACK = PGD(Linf(0.1), exact(2), steps=2, random_start=False, patience=0)


def system(name: str = "net", denoiser=None, **options) -> System:
    purifier = diffpure(denoiser or net_denoiser(), 0.1, "sde", steps=2)
    return System(name, Defence(lambda x: x.flatten(1)[:, ::16], purifier, **options))


def data(n: int = N) -> Data:
    return Data(torch.tensor([5, 3, 8, 1, 9])[:n], images(n), torch.tensor([0, 1, 2, 3, 0])[:n])


def run(job: Job) -> Chunk:
    """A job on all its data at once."""
    return protocol.run(Task(job, data(), data().x), KEY)


def addresses(*places: tuple[System, Stage]) -> Counter:
    """How often each address was drawn in running these stages."""
    chosen = data()
    with audit() as seen:
        for place in places:
            protocol.run(Task(Job(*place, N), chosen, chosen.x), KEY)
    return seen


def test_attack_and_judge_never_meet_the_same_noise():
    null = RandomSign(Linf(0.1), looks=3)
    stages = Stage("pgd", ATTACK, 4), Stage("null", null, 4), Stage("clean", None, 4)
    everything = addresses(*((system(), stage) for stage in stages))
    judged, searched = N * 4 * 3, N * 2 * 3
    assert len(everything) == 3 * judged + 3 * searched + 3 * N * 3 + 2 * N
    assert max(everything.values()) == 1


def test_known_noise_is_one_place_that_attack_and_judge_share():
    known = addresses((system(), Stage("pgd", ATTACK, 4, "known")))
    assert len(known) == N * 3
    assert set(known.values()) == {2 * 3 + 1}


def test_known_and_fresh_noise_have_different_homes():
    known, fresh = (addresses((system(), Stage("pgd", ATTACK, 4, knowledge))) for knowledge in ("known", "fresh"))
    assert not known.keys() & fresh.keys()


def test_systems_and_stages_have_noise_of_their_own():
    places = [("net", "a"), ("net", "b"), ("other", "a")]
    everything = addresses(*((system(name), Stage(stage, None, 2)) for name, stage in places))
    assert len(everything) == 3 * N * 2 * 3
    assert max(everything.values()) == 1


def test_the_known_noise_is_that_of_the_deployed_decision():
    """With known noise the judge sees the very logits that the attack saw."""
    job = Job(system(vote=MeanLogits(2)), Stage("fixed", replace(ATTACK, gradient=exact()), 8, "known"), N)
    chunk = run(job)
    home = KEY.fold("net", "fixed", "known").rng(chunk.ids)
    assert chunk.logits.shape[1] == 2
    assert torch.allclose(chunk.logits.mean(dim=1), job.system.defence.logits(chunk.x, home), atol=1e-6)
    loss = torch.nn.functional.cross_entropy(chunk.logits.mean(dim=1), chunk.y, reduction="none")
    assert torch.allclose(loss, chunk.found.loss, atol=1e-5)


@pytest.mark.parametrize(
    ("votes", "draws", "knowledge", "expected"),
    [(1, 20, "fresh", 20), (4, 20, "fresh", 20), (4, 18, "fresh", 16), (4, 3, "fresh", 4), (4, 20, "known", 4)],
)
def test_the_judge_draws_whole_decisions(votes, draws, knowledge, expected):
    job = Job(system(vote=MeanLogits(votes)), Stage("s", None, draws, knowledge), N)
    assert job.draws == expected
    assert run(job).logits.shape[1] == expected


def test_an_undefended_classifier_is_judged_once():
    job = Job(System("plain", Defence(lambda x: x.flatten(1)[:, :3])), Stage("s", None, 20), N)
    assert job.draws == 1


def test_candidates_that_break_the_threat_are_mended_and_said_so():
    class Cheat:
        threat, looks = Linf(0.1), 0

        def run(self, victim, x0, y, rng):
            return protocol.nothing(torch.where(y.view(-1, 1, 1, 1) == 0, x0 + 0.5, x0))

    chunk = run(Job(system(), Stage("cheat", Cheat(), 2), N))
    assert chunk.repaired.tolist() == [True, False, False]
    assert (chunk.distance <= 0.1 + 1e-6).all()


def test_images_that_are_done_are_left_out_and_the_rest_comes_in_batches():
    job, store = Job(system(), Stage("clean", None, 1), 5), Memory()
    store.write(protocol.run(Task(job, data(5)[[1, 4]], data(5).x[[1, 4]]), KEY))
    tasks = list(pending([job], data(5), store, batch=2))
    assert [task.data.ids.tolist() for task in tasks] == [[5, 8], [1]]
    assert [task.data.ids.tolist() for task in pending([job], data(5), store, only={1, 3})] == [[1]]


def test_a_job_takes_the_first_images_of_the_data():
    jobs = [Job(system(), Stage("few", None, 1), 2), Job(system(), Stage("all", None, 1), 99)]
    assert [chunk.ids.tolist() for chunk in evaluate(jobs, data(5), KEY)] == [[5, 3], [5, 3, 8, 1, 9]]


@pytest.mark.parametrize("begin", [describe, lambda *plan: next(evaluate(*plan))], ids=["describe", "evaluate"])
@pytest.mark.parametrize(("names", "reason"), [(("a", "b", "a"), "names of their own"), ((), "at least one stage")])
def test_a_plan_without_stages_or_with_two_of_one_name_is_refused(begin, names, reason):
    with pytest.raises(UserError, match=reason):
        begin([Job(system(), Stage(name, None, 1), N) for name in names], data(), KEY)


@pytest.mark.parametrize(("options", "reason"), [({"draws": 0}, "at least 1"), ({"knowledge": "some"}, "fresh")])
def test_stages_without_a_meaning_are_refused(options, reason):
    with pytest.raises(UserError, match=reason):
        Stage("s", None, **options)


# Every option that can change a result, with another value than the base's. A new option has to be added here.
OTHER = {
    Purification: {
        "method": "none",
        "denoiser": "other",
        "t_star": 0.05,
        "solver": "ode",
        "steps": 4,
        "dt": 0.02,
        "rounds": 2,
        "clamp": True,
        "sigma": 0.2,
        "published": True,
        "gate": 5.0,
        "fixed_noise": True,
        "ssni": "logistic",
        "norm": "single",
        "tau": 3.0,
        "bias": 0.02,
        "likeness": "ssim",
        "strength": 3.0,
        "guide": "other",
        "class_weight": 0.5,
        "latent_weight": 0.5,
    },
    Classification: {"classifier": "other", "vote": "majority", "draws": 3},
    ThreatModel: {"norm": "l2", "eps": 0.1},
    Search: {"steps": 5, "eot": 3, "loss": "margin", "step_size": 0.01, "restarts": 2, "momentum": 0.5},
}
BASE = {
    Purification: Purification(steps=3),
    Classification: Classification(vote="mean-logits", draws=2),
    ThreatModel: ThreatModel(eps=EPS),
    Search: Search(steps=2, eot=2),
}
# What else must be chosen for an option to mean something.
ALONG = {name: {"method": "adp"} for name in ("sigma", "published", "gate")}
ALONG |= {name: {"ssni": "logistic"} for name in ("norm", "tau", "bias")}
ALONG |= {name: {"steps": None} for name in ("method", "dt")}
ALONG |= {name: {"method": "gdmp"} for name in ("likeness", "strength")}
ALONG |= {name: {"method": "agdm", "guide": "digits-cnn"} for name in ("guide", "class_weight", "latent_weight")}
CASES = [(kind, field.name) for kind in OTHER for field in fields(kind)]


@pytest.fixture
def other(tmp_path, monkeypatch) -> None:
    """Networks called ``other`` that differ from the shipped ones in their weights alone."""
    shipped = {"classifier": "digits-cnn", "denoiser": "digits-unet"}
    load = weights.load

    def loaded(name: str, kind: str):
        net, card = load(shipped[kind], kind)
        return scramble(net) if name == "other" else net, card

    monkeypatch.setattr(weights, "load", loaded)


def identity(changes: dict | None = None, resources: Resources = Resources(), **rest) -> str:
    parts = {kind: replace(base, **(changes or {}).get(kind, {})) for kind, base in BASE.items()}
    facts = {"draws": 4, "seed": 0, "images": 2, "micro_batch": None, "stages": ("clean", "null", "exact")} | rest
    named = standard.system(parts[Purification], parts[Classification], "digits")
    system = build.system("s", *named, facts["micro_batch"])
    against = build.threat(parts[ThreatModel])
    options = against, parts[Search], resources, facts["draws"]
    stages = [build.stage(name, system, *options) for name in facts["stages"]]
    jobs = [Job(system, stage, facts["images"]) for stage in stages]
    return digest(describe(jobs, digits(4), Key(facts["seed"])))


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind.__name__}.{name}" for kind, name in CASES])
def test_every_option_is_part_of_a_runs_identity(kind, name):
    along = ALONG.get(name, {}) if kind is Purification else {}
    assert identity({kind: along | {name: OTHER[kind][name]}}) != identity({kind: along})


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize(
    "change",
    [{"draws": 6}, {"seed": 1}, {"images": 3}, {"micro_batch": 16}, {"stages": ("clean", "null")}]
    + [{"stages": ("null", "clean", "exact")}],
    ids=str,
)
def test_so_are_draws_seed_images_and_stages(change):
    assert identity(**change) != identity()


def test_what_may_be_spent_is_not():
    for resources in (Resources(batch=3), Resources(budget=0.0), Resources(threads=1)):
        assert identity(resources=resources) == identity()


def test_the_data_are_part_of_a_runs_identity():
    jobs = [Job(system(), Stage("clean", None, 1), 2)]
    base = data(4)
    x = base.x.clone()
    x[3, 0, 0, 0] += 1e-3
    changed = [base._replace(x=x), base._replace(y=base.y.flip(0)), base._replace(ids=base.ids + 1), data(3)]
    digests = {digest(describe(jobs, d, KEY)) for d in (base, *changed)}
    assert len(digests) == 5


def test_facts_are_part_of_a_runs_identity():
    jobs = [Job(system(), Stage("clean", None, 1), 2)]
    assert describe(jobs, data(), KEY, torch="1")["torch"] == "1"
    assert digest(describe(jobs, data(), KEY, torch="1")) != digest(describe(jobs, data(), KEY, torch="2"))


def test_an_exact_denoisers_points_are_part_of_a_runs_identity():
    points = finite_set()
    moved = type(points)(points.points + 1e-3)
    specs = [describe([Job(system(denoiser=d), Stage("clean", None, 1), 2)], data(), KEY) for d in (points, moved)]
    assert digest(specs[0]) != digest(specs[1])
