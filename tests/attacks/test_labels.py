"""What labels may be, and that success is the target's where a target is given."""

import pytest
import torch
from torch import Tensor, nn

import lustral
from components import scramble
from lustral.attacks.composed import Targeted, Transfer
from lustral.attacks.estimators import SPSA
from lustral.attacks.foreign import Foreign
from lustral.attacks.gradients import Selection, exact
from lustral.attacks.losses import dlr_toward, toward
from lustral.attacks.pgd import PGD, RandomSign
from lustral.attacks.search import Restarts
from lustral.core.threat import Linf
from lustral.evaluate.protocol import Job, Stage, System, Task, run
from lustral.purifiers.compose import from_function
from lustral.shell import interop
from lustral.training.adbm import ADBM
from lustral.training.addt import ADDT, ADDTUnmapped
from lustral.training.adversarial import PGDAT, TRADES
from lustral.training.denoising import Denoising
from lustral.training.levels import LogUniform
from lustral.training.objectives import CrossEntropy

KEY, EPS, CLASSES, N = lustral.Key(8), Linf(0.2), 10, 12
NET = scramble(nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)))
DEFENCE = lustral.defend(NET)
X = 0.3 + 0.4 * KEY.rng(N).uniform(torch.empty(N, 1, 4, 4))
Y = NET(X).argmax(dim=1)
GOAL = NET(X).argsort(dim=1)[:, -3]  # another wrong class is nearer
PAIRS = torch.stack([Y, GOAL], dim=1)

SEARCHES = {
    "pgd": PGD(EPS, exact(), steps=1),
    "apgd": lustral.APGD(EPS, exact(), steps=1),
    "spsa": PGD(EPS, SPSA(1), steps=1),
    "square": lustral.Square(EPS, queries=1),
    "stadv": lustral.StAdv(lustral.Flow(1), exact(), steps=1),
    "random": RandomSign(EPS, 1),
    "targeted": Targeted(PGD(EPS, exact(), toward, steps=1), 1),
    "fab": Targeted(lustral.FAB(EPS, exact(), steps=1), 1),
    "transfer": Transfer(PGD(EPS, exact(), steps=1), (DEFENCE,)),
    "restarts": Restarts(PGD(EPS, exact(), steps=1), 2),
    "foreign": Foreign(EPS, lambda model: lambda x, y: x + model(x).gather(1, y[:, None])[:, 0].sum()),
}
WRONG = {
    "ignored": (lambda y: y.index_fill(0, torch.tensor([1]), -100), "count classes from 0, but one is -100"),
    "unlabelled": (lambda y: y.index_fill(0, torch.tensor([1]), -1), "count classes from 0, but one is -1"),
    "too large": (lambda y: y.index_fill(0, torch.tensor([1]), CLASSES), "0 to 9 where there are 10 classes, but.* 10"),
    "int32": (Tensor.int, r"not int32; cast them by y.long\(\)"),
    "bytes": (Tensor.byte, r"not uint8; cast them by y.long\(\)"),
    "floats": (Tensor.float, "not float32"),
    "one-hot": (lambda y: nn.functional.one_hot(y, CLASSES), r"labels have shape \(12, 10\)"),
}
every_mistake = pytest.mark.parametrize(("spoil", "said"), WRONG.values(), ids=WRONG.keys())


@every_mistake
@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_refuses_labels_that_are_no_classes(name, spoil, said):
    with pytest.raises(lustral.UserError, match=said):
        SEARCHES[name].run(DEFENCE, X, spoil(Y), KEY)


@every_mistake
def test_an_evaluation_refuses_labels_that_are_no_classes(spoil, said):
    data = lustral.Data(torch.arange(N), X, spoil(Y))
    with pytest.raises(lustral.UserError, match=said):
        run(Task(Job(System("it", DEFENCE), Stage("clean", None, 1), N), data, X), KEY)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    return 0.9 * x


BASE = Denoising(LogUniform(0.01, 0.5), "edm", sigma_data=0.25)
OBJECTIVES = {
    "cross-entropy": (CrossEntropy(smoothing=0.1), NET),
    "pgd-at": (PGDAT(steps=1), NET),
    "trades": (TRADES(steps=1), NET),
    "addt": (ADDT(BASE, NET, iterations=1), denoise),
    "addt-unmapped": (ADDTUnmapped(BASE, NET, iterations=1), denoise),
    "adbm": (ADBM(BASE, NET, iterations=1), nn.Identity()),
}


@every_mistake
@pytest.mark.parametrize("name", OBJECTIVES)
def test_training_refuses_labels_that_are_no_classes(name, spoil, said):
    """Torch skips -100, so that an image is trained on nothing."""
    objective, model = OBJECTIVES[name]
    if name == "adbm":
        model.forward = denoise
    with pytest.raises(lustral.UserError, match=said):
        objective(model, X, spoil(Y), KEY.rng(N))


def loop(steps: int = 40, size: float = 0.02) -> Tensor:
    """Plain ascent towards the targets that goes on until they are reached; which are."""
    x, y = X.clone(), PAIRS
    for _ in range(steps):
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(toward(NET(leaf), y).sum(), leaf)
        there = (NET(x).argmax(dim=1) == GOAL).view(-1, 1, 1, 1)
        x = torch.where(there, x, EPS.project(x + size * grad.sign(), X))
    return NET(x).argmax(dim=1) == GOAL


AIMED = {
    "pgd": PGD(EPS, exact(), toward, steps=40, step_size=0.02),
    "restarts": Restarts(PGD(EPS, exact(), toward, steps=40, step_size=0.02), 2),
    "apgd": lustral.APGD(EPS, exact(), dlr_toward, steps=40),
    "fab": lustral.FAB(EPS, exact(), steps=40),
    "square": lustral.Square(EPS, queries=1000, loss=toward),
    "spsa": PGD(EPS, SPSA(64), toward, steps=40, step_size=0.02),
    "transfer": Transfer(PGD(EPS, exact(), toward, steps=40, step_size=0.02), (DEFENCE,)),
}


@pytest.mark.parametrize("name", AIMED)
def test_a_search_goes_on_until_it_is_at_the_target(name):
    """As often as a loop that does; other wrong classes are on the way and are no success."""
    reached = loop()
    assert bool(reached.all())
    found = AIMED[name].run(DEFENCE, X, PAIRS, KEY)
    there = NET(found.x).argmax(dim=1) == GOAL
    assert int(there.sum()) >= N - (name in ("square", "spsa"))
    assert torch.equal(found.wrong == 1, there), "success is the target's"
    assert float((found.x - X).abs().max()) <= EPS.eps + 1e-6


def test_within_targeted_any_wrong_class_will_do():
    """As in AutoAttack: targets are directions, and an image that is wrong already leaves after one look."""
    wrong = (Y + 1) % CLASSES
    found = Targeted(PGD(EPS, exact(), toward, steps=5, patience=1, random_start=False), 3).run(DEFENCE, X, wrong, KEY)
    assert torch.equal(found.x, X)
    assert found.looks.tolist() == [1] * N
    assert found.wrong.tolist() == [1] * N


def test_draws_count_for_the_target_alone():
    """A purifier whose noise decides between two wrong classes: half the draws are at the target."""

    def unsure(x: Tensor, rng) -> Tensor:
        return x * 0 + (rng.uniform(x[:, :, :1, :1]) < 0.5).float()

    victim = lustral.defend(lambda x: torch.stack([x[:, 0, 0, 0] * 0, x[:, 0, 0, 0], 0.5 + 0 * x[:, 0, 0, 0]], 1),
                            from_function(unsure))  # fmt: skip
    look = Selection(200)(victim, X[:1], torch.tensor([[0, 2]]), toward, KEY.rng(1))
    assert 0.3 < float(look.wrong) < 0.7
    assert float(Selection(200)(victim, X[:1], torch.tensor([0]), lustral.attacks.losses.margin, KEY.rng(1)).wrong) == 1


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (AIMED["pgd"], "another class than the image's label"),
        (Targeted(AIMED["pgd"], 2), "another class than the image's label"),
    ],
)
def test_an_image_is_not_attacked_towards_its_own_label(search, said):
    with pytest.raises(lustral.UserError, match=said):
        search.run(DEFENCE, X, torch.stack([Y, Y], dim=1), KEY)


def test_targets_outside_the_classes_and_targets_of_targeted_are_refused():
    with pytest.raises(lustral.UserError, match="0 to 9 where there are 10 classes"):
        AIMED["pgd"].run(DEFENCE, X, torch.stack([Y, Y * 0 + CLASSES], dim=1), KEY)
    with pytest.raises(lustral.UserError, match="Targeted chooses targets itself"):
        Targeted(AIMED["pgd"], 2).run(DEFENCE, X, PAIRS, KEY)


LIBRARIES = {
    "torchattacks": lambda: interop.torchattacks_attack("PGD", EPS, alpha=0.02, steps=40),
    "foolbox": lambda: interop.foolbox_attack("LinfPGD", EPS, rel_stepsize=0.1, steps=40),
    "art": lambda: interop.art_attack(
        *("ProjectedGradientDescent", EPS),
        **{"image_shape": (1, 4, 4), "classes": CLASSES, "eps_step": 0.02, "max_iter": 40, "verbose": False},
    ),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_other_libraries_are_told_the_target(name):
    pytest.importorskip(name)
    found = LIBRARIES[name]().run(DEFENCE, X, PAIRS, KEY)
    assert torch.equal(NET(found.x).argmax(dim=1), GOAL)
    assert found.wrong.tolist() == [1] * N


def test_libraries_that_go_for_no_target_refuse_one():
    for library in (*LIBRARIES, "pyautoattack"):
        pytest.importorskip(library)
    aimless = (
        interop.torchattacks_attack("APGD", EPS, steps=2),
        interop.foolbox_attack("LinfDeepFoolAttack", EPS, steps=2),
        interop.autoattack_attack(EPS),
    )
    for attack in aimless:
        with pytest.raises(lustral.UserError, match="does not go for a target of yours"):
            attack.run(DEFENCE, X, PAIRS, KEY)
    with pytest.raises(lustral.UserError, match="targeted where labels are .* pairs"):
        interop.art_attack("ProjectedGradientDescent", EPS, image_shape=(1, 4, 4), classes=CLASSES, targeted=True)
