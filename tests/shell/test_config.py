from pathlib import Path

import pytest
import torch

import lustral
from lustral.core.errors import UserError
from lustral.core.noise import Key
from lustral.shell import build, config, systems
from lustral.shell.options import Classification, Purification

RESULTS = Path(__file__).parents[2] / "docs/results"


def test_a_configuration_says_what_the_command_line_would(tmp_path):
    place = tmp_path / "row.yaml"
    place.write_text(
        "images: 7\nstages: [clean, null]\nsystems:\n"
        "  adp: {purification: {method: adp, sigma: 0.1}, classification: {draws: 3, vote: majority}}\n"
    )
    found = config.read(place)
    assert (found.images, found.seed, found.micro_batch, found.split) == (7, 0, 64, "test")
    assert found.stages == ["clean", None]  # YAML's null, which a plan takes for the null control
    assert found.systems["adp"].purification == Purification(method="adp", sigma=0.1)
    assert found.systems["adp"].classification == Classification(vote="majority", draws=3)


@pytest.mark.parametrize("text", ["imags: 7\n", "images: many\n", "{{{", "- 1\n"])
def test_what_is_no_configuration_is_refused_in_a_sentence(tmp_path, text):
    place = tmp_path / "row.yaml"
    place.write_text(text)
    with pytest.raises(UserError, match=r"row.yaml is no configuration for `lustral evaluate`: .*") as said:
        config.read(place)
    assert "\n" not in str(said.value)


def test_a_configuration_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml"):
        config.read(tmp_path / "none.yaml")


CONFIGURATIONS = [*sorted(RESULTS.rglob("*.yaml")), *config.recommended().values()]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_the_configurations_of_the_results_are_read_and_every_option_means_something(path):
    said = config.read(path)
    for how in (said.purification, *(entry.purification for entry in (said.systems or {}).values())):
        systems.check(how)


def test_the_recommended_defence_is_the_one_of_its_configuration():
    """On noise in place of images: its logits are those of the purifier and the classifier that the file names."""
    said, x = config.read(config.recommended()["cifar10"]), Key(0).rng(2).uniform(torch.empty(2, 3, 32, 32))
    made = build.system("same", said.purification, said.classification).defence
    rng = Key(1).rng(2)
    assert torch.equal(lustral.recommended("cifar10").logits(x, rng), made.logits(x, rng))


def test_what_is_not_recommended_is_unknown():
    with pytest.raises(UserError, match="Unknown recommendation 'cifar'. Did you mean 'cifar10'"):
        lustral.recommended("cifar")
