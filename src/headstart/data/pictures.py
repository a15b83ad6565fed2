"""A folder of pictures as a data set: `<class>/…`, or `train/<class>/…` and `test/<class>/…`.

The pictures are in the order of their file names, whatever class they are in, and of their content where names are the
same: so it is the same pictures that are trained and tested with when a class gets another name.
"""

import hashlib
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from headstart.console import UserError, progress
from headstart.data.splits import Dataset, Part

FORMATS = {"JPEG": ".jpg .jpeg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif .tiff", "BMP": ".bmp"}
SUFFIXES = " ".join(FORMATS.values()).split()
JUNK = ("thumbs.db", "desktop.ini")  # which systems leave in folders, beside files with a dot in front
SMALLEST = 8  # pixels of the shorter side: less shows nothing
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # what the folders are called
BITS_16 = ("I", "I;16", "I;16L", "I;16B", "I;16N")
HIGHEST = 65_535  # their largest value
DARKEST = 4_096  # of what cannot be meant to be seen with 16 bits: cameras of 12 bits end below it
THREADS = 8  # at most, because each has a whole picture in memory
# What EXIF's orientation says has to be done to the picture.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
ORIENTATION = 0x0112


class Picture(NamedTuple):
    """A file, and what the folders it lies in say of it."""

    path: Path
    part: str  # "train", "test", or empty where there are no such folders
    label: str


class Found(NamedTuple):
    """What is in a file."""

    digest: bytes  # of its content, the same for the same content in another format
    problem: str  # why it cannot be used; empty if it can


class _UnusableError(Exception):
    """Why a picture cannot be used."""


def load(folder: Path, *, image_size: int, skip_unusable: bool) -> Dataset:
    """The data set in ``folder``, its pictures as uint8 [N, 3, side, side].

    The side is ``image_size``, or less where all pictures are equally small squares: these stay as they are.

    Raises:
        UserError: there are no two classes, or one has too few pictures; or some files cannot be used and
            ``skip_unusable`` is false: then all of them are named.
    """
    pictures, problems = find(folder)
    headers = [_header(picture.path) for picture in pictures]
    images, found = _read(pictures, headers, _side(headers, image_size), folder.name)
    problems |= {picture.path: each.problem for picture, each in zip(pictures, found, strict=True) if each.problem}
    problems |= _copies(pictures, found, folder)
    left_out = {_text(path.relative_to(folder)): problem for path, problem in sorted(problems.items())}
    if problems and not skip_unusable:
        remedy = (
            "mend or remove them, or have them left out: skip_unusable_images: true in params.yaml, or SKIP=1 after "
            "`make pictures`"
        )
        count = "a file" if len(problems) == 1 else f"{len(problems):,} files"
        details = [f"{name} {problem}" for name, problem in left_out.items()]
        raise UserError(f"{folder} has {count} that cannot be used: {remedy}", details)
    order = sorted(range(len(pictures)), key=lambda at: (pictures[at].path.name, found[at].digest))
    kept = [at for at in order if pictures[at].path not in problems]
    usable = [pictures[at] for at in kept]
    classes = _classes(usable, {top.name for _, top in _class_folders(folder)}, folder)
    parts = {part: _part(usable, images, np.array(kept), part, classes) for part in {each.part for each in usable}}
    names = tuple(_text(name) for name in classes)
    return Dataset(folder.name, names, parts.get("train") or parts[""], parts.get("test"), left_out)


def _part(pictures: Sequence[Picture], images: np.ndarray, at: np.ndarray, part: str, classes: list[str]) -> Part:
    ours = np.array([picture.part == part for picture in pictures])
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers[picture.label] for picture in pictures], dtype=np.int64)
    of_part = at[ours]
    return Part(labels[ours], lambda indices: images[of_part[indices]])


def find(folder: Path) -> tuple[list[Picture], dict[Path, str]]:
    """The files in the folders of the classes, by path, and those of which it is plain that they are none.

    Raises:
        UserError: there is no such folder, or it has no classes.
    """
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, and DVC does not see what is behind it: put the folder itself there")
    classes = _class_folders(folder)
    pictures, problems = [], {}
    for part, top in classes:
        for path, problem in _files(top, folder):
            if problem:
                problems[path] = problem
            else:
                pictures.append(Picture(path, part, top.name))
    for place in {top.parent for _, top in classes} | {folder}:
        strays = (path for path in place.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)
        problems |= dict.fromkeys(strays, "is in no class")
    return sorted(pictures, key=lambda picture: picture.path), problems


def _class_folders(folder: Path) -> list[tuple[str, Path]]:
    """The folders of the classes, each with "train", "test" or an empty text.

    A folder called train has those of the classes in it if it has folders and no pictures: else it is a class.

    Raises:
        UserError: there are none, or there is train without test, or something beside them.
    """
    tops = _folders(folder)
    if not tops:
        raise UserError(f"{folder} has no folders: give each class one, with its pictures in it")
    parts = {top: PARTS[top.name.lower()] for top in tops if top.name.lower() in PARTS and _has_only_folders(top)}
    if not parts:
        return [("", top) for top in tops]
    names = ", ".join(_text(top.name) for top in parts)
    if others := ", ".join(_text(top.name) for top in tops if top not in parts):
        raise UserError(f"{folder} has {others} beside {names}: put its pictures into train and test, or remove it")
    if sorted(parts.values()) != ["test", "train"]:
        raise UserError(f"{folder} has {names}: it must have train and test, or the classes alone")
    return [(part, each) for top, part in parts.items() for each in _folders(top)]


def _has_only_folders(top: Path) -> bool:
    return bool(_folders(top)) and not any(path.suffix.lower() in SUFFIXES for path in top.iterdir() if path.is_file())


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        raise UserError(f"there is no folder {folder}") from None
    except NotADirectoryError:
        raise UserError(f"{folder} is no folder") from None


def _files(top: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """The files in ``top`` and in what lies in it, each with its problem or an empty text."""
    inside = folder.resolve()
    for place, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *names):
            path = Path(place, name)
            if name.startswith(".") or name.lower() in JUNK:
                continue
            if path.is_symlink() and not path.exists():
                yield path, "is a link to nothing"
            elif path.is_symlink() and (path.is_dir() or not path.resolve().is_relative_to(inside)):
                yield path, "is a link out of the folder" if not path.is_dir() else "is a link to a folder"
            elif name in names:
                yield path, ""
    if top.is_symlink():
        yield top, "is a link to a folder"


def _classes(pictures: Sequence[Picture], labels: set[str], folder: Path) -> list[str]:
    """The names of the classes, ``labels``, in order.

    Raises:
        UserError: there are no two, or one has too few pictures.
    """
    counts = Counter((picture.part, picture.label) for picture in pictures)
    classes = sorted(labels)
    if len(classes) < 2 or not pictures:
        has = f"only the class {_text(classes[0])}" if pictures else "no picture that can be used"
        raise UserError(f"{folder} has {has}: a study needs two classes, each a folder with pictures")
    if empty := sorted(labels - {label for _, label in counts}):
        names = ", ".join(map(_text, empty))
        raise UserError(f"{folder} has no picture that can be used in {names}: put some there, or remove the folder")
    if len({_text(label) for label in classes}) < len(classes):
        raise UserError(f"{folder} has two classes whose names look the same: rename one")
    for label in classes:
        if counts["", label] == 1:
            raise UserError(f"{folder} has one picture in {_text(label)}: it needs two, to train with and to test with")
        if not counts["", label]:
            for part in ("train", "test"):
                if not counts[part, label]:
                    raise UserError(f"{folder} has no picture in {part}/{_text(label)}: put one there, or remove the "
                                    "class")  # fmt: skip
    return classes


class Header(NamedTuple):
    """What a file says of its picture before it is decoded."""

    format: str
    size: tuple[int, ...]  # the smaller side first, because it may have to be turned


def _header(path: Path) -> Header | None:
    """Nothing of what cannot be used, which will be found when it is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=list(FORMATS)) as image:
                return Header(str(image.format), tuple(sorted(image.size))) if min(image.size) >= SMALLEST else None
    except Exception:
        return None


def _side(headers: Sequence[Header | None], image_size: int) -> int:
    """The side of all pictures if they are equally small squares, else ``image_size``."""
    sizes = {header.size for header in headers if header is not None}
    [(width, height), *others] = sizes or {(image_size, image_size)}
    return width if not others and width == height <= image_size else image_size


def _read(
    pictures: Sequence[Picture], headers: Sequence[Header | None], side: int, name: str
) -> tuple[np.ndarray, list[Found]]:
    """All pictures, uint8 [N, 3, side, side], and what is found in each; black where it cannot be used."""
    images = np.zeros((len(pictures), 3, side, side), dtype=np.uint8)
    # Which might be the same picture as a JPEG.
    other_formats = {header.size for header in headers if header is not None and header.format != "JPEG"}

    def read(at: int) -> Found:
        try:
            with pictures[at].path.open("rb") as file, _opened(file) as image:
                if tuple(sorted(image.size)) not in other_formats:
                    image.draft(None, (2 * side, 2 * side))  # JPEG is decoded at half the size and less, much faster
                picture = _as_rgb(_upright(image))
        except _UnusableError as error:
            return Found(b"", str(error))
        except MemoryError:
            raise
        except Exception as error:  # whatever a damaged file makes a decoder raise
            return Found(b"", f"is damaged ({error or type(error).__name__})")
        images[at] = to_array(picture, side)
        digest = hashlib.blake2b(str(picture.size).encode())
        digest.update(np.asarray(picture).data)
        return Found(digest.digest(), "")

    found = []
    with (
        warnings.catch_warnings(),
        progress(len(pictures), f"reading {name}") as bar,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):
        warnings.simplefilter("ignore")  # filters are the whole process's, so this holds in the threads too
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            for each in pool.map(read, range(len(pictures))):
                found.append(each)
                bar.update()
        except BaseException:  # Ctrl-C: what has not begun need not be waited for
            pool.shutdown(cancel_futures=True)
            raise
    return images, found


def _opened(file) -> Image.Image:
    """The picture in ``file``, not yet decoded.

    Raises:
        _UnusableError: it is none, too small or too large.
    """
    if not os.fstat(file.fileno()).st_size:
        raise _UnusableError("is empty")
    limit = f"has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels: reduce it"
    try:
        image = Image.open(file, formats=list(FORMATS))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _UnusableError(limit) from None
    except Image.UnidentifiedImageError:
        raise _UnusableError(f"is no picture in {', '.join(FORMATS)}") from None
    if min(image.size) < SMALLEST:
        raise _UnusableError(f"is too small with {image.width}×{image.height} pixels")
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read turns nothing
        turn = None
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits: transparency on white, grey values of 16 bits rounded to 8.

    Raises:
        _UnusableError: its values have no known range.
    """
    if image.mode in BITS_16:
        values = np.asarray(image)
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0 or highest > HIGHEST:
            raise _UnusableError("has values of more than 16 bits: save it with 8 or 16")
        if highest < DARKEST:
            raise _UnusableError(f"has 16 bits a pixel, and no value above {highest:,} of {HIGHEST:,}: stretch them")
        image = Image.fromarray((values.astype(np.float32) * np.float32(255 / HIGHEST) + 0.5).astype(np.uint8))
    if image.mode == "F":
        raise _UnusableError("has floating-point values: save it with 8 or 16 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_array(image: Image.Image, side: int) -> np.ndarray:
    """The largest square in the middle, reduced or enlarged (bilinear, with antialias): uint8 [3, side, side]."""
    fitted = ImageOps.fit(_as_rgb(image), (side, side), Image.Resampling.BILINEAR)
    return np.asarray(fitted).transpose(2, 0, 1)


def _copies(pictures: Sequence[Picture], found: Sequence[Found], folder: Path) -> dict[Path, str]:
    """Pictures that are there already, and which they are the same as: to be left out, in both classes if in two.

    What is in test stays: a network must not be tested with what it was trained with.
    """
    by_digest: dict[bytes, list[Picture]] = {}
    for picture, each in zip(pictures, found, strict=True):
        if not each.problem:
            by_digest.setdefault(each.digest, []).append(picture)
    problems = {}
    for same in by_digest.values():
        first, *others = sorted(same, key=lambda picture: picture.part != "test")
        if len({picture.label for picture in same}) > 1:
            problems[first.path] = f"is the same picture as {_text(others[0].path.relative_to(folder))}"
        for other in others:
            problems[other.path] = f"is the same picture as {_text(first.path.relative_to(folder))}"
    return problems


def _text(name: str | Path) -> str:
    """A name of the file system as text: one form of every letter, no control characters, no bytes that are none."""
    plain = str(name).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    printable = "".join("\ufffd" if unicodedata.category(letter) == "Cc" else letter for letter in plain)
    return unicodedata.normalize("NFC", printable)
