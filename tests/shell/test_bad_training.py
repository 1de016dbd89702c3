"""Wrong input of every kind ends in exit code 2 and one sentence that says what to do: training."""

import numpy as np
import pytest
import torch

from lustral.shell.cli import main
from mistakes import TRAIN, Cases, Evil, after, check, cut, foreign_checkpoint, images, save

GUIDED = ["train", "addt", *TRAIN[2:], "--adversary.guide=digits-cnn"]
CASES: Cases = {
    "train: unknown task": (lambda: ["train", "classifer", "a.safetensors"], ["task", "'classifier'", "classifer"]),
    "train: another format": (lambda: ["train", "classifier", "a.pt"], [".safetensors files", "a.safetensors"]),
    "train: no steps": (lambda: [*TRAIN, "--recipe.steps=0"], ["steps ≥ 1"]),
    "train: no width": (lambda: [*TRAIN, "--network.width=0"], ["width must be an even number"]),
    "train: an odd width": (
        lambda: ["train", "denoiser", *TRAIN[2:], "--network.width=3"],
        ["width must be an even number"],
    ),
    "train: another network": (
        lambda: [*TRAIN, "--network.kind=unet"],
        ["unet is a network for denoisers", "small, resnet, whitened or wide"],
    ),
    "train: a ladder for a network that is told the noise": (
        lambda: ["train", "denoiser", *TRAIN[2:], "--noise.objective=dsm", "--network.kind=ddpm"],
        ["not told the noise", "unet or refinenet, not ddpm"],
    ),
    "train: a network that is not told the noise": (
        lambda: ["train", "denoiser", *TRAIN[2:], "--network.kind=refinenet"],
        ["train it with --noise.objective=dsm"],
    ),
    "train: hardly any noise": (
        lambda: ["train", "denoiser", *TRAIN[2:], "--noise.t_max=0.0001"],
        ["more noise than sigma=0.01, which 0.0001 does not"],
    ),
    "train: a width that no normalisation divides": (
        lambda: ["train", "denoiser", *TRAIN[2:], "--network.kind=ddpm++", "--network.width=14"],
        ["does not work on these images", "num_groups", "choose another width"],
    ),
    "train: a width without an embedding": (
        lambda: ["train", "denoiser", *TRAIN[2:], "--network.kind=ddpm", "--network.width=2"],
        ["does not work on these images", "choose another width"],
    ),
    "train: no levels": (lambda: ["train", "denoiser", *TRAIN[2:], "--network.levels=0"], ["at least one level"]),
    "train: no blocks": (lambda: ["train", "denoiser", *TRAIN[2:], "--network.blocks=-1"], ["at least one level"]),
    "train: a negative beta": (lambda: ["train", "trades", *TRAIN[2:], "--adversary.beta=-1"], ["beta ≥ 0"]),
    "train: no noise": (lambda: ["train", "denoiser", *TRAIN[2:], "--noise.t_max=0"], ["t_max must lie in (0, 1]"]),
    "train: bridges beyond the noise": (
        lambda: ["train", "adbm", *TRAIN[2:], "--noise.t_max=0.05"],
        ["t = 0.1 or later", "t_max = 0.05"],
    ),
    "train: a guide for other images": (
        lambda: after(
            [*GUIDED, "--data=data.npz"],
            save(x=images().repeat(3, axis=1)),
        ),
        ["digits-cnn takes images of shape [1, 8, 8]", "[3, 8, 8]"],
    ),
    "train: a start of another kind": (
        lambda: [*TRAIN, "--network.start=digits-unet"],
        ["is a denoiser, but a classifier is needed"],
    ),
    "train: a share of nothing": (lambda: [*TRAIN, "--recipe.extra_share=0.5"], ["given together or not at all"]),
    "train: less than one extra image": (
        lambda: after([*TRAIN, "--extra=data.npz", "--recipe.extra_share=0.1"], save()),
        ["A share of 0.1 of a batch of 4 is less than one image"],
    ),
    "train: one image at a time": (
        lambda: [*TRAIN, "--network.kind=resnet", "--recipe.accumulate=4"],
        ["cannot be trained on one image at a time", "--recipe.accumulate"],
    ),
    "train: a folder as output": (
        lambda: ["train", "classifier", "."],
        [".safetensors files", "out.safetensors"],
    ),
    "train: a seed too large": (lambda: [*TRAIN, "--recipe.seed=18446744073709551616"], ["seed must lie between 0"]),
    "train: images without content": (
        lambda: after(["train", "denoiser", *TRAIN[2:], "--data=data.npz"], save(x=np.zeros_like(images()))),
        ["one even grey"],
    ),
    "train: more parts than images": (lambda: [*TRAIN, "--recipe.accumulate=9"], ["between 1 and the batch (4)"]),
    "train: smoothing away everything": (lambda: [*TRAIN, "--smoothing=1"], ["0 ≤ smoothing < 1"]),
    "train: a start for less noise": (
        lambda: ["train", "denoiser", *TRAIN[2:], "--network.start=digits-unet", "--noise.t_max=0.9"],
        ["digits-unet is made for sigma up to 1", "choose a smaller --noise.t_max"],
    ),
    "train: images that the network is too deep for": (
        lambda: [*TRAIN, "--network.kind=whitened"],
        ["cannot take images of 8×8", "another network"],
    ),
    "train: no width of a wide network": (
        lambda: [*TRAIN[:-2], "--network.kind=wide", "--network.width=0"],
        ["width must be at least 1"],
    ),
    "train: a crop beyond the image": (lambda: [*TRAIN, "--recipe.crop=8"], ["crop must be smaller", "8×8"]),
    "train: a decay of one": (lambda: [*TRAIN, "--recipe.beta1=1"], ["0 ≤ beta1 < 1"]),
    "train: a negative decay": (lambda: [*TRAIN, "--recipe.weight_decay=-1"], ["cannot be negative"]),
    "train: extra images of another shape": (
        lambda: after([*TRAIN, "--extra=data.npz", "--recipe.extra_share=0.5"], save(x=images().repeat(2, axis=2))),
        ["data.npz must hold images of shape [1, 8, 8]"],
    ),
    "train: extra labels": (
        lambda: after([*TRAIN, "--extra=data.npz", "--recipe.extra_share=0.5"], save(y=np.array([1, 2, 3, 12]))),
        ["labels 0 to 9", "12"],
    ),
    "train: a guide with fewer classes": (
        lambda: after(
            [*GUIDED, "--data=data.npz"],
            save(y=np.array([1, 2, 3, 12])),
        ),
        ["digits-cnn knows fewer classes than the 13"],
    ),
    "train: divergence": (
        lambda: [*TRAIN, "--recipe.steps=40", "--recipe.lr=1e30", "--recipe.clip=0"],
        ["the training has diverged", "--recipe.lr"],
    ),
    "train: another run's weights": (
        lambda: [*TRAIN, "--recipe.seed=1"] if main(TRAIN) == 0 else [],
        ["net.safetensors holds the weights of another training", "choose another output, or delete it"],
    ),
    "train: another run's checkpoint": (
        foreign_checkpoint,
        ["net.checkpoint belongs to another training run", "delete it"],
    ),
    "train: a damaged checkpoint": (
        lambda: after(foreign_checkpoint(), cut("net.checkpoint")),
        ["net.checkpoint is damaged", "delete it"],
    ),
    "train: a checkpoint of something else": (
        lambda: after(TRAIN, torch.save(torch.ones(3), "net.checkpoint")),
        ["net.checkpoint is no training checkpoint", "delete it"],
    ),
    "train: a malicious checkpoint": (
        lambda: after(TRAIN, torch.save(Evil(), "net.checkpoint")),
        ["net.checkpoint is damaged or no training checkpoint"],
    ),
}


@pytest.mark.parametrize(("prepare", "words"), CASES.values(), ids=CASES.keys())
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(prepare, words, lustral, tmp_path, tree, capfd):
    check(prepare(), words, lustral, tmp_path, tree, capfd)
