"""Networks on another device or in a lower precision.

Everything else, and all noise, stays where it is addressed and exact: on the CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import outputs
from ..core.errors import UserError
from ..core.networks import modules_in
from ..denoisers.base import Autocast, Wrapper
from .options import Precision


@dataclass(frozen=True)
class OnDevice(Wrapper):
    """A function of images whose networks are moved to a device and compute there; results and gradients come back.

    An image of 32×32 is 12 KB, its passage through a network some GFLOP: the way there and back costs little.
    """

    inner: Callable[..., Tensor]
    device: str

    def __post_init__(self) -> None:
        for network in modules_in(self.inner):
            network.to(self.device)

    def __call__(self, *args: Tensor) -> Tensor:
        return outputs.tensor(self.inner(*(a.to(self.device) for a in args))).to(args[0].device)


def on(device: str, fn: Callable[..., Tensor], precision: Precision = "float32") -> Callable[..., Tensor]:
    """The function with its networks on a device, where that is another one than the images', and in a precision."""
    fn = fn if precision == "float32" else Autocast(fn, precision)
    return fn if device == "cpu" else OnDevice(fn, device)


def check(device: str) -> None:
    """Refuses devices that are not here; makes CUDA repeat itself in full float32, as far as it can."""
    try:
        torch.empty(0, device=torch.device(device)).cpu()  # torch's meta device computes nothing
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"There is no device {device!r} here; choose cpu, or on a machine with a GPU cuda.") from e
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
