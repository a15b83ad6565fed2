"""torchvision's data sets by name: fetched by torchvision, with its checksums, and read by it."""

import filecmp
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headstart import files
from headstart.console import MachineError, UserError, progress
from headstart.data.decoding import resize_and_center_crop
from headstart.data.splits import Dataset, Partition

DIGITS = tuple("0123456789")
IDX = tuple(f"{split}-{what}-ubyte.gz" for split in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
Options = dict[str, Any]  # torchvision's
TRAIN_FLAG: Any = {"training": (Options(train=True),), "test": Options(train=False)}
TRAIN_AND_VAL = (Options(split="train"), Options(split="val"))


@dataclass(frozen=True)
class DatasetSpec:
    """A data set of torchvision's."""

    title: str
    class_name: str  # of torchvision.datasets
    archives: tuple[str, ...]  # what is downloaded
    subdir: str = ""  # where in torchvision's folder they lie
    side: int | None = None  # pixels, where all images have that size
    training: tuple[Options, ...] = (Options(split="train"),)  # several where torchvision has divided them once more
    test: Options = field(default_factory=lambda: Options(split="test"))
    transposed: bool = False  # rows are columns, as EMNIST's authors have it
    classes: tuple[str, ...] | None = None  # where torchvision does not name them


SETS = {
    "mnist": DatasetSpec("MNIST", "MNIST", IDX, "MNIST/raw", side=28, **TRAIN_FLAG),
    "kmnist": DatasetSpec("KMNIST", "KMNIST", IDX, "KMNIST/raw", side=28, **TRAIN_FLAG),
    "emnist-letters": DatasetSpec(
        "EMNIST letters", "EMNIST", ("gzip.zip",), "EMNIST/raw", side=28, transposed=True,
        training=(Options(split="letters", train=True),), test=Options(split="letters", train=False),
    ),
    "cifar-10": DatasetSpec("CIFAR-10", "CIFAR10", ("cifar-10-python.tar.gz",), side=32, **TRAIN_FLAG),
    "cifar-100": DatasetSpec("CIFAR-100", "CIFAR100", ("cifar-100-python.tar.gz",), side=32, **TRAIN_FLAG),
    "svhn": DatasetSpec("SVHN", "SVHN", ("train_32x32.mat", "test_32x32.mat"), side=32, classes=DIGITS),
    "stl-10": DatasetSpec("STL-10", "STL10", ("stl10_binary.tar.gz",), side=96),
    "flowers-102": DatasetSpec(
        "Oxford Flowers 102", "Flowers102", ("102flowers.tgz", "imagelabels.mat", "setid.mat"), "flowers-102",
        training=TRAIN_AND_VAL,
    ),
    "oxford-iiit-pet": DatasetSpec(
        "Oxford-IIIT Pet", "OxfordIIITPet", ("images.tar.gz", "annotations.tar.gz"), "oxford-iiit-pet",
        training=(Options(split="trainval"),),
    ),
    "food-101": DatasetSpec("Food-101", "Food101", ("food-101.tar.gz",)),
    "dtd": DatasetSpec("DTD", "DTD", ("dtd-r1.0.1.tar.gz",), "dtd", training=TRAIN_AND_VAL),
}  # fmt: skip


def fetch(name: str, folder: Path, *, downloads: Path, dest: Path) -> None:
    """Put the data set ``name`` dest ``dest``: from the archives in ``folder``, or else downloaded; all verified.

    Args:
        downloads: where archives that are downloaded are kept, for the next time.

    Raises:
        UserError: an archive is in neither place, or damaged.
    """
    entry = SETS[name]
    for archive in entry.archives:
        for source in (downloads / archive, folder / archive):
            if source.is_file():
                place = dest / entry.subdir / archive
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, place)
                break
    try:
        for options in (*entry.training, entry.test):
            _open(entry, dest, options, download=True)
    except Exception as error:  # no network, a checksum that does not fit, and whatever a damaged archive makes of it
        problem = f"{entry.title} is not whole in {folder} and cannot be downloaded ({type(error).__name__}: {error})"
        raise MachineError(f"{problem}: put {', '.join(entry.archives)} there") from None
    for archive in entry.archives:
        place = dest / entry.subdir / archive
        if not any(_same(place, source / archive) for source in (downloads, folder)):
            with files.atomic_write(downloads / archive) as beside:
                shutil.copyfile(place, beside)
        if not archive.endswith(".mat"):  # all others are unpacked now
            place.unlink()


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)


def load(name: str, raw: str | Path, *, image_size: int) -> Dataset:
    """The data set ``name``, of what ``fetch`` put dest ``raw``; images larger than ``image_size`` are reduced to it.

    Raises:
        UserError: ``raw`` does not hold it.
    """
    entry = SETS[name]
    try:
        training = [_open(entry, raw, options) for options in entry.training]
        test = [_open(entry, raw, entry.test)]
    except Exception as error:  # whatever their code makes of files that are not as it left them
        raise UserError(f"{raw} is not {entry.title} as torchvision fetches it ({type(error).__name__}: {error}): "
                        "delete the folder, and `dvc repro` makes it anew") from None  # fmt: skip
    classes = entry.classes or tuple(training[0].classes)
    if classes[0] == "N/A":  # EMNIST's letters are counted from 1
        classes = classes[1:]
    side = image_size if entry.side is None else min(entry.side, image_size)
    parts = [_part(entry, sets, len(classes), side) for sets in (training, test)]
    return Dataset(entry.title, classes, training=parts[0], test=parts[1])


def _open(entry: DatasetSpec, root: str | Path, options: Options, *, download: bool = False) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, entry.class_name)(root=str(root), download=download, **options)


def _part(entry: DatasetSpec, sets: Sequence[Any], n_classes: int, side: int) -> Partition:
    """Several of torchvision's data sets as one."""
    labels = np.concatenate([_labels(one) for one in sets])
    if labels.min() == 1 and labels.max() == n_classes:
        labels -= 1
    ends = np.cumsum([len(one) for one in sets])

    def image(index: int) -> Any:
        at = int(np.searchsorted(ends, index, side="right"))
        found = sets[at][index - int(ends[at - 1]) if at else index][0]
        return found.transpose(Image.Transpose.TRANSPOSE) if entry.transposed else found

    return Partition(labels, partial(_read, image, side, entry.title))


def _labels(one: Any) -> np.ndarray:
    """torchvision has no common name for them."""
    found = next(getattr(one, name) for name in ("targets", "labels", "_labels") if hasattr(one, name))
    return np.asarray(found, dtype=np.int64)


def _read(image: Any, side: int, title: str, indices: np.ndarray) -> np.ndarray:
    images = np.empty((len(indices), 3, side, side), dtype=np.uint8)
    with progress(len(indices), f"reading {title}") as bar:
        for at, index in enumerate(indices.tolist()):
            images[at] = resize_and_center_crop(image(index).convert("RGB"), side)
            bar.update()
    return images
