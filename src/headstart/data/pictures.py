"""A folder of pictures as a data set: `<class>/…`, or `train/<class>/…` and `test/<class>/…`.

The pictures are in the order of their file names, whatever class they are in, and of their content where names are the
same: so it is the same pictures that are trained and tested with when a class gets another name.
"""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headstart.console import UserError, progress
from headstart.data import decoding
from headstart.data.scanning import ImageFile, Scan, display_name, scan
from headstart.data.splits import Dataset, Partition

THREADS = 8  # at most, because each has a whole picture in memory


class DecodeResult(NamedTuple):
    """What is in a file."""

    digest: bytes  # of its pixels, the same for the same picture in another format
    problem: str  # why it cannot be used; empty if it can


def load(folder: Path, *, image_size: int, skip_unusable: bool) -> Dataset:
    """The data set in ``folder``, its pictures as uint8 [N, 3, side, side].

    The side is ``image_size``, or less where all pictures are equally small squares: these stay as they are.

    Raises:
        UserError: there are no two classes, or one has too few pictures; or some files cannot be used and
            ``skip_unusable`` is false: then all of them are named.
    """
    return read(scan(folder, follow_links=False), image_size=image_size, skip_unusable=skip_unusable)


def read(scanned: Scan, *, image_size: int, skip_unusable: bool) -> Dataset:
    """Return the data set of which ``scanned`` has the files; ``load`` says the rest."""
    folder, pictures = scanned.folder, scanned.pictures
    headers = [_header(picture.path) for picture in pictures]
    images, found = _read(pictures, headers, _side(headers, image_size), folder.name)
    problems = dict(scanned.problems)
    problems |= {picture.path: each.problem for picture, each in zip(pictures, found, strict=True) if each.problem}
    problems |= _copies(pictures, found, folder)
    skipped_files = {display_name(path.relative_to(folder)): problem for path, problem in sorted(problems.items())}
    if problems and not skip_unusable:
        remedy = (
            "mend or remove them, or have them left out: skip_unusable_images: true in params.yaml, or SKIP=1 after "
            "`make pictures`"
        )
        count = "a file" if len(problems) == 1 else f"{len(problems):,} files"
        details = [f"{name} {problem}" for name, problem in skipped_files.items()]
        raise UserError(f"{folder} has {count} that cannot be used: {remedy}", details)
    usable, kept = _in_order(pictures, [index for index, each in enumerate(pictures) if each.path not in problems])
    classes = _classes(usable, scanned)
    parts = {part: _part(usable, images, kept, part, classes) for part in {each.part for each in usable}}
    names = tuple(display_name(name) for name in classes)
    return Dataset(folder.name, names, parts.get("train") or parts[""], parts.get("test"), skipped_files)


def _in_order(pictures: Sequence[ImageFile], indices: Sequence[int]) -> tuple[list[ImageFile], np.ndarray]:
    """Return the pictures at ``indices`` by file name, those of the same name by the bytes in them; and their indices.

    The order depends neither on the names of the classes nor on the size that images are reduced to.
    """
    names = Counter(pictures[index].path.name for index in indices)

    def key(index: int) -> tuple[str, bytes]:
        path = pictures[index].path
        if names[path.name] == 1:
            return path.name, b""
        with path.open("rb") as file:
            return path.name, hashlib.file_digest(file, "blake2b").digest()

    order = sorted(indices, key=key)
    return [pictures[index] for index in order], np.array(order, dtype=np.int64)


def _part(
    pictures: Sequence[ImageFile], images: np.ndarray, indices: np.ndarray, part: str, classes: list[str]
) -> Partition:
    mask = np.array([picture.part == part for picture in pictures])
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers[picture.label] for picture in pictures], dtype=np.int64)
    part_indices = indices[mask]
    return Partition(labels[mask], lambda chosen: images[part_indices[chosen]])


def _classes(pictures: Sequence[ImageFile], scanned: Scan) -> list[str]:
    """The names of the classes, in order.

    Raises:
        UserError: there are no two, or one has too few pictures.
    """
    folder, labels = scanned.folder, scanned.labels
    counts = Counter((picture.part, picture.label) for picture in pictures)
    classes = sorted(labels)
    if len(classes) < 2 or not pictures:
        has = f"only the class {display_name(classes[0])}" if pictures else "no picture that can be used"
        nested = {picture.path.relative_to(folder).parts[1:-1] for picture in pictures}
        hint = f"; if the folders in it are the classes, use FOLDER={folder / classes[0]}" if len(nested) > 1 else ""
        raise UserError(f"{folder} has {has}: a study needs two classes, each a folder with pictures{hint}")
    if empty := sorted(labels - {label for _, label in counts}):
        names = ", ".join(map(display_name, empty))
        raise UserError(f"{folder} has no picture that can be used in {names}: put some there, or remove the folder")
    if len({display_name(label) for label in classes}) < len(classes):
        raise UserError(f"{folder} has two classes whose names look the same: rename one")
    for label in classes:
        if counts["", label] == 1:
            raise UserError(
                f"{folder} has one picture in {display_name(label)}: it needs two, to train with and to test with"
            )
        if not counts["", label]:
            for part in ("train", "test"):
                if not counts[part, label]:
                    raise UserError(f"{folder} has no picture in {part}/{display_name(label)}: put one there, or remove the "
                                    "class")  # fmt: skip
    return classes


class Header(NamedTuple):
    """What a file says of its picture before it is decoded."""

    format: str
    size: tuple[int, ...]  # the smaller side first, because it may have to be turned


def _header(path: Path) -> Header | None:
    """Return None for a file that cannot be used: it is reported when it is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                image = decoding.open_image(file)
                return Header(str(image.format), tuple(sorted(image.size)))
    except Exception:
        return None


def _side(headers: Sequence[Header | None], image_size: int) -> int:
    """The side of all pictures if they are equally small squares, else ``image_size``."""
    sizes = {header.size for header in headers if header is not None}
    [(width, height), *others] = sizes or {(image_size, image_size)}
    return width if not others and width == height <= image_size else image_size


def _read(
    pictures: Sequence[ImageFile], headers: Sequence[Header | None], side: int, name: str
) -> tuple[np.ndarray, list[DecodeResult]]:
    """All pictures, uint8 [N, 3, side, side], and what is found in each; black where it cannot be used."""
    images = np.zeros((len(pictures), 3, side, side), dtype=np.uint8)
    # Of these sizes a JPEG may be the same picture as a file that is decoded at its full size.
    full_sizes = {
        header.size for header in headers if header is not None and header.format not in decoding.DRAFT_FORMATS
    }

    def read_one(index: int) -> DecodeResult:
        path, header = pictures[index].path, headers[index]
        try:
            image = decoding.decode_image(path, side)
            images[index] = decoding.resize_and_center_crop(image, side)
            if header is not None and header.size in full_sizes and tuple(sorted(image.size)) != header.size:
                image = decoding.decode_image(path, None)
        except decoding.UnusableError as error:
            return DecodeResult(b"", str(error))
        return DecodeResult(decoding.pixel_hash(image), "")

    found = []
    with (
        warnings.catch_warnings(),
        progress(len(pictures), f"reading {name}") as bar,
        ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool,
    ):
        warnings.simplefilter("ignore")  # filters are the whole process's, so this holds in the threads too
        try:
            for each in pool.map(read_one, range(len(pictures))):
                found.append(each)
                bar.update()
        except BaseException:  # Ctrl-C: what has not begun need not be waited for
            pool.shutdown(cancel_futures=True)
            raise
    return images, found


def _copies(pictures: Sequence[ImageFile], found: Sequence[DecodeResult], folder: Path) -> dict[Path, str]:
    """Pictures that are there already, and which they are the same as: to be left out, in both classes if in two.

    What is in test stays: a network must not be tested with what it was trained with.
    """
    problems = {}
    for same in _equal(pictures, found):
        first, *others = sorted(same, key=lambda picture: picture.part != "test")
        if len({picture.label for picture in same}) > 1:
            problems[first.path] = f"is the same picture as {display_name(others[0].path.relative_to(folder))}"
        for other in others:
            problems[other.path] = f"is the same picture as {display_name(first.path.relative_to(folder))}"
    return problems


def _equal(pictures: Sequence[ImageFile], found: Sequence[DecodeResult]) -> list[list[ImageFile]]:
    """Return the groups of equal pictures.

    Pictures that are equal as they were decoded are compared at their full size, so that groups do not depend on the
    size that images are reduced to.
    """
    candidates: dict[bytes, list[ImageFile]] = {}
    for picture, each in zip(pictures, found, strict=True):
        if not each.problem:
            candidates.setdefault(each.digest, []).append(picture)
    groups: dict[bytes, list[ImageFile]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for picture in (each for group in candidates.values() if len(group) > 1 for each in group):
            groups.setdefault(decoding.pixel_hash(decoding.decode_image(picture.path, None)), []).append(picture)
    return [group for group in groups.values() if len(group) > 1]
