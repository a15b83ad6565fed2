"""Load a folder of images as a dataset: `<class>/…`, or `train/<class>/…` and `test/<class>/…`.

Images are sorted by file name, and by content if names are equal. The order does not depend on the classes, so renaming
a class does not change the split.
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
from headstart.data import decoding, grouping
from headstart.data.scanning import ImageFile, Scan, display_name, scan
from headstart.data.splits import Dataset, Partition
from headstart.params import GroupBy


class DecodeResult(NamedTuple):
    """The result of decoding a file."""

    digest: bytes  # hash of the pixels; the file format does not matter
    problem: str  # the reason why the file cannot be used, or an empty string


def load(folder: Path, *, image_size: int, skip_unusable: bool, group_by: GroupBy | None = None) -> Dataset:
    """Load the dataset in ``folder``, with images uint8 [N, 3, side, side].

    With ``group_by``, its partitions have groups: see ``grouping.group_images``.

    The side is ``image_size``, or less if all images are squares of the same smaller size, which are not resized.

    Raises:
        UserError: there are fewer than two classes, or a class has too few images; or some files cannot be used and
            ``skip_unusable`` is false: then the error lists all of them.
    """
    scanned = scan(folder, follow_links=False)
    return read(scanned, image_size=image_size, skip_unusable=skip_unusable, group_by=group_by)


def read(scanned: Scan, *, image_size: int, skip_unusable: bool, group_by: GroupBy | None = None) -> Dataset:
    """Read the dataset whose files are in ``scanned``; see ``load``."""
    folder, image_files = scanned.folder, scanned.image_files
    headers = [_read_header(file.path) for file in image_files]
    images, results = _decode(image_files, headers, _output_side(headers, image_size), folder.name)
    problems = dict(scanned.problems)
    problems |= {file.path: result.problem for file, result in zip(image_files, results, strict=True) if result.problem}
    problems |= _find_duplicates(image_files, results, folder)
    skipped_files = {display_name(path.relative_to(folder)): problem for path, problem in sorted(problems.items())}
    if problems and not skip_unusable:
        count = "1 file" if len(problems) == 1 else f"{len(problems):,} files"
        details = [f"{name} {problem}" for name, problem in skipped_files.items()]
        raise UserError(f"{count} cannot be used: {folder}. Repair or remove them, or skip them: set "
                        "skip_unusable_images: true in params.yaml, or add SKIP=1 to `make pictures`.",
                        details)  # fmt: skip
    indices = _image_order(image_files, [i for i, file in enumerate(image_files) if file.path not in problems])
    usable_files = [image_files[index] for index in indices]
    class_names = _check_classes(usable_files, scanned)
    groups = None
    if group_by is not None:
        pixels = images[indices] if group_by == "near-duplicates" else images[:0]
        groups = _group(usable_files, pixels, group_by, folder)
    partitions = {
        partition: _partition(usable_files, images, indices, partition, class_names, folder, groups)
        for partition in {file.partition for file in usable_files}
    }
    classes = tuple(map(display_name, class_names))
    training = partitions.get("train") or partitions[""]
    return Dataset(folder.name, classes, training, partitions.get("test"), skipped_files)


def _image_order(image_files: Sequence[ImageFile], indices: Sequence[int]) -> np.ndarray:
    """Sort the files at ``indices`` by file name, and files of the same name by their bytes; return the indices.

    The order depends neither on the names of the classes nor on the image size.
    """
    name_counts = Counter(image_files[index].path.name for index in indices)

    def key(index: int) -> tuple[str, bytes]:
        path = image_files[index].path
        if name_counts[path.name] == 1:
            return path.name, b""
        with path.open("rb") as file:
            return path.name, hashlib.file_digest(file, "blake2b").digest()

    return np.array(sorted(indices, key=key), dtype=np.int64)


def _partition(
    image_files: Sequence[ImageFile],
    images: np.ndarray,
    indices: np.ndarray,
    partition: str,
    class_names: list[str],
    folder: Path,
    groups: np.ndarray | None,
) -> Partition:
    mask = np.array([file.partition == partition for file in image_files])
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[file.class_name] for file in image_files], dtype=np.int64)
    partition_indices = indices[mask]
    names = tuple(display_name(file.path.relative_to(folder)) for file in image_files if file.partition == partition)
    partition_groups = None if groups is None else groups[mask]
    return Partition(labels[mask], lambda chosen: images[partition_indices[chosen]], names, partition_groups)


def _group(image_files: Sequence[ImageFile], images: np.ndarray, group_by: GroupBy, folder: Path) -> np.ndarray:
    """Return the group of each image; see ``grouping.group_images``.

    Raises:
        UserError: all images are in one group, or each is in a group of its own.
    """
    below_class = []
    for file in image_files:
        parts = file.path.relative_to(folder).parts
        start = parts.index(file.class_name, 1 if file.partition else 0)  # there may be folders above the classes
        below_class.append(Path(*parts[start + 1 :]))
    groups = grouping.group_images(images, below_class, group_by)
    n_groups = len(np.unique(groups))
    if n_groups == 1 or (n_groups == len(groups) and group_by != "near-duplicates"):
        problem = "all images in one group" if n_groups == 1 else "each image in a group of its own"
        raise UserError(f"group_by: {group_by} puts {problem}. Choose another value, or turn grouping off: group_by: "
                        "null in params.yaml, or make pictures GROUP_BY=none.")  # fmt: skip
    return groups


def _check_classes(image_files: Sequence[ImageFile], scanned: Scan) -> list[str]:
    """Return the sorted names of the classes.

    Raises:
        UserError: there are fewer than two classes, or a class has too few images.
    """
    folder = scanned.folder
    counts = Counter((file.partition, file.class_name) for file in image_files)
    classes = sorted(scanned.class_names)
    if not image_files:
        raise UserError(f"no usable image: {folder}. Create at least two class folders with images.")
    if len(classes) < 2:
        nested = {file.path.relative_to(folder).parts[1:-1] for file in image_files}
        hint = f" If the folders in it are the classes, use FOLDER={folder / classes[0]}." if len(nested) > 1 else ""
        raise UserError(f"only one class: {folder} has only the class {display_name(classes[0])}. Create at least two "
                        f"class folders with images.{hint}")  # fmt: skip
    if empty := sorted(scanned.class_names - {class_name for _, class_name in counts}):
        names = ", ".join(map(display_name, empty))
        raise UserError(f"class without usable images: {folder} has no usable image in {names}. Add images, or remove "
                        "the folder.")  # fmt: skip
    displayed = Counter(map(display_name, classes))
    if len(displayed) < len(classes):
        names = ", ".join(ascii(name) for name in classes if displayed[display_name(name)] > 1)
        raise UserError(f"{folder} has classes whose names look the same. Rename all but one of them. Got {names}.")
    for name in classes:
        if counts["", name] == 1:
            raise UserError(f"class with a single image: {folder} has one image in {display_name(name)}. Add another: "
                            "a class needs one for training and one for testing.")  # fmt: skip
        if not counts["", name]:
            for partition in ("train", "test"):
                if not counts[partition, name]:
                    raise UserError(f"empty class: {folder} has no image in {partition}/{display_name(name)}. Add an "
                                    "image, or remove the class.")  # fmt: skip
    return classes


class Header(NamedTuple):
    """Format and size of an image, which can be read without decoding it."""

    format: str
    size: tuple[int, ...]  # the smaller side first, because EXIF may rotate the image


def _read_header(path: Path) -> Header | None:
    """Return None for an unreadable file, which is reported when it is decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                image = decoding.open_image(file)
                return Header(str(image.format), tuple(sorted(image.size)))
    except Exception:
        return None


def _output_side(headers: Sequence[Header | None], image_size: int) -> int:
    """Return the side of all images if they are squares of the same smaller size, else ``image_size``."""
    sizes = {header.size for header in headers if header is not None}
    if len(sizes) == 1:
        [(width, height)] = sizes
        if width == height <= image_size:
            return width
    return image_size


def _decode(
    image_files: Sequence[ImageFile], headers: Sequence[Header | None], side: int, name: str
) -> tuple[np.ndarray, list[DecodeResult]]:
    """Return all images, uint8 [N, 3, side, side], black if unusable, and one result per file."""
    images = np.zeros((len(image_files), 3, side, side), dtype=np.uint8)
    # A JPEG of one of these sizes may be a duplicate of a file that is decoded at its full size.
    full_sizes = {
        header.size for header in headers if header is not None and header.format not in decoding.DRAFT_FORMATS
    }

    def decode_file(index: int) -> DecodeResult:
        path, header = image_files[index].path, headers[index]
        try:
            image = decoding.decode_image(path, side)
            images[index] = decoding.resize_and_center_crop(image, side)
            if header is not None and header.size in full_sizes and tuple(sorted(image.size)) != header.size:
                image = decoding.decode_image(path, None)
        except decoding.UnusableError as error:
            return DecodeResult(b"", str(error))
        return DecodeResult(decoding.pixel_hash(image), "")

    results = []
    with (
        warnings.catch_warnings(),
        progress(len(image_files), f"reading {name}") as bar,
        ThreadPoolExecutor(min(decoding.MAX_THREADS, os.cpu_count() or 1)) as pool,
    ):
        warnings.simplefilter("ignore")  # warning filters are global, so this applies to the threads too
        try:
            for result in pool.map(decode_file, range(len(image_files))):
                results.append(result)
                bar.update()
        except BaseException:  # Ctrl-C: do not wait for files that are still queued
            pool.shutdown(cancel_futures=True)
            raise
    return images, results


def _find_duplicates(
    image_files: Sequence[ImageFile], results: Sequence[DecodeResult], folder: Path
) -> dict[Path, str]:
    """Map each duplicate to the file that it duplicates; if the copies are in different classes, skip all of them.

    Test images are preferred: a network must not be trained with an image that it is tested with.
    """
    problems = {}
    for group in _group_equal(image_files, results):
        first, *duplicates = sorted(group, key=lambda file: file.partition != "test")
        if len({file.class_name for file in group}) > 1:
            problems[first.path] = f"is the same image as {display_name(duplicates[0].path.relative_to(folder))}"
        for file in duplicates:
            problems[file.path] = f"is the same image as {display_name(first.path.relative_to(folder))}"
    return problems


def _group_equal(image_files: Sequence[ImageFile], results: Sequence[DecodeResult]) -> list[list[ImageFile]]:
    """Return the groups of equal images.

    Images that are equal at the decoded size are compared at their full size, so the groups do not depend on the image
    size.
    """
    candidates: dict[bytes, list[ImageFile]] = {}
    for file, result in zip(image_files, results, strict=True):
        if not result.problem:
            candidates.setdefault(result.digest, []).append(file)
    groups: dict[bytes, list[ImageFile]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in (file for group in candidates.values() if len(group) > 1 for file in group):
            groups.setdefault(decoding.pixel_hash(decoding.decode_image(file.path, None)), []).append(file)
    return [group for group in groups.values() if len(group) > 1]
