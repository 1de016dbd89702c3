"""The ledger: one SQLite file per run, a row per draw, a transaction per chunk, so a kill loses one chunk at most."""

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.spec import differences, digest
from ..core.vote import Vote
from ..evaluate.certificate import SEEN
from ..evaluate.metrics import margins
from ..evaluate.protocol import Chunk, Data
from ..evaluate.standing import Standing, standings
from ..evaluate.witness import Probe
from . import growth, stored, tables
from .files import reading, saying
from .tables import Cost, Outcomes, floats, logits_of, marks, packed, raw, unpacked


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
        for there in (path.with_name(path.name + end) for end in ("", "-journal", "-wal", "-shm")):
            if os.path.lexists(there):
                with reading(there):  # or SQLite may wait for a pipe without end
                    pass
        with self._saying():
            self._db = sqlite3.connect(self._address, uri=True, isolation_level=None)
            self._db.execute("PRAGMA trusted_schema=OFF")
            tables.check(self._db)
            self._check_version(frozen)
            if not frozen:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(tables.SCHEMA)
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
                kept = self._read_spec()
                if kept is None:
                    self._db.execute("INSERT INTO run VALUES (?, ?)", (digest(spec), json.dumps(spec)))
                elif data is not None and growth.grows(kept, spec, data):
                    self._db.execute("UPDATE run SET digest = ?, spec = ?", (digest(spec), json.dumps(spec)))
                    if growth.images(kept) < SEEN:
                        self._db.execute("DELETE FROM certificates")
                else:
                    return kept
            return spec

    def _check_version(self, frozen: bool) -> None:
        if not self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            self._db.execute(f"PRAGMA user_version={tables.VERSION}")
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == tables.VERSION - 1:
            return None if frozen else tables.upgrade(self._db)
        if version != tables.VERSION:
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
            RecursionError,
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
        with self._saying():
            found = self._read_spec()
        if found is None:
            raise UserError(f"{self.path} holds no run; start one with `lustral evaluate`.")
        return found

    def _read_spec(self) -> dict | None:
        """The spec that is there, which must be the one that its digest names."""
        rows = self._db.execute("SELECT digest, spec FROM run").fetchall()
        found = json.loads(rows[0][1]) if rows else None
        if rows and (len(rows) > 1 or not isinstance(found, dict) or digest(found) != rows[0][0]):
            raise ValueError("it does not say of which run it is")
        return found

    def done(self, system: str, stage: str) -> set[int]:
        """The images that are finished."""
        rows = self._rows("SELECT image FROM candidates WHERE system = ? AND stage = ?", system, stage)
        return {image for (image,) in rows}

    def places(self) -> set[tuple[str, str]]:
        """Every (system, stage) of which anything is there."""
        found: set[tuple[str, str]] = set()
        for table in filter(self._has, ("candidates", "draws", "costs", "probes")):
            found |= set(self._rows(f"SELECT DISTINCT system, stage FROM {table}"))
        return found

    def write(self, chunk: Chunk) -> None:
        """Adds a chunk in one transaction."""
        system, stage = chunk.job.system.name, chunk.job.stage.name
        shape = json.dumps(list(chunk.x.shape[1:]))
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
        there = ~chunk.found.wrongs.isnan()  # looks that were taken; neighbours in the batch may have taken more
        candidates = [
            (system, stage, *values, *(raw(h[i][there[i]]) for h in chunk.found[3:]), shape, packed(chunk.x[i]))
            for i, values in enumerate(zip(*(c.tolist() for c in columns), strict=True))
        ]
        draws = [
            (system, stage, image, k, raw(chunk.logits[i, k]))
            for i, image in enumerate(chunk.ids.tolist())
            for k in range(chunk.logits.shape[1])
        ]
        cost = (system, stage, len(chunk.ids), chunk.seconds, chunk.forward, chunk.backward)
        with self._saying(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(f"INSERT INTO candidates VALUES ({marks(14)})", candidates)
            self._db.executemany("INSERT INTO draws VALUES (?,?,?,?,?)", draws)
            self._db.execute("INSERT INTO costs VALUES (?,?,?,?,?,?)", cost)
            probes = [(system, stage, *probe) for probe in chunk.probes]
            self._db.executemany(f"INSERT OR IGNORE INTO probes VALUES ({marks(8)})", probes)

    def standing(self, system: str, stage: str, vote: Vote) -> dict[int, Standing]:
        """How every image stands with the judge."""
        where = "WHERE system = ? AND stage = ? ORDER BY image"
        rows = self._rows(f"SELECT image, label FROM candidates {where}", system, stage)
        if not rows:
            return {}
        with self._saying():
            ids, y = zip(*rows, strict=True)
            return standings(ids, self._logits(system, stage, ids), torch.tensor(y), vote)

    def _logits(self, system: str, stage: str, ids: Sequence[int]) -> Tensor:
        """Logits [images, draws, classes] of a stage whose images are ``ids``, ascending; all have as many draws."""
        query = "SELECT image, draw, logits FROM draws WHERE system = ? AND stage = ? ORDER BY image, draw"
        rows = self._rows(query, system, stage)
        if not rows or [row[:2] for row in rows] != list(product(ids, range(len(rows) // len(ids)))):
            raise ValueError(f"draws of {system}, {stage} are missing or too many")
        return logits_of([row[2] for row in rows], len(ids))

    def candidates(self, system: str, stage: str, ids: Sequence[int]) -> Tensor:
        """Candidates [n, c, h, w] of some images."""
        query = "SELECT shape, x FROM candidates WHERE system = ? AND stage = ? AND image = ?"
        found = [self._rows(query, system, stage, image) for image in ids]
        with self._saying():
            return torch.stack([unpacked(*rows[0]) for rows in found])

    def note(self, **facts: object) -> None:
        """Keeps facts about how the run was made that are no part of what it is; None forgets one."""
        with self._saying(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for name, value in facts.items():
                self._db.execute("DELETE FROM facts WHERE name = ?", (name,))
                if value is not None:
                    self._db.execute("INSERT INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def facts(self) -> dict:
        """What ``note`` kept; nothing in a ledger from before there were facts."""
        if not self._has("facts"):
            return {}
        with self._saying():
            return {name: json.loads(value) for name, value in self._rows("SELECT name, value FROM facts")}

    def certify(self, system: str, body: dict) -> None:
        """Stores what was measured of a system's gradients and noise."""
        with self._saying():
            self._db.execute("INSERT OR REPLACE INTO certificates VALUES (?, ?)", (system, json.dumps(body)))

    def certificate(self, system: str) -> dict | None:
        """What ``certify`` stored."""
        rows = self._rows("SELECT body FROM certificates WHERE system = ?", system)
        with self._saying():
            found = json.loads(rows[0][0]) if rows else None
            if rows and not isinstance(found, dict):
                raise ValueError(f"the certificate of {system} is no table")
            return found

    def certified(self) -> set[str]:
        """The systems that have a certificate."""
        return {name for (name,) in self._rows("SELECT system FROM certificates")}

    def _has(self, table: str) -> bool:
        return bool(self._rows("SELECT 1 FROM sqlite_master WHERE name = ?", table))

    def probes(self, system: str) -> dict[str, list[Probe]]:
        """What the witness measured, by stage; nothing in a ledger from before there was one."""
        if not self._has("probes"):
            return {}
        found: dict[str, list[Probe]] = {}
        columns = "stage, image, kind, look, predicted, measured, error"
        for stage, image, kind, look, *numbers in self._rows(
            f"SELECT {columns} FROM probes WHERE system = ? ORDER BY stage, image, kind, look", system
        ):
            found.setdefault(stage, []).append(Probe(image, kind, look, *floats(numbers).tolist()))
        return found

    def outcomes(self, system: str, stage: str) -> Outcomes:
        """Everything stored about one (system, stage)."""
        where = "WHERE system = ? AND stage = ? ORDER BY image"
        columns = "image, label, distance, repaired, distance_8bit, loss, wrong, losses, wrongs, shape, x, looks"
        rows = self._rows(f"SELECT {columns} FROM candidates {where}", system, stage)
        if not rows:
            raise UserError(f"The ledger holds nothing for system {system!r} and stage {stage!r}.")
        with self._saying():
            ids, y, distance, repaired, rounded, loss, wrong, losses, wrongs, shape, x, looks = zip(*rows, strict=True)
            histories = [[np.frombuffer(blob, dtype="<f4") for blob in history] for history in (losses, wrongs)]
            if any([*looks] != [*map(len, history)] for history in histories):
                raise ValueError(f"looks of {system}, {stage} are missing or too many")
            return Outcomes(
                torch.tensor(ids),
                torch.tensor(y),
                self._logits(system, stage, ids),
                floats(distance),
                torch.tensor(repaired).bool(),
                torch.stack([unpacked(*pair) for pair in zip(shape, x, strict=True)]),
                floats(rounded),
                floats(loss),
                floats(wrong),
                *histories,
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
                self._db.execute(tables.NEW_COSTS)
                for table in filter(other._has, tables.CONTENTS):
                    if apart := tables.contradictions(self._db, table):
                        raise UserError(
                            f"{other.path.parent} contradicts {self.path.parent} or what was merged before it: "
                            f"{table} of {', '.join(map(str, apart[0]))} differ. One of them was changed, or is of"
                            " another machine; leave that one out."
                        )
                    columns = tables.CONTENTS[table]
                    self._db.execute(f"INSERT OR IGNORE INTO {table} ({columns}) SELECT {columns} FROM other.{table}")
                if shared := tables.counted_twice(self._db):
                    raise UserError(
                        f"{other.path.parent} and what was merged before have each run images of {', '.join(shared)}, "
                        "whose cost would count twice. Merge shards that share no images."
                    )
        finally:
            self._db.execute("DETACH DATABASE other")

    def draws(self) -> tuple[list[str], list[tuple]]:
        """Every draw beside its candidate: column names and rows, in a fixed order."""
        columns = "system, stage, image, draw, truth, distance, distance_8bit, repaired, loss, wrong, looks"
        rows = self._rows(
            f"SELECT {columns.replace('truth', 'c.label')}, d.logits FROM draws d "
            "JOIN candidates c USING (system, stage, image) ORDER BY 1, 2, 3, 4"
        )
        found = []
        with self._saying():
            for *row, blob in rows:
                logits = logits_of([blob], 1)
                margin = float(margins(logits, torch.tensor([row[4]])))
                found.append((*row, int(logits.argmax()), margin, logits.flatten().tolist()))
        return [*columns.split(", "), "label", "margin", "logits"], found

    def cost(self, system: str, stage: str) -> Cost:
        """What one (system, stage) has cost so far."""
        query = "SELECT TOTAL(seconds), TOTAL(forward), TOTAL(backward) FROM costs WHERE system = ? AND stage = ?"
        seconds, forward, backward = self._rows(query, system, stage)[0]
        return Cost(seconds, int(forward), int(backward))

    def digest(self) -> str:
        """A hash of the run's identity and of all that its numbers and findings are made of (``tables.evidence``)."""
        h = hashlib.sha256(digest(self.spec()).encode())
        with self._saying():
            for row in tables.evidence(self._db):
                h.update(repr(row).encode())
        return h.hexdigest()[:32]
