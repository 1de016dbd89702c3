"""Inside torch's inference mode, where nothing can be differentiated, everything comes out as outside of it."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import lustral
from components import PURIFIERS, images, net_denoiser, scramble
from lustral.attacks.composed import Targeted, Transfer
from lustral.attacks.estimators import SPSA, Displacement, Growing, Joint, LowPass, SignVoted
from lustral.attacks.gradients import Gradient, bpda, exact
from lustral.attacks.levels import HeldLevel, LoweredNorm
from lustral.attacks.losses import margin
from lustral.attacks.pgd import PGD
from lustral.attacks.search import Restarts
from lustral.core.threat import Linf
from lustral.evaluate.binarise import binarise
from lustral.evaluate.certificate import certify, finite_difference
from lustral.evaluate.protocol import Job, Stage, System, Task, run
from lustral.shell import interop
from lustral.training.batches import Images, Source
from lustral.training.loop import train
from lustral.training.objectives import CrossEntropy
from lustral.training.recipe import Recipe

EPS = Linf(0.1)
NET = scramble(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
X, Y = images(4), torch.tensor([0, 1, 2, 3])


def defence(name: str = "ddim") -> lustral.Defence:
    """New at every call, so that nothing is kept from another mode."""
    return lustral.defend(NET, PURIFIERS[name](net_denoiser()))


def pgd(gradient) -> PGD:
    return PGD(EPS, gradient, steps=2)


def attacked(search, victim: Callable[[], lustral.Defence] = defence) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: search.run(victim(), x, y, 0).x


def differentiated(gradient, name: str = "ddim") -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: gradient(defence(name), x, y, margin, lustral.Key(0).rng(len(x))).grad


def data(x: Tensor, y: Tensor) -> lustral.Data:
    return lustral.Data(torch.arange(len(x)), x, y)


def evaluated(x: Tensor, y: Tensor) -> Tensor:
    job = Job(System("it", defence()), Stage("known", pgd(exact()), 2, "known"), len(x))
    return run(Task(job, data(x, y), x), lustral.Key(0)).x


def certified(x: Tensor, y: Tensor) -> str:
    system = System("it", defence("function-plain"), random=False)
    return repr(certify(system, data(x, y)[:1], EPS, lustral.Key(0), thorough=False))


def binarised(x: Tensor, y: Tensor) -> str:
    return repr(binarise(System("it", defence()), data(x, y)[:1], EPS, pgd(exact()), pgd(exact()), lustral.Key(0)))


def trained(x: Tensor, y: Tensor) -> Tensor:
    with torch.inference_mode(False):
        net = copy.deepcopy(NET)
    source = Source(Images((x * 255).byte(), y))
    for _ in train(net, CrossEntropy(), source, Recipe(steps=2, batch=4, lr=0.1)):
        pass
    return net[1].weight


DONE = {
    "pgd": attacked(pgd(exact(2))),
    "apgd": attacked(lustral.APGD(EPS, exact(), steps=2)),
    "fab": attacked(Targeted(lustral.FAB(Linf(0.5), exact(), steps=2), 3)),
    "stadv": attacked(lustral.StAdv(lustral.Flow(1), exact(), steps=2)),
    "restarts": attacked(Restarts(pgd(exact()), 2)),
    "transfer": attacked(Transfer(pgd(exact()), (defence(),))),
    "spsa": attacked(pgd(SPSA(2))),
    "joint": attacked(pgd(Joint(bpda(), Displacement(PURIFIERS["gdmp"](net_denoiser()))))),
    "held level": differentiated(Gradient(HeldLevel()), "ssni"),
    "lowered norm": differentiated(Gradient(LoweredNorm()), "ssni"),
    "guided": attacked(pgd(exact()), lambda: defence("guided")),
    "exact": differentiated(exact()),
    "growing": differentiated(Growing(lustral.Checkpointed())),
    "low-pass": differentiated(LowPass(exact())),
    "signs": differentiated(SignVoted(exact(2))),
    "verdict": lambda x, y: defence("gdmp").decide(x, 0).logits,
    "purify": lambda x, y: lustral.purify(PURIFIERS["guided"](net_denoiser()), x, 0, adjoint=lustral.Direct()),
    "trace": lambda x, y: torch.cat(list(lustral.trace(PURIFIERS["gdmp"](net_denoiser()), x, 0))),
    "evaluation": evaluated,
    "certificate": certified,
    "binarisation": binarised,
    "training": trained,
}
LIBRARIES = {
    "torchattacks": lambda: interop.torchattacks_attack("PGD", EPS, steps=2),
    "foolbox": lambda: interop.foolbox_attack("LinfPGD", EPS, steps=2),
    "art": lambda: interop.art_attack(
        "ProjectedGradientDescent", EPS, image_shape=(1, 8, 8), classes=4, max_iter=2, verbose=False
    ),
    "pyautoattack": lambda: interop.autoattack_attack(
        EPS, version="custom", attacks=["apgd-ce"], settings={"apgd.n_iter": 2, "apgd.n_restarts": 1}
    ),
}


def alike(a: Tensor | str, b: Tensor | str) -> bool:
    return a == b if isinstance(a, str) else torch.equal(a, b)


def check(work: Callable[[Tensor, Tensor], Tensor | str]) -> None:
    with torch.enable_grad():
        wanted = work(X, Y)
    with torch.no_grad():
        assert alike(work(X, Y), wanted)
    with torch.inference_mode():
        made = X.clone(), Y.clone()
        assert alike(work(X, Y), wanted)
        assert alike(work(*made), wanted)
    assert alike(work(*made), wanted)


@pytest.mark.parametrize("name", DONE)
def test_the_mode_changes_no_result(name):
    check(DONE[name])


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_mode_changes_no_result_of_another_library(name):
    pytest.importorskip(name)
    check(attacked(LIBRARIES[name]()))


def test_what_was_computed_inside_spoils_no_gradient_outside():
    """A purifier keeps its table from the first call on, in float64, which a float64 gradient takes as it is."""
    victim, measure = defence("ddpm-small"), lambda v: finite_difference(v, data(X, Y)[:1], lustral.Key(0))
    with torch.inference_mode():
        victim.decide(X, 0)
    assert measure(victim) == measure(defence("ddpm-small"))


def test_shipped_networks_may_be_loaded_inside():
    with torch.inference_mode():
        net = lustral.classifier("digits-cnn")
    assert not any(p.is_inference() for p in net.parameters())


def test_a_network_that_was_made_inside_is_refused_in_a_sentence():
    with torch.inference_mode():
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()
    with pytest.raises(lustral.UserError, match="made under torch.inference_mode, so it has no gradient"):
        pgd(exact()).run(lustral.defend(net, PURIFIERS["ddim"](net_denoiser())), X, Y, 0)
    assert pgd(exact()).run(lustral.defend(copy.deepcopy(net)), X, Y, 0).x.isfinite().all()
    with pytest.raises(lustral.UserError, match="made under torch.inference_mode cannot be trained"):
        next(train(net, CrossEntropy(), Source(Images(X, Y)), Recipe(steps=1, batch=4)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("where", ["purifier", "classifier"])
def test_a_search_that_gets_no_gradient_says_so(mode, where):
    """Its steps are along zeros; before, only an evaluation's findings told."""
    cut = mode()(lambda v: 0.9 * v)
    net, purifier = (lambda v: NET(cut(v)), None) if where == "classifier" else (NET, cut)
    with pytest.warns(UserWarning, match="goes nowhere and what it finds is no sign of robustness"):
        found = pgd(exact()).run(lustral.defend(net, purifier), X, Y, 0)
    assert found.x.isfinite().all()


def test_a_search_with_a_gradient_says_nothing(recwarn):
    pgd(exact()).run(defence(), X, Y, 0)
    assert not recwarn.list
