"""Exportable defences: the defence to the bit, as a graph, as ONNX, and as compiled code; or a refusal."""

import logging
from io import BytesIO

import pytest
import torch
from torch import Tensor, nn

import lustral
from components import PURIFIERS, images, net_denoiser, scramble
from lustral.core.noise import audit
from lustral.defence import Defence
from lustral.export import Draw

X = images(2)
NET = scramble(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
FIXED = ("sde", "sde-mean", "ode", "ddpm-small", "ddpm-large", "ddim", "ddim-eta", "heun", "one-shot", "langevin")
FIXED += ("repeat", "gnsp", "adbm", "function", "function-plain")
VOTES = {"single": None, "softmax": lustral.MeanSoftmax(2), "logits": lustral.MeanLogits(3)}


def defence(name: str, vote=None) -> Defence:
    return lustral.defend(NET, PURIFIERS[name](net_denoiser()), vote)


def ddpm(vote=None) -> Defence:
    return lustral.defend(NET, lustral.diffpure(net_denoiser(), 0.1, "ddpm", steps=2), vote)


@pytest.mark.parametrize("name", FIXED)
def test_an_exportable_defence_is_the_defence_to_the_bit(name):
    """With the noise of a key inside, and with noise that is brought."""
    system = defence(name, lustral.MeanSoftmax(2))
    wanted = system.bind(3)(X)
    assert torch.equal(system.exportable(X, 3)(X), wanted)
    net, other = system.exportable(X), lustral.Key(5).rng(torch.tensor([7, 9]))
    assert torch.equal(net(X, *net.noise(3)), wanted)
    assert torch.equal(net(X, *net.noise(other)), system.logits(X, other))


@pytest.mark.parametrize("vote", VOTES.values(), ids=VOTES.keys())
def test_votes_are_part_of_it(vote):
    system = ddpm(vote)
    assert torch.equal(system.exportable(X, 3)(X), system.bind(3)(X))
    assert torch.equal(lustral.defend(NET, None, vote).exportable(X)(X), NET(X)) or vote is not None


def test_its_inputs_say_what_noise_they_want():
    """As many standard normal draws as the defence takes, of the shape of all its rows."""
    net = ddpm(lustral.MeanLogits(3)).exportable(X)
    assert net.draws == (Draw("normal", (6, 1, 8, 8)),) * len(net.draws)
    with audit() as seen:
        ddpm(lustral.MeanLogits(3)).decide(X, 3)
    assert len(seen) == 6 * len(net.draws)
    assert [tuple(value.shape) for value in net.noise(3)] == [draw.shape for draw in net.draws]
    signs = lustral.defend(NET, lustral.from_function(lambda x, rng: x + 0.1 * rng.sign(x))).exportable(X)
    assert [draw.kind for draw in signs.draws] == ["sign"]


def exported(net: nn.Module, *inputs: Tensor) -> bytes:
    file, quiet = BytesIO(), logging.getLogger("onnxscript")
    quiet.setLevel(logging.ERROR)
    torch.onnx.export(torch.export.export(net, inputs), inputs, file, dynamo=True, verbose=False)
    return file.getvalue()


def ran(model: bytes, *inputs: Tensor) -> Tensor:
    session = pytest.importorskip("onnxruntime").InferenceSession(model)
    names = [given.name for given in session.get_inputs()]
    given = dict(zip(names, (value.numpy() for value in inputs), strict=True))
    return torch.from_numpy(session.run(None, given)[0])


def test_it_exports_to_onnx_and_runs_there():
    """With noise inside, and with noise that a server brings; neither graph is tied to the images it was made with."""
    pytest.importorskip("onnxscript")
    system, y = ddpm(lustral.MeanSoftmax(2)), 1 - X
    assert torch.allclose(ran(exported(system.exportable(X, 3), X), y), system.bind(3)(y), atol=1e-4)
    net = system.exportable(X)
    model = exported(net, X, *net.noise(3))
    for seed in (3, 4):
        assert torch.allclose(ran(model, y, *net.noise(seed)), system.bind(seed)(y), atol=1e-4)
    assert not torch.allclose(system.bind(3)(y), system.bind(4)(y), atol=1e-3)


def test_it_compiles_into_one_graph():
    system = ddpm(lustral.MeanLogits(2))
    compiled = torch.compile(system.exportable(X, 3), fullgraph=True, backend="eager")
    for x in (X, 1 - X):
        assert torch.allclose(compiled(x), system.bind(3)(x), atol=1e-5)


@pytest.mark.parametrize("name", ["adp", "when", "per-sample", "ssni", "chain", "adp-gated"])
def test_what_looks_at_the_images_is_refused(name):
    with pytest.raises(lustral.UserError, match="looks at the images to decide what to compute"):
        defence(name).exportable(X)


@pytest.mark.parametrize("name", ["gdmp", "guided"])
def test_what_differentiates_is_refused(name):
    with pytest.raises(lustral.UserError, match="computes gradients on its way"):
        defence(name).exportable(X, 3)


def test_another_batch_is_refused():
    with pytest.raises(lustral.UserError, match="for batches of 2, not of 1"):
        ddpm().exportable(X, 3)(X[:1])


def test_noise_that_does_not_fit_is_refused():
    net = ddpm().exportable(X)
    noise = net.noise(3)
    for wrong in ([value[:1] for value in noise], [*noise, noise[0]], []):
        with pytest.raises(lustral.UserError, match="as noise\\(rng\\) gives them, not"):
            net(X, *wrong)
    with pytest.raises(lustral.UserError, match="a batch of some images"):
        ddpm().exportable(X[:0])


def test_images_of_another_precision_are_cast():
    system = ddpm()
    assert torch.equal(system.exportable(X.double(), 3)(X.double()), system.exportable(X, 3)(X))
