"""The one reader of picture files: upright, 8 bits a channel, in grey or RGB, what is transparent on white."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ...core.errors import UserError
from ..files import reading
from ..terminal import note

SUFFIXES = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".bmp": "BMP"},
    **{".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".gif": "GIF"},
    **{".ppm": "PPM", ".pgm": "PPM", ".pnm": "PPM"},
}
"""What is a picture, and the format that is written under such a name."""
# No others are tried, whatever a file is called: some of Pillow's start programs (EPS) or are no pictures.
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
WEB = ("PNG", "JPEG", "WEBP")
"""Formats that are often found under each other's names; the rest are opened under their own alone."""
NAMED = "PNG, JPEG, BMP, WebP, TIFF, GIF and PPM"
GREY = ("1", "L", "LA", "La")
KNOWN = (*GREY, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
WIDE = re.compile(";16[BLN]")
"""In Pillow's name of how pixels are stored: 16 bits a channel."""
ORIENTATION = 0x0112
MOST = 2**26
"""Pixels of a picture, 8192×8192, more than most cameras have: to claim them costs no bytes, to read them many."""


class Header(NamedTuple):
    """The (width, height) of a picture as it is shown, and whether it is grey (None: its header does not say)."""

    size: tuple[int, int]
    grey: bool | None


class Pixels(NamedTuple):
    """A picture's bytes [h, w] in grey or [h, w, 3] in RGB, and whether some of it was transparent."""

    array: np.ndarray
    transparent: bool


def look(path: Path) -> Header:
    """What a picture is, by its header; those of palettes and of WebP do not say whether it is grey."""
    with open_file(path) as picture:
        # Pillow turns TIFF by itself; of a PNG, a late tag would cost reading all of it, and pixels() heeds it.
        tagged = picture.format != "TIFF" and "exif" in picture.info
        turned = tagged and picture.getexif().get(ORIENTATION, 1) >= 5
        size = picture.size[::-1] if turned else picture.size
        unsaid = picture.mode in ("P", "PA") or picture.format == "WEBP"
        return Header(size, None if unsaid else picture.mode in GREY)


def read(path: Path, mode: str) -> Pixels:
    """One picture file in mode ``L`` or ``RGB``."""
    with open_file(path) as picture:
        return flat(picture, mode)


def grey(pixels: np.ndarray) -> bool:
    """Whether RGB pixels [h, w, 3] are all grey."""
    return bool((pixels == pixels[:, :, :1]).all())


def flat(picture: Image.Image, mode: str) -> Pixels:
    """A picture of Pillow's in mode ``L`` or ``RGB``, turned as its tag says, on white where it is transparent."""
    upright = ImageOps.exif_transpose(picture)
    transparent = False
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        transparent = upright.getextrema()[3][0] < 255
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return Pixels(np.asarray(upright.convert(mode)), transparent)


def check(picture: Image.Image, name: object) -> None:
    """Refuses pictures that are several, have more than 8 bits a channel, or colours that are not converted here."""
    # Pillow would cut them off at 255, or drop their lower halves.
    if picture.mode[0] in "IF" or any(WIDE.search(str(tile[3])) for tile in getattr(picture, "tile", ())):
        raise UserError(f"{name} has more than 8 bits a channel; save it with 8, or as an array of floats.")
    if picture.mode not in KNOWN:
        raise UserError(f"{name} has its colours in {picture.mode}; save it in RGB.")
    if picture.format != "MPO" and _has_another(picture):  # MPO: a camera's JPEG, with previews behind the picture
        raise UserError(f"{name} holds several pictures; save them one by one.")


def _has_another(picture: Image.Image) -> bool:
    """Whether there is a second picture in the file; how many there are may take long to count."""
    try:
        picture.seek(1)
    except EOFError:
        return False
    finally:
        picture.seek(0)
    return True


def say_white(transparent: int, pictures: int) -> None:
    """Says once for many pictures that what was transparent in some of them is white."""
    if transparent:
        note(f"What is transparent in {transparent} of {pictures} pictures was laid on white.")


def _meant(name: object) -> tuple[str, ...]:
    """The formats that a picture of this name may have; any where it has none of their suffixes."""
    own = SUFFIXES.get(Path(str(name)).suffix.lower())
    return FORMATS if own is None else (own, *WEB)


@contextmanager
def open_file(path: Path) -> Iterator[Image.Image]:
    """A picture file; what is wrong with it is one sentence, whatever a format's decoder raises."""
    with reading(path), opened(path, path) as picture:
        yield picture


@contextmanager
def opened(source: Path | io.BytesIO, name: object) -> Iterator[Image.Image]:
    """The same for a picture that is a file or its content."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=_meant(name)) as picture:
                if picture.width * picture.height > MOST:
                    raise Image.DecompressionBombError
                check(picture, name)
                yield picture
        except UserError:
            raise
        except UnidentifiedImageError as e:
            raise UserError(f"{name} is damaged or no picture of the format that its name says; check the file.") from e
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
            raise UserError(f"{name} says that it has more than {MOST:,} pixels; save it with fewer.") from e
        except Exception as e:
            if isinstance(e, OSError) and e.errno is not None:
                raise
            reason = " ".join(str(e).split()) or type(e).__name__
            raise UserError(f"{name} is damaged ({reason}); check the file.") from e
