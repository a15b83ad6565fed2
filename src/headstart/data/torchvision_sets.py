"""Datasets of torchvision by name: torchvision downloads them, verifies their checksums and reads them."""

import filecmp
import shutil
from collections.abc import Callable, Sequence
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
IDX = tuple(f"{prefix}-{kind}-ubyte.gz" for prefix in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
Options = dict[str, Any]  # arguments of a torchvision dataset
TRAIN_FLAG: Any = {"training": (Options(train=True),), "test": Options(train=False)}
TRAIN_AND_VAL = (Options(split="train"), Options(split="val"))


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset of torchvision."""

    title: str
    class_name: str  # of torchvision.datasets
    archives: tuple[str, ...]  # the downloaded files
    subdir: str = ""  # folder of the archives inside torchvision's root folder
    side: int | None = None  # pixels, if all images have that size
    training: tuple[Options, ...] = (Options(split="train"),)  # several if torchvision divides the training images
    test: Options = field(default_factory=lambda: Options(split="test"))
    transposed: bool = False  # rows and columns are swapped, as in EMNIST
    classes: tuple[str, ...] | None = None  # if torchvision does not name them


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
    """Put the verified dataset ``name`` into ``dest``, from the archives in ``folder`` or from torchvision's servers.

    Args:
        downloads: the folder that caches downloaded archives.

    Raises:
        UserError: an archive is damaged, or is not in ``folder`` and cannot be downloaded.
    """
    spec = SETS[name]
    for archive in spec.archives:
        for source in (downloads / archive, folder / archive):
            if source.is_file():
                target = dest / spec.subdir / archive
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                break
    try:
        for options in (*spec.training, spec.test):
            _open(spec, dest, options, download=True)
    except Exception as error:  # no network, a wrong checksum, or any error that a damaged archive causes
        problem = f"{spec.title} is not complete in {folder} and cannot be downloaded ({type(error).__name__}: {error})"
        raise MachineError(f"missing dataset: {problem}. Put {', '.join(spec.archives)} into {folder}.") from None
    for archive in spec.archives:
        target = dest / spec.subdir / archive
        if not any(_is_same_file(target, source / archive) for source in (downloads, folder)):
            with files.atomic_write(downloads / archive) as tmp_path:
                shutil.copyfile(target, tmp_path)
        if not archive.endswith(".mat"):  # torchvision has unpacked all other archives
            target.unlink()


def _is_same_file(path: Path, source: Path) -> bool:
    return source.is_file() and filecmp.cmp(path, source, shallow=False)


def load(name: str, raw: str | Path, *, image_size: int) -> Dataset:
    """Load the dataset ``name`` from ``raw``, the folder that ``fetch`` filled; reduce images to ``image_size``.

    Raises:
        UserError: ``raw`` does not have the dataset.
    """
    spec = SETS[name]
    try:
        training = [_open(spec, raw, options) for options in spec.training]
        test = [_open(spec, raw, spec.test)]
    except Exception as error:  # any error that changed files cause in torchvision
        problem = f"{raw} is not {spec.title} as torchvision downloads it ({type(error).__name__}: {error})"
        raise UserError(f"damaged dataset: {problem}. Delete the folder and run `dvc repro`.") from None
    classes = spec.classes or tuple(training[0].classes)
    if classes[0] == "N/A":  # the labels of EMNIST letters start at 1
        classes = classes[1:]
    side = image_size if spec.side is None else min(spec.side, image_size)
    partitions = [_concatenate(spec, datasets, len(classes), side) for datasets in (training, test)]
    return Dataset(spec.title, classes, training=partitions[0], test=partitions[1])


def _open(spec: DatasetSpec, root: str | Path, options: Options, *, download: bool = False) -> Any:
    import torchvision.datasets

    return getattr(torchvision.datasets, spec.class_name)(root=str(root), download=download, **options)


def _concatenate(spec: DatasetSpec, datasets: Sequence[Any], n_classes: int, side: int) -> Partition:
    """Return one partition with the images of all ``datasets``, which are torchvision's."""
    labels = np.concatenate([_read_labels(dataset) for dataset in datasets])
    if labels.min() == 1 and labels.max() == n_classes:
        labels -= 1
    ends = np.cumsum([len(dataset) for dataset in datasets])

    def read_image(index: int) -> Any:
        i = int(np.searchsorted(ends, index, side="right"))
        image = datasets[i][index - int(ends[i - 1]) if i else index][0]
        return image.transpose(Image.Transpose.TRANSPOSE) if spec.transposed else image

    return Partition(labels, partial(_read_images, read_image, side, spec.title))


def _read_labels(dataset: Any) -> np.ndarray:
    """Return the labels, int64 [N], whose attribute has different names in torchvision's datasets."""
    labels = next(getattr(dataset, name) for name in ("targets", "labels", "_labels") if hasattr(dataset, name))
    return np.asarray(labels, dtype=np.int64)


def _read_images(read_image: Callable[[int], Any], side: int, title: str, indices: np.ndarray) -> np.ndarray:
    images = np.empty((len(indices), 3, side, side), dtype=np.uint8)
    with progress(len(indices), f"reading {title}") as bar:
        for i, index in enumerate(indices.tolist()):
            images[i] = resize_and_center_crop(read_image(index).convert("RGB"), side)
            bar.update()
    return images
