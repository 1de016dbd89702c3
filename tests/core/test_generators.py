"""Streams of the process's generators, which several threads share."""

import threading

import numpy as np
import torch

from lustral.core.generators import seeded, untouched
from lustral.core.networks import aside

CPU = torch.device("cpu")


def drawn(between=lambda: None) -> list[float]:
    with seeded(3, CPU):
        first = [torch.rand(()).item(), np.random.rand()]
        between()
        return [*first, torch.rand(()).item(), np.random.rand()]


def in_another_thread(act) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_a_stream_is_whole_though_another_thread_begins_before_it_and_ends_within_it():
    begun, over = threading.Event(), threading.Event()

    def look():
        with aside():
            begun.set()
            over.wait(timeout=60)

    def until_the_look_is_over():
        over.set()
        looking.join(timeout=60)

    right, found = drawn(), []
    looking = threading.Thread(target=look)
    drawing = threading.Thread(target=lambda: found.extend(drawn(until_the_look_is_over)))
    looking.start()
    begun.wait(timeout=60)
    drawing.start()
    drawing.join(timeout=0.05)  # it waits for the look, or draws beside it
    over.set()
    for thread in (looking, drawing):
        thread.join(timeout=60)
    assert found == right


def test_a_look_waits_for_no_stream_and_takes_nothing_from_it():
    def look():
        with aside():
            pass

    assert drawn(lambda: in_another_thread(look)) == drawn()


def test_what_is_drawn_within_is_drawn_again_afterwards():
    before = torch.get_rng_state()
    for within in (untouched, lambda: seeded(5, CPU)):
        with within(), untouched():
            torch.rand(3)
        assert torch.equal(torch.get_rng_state(), before)


def test_seeds_may_be_as_large_as_torch_takes():
    with seeded(2**63 - 1, CPU):
        assert torch.initial_seed() == 2**63 - 1
