"""Commands that fetch images and make networks; like ``cli``, this imports nothing heavy."""

from pathlib import Path
from typing import Literal

from ..training.recipe import Recipe
from . import names
from .options import Adversary, Network, Noise, Resources, SetName, TaskName


def get_data(name: SetName, folder: Path | None = None, from_: str | None = None) -> None:
    """Download a standard set, with checksums; an interrupted download goes on where it stopped.

    Args:
        name: cifar10, cifar100, mnist, fashion-mnist or digits (which need no download).
        folder: Where to; default: the environment's LUSTRAL_DATA, or the user's cache.
        from_: A folder that holds the published files, or a mirror's URL, in place of the publisher.
    """
    from . import commands, show

    for text in commands.data(name, folder, from_):
        show.line(text)


def train(
    task: TaskName,
    out: Path,
    data: str = "digits",
    split: Literal["train", "fit"] = "train",
    extra: str | None = None,
    network: Network = Network(),
    noise: Noise = Noise(),
    adversary: Adversary = Adversary(),
    smoothing: float = 0.0,
    recipe: Recipe = Recipe(),
    check_every: int = 0,
    threads: int | None = None,
    licence: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> None:
    """Train a network, and write safetensors with a card, a log and pictures. Resumes where it stopped.

    With several processes: torchrun --nproc_per_node N -m lustral train …

    Args:
        task: classifier, pgd-at and trades make classifiers; denoiser, addt and adbm make denoisers.
        out: The .safetensors file to write; its card, log and pictures lie beside it, and until the end a checkpoint.
        data: digits, cifar10 or another set of `lustral data`, a folder, an .npz file, or hf:NAME.
        split: All training images (train), or those that are not kept for validation (fit).
        extra: More labelled images, for example generated ones, of which every batch takes --recipe.extra_share.
        network: What is trained.
        noise: What noise a denoiser learns to remove.
        adversary: Whom adversarial training trains against.
        smoothing: Label smoothing of classifiers.
        recipe: How to train.
        check_every: Steps between measurements of the averaged network (-checks.csv); 0: none on the way.
        threads: CPU threads; default: all, and with torchrun one for each process.
        licence: Under which the weights are yours to give, for their card, like CC-BY-4.0; default: not stated.
        device: Where it computes; default: a GPU where there is one (CUDA_VISIBLE_DEVICES says which).
    """
    names.images.check(data)
    names.networks(network.start, adversary.guide if task in ("addt", "adbm") else None)
    from . import build, memory, show, standard
    from .trainer import fit, tasks

    memory.keep()
    build.prepare(Resources(threads=threads, device=device or "cpu"))
    asked = tasks.Asked(task, network, noise, standard.adversary(adversary, data), smoothing, recipe.seed)
    made = fit.run(asked, out, fit.Choice(data, split, extra), recipe, check_every, licence, device)
    if made is not None:
        show.trained(made)
        show.done(out)


def measure_reference(denoiser: str, data: str | None = None, images: int = 5000, device: str = "cpu") -> None:
    """Measure the score norms of clean training images and write them into a denoiser's card, for SSNI.

    Args:
        denoiser: A name from `lustral list` or a .safetensors file.
        data: Where the images come from; default: what the denoiser was trained on.
        images: How many, at most.
        device: Where the network computes: cpu, cuda, cuda:1.
    """
    names.networks(denoiser)
    from . import commands, show

    show.trained(commands.reference(denoiser, data, images, device))
