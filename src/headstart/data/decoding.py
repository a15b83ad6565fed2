"""Decode an image file to the uint8 square that a network is trained with and used with.

EXIF orientation → composite transparency on white → three channels → largest center square → resize (bilinear, with
antialias). `prepare` and trained networks read files in this way, so both see the same bytes for the same file.
"""

import errno
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

# Pillow's formats with a signature and without an external program, and their suffixes. For example, EPS would run
# Ghostscript, and TGA has no signature, so any file might be taken for TGA.
FORMATS = {
    "JPEG": ".jpg .jpeg .jpe .jfif .mpo", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif .tiff",
    "BMP": ".bmp", "PPM": ".ppm .pgm .pbm .pnm", "AVIF": ".avif", "JPEG2000": ".jp2 .j2k .jpx .jpf .j2c",
}  # fmt: skip
SUFFIXES = frozenset(" ".join(FORMATS.values()).split())
# Suffixes of images in other formats: these files are reported, not ignored.
UNREADABLE_SUFFIXES = frozenset({
    ".heic", ".heif", ".jxl", ".svg", ".eps", ".psd", ".tga", ".ico", ".icns", ".dng", ".cr2", ".cr3", ".nef", ".arw",
    ".orf", ".rw2", ".raf", ".dcm",
})  # fmt: skip
DRAFT_FORMATS = ("JPEG", "MPO")  # decoded at a reduced size, which is much faster; MPO are JPEGs of phones
MAX_THREADS = 8  # because each thread has a whole image in memory
LOOKAHEAD = 256  # prepared images that wait to be used
MIN_SIDE = 8  # pixels of the shorter side; smaller images show nothing
MODES_16_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
UINT16_MAX = 65_535
MIN_UINT16_PEAK = 4_096  # images of 12-bit cameras, for example, stay below it and would look black
MIN_CONTRAST = 8  # of 255; an image is blank if its values on white differ by less
# EXIF orientation to the operation that makes the image upright.
EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION = 0x0112


class UnusableError(Exception):
    """The reason why an image cannot be used, as the rest of a sentence that begins with its name."""


def prepare_image(source: str | Path | Image.Image, side: int) -> np.ndarray:
    """Return the image in ``source`` as `prepare` stores it: uint8 [3, side, side].

    Args:
        source: an image file, or an image that Pillow has opened. A JPEG file much larger than ``side`` is decoded at
            a reduced size, but an opened image is not, which changes values slightly.

    Raises:
        UnusableError: there is no usable image in ``source``.
    """
    image = as_rgb(source) if isinstance(source, Image.Image) else decode_image(Path(source), side)
    return resize_and_center_crop(image, side)


def prepare_images(sources: Iterable[str | Path], side: int) -> Iterator[np.ndarray | UnusableError]:
    """Yield each image as ``prepare_image`` returns it, or the reason why it is unusable; threads decode ahead."""

    def prepare(source: str | Path) -> np.ndarray | UnusableError:
        try:
            return prepare_image(source, side)
        except UnusableError as error:
            return UnusableError(str(error))  # without the traceback, which holds the decoded image

    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    pending: deque[Future[np.ndarray | UnusableError]] = deque()
    try:
        for source in sources:
            pending.append(pool.submit(prepare, source))
            if len(pending) > LOOKAHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # Ctrl-C: do not wait for files that are still queued
        pool.shutdown(wait=False, cancel_futures=True)


def decode_image(path: Path, side: int | None) -> Image.Image:
    """Decode the image in the file ``path`` and convert it with ``as_rgb``.

    Args:
        side: decode a JPEG at a reduced size whose sides are at least twice ``side``; None for its full size.

    Raises:
        UnusableError: there is no usable image in ``path``.
    """
    try:
        with path.open("rb") as file:
            image = open_image(file)
            if side is not None and image.format in DRAFT_FORMATS:
                image.draft(None, (2 * side, 2 * side))
            return as_rgb(image)
    except (UnusableError, MemoryError):
        raise
    except OSError as error:
        if error.errno is None:  # Pillow raises these if a file ends too early
            raise UnusableError(f"is damaged ({error})") from None
        remedy = ": change its permissions" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise UnusableError(f"cannot be read ({error.strerror}){remedy}") from None
    except Exception as error:  # any error that a damaged file causes in a decoder
        raise UnusableError(f"is damaged ({error or type(error).__name__})") from None


def open_image(file: BinaryIO) -> Image.Image:
    """Open the image in ``file`` without decoding it.

    Raises:
        UnusableError: there is no image, or it is too small or too large.
    """
    if not os.fstat(file.fileno()).st_size:
        raise UnusableError("is empty")
    limit = f"has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels: reduce it"
    try:
        image = Image.open(file, formats=list(FORMATS))
    except Image.DecompressionBombError:
        raise UnusableError(limit) from None
    except Image.UnidentifiedImageError:
        raise UnusableError(_explain_unidentified(file)) from None
    if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow only warns
        raise UnusableError(limit)
    if min(image.size) < MIN_SIDE:
        raise UnusableError(f"is too small with {image.width}×{image.height} pixels")
    return image


def _explain_unidentified(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(32)
    brands = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
    if start[4:8] == b"ftyp" and start[8:12] in brands:
        return "is HEIC, which Pillow cannot read: convert it to JPEG, for example with ImageMagick's `magick`"
    return f"is not an image in a supported format: convert it to one of {', '.join(FORMATS)}"


def as_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` upright, on white, with three channels of 8 bits; 16-bit gray values are rounded.

    Raises:
        UnusableError: the range of its values is unknown, or it is blank on white.
    """
    image.load()  # turns a TIFF and removes its orientation
    image = _apply_exif_orientation(image)
    if image.mode in MODES_16_BIT:
        values = np.asarray(image)
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest > UINT16_MAX:
            raise UnusableError("has values of more than 16 bits: save it with 8 or 16 bits")
        if highest < MIN_UINT16_PEAK:
            raise UnusableError(f"has 16-bit values of at most {highest:,} (of {UINT16_MAX:,}): rescale them")
        image = Image.fromarray((values.astype(np.float32) * np.float32(255 / UINT16_MAX) + 0.5).astype(np.uint8))
    if image.mode == "F":
        raise UnusableError("has floating-point values: save it with 8 or 16 bits per channel")
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    try:
        transpose = EXIF_TRANSPOSE.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF is ignored
        transpose = None
    return image if transpose is None else image.transpose(transpose)


def _on_white(image: Image.Image) -> Image.Image:
    flattened = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if _is_flat(flattened) and not _is_flat(image.getchannel("A")):
        raise UnusableError("is transparent, and blank on a white background: give it a background of another color")
    return flattened


def _is_flat(image: Image.Image) -> bool:
    return bool(np.ptp(np.asarray(image), axis=(0, 1)).max() < MIN_CONTRAST)


def pixel_hash(image: Image.Image) -> bytes:
    """Return a hash of the size and the pixels of ``image``, which does not depend on the file format."""
    pixels = hashlib.blake2b(str(image.size).encode())
    pixels.update(np.asarray(image).data)
    return pixels.digest()


def resize_and_center_crop(image: Image.Image, side: int) -> np.ndarray:
    """Return the largest center square of ``image`` (RGB), resized with antialias: uint8 [3, side, side]."""
    fitted = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
    return np.asarray(fitted).transpose(2, 0, 1)
