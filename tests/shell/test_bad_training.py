"""Wrong input of every kind ends in exit code 2 and one sentence that says what to do: training."""

import pytest
import torch

from mistakes import TRAIN, Cases, Evil, after, check, cut, foreign_checkpoint, images, save

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
        ["unet is a network for denoisers", "small, resnet or wide"],
    ),
    "train: a ladder without its network": (
        lambda: ["train", "denoiser", *TRAIN[2:], "--noise.objective=dsm"],
        ["dsm and network refinenet belong together"],
    ),
    "train: no noise": (lambda: ["train", "denoiser", *TRAIN[2:], "--noise.t_max=0"], ["t_max must lie in (0, 1]"]),
    "train: bridges beyond the noise": (
        lambda: ["train", "adbm", *TRAIN[2:], "--noise.t_max=0.05"],
        ["t = 0.1 or later", "t_max = 0.05"],
    ),
    "train: a guide for other images": (
        lambda: after(["train", "addt", *TRAIN[2:], "--data=data.npz"], save(x=images().repeat(3, axis=1))),
        ["digits-cnn takes 1-channel images", "3 channels"],
    ),
    "train: a start of another kind": (
        lambda: [*TRAIN, "--network.start=digits-unet"],
        ["is a denoiser, but a classifier is needed"],
    ),
    "train: a share of nothing": (lambda: [*TRAIN, "--recipe.extra_share=0.5"], ["given together or not at all"]),
    "train: more parts than images": (lambda: [*TRAIN, "--recipe.accumulate=9"], ["between 1 and the batch (4)"]),
    "train: smoothing away everything": (lambda: [*TRAIN, "--smoothing=1"], ["0 ≤ smoothing < 1"]),
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
