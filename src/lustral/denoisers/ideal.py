"""Exact denoisers: the oracles that everything else is tested against."""

import torch
from torch import Tensor, nn

from .base import column


class FiniteSet(nn.Module):
    """The posterior mean over a finite set of images ``points`` [n, c, h, w], equally likely, at any sigma > 0."""

    sigma_min, sigma_max = 1e-4, 1e4

    def __init__(self, points: Tensor):
        super().__init__()
        self.register_buffer("points", points)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        flat, points = x.flatten(1), self.points.flatten(1).to(x)
        # |x - p|² up to a term that all points share
        distance = (points**2).sum(1) - 2 * flat @ points.T
        weight = torch.softmax(-distance / (2 * sigma.to(x)[:, None] ** 2), dim=1)
        return (weight @ points).view_as(x)


class GaussianMixture(nn.Module):
    """The posterior mean for a mixture of isotropic Gaussians.

    ``means`` [k, c, h, w], ``variances`` [k] and ``weights`` [k] describe x₀ on [0, 1] pixels (unbounded tails). With
    one component everything downstream is a linear-Gaussian recursion, which has closed forms.
    """

    sigma_min, sigma_max = 0.0, 1e4

    def __init__(self, means: Tensor, variances: Tensor, weights: Tensor | None = None):
        super().__init__()
        self.register_buffer("means", means)
        self.register_buffer("variances", variances)
        self.register_buffer("weights", torch.full_like(variances, 1 / len(variances)) if weights is None else weights)

    def responsibilities(self, x: Tensor, sigma: Tensor) -> Tensor:
        """P(component | x) [b, k] when noise sigma [b] was added; at sigma = 0 it is the Bayes classifier."""
        flat, means = x.flatten(1), self.means.flatten(1).to(x)
        total = self.variances.to(x) + sigma.to(x)[:, None] ** 2
        distance = torch.cdist(flat, means, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        logits = self.weights.to(x).log() - distance / (2 * total) - flat.shape[1] / 2 * torch.log(total)
        return torch.softmax(logits, dim=1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        weight = self.responsibilities(x, sigma)
        variance = self.variances.to(x)
        gain = variance / (variance + sigma.to(x)[:, None] ** 2)
        means = self.means.flatten(1).to(x)
        pulled = (weight * (1 - gain)) @ means
        return pulled.view_as(x) + column((weight * gain).sum(1), x) * x
