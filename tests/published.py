"""Small image sets in their published formats, written byte by byte."""

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

N, TESTS = 30, 7


COLOUR = np.random.default_rng(1).integers(0, 256, (N + TESTS, 3, 32, 32), dtype=np.uint8)


LABELS = np.arange(N + TESTS) * 7 % 10


def batch(rows: slice, protocol: int = 2) -> bytes:
    """A batch of CIFAR-10's Python archive, as Python 3 pickles it."""
    return pickle.dumps(
        {b"data": COLOUR[rows].reshape(-1, 3072), b"labels": LABELS[rows].tolist(), b"batch_label": b"x"}, protocol
    )


def batch_of_python_2(rows: slice) -> bytes:
    """The same, opcode by opcode as in the published archive."""
    pixels = COLOUR[rows].tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([len(COLOUR[rows])]) + b"M\x00\x0c\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", len(pixels)) + pixels + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in LABELS[rows]) + b"e"
    return b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + labels + b"u."


TRAIN_ROWS = [slice(i, i + N // 5) for i in range(0, N, N // 5)]


TEST_ROWS = slice(N, N + TESTS)


def python_files(write=batch, **options) -> dict[str, bytes]:
    train = {f"data_batch_{i}": write(rows, **options) for i, rows in enumerate(TRAIN_ROWS, 1)}
    return train | {"test_batch": write(TEST_ROWS, **options), "batches.meta": b"never read"}


def records(rows: slice, coarse: bool = False) -> bytes:
    labels = [LABELS[rows, None].astype(np.uint8)]
    labels = [labels[0] % 2, *labels] if coarse else labels
    return np.concatenate([*labels, COLOUR[rows].reshape(-1, 3072)], axis=1).tobytes()


def binary_files() -> dict[str, bytes]:
    train = {f"data_batch_{i}.bin": records(rows) for i, rows in enumerate(TRAIN_ROWS, 1)}
    return train | {"test_batch.bin": records(TEST_ROWS)}


def fine(rows: slice) -> bytes:
    found = {"data": COLOUR[rows].reshape(-1, 3072), "fine_labels": LABELS[rows].tolist(), "coarse_labels": [0]}
    return pickle.dumps(found, 4)


def idx_files() -> dict[str, bytes]:
    found = {}
    for stem, rows in (("train", slice(N)), ("t10k", TEST_ROWS)):
        images, labels = COLOUR[rows, 0], LABELS[rows].astype(np.uint8)
        found[f"{stem}-images-idx3-ubyte"] = struct.pack(">IIII", 2051, *images.shape) + images.tobytes()
        found[f"{stem}-labels-idx1-ubyte"] = struct.pack(">II", 2049, len(labels)) + labels.tobytes()
    return found


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(path: Path, files: dict[str, bytes], prefix: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


PY, BIN = "cifar-10-batches-py", "cifar-10-batches-bin"


FORMATS = {
    "CIFAR-10, Python 2": lambda at: put(at / PY, python_files(batch_of_python_2)),
    "CIFAR-10, Python 3": lambda at: put(at / PY, python_files()),
    "CIFAR-10, pickled anew": lambda at: put(at / PY, python_files(protocol=5)),
    "CIFAR-10, from the folder above": lambda at: put(at / PY, python_files()).parent,
    "CIFAR-10, binary": lambda at: put(at / BIN, binary_files()),
    "CIFAR-10, archive": lambda at: packed(at / "cifar-10-python.tar.gz", python_files(), f"{PY}/"),
    "CIFAR-10, archive in a folder": lambda at: packed(at / "cifar-10-binary.tar.gz", binary_files(), f"{BIN}/").parent,
    "CIFAR-10, archive that climbs out": lambda at: packed(at / "c.tgz", python_files(), "/../../../"),
    "CIFAR-100, Python": lambda at: put(at / "a", {"train": fine(slice(N)), "test": fine(TEST_ROWS), "meta": b""}),
    "CIFAR-100, binary": lambda at: put(
        at / "a", {"train.bin": records(slice(N), True), "test.bin": records(TEST_ROWS, True)}
    ),
    "MNIST": lambda at: put(at / "a", idx_files()),
    "MNIST, zipped": lambda at: put(at / "a", zipped(idx_files())),
    "MNIST, spelt with dots": lambda at: put(
        at / "a", {name.replace("-idx", ".idx"): content for name, content in idx_files().items()}
    ),
}
