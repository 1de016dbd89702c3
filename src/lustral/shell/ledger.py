"""The ledger: one SQLite file per run, a row per draw, a transaction per chunk, so a kill loses one chunk at most."""

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.spec import differences, digest
from ..core.vote import Vote
from ..evaluate.certificate import SEEN
from ..evaluate.metrics import margins
from ..evaluate.protocol import Chunk, Data, Standing, standings
from ..evaluate.witness import Probe
from . import growth, stored
from .files import saying

SCHEMA = """
CREATE TABLE IF NOT EXISTS run (digest TEXT PRIMARY KEY, spec TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS candidates (
    system TEXT, stage TEXT, image INTEGER, label INTEGER, distance REAL, distance_8bit REAL, repaired INTEGER,
    loss REAL, wrong REAL, looks INTEGER, losses BLOB, wrongs BLOB, shape TEXT, x BLOB,
    PRIMARY KEY (system, stage, image)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS draws (
    system TEXT, stage TEXT, image INTEGER, draw INTEGER, label INTEGER, margin REAL, logits BLOB,
    PRIMARY KEY (system, stage, image, draw)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS costs (
    system TEXT, stage TEXT, images INTEGER, seconds REAL, forward INTEGER, backward INTEGER);
CREATE TABLE IF NOT EXISTS probes (
    system TEXT, stage TEXT, image INTEGER, kind TEXT, look INTEGER, predicted REAL, measured REAL, error REAL,
    PRIMARY KEY (system, stage, image, kind, look)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificates (system TEXT PRIMARY KEY, body TEXT NOT NULL);
"""
VERSION = 2  # of the tables, in SQLite's user_version
RESULTS = {
    "candidates": "system, stage, image, label, distance, distance_8bit, repaired, loss, wrong, looks, losses, wrongs, "
    "shape, x",
    "draws": "system, stage, image, draw, label, margin, logits",
}


NEW_COSTS = """
INSERT INTO costs SELECT * FROM other.costs o WHERE NOT EXISTS (
    SELECT 1 FROM main.costs c
    WHERE (c.system, c.stage, c.images, c.seconds) = (o.system, o.stage, o.images, o.seconds))
"""


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


class Ledger:
    """An open ledger. It belongs to one run: opening it for another one is refused, and the difference shown."""

    def __init__(self, path: Path, spec: dict | None = None, data: Data | None = None):
        """Opens ``path``; with ``spec``, creates it where it is absent and checks that it is this run's.

        A run that grows, because the spec is of the same with further images of ``data``, is this run's too. Without a
        spec, a ledger in a folder that cannot be written is read as it is.
        """
        self.path = path
        if spec is None and not path.exists():
            raise stored.missing(path.parent)
        frozen = spec is None and not os.access(path.parent, os.W_OK)
        self._address = path.resolve().as_uri() + ("?immutable=1" if frozen else "")
        if frozen and path.with_name(f"{path.name}-wal").exists():
            raise UserError(
                f"{path} was left open, and its folder cannot be written; copy the folder and use the copy."
            )
        with saying(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._saying():
            self._db = sqlite3.connect(self._address, uri=True, isolation_level=None)
            self._check_version()
            if not frozen:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(SCHEMA)
        spec = json.loads(json.dumps(spec))
        if spec is not None and (kept := self._claimed(spec, data)) != spec:
            self.close()
            raise growth.refusal(path.parent, kept, spec)

    def _claimed(self, spec: dict, data: Data | None) -> dict:
        """The spec of the run that owns the ledger, from now on this one where none did or that one grows to it.

        One process at a time. Certificates that fewer images than they look at were there for are measured again.
        """
        with self._saying():
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:
                rows = self._db.execute("SELECT spec FROM run").fetchall()
                kept = json.loads(rows[0][0]) if rows else None
                if kept is None:
                    self._db.execute("INSERT INTO run VALUES (?, ?)", (digest(spec), json.dumps(spec)))
                elif data is not None and growth.grows(kept, spec, data):
                    self._db.execute("UPDATE run SET digest = ?, spec = ?", (digest(spec), json.dumps(spec)))
                    if growth.images(kept) < SEEN:
                        self._db.execute("DELETE FROM certificates")
                else:
                    return kept
            return spec

    def _check_version(self) -> None:
        if not self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            self._db.execute(f"PRAGMA user_version={VERSION}")
        if self._db.execute("PRAGMA user_version").fetchone() != (VERSION,):
            raise UserError(
                f"{self.path} is of another version of Lustral; choose another folder or run it there again."
            )

    @contextmanager
    def _saying(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
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

    def _rows(self, query: str, *values: str | int) -> list[tuple]:
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
            chunk.found.loss,
            chunk.found.wrong,
            chunk.found.looks,
        )
        candidates = [
            (system, stage, *values, *(_taken(history[i]) for history in chunk.found[3:]), shape, _packed(chunk.x[i]))
            for i, values in enumerate(zip(*(c.tolist() for c in columns), strict=True))
        ]
        draws = [
            (system, stage, image, k, labels[i][k], margin[i][k], _bytes(chunk.logits[i, k]))
            for i, image in enumerate(chunk.ids.tolist())
            for k in range(chunk.logits.shape[1])
        ]
        cost = (system, stage, len(chunk.ids), chunk.seconds, chunk.forward, chunk.backward)
        with self._saying(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(f"INSERT INTO candidates VALUES ({_marks(14)})", candidates)
            self._db.executemany("INSERT INTO draws VALUES (?,?,?,?,?,?,?)", draws)
            self._db.execute("INSERT INTO costs VALUES (?,?,?,?,?,?)", cost)
            probes = [(system, stage, *probe) for probe in chunk.probes]
            self._db.executemany(f"INSERT OR IGNORE INTO probes VALUES ({_marks(8)})", probes)

    def standing(self, system: str, stage: str, vote: Vote) -> dict[int, Standing]:
        """How every image stands with the judge."""
        where = "WHERE system = ? AND stage = ? ORDER BY image"
        rows = self._rows(f"SELECT image, label FROM candidates {where}", system, stage)
        draws = self._rows(f"SELECT logits FROM draws {where}, draw", system, stage)
        if not rows:
            return {}
        with self._saying():
            ids, y = zip(*rows, strict=True)
            return standings(ids, _logits(draws, len(ids)), torch.tensor(y), vote)

    def candidates(self, system: str, stage: str, ids: Sequence[int]) -> Tensor:
        """Candidates [n, c, h, w] of some images."""
        query = "SELECT shape, x FROM candidates WHERE system = ? AND stage = ? AND image = ?"
        found = [self._rows(query, system, stage, image) for image in ids]
        with self._saying():
            return torch.stack([_image(*rows[0]) for rows in found])

    def certify(self, system: str, body: dict) -> None:
        """Stores what was measured of a system's gradients and noise."""
        with self._saying():
            self._db.execute("INSERT OR REPLACE INTO certificates VALUES (?, ?)", (system, json.dumps(body)))

    def certificate(self, system: str) -> dict | None:
        """What ``certify`` stored."""
        rows = self._rows("SELECT body FROM certificates WHERE system = ?", system)
        return json.loads(rows[0][0]) if rows else None

    def _has_probes(self) -> bool:
        return bool(self._rows("SELECT 1 FROM sqlite_master WHERE name = 'probes'"))

    def probes(self, system: str) -> dict[str, list[Probe]]:
        """What the witness measured, by stage; nothing in a ledger from before there was one."""
        if not self._has_probes():
            return {}
        found: dict[str, list[Probe]] = {}
        columns = "stage, image, kind, look, predicted, measured, error"
        for stage, image, kind, look, *numbers in self._rows(
            f"SELECT {columns} FROM probes WHERE system = ? ORDER BY stage, image, kind, look", system
        ):
            found.setdefault(stage, []).append(Probe(image, kind, look, *_floats(numbers).tolist()))
        return found

    def outcomes(self, system: str, stage: str) -> Outcomes:
        """Everything stored about one (system, stage)."""
        where = "WHERE system = ? AND stage = ? ORDER BY image"
        columns = "image, label, distance, repaired, distance_8bit, loss, wrong, losses, wrongs, shape, x"
        rows = self._rows(f"SELECT {columns} FROM candidates {where}", system, stage)
        draws = self._rows(f"SELECT logits FROM draws {where}, draw", system, stage)
        if not rows:
            raise UserError(f"The ledger holds nothing for system {system!r} and stage {stage!r}.")
        with self._saying():
            ids, y, distance, repaired, rounded, loss, wrong, losses, wrongs, shape, x = zip(*rows, strict=True)
            return Outcomes(
                torch.tensor(ids),
                torch.tensor(y),
                _logits(draws, len(ids)),
                _floats(distance),
                torch.tensor(repaired).bool(),
                torch.stack([_image(*pair) for pair in zip(shape, x, strict=True)]),
                _floats(rounded),
                _floats(loss),
                _floats(wrong),
                *([np.frombuffer(blob, dtype="<f4") for blob in history] for history in (losses, wrongs)),
            )

    def take(self, other: "Ledger") -> None:
        """Adds what another ledger of the same run holds and this one does not, in one transaction."""
        if digest(other.spec()) != digest(self.spec()):
            lines = differences(self.spec(), other.spec())
            raise UserError(f"{other.path.parent} is another run; it differs in {'; '.join(lines[:5])}.")
        with self._saying():
            self._db.execute("ATTACH DATABASE ? AS other", (other._address,))
        try:
            with self._saying(), self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute(NEW_COSTS)
                for table in (*RESULTS, "certificates", *(["probes"] if other._has_probes() else [])):
                    self._db.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM other.{table}")
        finally:
            self._db.execute("DETACH DATABASE other")

    def draws(self) -> tuple[list[str], list[tuple]]:
        """Every draw beside its candidate: column names and rows, in a fixed order."""
        columns = (
            "d.system, d.stage, d.image, d.draw, c.label AS truth, d.label, d.margin, c.distance, c.distance_8bit, "
        )
        columns += "c.repaired, c.loss, c.wrong, c.looks"
        rows = self._rows(
            f"SELECT {columns}, d.logits FROM draws d "
            "JOIN candidates c USING (system, stage, image) ORDER BY 1, 2, 3, 4"
        )
        names = [column.split(".")[-1].split(" AS ")[-1] for column in columns.split(", ")]
        return [*names, "logits"], [(*row[:-1], np.frombuffer(row[-1], dtype="<f4").tolist()) for row in rows]

    def cost(self, system: str, stage: str) -> Cost:
        """What one (system, stage) has cost so far."""
        query = "SELECT TOTAL(seconds), TOTAL(forward), TOTAL(backward) FROM costs WHERE system = ? AND stage = ?"
        seconds, forward, backward = self._rows(query, system, stage)[0]
        return Cost(seconds, int(forward), int(backward))

    def digest(self) -> str:
        """A hash of the run's identity and of all its results, in a fixed order; costs are not part of it."""
        h = hashlib.sha256(digest(self.spec()).encode())
        with self._saying():
            for table, columns in RESULTS.items():
                for row in self._db.execute(f"SELECT {columns} FROM {table} ORDER BY 1, 2, 3, 4"):
                    if table == "candidates":  # compressors of other builds may pack the same image otherwise
                        row = (*row[:-1], zlib.decompress(row[-1]))
                    h.update(repr(row).encode())
        return h.hexdigest()[:32]


def _logits(draws: Sequence[tuple], images: int) -> Tensor:
    """Logits [images, draws, classes] of stored draws."""
    found = np.stack([np.frombuffer(blob, dtype="<f4") for (blob,) in draws])
    return torch.from_numpy(found.reshape(images, -1, found.shape[1]))


def _floats(column: Sequence[float | None]) -> Tensor:
    """A column of numbers; SQLite keeps NaN as NULL."""
    return torch.tensor([float("nan") if value is None else value for value in column], dtype=torch.float64)


def _marks(n: int) -> str:
    return ",".join("?" * n)


def _image(shape: str, x: bytes) -> Tensor:
    """The candidate that ``_packed`` packed."""
    return torch.from_numpy(np.frombuffer(zlib.decompress(x), dtype="<f4").reshape(json.loads(shape)).copy())


def _packed(x: Tensor) -> bytes:
    return zlib.compress(_bytes(x))


def _taken(history: Tensor) -> bytes:
    """The looks that were taken: how many more its neighbours in the batch took does not matter."""
    return _bytes(history[~history.isnan()])


def _bytes(t: Tensor) -> bytes:
    return t.detach().cpu().float().contiguous().numpy().astype("<f4").tobytes()
