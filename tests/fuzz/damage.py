"""Damaged copies of good files, by a seed: bytes, and the nodes of JSON."""

import json
import random
import re
from typing import Any

EXTREMES = (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00")
NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"0.5", b"99999999999", b"9" * 400)
NODES: tuple[Any, ...] = (None, True, 0, -1, 0.5, 10**10, 1e308, "", "x", "\ud800", [], {}, [1], {"a": 1}, [[[]]])


def damaged(content: bytes, seed: int) -> bytes:
    """The content after one to four injuries."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        content = chance.choice((_flip, _cut, _repeat, _extreme, _number))(content, chance)
    return content


def damaged_json(content: bytes, seed: int) -> bytes:
    """The same for JSON: every other time a node becomes another one, or is lost."""
    chance = random.Random(seed)
    if seed % 2:
        return damaged(content, seed)
    found = json.loads(content)
    for _ in range(chance.randint(1, 3)):
        found = _swap(found, chance)
    return json.dumps(found).encode()


def _flip(content: bytes, chance: random.Random) -> bytes:
    if not content:
        return content
    at = chance.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randint(0, len(content))] if chance.random() < 0.3 else _flip(content, chance)


def _repeat(content: bytes, chance: random.Random) -> bytes:
    start = chance.randint(0, len(content))
    block = content[start : start + chance.randint(1, 64)]
    return content[:start] + block * chance.randint(2, 50) + content[start:]


def _extreme(content: bytes, chance: random.Random) -> bytes:
    # What files say of themselves stands at their beginning.
    at = chance.randint(0, min(len(content), chance.choice((64, 1024, len(content)))))
    return content[:at] + chance.choice(EXTREMES) + content[at + 4 :]


def _number(content: bytes, chance: random.Random) -> bytes:
    places = list(re.finditer(rb"\d+", content[:100_000]))
    if not places:
        return _flip(content, chance)
    place = chance.choice(places)
    return content[: place.start()] + chance.choice(NUMBERS) + content[place.end() :]


def _swap(node: Any, chance: random.Random) -> Any:
    if not isinstance(node, dict | list) or not node or chance.random() < 0.2:
        return chance.choice(NODES)
    if isinstance(node, list):
        at = chance.randrange(len(node))
        return [*node[:at], _swap(node[at], chance), *node[at + 1 :]]
    name = chance.choice(list(node))
    rest = {key: value for key, value in node.items() if key != name}
    return rest if chance.random() < 0.1 else rest | {name: _swap(node[name], chance)}
