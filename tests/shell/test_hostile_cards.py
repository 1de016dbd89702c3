"""Cards and weights that lie: a sentence that names the file, before the lie costs anything."""

import json
import struct
from pathlib import Path

import pytest

from lustral.shell import cards, weights
from mistakes import check, purify, sha256, text, weights_file

MANY = 10**9


def inside(**changes):
    """The card with another network inside its denoiser."""
    return lambda facts: (
        facts
        | {
            "architecture": facts["architecture"] | {"net": facts["architecture"]["net"] | changes},
        }
    )


def outside(**changes):
    return lambda facts: facts | {"architecture": facts["architecture"] | changes}


def fact(**changes):
    return lambda facts: facts | changes


NO_CARD, NOT_IT = "own.json is no card of this version", "own.safetensors does not hold the network that its card"
LIES = {
    "billions of blocks": (inside(blocks=MANY), [NO_CARD, "blocks of the architecture", "up to 100,000"]),
    "more blocks than the file has": (inside(blocks=99_999), [NOT_IT, "more layers than the file has"]),
    "wider than the file": (inside(width=20_000), [NOT_IT, "more numbers than the file has"]),
    "a million levels": (inside(mult=[1] * 10**6), [NO_CARD, "mult of the architecture", "no more than so many"]),
    "width 0": (inside(width=0), ["UNet does not fit this version", "division by zero"]),
    "half a width": (inside(width=0.5), ["UNet does not fit this version"]),
    "width NaN": (inside(width=float("nan")), [NO_CARD, "NaN is no number of JSON"]),
    "width in words": (inside(width="wide"), ["UNet does not fit this version"]),
    "a kind that is none": (outside(type=["EDM"]), ["Unknown architecture"]),
    "sigma of 0": (outside(sigma_data=0), [NO_CARD, "sigma_data of the architecture must be above zero"]),
    "sigma in words": (outside(sigma_data="small"), [NO_CARD, "sigma_data of the architecture must be above zero"]),
    "no range of sigma": (outside(sigma_min=1.0, sigma_max=0.5), [NOT_IT, "0 < sigma_min < sigma_max"]),
    "images of other channels": (
        fact(image=[3, 8, 8]),
        [NOT_IT, "as a denoiser for images of shape [3, 8, 8] it fails"],
    ),
    "an image of half pixels": (fact(image=[1, 8, 8.5]), [NO_CARD, "image must be a list of three whole numbers"]),
    "an image of no pixels": (fact(image=[1, 0, 0]), [NO_CARD, "image must be a list of three whole numbers"]),
    "a checksum that is a number": (fact(sha256=5), [NO_CARD, "sha256 must be a text"]),
    "a measurement in words": (fact(measured={"a": "b"}), [NO_CARD, "a of what was measured must be a number"]),
    "parameters in words": (fact(parameters="x"), [NO_CARD, "parameters must be a whole number"]),
    "classes that are numbers": (fact(classes=[1, 2]), [NO_CARD, "classes must be a list of texts"]),
}


@pytest.mark.parametrize(("change", "words"), LIES.values(), ids=LIES)
def test_a_card_that_lies_is_refused_in_a_sentence(change, words, lustral, tmp_path, tree, capfd):
    check(weights_file(change), words, lustral, tmp_path, tree, capfd)


def test_a_card_of_another_kinds_network_is_refused(lustral, tmp_path, tree, capfd):
    source = weights.find("digits-cnn")
    Path("own.safetensors").write_bytes(source.read_bytes())
    facts = json.loads(source.with_suffix(".json").read_text()) | {"kind": "denoiser"}
    text("own.json", json.dumps(facts))
    args = purify("--purification.denoiser=own.safetensors")
    check(args, [NOT_IT, "as a denoiser for images of shape [1, 8, 8] it fails"], lustral, tmp_path, tree, capfd)


@pytest.mark.parametrize("nested", ['{"net": ', "["])
def test_a_card_that_is_nested_without_end_is_no_card(nested, lustral, tmp_path, tree, capfd):
    args = weights_file()
    text("own.json", '{"architecture": ' + nested * 100_000)
    check(args, [NO_CARD], lustral, tmp_path, tree, capfd)


HEADERS = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 10**8) + b"{}",
    "no header": b"",
    "a tensor larger than the file": b'{"a": {"dtype": "F32", "shape": [1099511627776], "data_offsets": [0, 4]}}',
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_weights_whose_header_lies_are_refused(header, lustral, tmp_path, tree, capfd):
    args = weights_file()
    content = struct.pack("<Q", len(header)) + header if header[:1] == b"{" else header
    text("own.safetensors", content)
    facts = json.loads(Path("own.json").read_text()) | {"sha256": sha256("own.safetensors")}
    text("own.json", json.dumps(facts))
    check(args, [NOT_IT], lustral, tmp_path, tree, capfd)


BAD_CARDS = ["", "[]", "null", "[" * 100_000, b"\xff", json.dumps({"name": "own"})]


@pytest.mark.parametrize("content", BAD_CARDS, ids=range(len(BAD_CARDS)))
def test_the_list_names_a_card_that_is_none_and_goes_on(content, lustral, monkeypatch, capsys):
    weights_file()
    text("own.json", content)
    Path("weights").mkdir()
    for name in ("own.json", "own.safetensors"):
        Path(name).rename(Path("weights") / name)
    monkeypatch.setenv("LUSTRAL_WEIGHTS", "weights")
    monkeypatch.setattr("lustral.shell.show.line", lambda said: print(said))
    assert lustral("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("unreadable  own") and "own.json is no card" in line for line in lines)
    assert any(line.startswith("denoiser    digits-unet") for line in lines)
    assert any(line.startswith("stage") for line in lines)


def test_what_ships_is_loaded_as_its_card_says():
    for name, path in cards.zoo().items():
        about = cards.card(path)
        assert weights.load(name, about.kind)[1] == about
