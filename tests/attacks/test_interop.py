"""Foreign libraries attack our defences, and their attacks run inside our evaluations."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from digits import EPS, defence, digits
from lustral.attacks.foreign import Averaged, Foreign
from lustral.attacks.gradients import KnownNoise, exact
from lustral.attacks.losses import cross_entropy
from lustral.attacks.pgd import PGD
from lustral.core.errors import UserError
from lustral.core.generators import seeded
from lustral.core.kernel import purify
from lustral.core.noise import Key
from lustral.core.spec import digest
from lustral.core.threat import L1, L2, Linf
from lustral.core.vote import MeanLogits
from lustral.defence import Defence
from lustral.evaluate.judge import judge
from lustral.shell import interop

KEY = Key(9)
N = 8
SHAPE, CLASSES = (1, 8, 8), 10


def face(kind: str) -> nn.Module:
    """A defence with its noise fixed, or the plain module, whose noise is new at every call."""
    return defence().bind(KEY).eval() if kind == "bound" else defence(key=KEY).eval()


def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Of one call on fixed noise, or of 20 calls on fresh noise."""
    calls = 20 if isinstance(model, Defence) else 1
    with torch.no_grad():
        return sum(float((model(x).argmax(dim=1) == y).float().mean()) for _ in range(calls)) / calls


def check(model: nn.Module, x: torch.Tensor) -> None:
    """The attack kept to its threat and took at least an eighth of the accuracy."""
    _, x0, y, _ = digits(N)
    assert float((x - x0).abs().max()) <= EPS + 1e-6
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    before = accuracy(model, x0, y)
    assert before > 0.8
    assert accuracy(model, x, y) < before - 1 / 8


faces = pytest.mark.parametrize("kind", ["bound", "plain"])


@faces
def test_torchattacks_takes_a_defence_as_it_is(kind):
    torchattacks = pytest.importorskip("torchattacks")
    model = face(kind)
    with seeded(0, torch.device("cpu")):
        check(model, torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=8)(digits(N).x, digits(N).y))


keys = pytest.mark.parametrize("key", [None, KEY], ids=["fresh", "key"])


@keys
def test_foolbox_attacks_our_model(key):
    foolbox = pytest.importorskip("foolbox")
    model = interop.foolbox_model(defence(key=KEY), key)
    attack = foolbox.attacks.LinfPGD(rel_stepsize=1 / 4, steps=8)
    with seeded(0, torch.device("cpu")):
        _, x, _ = attack(model, digits(N).x, foolbox.criteria.Misclassification(digits(N).y), epsilons=EPS)
    check(face("plain" if key is None else "bound"), x)


@keys
def test_autoattack_attacks_our_defence(key):
    pytest.importorskip("pyautoattack")
    attack = interop.autoattack(defence(key=KEY), Linf(EPS), key, version="custom", attacks=["apgd-ce"], seed=0)
    attack.apgd.n_iter, attack.apgd.n_restarts, attack.apgd.eot_iter = 10, 1, 1 if key else 2
    with seeded(0, torch.device("cpu")):
        x, _ = attack.run_standard_evaluation(digits(N).x, digits(N).y, batch_size=N)
    check(face("plain" if key is None else "bound"), x)


def test_autoattack_knows_that_fresh_noise_is_random():
    pytest.importorskip("pyautoattack")
    assert interop.autoattack(defence(), L2(1.0)).version == "rand"
    assert interop.autoattack(defence(), L2(1.0), KEY).version == "standard"
    assert interop.autoattack(Defence(defence().classifier), L1(1.0)).version == "standard"


@keys
def test_art_attacks_our_classifier(key):
    evasion = pytest.importorskip("art.attacks.evasion")
    classifier = interop.art_classifier(defence(key=KEY), SHAPE, CLASSES, key)
    attack = evasion.ProjectedGradientDescent(classifier, eps=EPS, eps_step=EPS / 4, max_iter=8, verbose=False)
    x = attack.generate(digits(N).x.numpy(), digits(N).y.numpy())
    check(face("plain" if key is None else "bound"), torch.from_numpy(x))


def test_a_library_meets_the_noise_of_a_bound_defence():
    """The logits that a library sees are those of the defence under that key, image by image."""
    model, x = face("bound"), digits(N).x
    assert torch.equal(model(x), defence().logits(x, KEY.rng(N)))
    assert torch.equal(model(x), model(x))
    plain = face("plain")
    assert not torch.equal(plain(x), plain(x))


def test_foolbox_and_art_see_the_logits_of_a_bound_defence():
    pytest.importorskip("foolbox")
    pytest.importorskip("art")
    x, logits = digits(N).x, defence().logits(digits(N).x, KEY.rng(N))
    assert torch.equal(interop.foolbox_model(defence(), KEY)(x), logits)
    seen = interop.art_classifier(defence(), SHAPE, CLASSES, KEY).predict(x.numpy())
    assert torch.equal(torch.from_numpy(seen), logits)


def vector_jacobian(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The exact one of the purifier, on the noise that the preprocessor uses."""
    leaf = x.clone().requires_grad_()
    clean = purify(defence().purifier, leaf, KEY.fold("purify").rng(len(x)))
    return torch.autograd.grad(clean, leaf, weight)[0]


def test_the_art_preprocessor_has_the_true_gradient():
    """In torch and in NumPy, on the noise of the forward pass; the identity is far from it."""
    pytest.importorskip("art")
    x, weight = digits(N).x, KEY.rng(N).normal(digits(N).x)
    preprocessor, found = interop.art_preprocessor(defence().purifier, KEY), vector_jacobian(x, weight)
    leaf = x.clone().requires_grad_()
    clean, _ = preprocessor.forward(leaf)
    clean.backward(weight)
    assert torch.allclose(leaf.grad, found)
    assert torch.allclose(torch.from_numpy(preprocessor.estimate_gradient(x.numpy(), weight.numpy())), found)
    assert np.array_equal(preprocessor(x.numpy())[0], clean.detach().numpy())
    assert float((found - weight).norm() / weight.norm()) > 0.5
    assert preprocessor.apply_predict
    assert not preprocessor.apply_fit


def test_the_art_preprocessor_before_a_classifier_is_the_bound_defence():
    classification = pytest.importorskip("art.estimators.classification")
    system, x, y = defence(), digits(N).x, digits(N).y
    classifier = classification.PyTorchClassifier(
        system.classifier,
        loss=nn.CrossEntropyLoss(reduction="sum"),
        input_shape=SHAPE,
        nb_classes=CLASSES,
        clip_values=(0.0, 1.0),
        preprocessing_defences=interop.art_preprocessor(system.purifier, KEY),
        device_type="cpu",
    )
    assert torch.allclose(torch.from_numpy(classifier.predict(x.numpy())), system.bind(KEY)(x))
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(system.bind(KEY)(leaf), y).sum(), leaf)
    theirs = torch.from_numpy(classifier.loss_gradient(x.numpy(), np.eye(CLASSES, dtype=np.float32)[y]))
    assert torch.allclose(theirs, grad, rtol=1e-4, atol=1e-6)


def test_a_foreign_model_shows_the_mean_over_draws():
    """The true class holds minus the EOT loss and has its exact gradient; noise is new at each call of any rows."""
    system, (_, x, y, _) = defence(), digits(N)
    eot, leaf = 8, x.clone().requires_grad_()
    model = Averaged(system, KEY, eot)
    seen = model(leaf)
    look = exact(eot)(system, x, y, cross_entropy, KEY.fold("call", 1).rng(N))
    own = seen.gather(1, y[:, None])[:, 0]
    assert torch.allclose(-own, look.loss, atol=1e-5)
    (grad,) = torch.autograd.grad(-own.sum(), leaf)
    assert torch.allclose(grad, look.grad, rtol=1e-4, atol=1e-6)
    assert float(torch.cosine_similarity(grad.flatten(), look.grad.flatten(), dim=0)) > 0.999
    assert not torch.allclose(model(x), seen)
    assert model(x[3:5]).shape == (2, CLASSES)
    assert model(x.repeat(2, 1, 1, 1)).shape == (2 * N, CLASSES)


def test_cross_entropy_of_a_foreign_model_is_that_of_the_mean_logits():
    """At one draw that is ours, gradient and all; at more it is less than the EOT loss and climbs with it."""
    system, (_, x, y, _) = defence(), digits(N)
    for eot, similar in ((1, 0.999), (8, 0.5)):
        rng, leaf = KEY.fold("call", 1).rng(N), x.clone().requires_grad_()
        loss = cross_entropy(Averaged(system, KEY, eot)(leaf), y)
        mean = system.logits(x.repeat_interleave(eot, dim=0), rng.repeat(eot)).view(N, eot, -1).mean(dim=1)
        assert torch.allclose(loss, cross_entropy(mean, y), atol=1e-5)
        look = exact(eot)(system, x, y, cross_entropy, rng)
        assert bool((loss <= look.loss + 1e-5).all())
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        assert float(torch.cosine_similarity(grad.flatten(), look.grad.flatten(), dim=0)) > similar


def test_a_foreign_model_averages_decisions_of_a_vote():
    base, (_, x, y, _) = defence(), digits(N)
    system = Defence(base.classifier, base.purifier, MeanLogits(2))
    look = exact(3)(system, x, y, cross_entropy, KEY.fold("call", 1).rng(N))
    seen = Averaged(system, KEY, 3)(x)
    assert torch.allclose(-seen.gather(1, y[:, None])[:, 0], look.loss, atol=1e-5)


def attacked_by(library: str, victim: Defence, x: torch.Tensor, y: torch.Tensor) -> None:
    """The library's attack of one step, where it can on a victim in training mode."""
    if library == "torchattacks":
        import torchattacks

        for training in (False, True):
            attack = torchattacks.FGSM(victim, eps=EPS)
            attack.set_model_training_mode(training, training, training)
            attack(x, y)
    elif library == "foolbox":
        import foolbox

        foolbox.attacks.LinfPGD(steps=1)(interop.foolbox_model(victim.train()), x, y, epsilons=EPS)
    elif library == "pyautoattack":
        attack = interop.autoattack(victim.train(), Linf(EPS), version="custom", attacks=["apgd-ce"])
        attack.apgd.n_iter, attack.apgd.n_restarts = 1, 1
        attack.run_standard_evaluation(x, y)
    else:
        from art.attacks.evasion import FastGradientMethod

        classifier = interop.art_classifier(victim, SHAPE, CLASSES)
        FastGradientMethod(classifier, eps=EPS).generate(x.numpy(), y.numpy())
        classifier.predict(x.numpy(), training_mode=True)
        classifier.loss_gradient(x.numpy(), np.eye(CLASSES, dtype=np.float32)[y], training_mode=True)


@pytest.mark.parametrize("library", ["torchattacks", "foolbox", "art", "pyautoattack"])
def test_a_library_leaves_weights_statistics_and_modes_as_they_were(library):
    pytest.importorskip(library)
    parts = nn.BatchNorm2d(1, momentum=0.5), nn.Dropout(), nn.Flatten(), nn.Linear(64, CLASSES)
    network = nn.Sequential(*parts).eval()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    victim, (_, x, y, _) = Defence(network), digits(N)
    said = victim.decide(x, KEY).logits
    with seeded(0, torch.device("cpu")):
        attacked_by(library, victim, x, y)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert not any(part.training for part in [victim, *network.modules()])
    assert torch.equal(victim.decide(x, KEY).logits, said)


def test_a_library_that_switches_each_network_by_itself_is_refused_at_the_next_call():
    network = nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(64, CLASSES)).eval()
    victim, (_, x, _, _) = Defence(network), digits(N)
    for part in Averaged(victim, KEY).modules():
        part.training = True
    for model in (victim, victim.bind(KEY), Averaged(victim, KEY)):
        refused(r"in training mode.*call \.eval\(\)", model, x)


ATTACKS = {
    "torchattacks": partial(interop.torchattacks_attack, "PGD", alpha=EPS / 4, steps=8),
    "foolbox": partial(interop.foolbox_attack, "LinfPGD", rel_stepsize=1 / 4, steps=8),
    "art": partial(
        interop.art_attack,
        *("ProjectedGradientDescent",),
        **{"image_shape": SHAPE, "classes": CLASSES, "eps_step": EPS / 4, "max_iter": 8, "num_random_init": 1},
    ),
    "pyautoattack": partial(
        interop.autoattack_attack,
        **{"version": "custom", "attacks": ["apgd-ce"], "settings": {"apgd.n_iter": 20, "apgd.n_restarts": 1}},
    ),
}
every_library = pytest.mark.parametrize("library", ATTACKS)


def judged(system: Defence, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy over 8 draws of noise that no attack saw."""
    logits = judge(system, x, KEY.fold("judge").rng(N), 8)
    return float((logits.argmax(dim=2) == y[:, None]).float().mean())


@every_library
def test_their_attacks_run_as_ours(library):
    """They keep to the threat by themselves, fool the judge, say what they saw, and come out the same again."""
    pytest.importorskip(library)
    system, (_, x, y, _) = defence(), digits(N)
    attack = ATTACKS[library](threat=Linf(EPS), eot=2)
    outer, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    found = attack.run(system, x, y, KEY.rng(N))
    assert torch.equal(torch.get_rng_state(), outer)
    assert np.array_equal(np.random.get_state()[1], numpys)
    assert float((found.x - x).abs().max()) <= EPS + 1e-6
    assert 0 <= float(found.x.min()) <= float(found.x.max()) <= 1
    assert found.wrongs.shape == (N, attack.looks)
    assert attack.select.draws == 2
    clean = judged(system, x, y)
    assert clean > 0.8
    assert judged(system, found.x, y) < clean - 1 / 8
    assert torch.equal(attack.run(system, x, y, KEY.rng(N)).x, found.x)
    with seeded(1, x.device):
        raw = attack.make(Averaged(system, KEY))(x, y)
    assert float((raw - x).abs().max()) <= EPS + 1e-5


@every_library
def test_their_attacks_keep_to_an_l2_threat(library):
    pytest.importorskip(library)
    names = {"torchattacks": "PGDL2", "foolbox": "L2PGD"}
    given = {"torchattacks": {"alpha": 0.5}, "art": {"eps_step": 0.5}}.get(library, {})
    make, threat = ATTACKS[library], L2(1.5)
    make = partial(make.func, names[library], **make.keywords) if library in names else make
    with seeded(0, torch.device("cpu")):
        raw = make(threat=threat, **given).make(Averaged(defence(), KEY))(digits(N).x, digits(N).y)
    assert 1 < float(threat.distance(raw, digits(N).x).max()) <= 1.5 + 1e-4


def test_a_foreign_attack_is_named_by_its_options():
    pytest.importorskip("torchattacks")
    a, b, c = (interop.torchattacks_attack("PGD", Linf(EPS), steps=steps) for steps in (2, 2, 3))
    assert digest(a) == digest(b) != digest(c)


def test_what_leaves_the_threat_is_put_back_and_pairs_of_labels_are_passed_on():
    """The images and labels that it was given stay as they were."""
    seen = []

    def vandal(model):
        def perturb(x, y):
            seen.append(y.clone())
            y.zero_()
            return x.add_(1)

        return perturb

    _, x, y, _ = digits(N)
    y = torch.stack([y, (y + 1) % CLASSES], dim=1)
    kept = x.clone(), y.clone()
    found = Foreign(Linf(EPS), vandal).run(defence(), x, y, KEY.rng(N))
    assert torch.equal(found.x, (x + EPS).clamp(max=1))
    assert torch.equal(seen[0], y)
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_each_batch_and_restart_has_noise_of_its_own():
    keys = []
    with_key = Foreign(Linf(EPS), lambda model: lambda x, y: keys.append((model.key, torch.initial_seed())) or x)
    _, x, y, _ = digits(4)
    for rng in (KEY.rng(4)[:2], KEY.rng(4)[2:], KEY.fold("restart", 1).rng(4)[:2], KEY.rng(4)[:2]):
        with_key.run(defence(), x[:2], y[:2], rng)
    assert len(set(keys[:3])) == len({seed for _, seed in keys[:3]}) == 3
    assert keys[3] == keys[0]


def test_the_global_generators_are_put_back_after_an_error():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()

    def broken():
        with seeded(3, torch.device("cpu")):
            torch.rand(1)
            np.random.rand(1)
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_threads_take_turns_at_the_global_generators():
    pytest.importorskip("torchattacks")
    attack, (_, x, y, _) = interop.torchattacks_attack("PGD", Linf(EPS), steps=2), digits(N)
    rngs = [KEY.fold("thread", i).rng(N) for i in range(4)]
    victims = [defence() for _ in rngs]  # building a network draws from the generators too
    alone = [attack.run(victim, x, y, rng).x for victim, rng in zip(victims, rngs, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda victim, rng: attack.run(victim, x, y, rng).x, victims, rngs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def refused(sentence: str, make, *args, **options) -> None:
    with pytest.raises(UserError, match=sentence):
        make(*args, **options)


def test_known_noise_and_no_draws_are_refused():
    _, x, y, _ = digits(2)
    attack = Foreign(Linf(EPS), lambda model: lambda x, y: x)
    refused(r"give the library defence\.bind\(key\)", attack.run, KnownNoise(defence(), KEY), x, y, KEY.rng(2))
    refused("at least 1 draw, not 0", Averaged, defence(), KEY, 0)


def test_threats_names_and_options_that_a_library_lacks_are_refused():
    for library in ATTACKS:
        pytest.importorskip(library)
    art = partial(interop.art_attack, image_shape=SHAPE, classes=CLASSES)
    refused("PGD attacks within Linf, not within L2", interop.torchattacks_attack, "PGD", L2(1.0))
    refused("PGDL2 attacks within L2, not within Linf", interop.torchattacks_attack, "PGDL2", Linf(0.1))
    refused("APGD attacks within Linf or L2, not within L1", interop.torchattacks_attack, "APGD", L1(1.0))
    refused("CW attacks within no norm ball", interop.torchattacks_attack, "CW", L2(1.0))
    refused("L2PGD attacks within L2, not within L1", interop.foolbox_attack, "L2PGD", L1(1.0))
    refused("DeepFool attacks within no norm ball", art, "DeepFool", L2(1.0))
    refused("AutoAttack attacks within .*, not within PGD", interop.autoattack_attack, PGD(Linf(EPS), exact()))
    refused("SquareAttack attacks within Linf or L2, not within L1", art, "SquareAttack", L1(1.0))
    refused("ART's .* refuses these options: .*iterations", art, "ProjectedGradientDescent", L1(1.0), max_iter=-1)
    refused("has no attack 'PDG'", interop.torchattacks_attack, "PDG", Linf(0.1))
    refused("torchattacks' PGD refuses these options: .*stepz", interop.torchattacks_attack, "PGD", Linf(0.1), stepz=2)
    for path in ("apdg.n_iter", "apgd.n_iters"):
        said = "AutoAttack refuses these options: .*(apdg|n_iters)"
        refused(said, interop.autoattack_attack, L2(1.0), settings={path: 2})


def test_a_missing_library_is_named(monkeypatch):
    def missing(name, *args):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(interop, "import_module", missing)
    extra = r"pip install 'lustral\[interop\]'"
    refused(f"Cannot import foolbox: {extra}", interop.foolbox_model, defence())
    refused(f"Cannot import art.*: {extra}", interop.art_classifier, defence(), SHAPE, CLASSES)
    refused(f"Cannot import art.*: {extra}", interop.art_preprocessor, defence().purifier, KEY)
    refused(f"Cannot import mine: {extra}", interop.autoattack, defence(), Linf(EPS), library="mine")
    refused("--no-deps torchattacks", interop.torchattacks_attack, "PGD", Linf(EPS))
