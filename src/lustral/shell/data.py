"""Labelled images with stable ids and fixed splits."""

from pathlib import Path

import numpy as np
import torch

from ..core import check
from ..core.errors import UserError, unknown
from ..evaluate.protocol import Data
from .files import saying

SPLITS = ("train", "test")
DIGITS_TRAIN = 1200


def load(name: str, split: str = "test") -> Data:
    """A data set by name (``digits``) or from an .npz file with arrays x and y (all of it, whatever the split)."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if name == "digits":
        return _digits(split)
    if name.endswith(".npz"):
        return _npz(Path(name))
    raise UserError(f"Unknown data {name!r}; it is 'digits' or the path of an .npz file with arrays x and y.")


def _digits(split: str) -> Data:
    """The 1797 handwritten digits of scikit-learn, 8×8 with 17 grey levels.

    The first 1200 are for training, the last 597 for testing. The file is in the order of the writers, so a contiguous
    split keeps most test writers out of training, which a shuffled one would not. Ids are positions in the file.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    ids = torch.arange(len(raw.target))
    x = torch.tensor(raw.images / 16, dtype=torch.float32)[:, None]
    data = Data(ids, x, torch.tensor(raw.target, dtype=torch.long))
    return data[:DIGITS_TRAIN] if split == "train" else data[DIGITS_TRAIN:]


def _npz(path: Path) -> Data:
    arrays = read_arrays(path)
    if "x" not in arrays or "y" not in arrays:
        raise UserError(
            f"{path} must hold arrays x (images) and y (labels) but holds {', '.join(arrays) or 'nothing'}."
        )
    x, y = as_images(arrays["x"], str(path)), arrays["y"]
    if not len(x):
        raise UserError(f"{path} holds no images; save at least one.")
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise UserError(f"{path}: y must be {len(x)} whole numbers, one per image, not {y.dtype} of shape {y.shape}.")
    if y.min() < 0:
        raise UserError(f"{path}: y must count classes from 0, but holds {y.min()}.")
    ids = arrays.get("ids", np.arange(len(x)))
    if ids.shape != (len(x),) or ids.dtype.kind not in "iu" or len(np.unique(ids)) != len(x):
        raise UserError(f"{path}: ids must be {len(x)} different whole numbers, one per image.")
    return Data(torch.as_tensor(ids).long(), x, torch.as_tensor(y).long())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, or of an .npy file under the name x; pickled objects are refused."""
    with saying(path, "read"):
        try:
            loaded = np.load(path, allow_pickle=False)
            return {"x": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
        except OSError as e:
            if e.errno is not None:
                raise
            raise UserError(f"{path} is damaged or no {path.suffix} file; write it again with numpy.") from e
        except Exception as e:
            raise UserError(
                f"{path} is damaged, or holds pickled objects, which are never loaded; save plain arrays."
            ) from e


def as_images(array: np.ndarray, name: str) -> torch.Tensor:
    """Float images [b, c, h, w] in [0, 1] from an array of 8-bit or float images, channels first or last or missing."""
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
    elif array.dtype.kind != "f":
        raise UserError(f"{name} must hold 8-bit integers or floats in [0, 1], not {array.dtype}.")
    x = torch.as_tensor(np.ascontiguousarray(array, dtype=np.float32))
    if x.dim() == 3:
        x = x[:, None]
    elif x.dim() == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2).contiguous()
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise UserError(
            f"{name} must be [n, h, w], [n, c, h, w] or [n, h, w, c] with 1 or 3 channels, not {array.shape}."
        )
    return check.images(x, name).clamp(0, 1)
