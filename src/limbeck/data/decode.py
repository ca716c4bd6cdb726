"""One picture as bytes of red, green and blue, or of grey, whatever way it was stored."""

from __future__ import annotations

import io
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from limbeck.core.errors import DataError

__all__ = ["FORMATS", "MAX_PIXELS", "Header", "Picture", "decode_image", "pixels_of", "read_header"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # what Pillow may try, no more
MAX_PIXELS = 64_000_000  # refused above, from the header: 21 kB of PNG can hold 500 MB
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})


class Picture(NamedTuple):
    """A decoded file."""

    pixels: npt.NDArray[np.uint8]  # (H, W, C), C 1 or 3
    has_more_frames: bool  # an animation or several pages, of which this is the first


class Header(NamedTuple):
    """What a file says of its picture."""

    size: tuple[int, int]  # width and height as stored, before it is turned upright
    is_grey: bool


def decode_image(
    stream: IO[bytes], *, image_size: int | None = None, in_chans: int | None = None
) -> Picture:
    """The picture in a file; the first frame where there are several.

    Args:
        stream: a whole file, from its start.
        image_size: see :func:`pixels_of`.
        in_chans: see :func:`pixels_of`.

    Raises:
        DataError: if the bytes are no readable picture, or hold more than :data:`MAX_PIXELS`.
    """
    try:
        with _open(io.BytesIO(stream.read())) as image:
            has_more_frames = bool(getattr(image, "is_animated", False))
            return Picture(
                pixels_of(image, image_size=image_size, in_chans=in_chans), has_more_frames
            )
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on damaged input
        raise DataError(_reason(error)) from error


def read_header(stream: IO[bytes]) -> Header:
    """Size and kind of a picture, without decoding it.

    Raises:
        DataError: as :func:`decode_image`, for what the header tells.
    """
    try:
        with _open(stream) as image:
            return Header(image.size, image.mode in _GREY_MODES)
    except DataError:
        raise
    except Exception as error:
        raise DataError(_reason(error)) from error


def pixels_of(
    image: Image.Image, *, image_size: int | None = None, in_chans: int | None = None
) -> npt.NDArray[np.uint8]:
    """A Pillow image as ``(H, W, C)`` bytes, turned upright as its EXIF tag says.

    16-bit grey is scaled to 8 bits (65535 becomes 255), transparency is laid over white, and
    palettes and CMYK become colour. With ``image_size`` the shorter side is resized to it
    (bilinear, antialiased) and the middle square is cut out.

    Args:
        image: any mode whose range of values is known.
        image_size: side of the square in pixels; None keeps the size.
        in_chans: 1 or 3; None gives 1 for grey modes and 3 for the others.

    Raises:
        DataError: if the image has 32-bit values, whose range nothing tells.
    """
    stored_in = image.format
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    channels = in_chans or (1 if image.mode in _GREY_MODES else 3)
    # Pillow before 11.3 opens a 16-bit PNG as 32-bit "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and stored_in == "PNG"):
        # convert("L") would clip: everything above 255 of 65535 becomes white.
        deep = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(
            "32-bit values, and nothing tells which of them is white; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")  # some modes reach grey only through colour
    image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        image = _resize(image, image_size)
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return pixels.reshape(*pixels.shape[:2], channels)


def _open(stream: IO[bytes]) -> Image.Image:
    image = Image.open(stream, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are accepted; "
            "shrink it first"
        )
    return image


def _resize(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    # The longer side is rounded down, as torchvision's Resize does it.
    width, height = (side * width // shorter, side * height // shorter)
    if width * height > MAX_PIXELS:  # a line of 60,000 x 1 pixels would take gigabytes
        raise DataError(
            f"{image.width} x {image.height} pixels become {width} x {height} when the shorter "
            f"side is {side}, more than the {MAX_PIXELS:,} that are accepted; crop it first"
        )
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no picture in any known format ({', '.join(FORMATS)})"
    return f"cannot be decoded: {error}"
