"""The tables of a ledger, how tensors stand in them, and what of them a run's digest covers."""

import json
import math
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SCHEMA = """
CREATE TABLE IF NOT EXISTS run (digest TEXT PRIMARY KEY, spec TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS candidates (
    system TEXT, stage TEXT, image INTEGER, label INTEGER, distance REAL, distance_8bit REAL, repaired INTEGER,
    loss REAL, wrong REAL, looks INTEGER, losses BLOB, wrongs BLOB, shape TEXT, x BLOB,
    PRIMARY KEY (system, stage, image)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS draws (
    system TEXT, stage TEXT, image INTEGER, draw INTEGER, logits BLOB,
    PRIMARY KEY (system, stage, image, draw)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS costs (
    system TEXT, stage TEXT, images INTEGER, seconds REAL, forward INTEGER, backward INTEGER);
CREATE TABLE IF NOT EXISTS probes (
    system TEXT, stage TEXT, image INTEGER, kind TEXT, look INTEGER, predicted REAL, measured REAL, error REAL,
    PRIMARY KEY (system, stage, image, kind, look)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificates (system TEXT PRIMARY KEY, body TEXT NOT NULL);
"""
VERSION = 3  # of the tables, in SQLite's user_version
DERIVED = ("label", "margin")
"""Columns that draws had in version 2, beside the logits that they follow from."""

CONTENTS = {
    "candidates": "system, stage, image, label, distance, distance_8bit, repaired, loss, wrong, looks, losses, wrongs, "
    "shape, x",
    "draws": "system, stage, image, draw, logits",
    "probes": "system, stage, image, kind, look, predicted, measured, error",
    "certificates": "system, body",
}
"""What rows and findings are made of: its digest is the run's. A draw's label and margin follow from its logits."""

KEYS = {
    "candidates": "system, stage, image",
    "draws": "system, stage, image, draw",
    "probes": "system, stage, image, kind, look",
    "certificates": "system",
}


class Outcomes(NamedTuple):
    """What a ledger holds of one (system, stage), in the order of image ids.

    ``loss`` and ``wrong`` [n] are the attack's own view of its candidates; ``losses`` and ``wrongs`` hold a row per
    image of all its looks, [looks] each, in order.
    """

    ids: Tensor
    y: Tensor
    logits: Tensor
    distance: Tensor
    repaired: Tensor
    x: Tensor
    distance_8bit: Tensor
    loss: Tensor
    wrong: Tensor
    losses: list[np.ndarray]
    wrongs: list[np.ndarray]


class Cost(NamedTuple):
    """Totals of one (system, stage): seconds, and rows through its networks."""

    seconds: float
    forward: int
    backward: int


def check(db: sqlite3.Connection) -> None:
    """Refuses what a ledger never holds, and what could make reading one row endless."""
    for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
        if not re.match(r"CREATE (UNIQUE )?(TABLE|INDEX)\b", sql):
            raise ValueError(f"it holds the {kind} {name!r}, which no ledger has")
        if name in KEYS:
            keys = [(at, column) for _, column, *_, at in db.execute(f"PRAGMA table_info({name})") if at]
            if ", ".join(column for _, column in sorted(keys)) != KEYS[name]:
                raise ValueError(f"its {name} may be there twice")


def upgrade(db: sqlite3.Connection) -> None:
    """Makes tables of version 2 those of this one."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        if db.execute("PRAGMA user_version").fetchone() == (VERSION - 1,):  # or another process was faster
            for column in DERIVED:
                db.execute(f"ALTER TABLE draws DROP COLUMN {column}")
            db.execute(f"PRAGMA user_version={VERSION}")


def evidence(db: sqlite3.Connection) -> Iterator[tuple]:
    """All rows that a run's digest covers, in a fixed order.

    Seconds are no part of it, nor rows forward, of which there are more where less memory has more recomputed.
    """
    there = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    for table, columns in CONTENTS.items():
        for row in db.execute(f"SELECT {columns} FROM {table} ORDER BY {KEYS[table]}") if table in there else ():
            # compressors of other builds may pack the same image otherwise
            yield (table, *row[:-1], inflated(*row[-2:]) if table == "candidates" else row[-1])
    for row in db.execute("SELECT system, stage, SUM(images), SUM(backward) FROM costs GROUP BY 1, 2 ORDER BY 1, 2"):
        yield ("costs", *row)


def contradictions(db: sqlite3.Connection, table: str) -> list[tuple]:
    """The keys of rows that this ledger and the attached ``other`` both have, and not alike; ten at most."""
    keys, columns = KEYS[table], CONTENTS[table].split(", ")
    shown = ["inflated({0}.shape, {0}.x)" if name == "x" else f"{{0}}.{name}" for name in columns]
    mine, others = (", ".join(shown).format(name) for name in ("a", "b"))
    chosen = ", ".join(f"a.{name}" for name in keys.split(", "))
    db.create_function("inflated", 2, inflated, deterministic=True)
    return db.execute(
        f"SELECT {chosen} FROM main.{table} a JOIN other.{table} b USING ({keys}) "
        f"WHERE ({mine}) IS NOT ({others}) ORDER BY {chosen} LIMIT 10"
    ).fetchall()


def counted_twice(db: sqlite3.Connection) -> tuple[str, str] | None:
    """The first (system, stage) whose costs are of more images than are there, or of fewer."""
    return db.execute(
        "SELECT system, stage FROM (SELECT system, stage, COUNT(*) AS n FROM main.candidates GROUP BY 1, 2) "
        "JOIN (SELECT system, stage, SUM(images) AS m FROM main.costs GROUP BY 1, 2) USING (system, stage) "
        "WHERE n != m LIMIT 1"
    ).fetchone()


NEW_COSTS = """
INSERT INTO costs SELECT * FROM other.costs o WHERE NOT EXISTS (
    SELECT 1 FROM main.costs c
    WHERE (c.system, c.stage, c.images, c.seconds) = (o.system, o.stage, o.images, o.seconds))
"""


def logits_of(draws: Sequence[bytes], images: int) -> Tensor:
    """Logits [images, draws, classes] of stored draws."""
    found = np.stack([np.frombuffer(blob, dtype="<f4") for blob in draws])
    return torch.from_numpy(found.reshape(images, -1, found.shape[1]))


def floats(column: Sequence[float | None]) -> Tensor:
    """A column of numbers; SQLite keeps NaN as NULL."""
    return torch.tensor([float("nan") if value is None else value for value in column], dtype=torch.float64)


def marks(n: int) -> str:
    return ",".join("?" * n)


def unpacked(shape: str, x: bytes) -> Tensor:
    """The candidate that ``packed`` packed."""
    return torch.from_numpy(np.frombuffer(inflated(shape, x), dtype="<f4").reshape(json.loads(shape)).copy())


LARGEST = 2**28
"""Bytes of one image; more is damage, and not worth the memory."""


def inflated(shape: str, x: bytes) -> bytes:
    """The bytes of an image, which are as many as its shape says."""
    size = 4 * math.prod(json.loads(shape))
    if not 0 <= size <= LARGEST:
        raise ValueError(f"an image of shape {shape}")
    unpacking = zlib.decompressobj()
    found = unpacking.decompress(x, size + 1)
    if len(found) != size or not unpacking.eof:
        raise ValueError("an image that has not the size of its shape")
    return found


def packed(x: Tensor) -> bytes:
    return zlib.compress(raw(x))


def raw(t: Tensor) -> bytes:
    return t.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()
