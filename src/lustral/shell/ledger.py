"""The ledger: one SQLite file per run, a row per draw, a transaction per chunk, so a kill loses one chunk at most."""

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.spec import differences, digest
from ..evaluate.metrics import margins
from ..evaluate.protocol import Chunk
from .files import saying

SCHEMA = """
CREATE TABLE IF NOT EXISTS run (digest TEXT PRIMARY KEY, spec TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS candidates (
    system TEXT, stage TEXT, image INTEGER, label INTEGER, distance REAL, distance_8bit REAL, repaired INTEGER,
    loss REAL, looks INTEGER, shape TEXT, x BLOB, PRIMARY KEY (system, stage, image)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS draws (
    system TEXT, stage TEXT, image INTEGER, draw INTEGER, label INTEGER, margin REAL, logits BLOB,
    PRIMARY KEY (system, stage, image, draw)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS costs (
    system TEXT, stage TEXT, images INTEGER, seconds REAL, forward INTEGER, backward INTEGER);
"""
RESULTS = {
    "candidates": "system, stage, image, label, distance, distance_8bit, repaired, loss, looks, shape, x",
    "draws": "system, stage, image, draw, label, margin, logits",
}


class Outcomes(NamedTuple):
    """What a ledger holds of one (system, stage), in the order of image ids."""

    ids: Tensor
    y: Tensor
    logits: Tensor
    distance: Tensor
    repaired: Tensor
    x: Tensor


class Cost(NamedTuple):
    """Totals of one (system, stage): seconds, and rows through its networks."""

    seconds: float
    forward: int
    backward: int


class Ledger:
    """An open ledger. It belongs to one run: opening it for another one is refused, and the difference shown."""

    def __init__(self, path: Path, spec: dict | None = None):
        """Opens ``path``; with ``spec``, creates it where it is absent and checks that it is this run's."""
        self.path = path
        if spec is None and not path.exists():
            raise UserError(f"There is no run at {path.parent}; it has no {path.name}. Check the path.")
        with saying(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._saying():
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
            row = self._db.execute("SELECT spec FROM run").fetchone()
            stored = json.loads(row[0]) if row else None
        if spec is not None and stored is None:
            with self._saying():
                self._db.execute("INSERT INTO run VALUES (?, ?)", (digest(spec), json.dumps(spec)))
        elif spec is not None and stored != json.loads(json.dumps(spec)):
            lines = differences(stored, json.loads(json.dumps(spec)))
            self.close()
            raise UserError(
                f"{path.parent} holds another run; choose another folder or delete it. It differs in "
                + "; ".join(lines[:5])
                + (f"; and {len(lines) - 5} more." if len(lines) > 5 else ".")
            )

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as e:
            raise UserError(
                f"Cannot use the ledger {self.path}: {e}; is the folder writable, and the disk not full?"
            ) from e
        except sqlite3.IntegrityError as e:
            raise UserError(
                f"{self.path} is being filled by another process too; let that finish, then run again."
            ) from e
        except (
            sqlite3.DatabaseError,
            zlib.error,
            ValueError,
            TypeError,
        ) as e:  # bytes that are no result
            raise UserError(f"{self.path} is no ledger or is damaged ({e}); move it away and run again.") from e

    def _rows(self, query: str, *values: str) -> list[tuple]:
        with self._saying():
            return self._db.execute(query, values).fetchall()

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def spec(self) -> dict:
        """What this run is."""
        rows = self._rows("SELECT spec FROM run")
        if not rows:
            raise UserError(f"{self.path} holds no run; start one with `lustral evaluate`.")
        return json.loads(rows[0][0])

    def done(self, system: str, stage: str) -> set[int]:
        """The images that are finished."""
        rows = self._rows("SELECT image FROM candidates WHERE system = ? AND stage = ?", system, stage)
        return {image for (image,) in rows}

    def write(self, chunk: Chunk) -> None:
        """Adds a chunk in one transaction."""
        system, stage = chunk.job.system.name, chunk.job.stage.name
        shape = json.dumps(list(chunk.x.shape[1:]))
        labels, margin = chunk.logits.argmax(dim=-1).tolist(), margins(chunk.logits, chunk.y).tolist()
        columns = (
            chunk.ids,
            chunk.y,
            chunk.distance,
            chunk.distance_8bit,
            chunk.repaired.int(),
            chunk.loss,
            chunk.looks,
        )
        candidates = [
            (system, stage, *values, shape, zlib.compress(_bytes(x)))
            for values, x in zip(zip(*(c.tolist() for c in columns), strict=True), chunk.x, strict=True)
        ]
        draws = [
            (system, stage, image, k, labels[i][k], margin[i][k], _bytes(chunk.logits[i, k]))
            for i, image in enumerate(chunk.ids.tolist())
            for k in range(chunk.logits.shape[1])
        ]
        cost = (system, stage, len(chunk.ids), chunk.seconds, chunk.forward, chunk.backward)
        with self._saying(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO candidates VALUES (?,?,?,?,?,?,?,?,?,?,?)", candidates)
            self._db.executemany("INSERT INTO draws VALUES (?,?,?,?,?,?,?)", draws)
            self._db.execute("INSERT INTO costs VALUES (?,?,?,?,?,?)", cost)

    def outcomes(self, system: str, stage: str) -> Outcomes:
        """Everything stored about one (system, stage)."""
        where = "WHERE system = ? AND stage = ? ORDER BY image"
        rows = self._rows(f"SELECT image, label, distance, repaired, shape, x FROM candidates {where}", system, stage)
        draws = self._rows(f"SELECT logits FROM draws {where}, draw", system, stage)
        if not rows:
            raise UserError(f"The ledger holds nothing for system {system!r} and stage {stage!r}.")
        with self._saying():
            ids, y, distance, repaired, shape, x = zip(*rows, strict=True)
            logits = np.stack([np.frombuffer(blob, dtype="<f4") for (blob,) in draws])
            images = np.stack([np.frombuffer(zlib.decompress(b), dtype="<f4").reshape(json.loads(shape[0])) for b in x])
            return Outcomes(
                torch.tensor(ids),
                torch.tensor(y),
                torch.from_numpy(logits.reshape(len(ids), -1, logits.shape[1])),
                torch.tensor(distance),
                torch.tensor(repaired).bool(),
                torch.from_numpy(images),
            )

    def cost(self, system: str, stage: str) -> Cost:
        """What one (system, stage) has cost so far."""
        query = "SELECT TOTAL(seconds), TOTAL(forward), TOTAL(backward) FROM costs WHERE system = ? AND stage = ?"
        seconds, forward, backward = self._rows(query, system, stage)[0]
        return Cost(seconds, int(forward), int(backward))

    def digest(self) -> str:
        """A hash of the run's identity and of all its results, in a fixed order; costs are not part of it."""
        h = hashlib.sha256(digest(self.spec()).encode())
        for table, columns in RESULTS.items():
            for row in self._rows(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3, 4"):
                h.update(repr(row).encode())
        return h.hexdigest()[:32]


def _bytes(t: Tensor) -> bytes:
    return t.detach().cpu().contiguous().numpy().astype("<f4").tobytes()
