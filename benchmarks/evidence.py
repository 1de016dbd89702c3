"""Does `lustral verify` pass what nobody touched? ``python -m benchmarks.evidence [--times 100]``.

Two small runs of the smoke suite on digits, one with noise and one without, are verified so many times: other images
every time, on one, two or three threads. (That it refuses what was touched is in ``tests/shell/test_forger.py``.)
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks import store
from lustral.core.errors import UserError
from lustral.shell import review
from lustral.shell.cli import main
from lustral.shell.options import Resources

RUNS = {
    "undefended, 8 images": ["--images=8", "--purification.method=none", "--threat.eps=0.08"],
    "DiffPure, 2 steps, 6 images": ["--images=6", "--purification.steps=2"],
}
THREADS = (1, 2, 3)


def passed(place: Path, times: int) -> tuple[int, int]:
    """How often a run was verified, and how often to the bit."""
    said = []
    for k in range(times):
        try:
            said.append(review.verify(place, 2, Resources(threads=THREADS[k % len(THREADS)])))
        except UserError as e:
            print(e, file=sys.stderr)
    return len(said), sum("equal to the bit" in line for line in said)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    times = parser.parse_args().times
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in RUNS.items():
            place = Path(folder) / str(len(rows))
            main(["evaluate", str(place), "--suite=smoke", *options])
            found = passed(place, times)
            rows.append([name, str(times), *map(str, found)])
    words = "2 random images of each run again, on 1, 2 or 3 threads in turn."
    head = ["run", "verified", "passed", "equal to the bit"]
    store.keep("evidence", {"untouched": [words, store.Table(head, rows)]})
    sys.exit(any(row[1] != row[2] for row in rows))
