import pytest
import torch
from torch import Tensor

from components import gaussian_mixture, images, net_denoiser
from lustral.denoisers.base import Denoiser
from lustral.denoisers.ideal import GaussianMixture

# One thread is as fast on these small tensors, and does not mind a busy neighbour.
torch.set_num_threads(1)


@pytest.fixture
def x() -> Tensor:
    """Five images of different brightness."""
    return images(5)


@pytest.fixture
def net() -> Denoiser:
    """A U-Net denoiser, with weights as after training."""
    return net_denoiser()


@pytest.fixture
def mixture() -> GaussianMixture:
    """The exact denoiser of three Gaussians, in float64."""
    return gaussian_mixture(dtype=torch.float64)
