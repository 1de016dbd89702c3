"""A lack of memory is known in all its words, is never taken for another mistake, and costs no traceback."""

import pytest
import torch

from components import images
from lustral.core import memory, outputs
from lustral.shell import cli


def test_what_torch_and_numpy_really_say_is_known():
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60)
    assert memory.lacking(found.value)
    assert memory.lacking(MemoryError())
    assert memory.lacking(RuntimeError("could not create a primitive"))
    for other in ("mat1 and mat2 shapes cannot be multiplied", "could not create a file", ""):
        assert not memory.lacking(RuntimeError(other))
    assert not memory.lacking(ValueError("out of memory"))


def test_a_network_without_memory_is_not_said_to_refuse_a_shape():
    def full(x):
        raise RuntimeError("could not create a primitive for shape [1]")

    with pytest.raises(RuntimeError, match="primitive"):
        outputs.asked("The classifier", full, images(1))


@pytest.mark.parametrize("error", [RuntimeError("could not create a primitive"), MemoryError()])
def test_a_command_without_memory_ends_in_a_sentence(error, monkeypatch, capsys):
    def full(name: str) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "show", full)
    assert cli.main(["show", "x"]) == 2
    assert capsys.readouterr().err.startswith("lustral: There is not enough memory (")


def test_other_errors_of_a_command_are_raised(monkeypatch):
    def wrong(name: str) -> None:
        raise RuntimeError("something else")

    monkeypatch.setitem(cli.COMMANDS, "show", wrong)
    with pytest.raises(RuntimeError, match="something else"):
        cli.main(["show", "x"])
