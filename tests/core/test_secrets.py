"""Noise that nobody should know is shared by no process, copy or pickle; that of a seed stays what it is everywhere."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from components import PURIFIERS, images
from lustral.core.noise import Key
from lustral.defence import Defence, defend

X = images(2)
BARE = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()


def noisy(x: Tensor, rng) -> Tensor:
    return (x + 0.3 * rng.normal(x)).clamp(0, 1)


def unkeyed() -> Defence:
    return defend(BARE, noisy)


FACES: dict[str, Callable[[], nn.Module]] = {
    "called": unkeyed,
    "called before": lambda: _after_a_call(unkeyed()),
    "bound to None": lambda: unkeyed().bind(None),
}


def _after_a_call(defence: Defence) -> Defence:
    defence(X)
    return defence


def told(face: nn.Module) -> list[float]:
    """The logits of a call, as plain numbers."""
    torch.set_num_threads(1)
    with torch.no_grad():
        return face(X).flatten().tolist()


def _send(face: nn.Module, pipe) -> None:
    pipe.send(told(face))


def in_processes(face: nn.Module, method: str, times: int) -> list[list[float]]:
    """What a face says first in as many processes."""
    context, found = multiprocessing.get_context(method), []
    for _ in range(times):
        here, there = context.Pipe()
        worker = context.Process(target=_send, args=(face, there))
        worker.start()
        there.close()
        found.append(here.recv())
        worker.join()
    return found


def pickled(face: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(face))


def saved(face: nn.Module) -> nn.Module:
    torch.save(face, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_three_forks_of_a_defence_draw_three_noises():
    found = in_processes(unkeyed(), "fork", 3)
    assert len(set(map(tuple, found))) == 3


def test_spawned_processes_draw_noise_of_their_own():
    for face in (unkeyed(), unkeyed().bind(None)):
        found = [*in_processes(face, "spawn", 2), told(face)]
        assert len(set(map(tuple, found))) == 3


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("name", FACES)
def test_a_copy_has_noise_of_its_own(name, again):
    face = FACES[name]()
    twins = [face, again(face), again(face)]
    assert len({tuple(told(twin)) for twin in twins}) == 3


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled, saved])
def test_a_secret_that_is_bound_stays_that_of_its_object(again):
    face = unkeyed().bind(None)
    twin = again(face)
    assert told(face) == told(face)
    assert told(twin) == told(twin)


@pytest.mark.parametrize("name", FACES)
def test_no_pickle_holds_a_secret(name, monkeypatch):
    drawn: list[int] = []
    monkeypatch.setattr("secrets.randbits", lambda n: drawn.append(2**127 + len(drawn)) or drawn[-1])
    face = FACES[name]()
    told(face)
    text = pickle.dumps(face)
    assert drawn
    assert all(seed.to_bytes(17, "little") not in text for seed in drawn)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled, saved])
def test_the_noise_of_a_seed_is_the_same_in_every_copy_and_process(again):
    for make in (lambda: defend(BARE, noisy, key=Key(7)), lambda: unkeyed().bind(7), lambda: unkeyed().bind(Key(7))):
        expected = told(make())
        assert told(again(make())) == expected
        assert told(make().eval()) == expected
    face = unkeyed().bind(7)
    assert in_processes(face, "fork", 1) + in_processes(face, "spawn", 1) == [told(face)] * 2


def test_a_diffusion_draws_noise_of_its_own_in_every_copy(net):
    face = defend(BARE, PURIFIERS["sde-steps"](net))
    assert told(face) != told(copy.deepcopy(face))
