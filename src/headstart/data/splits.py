"""The three splits of a data set: what `prepare` writes of them, and which images are in which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart import files
from headstart.console import UserError

SPLITS = ("training", "validation", "test")
TEST_SHARE = 0.2  # of each class, where a data set names no test images


@dataclass(frozen=True)
class Partition:
    """Images that a data set keeps together, such as its official test set."""

    labels: np.ndarray  # int64 [N]
    read: Callable[[np.ndarray], np.ndarray]  # indices [n] to uint8 [n, height, width] or [n, 3, height, width]


@dataclass(frozen=True)
class Dataset:
    """A data set before its images are read."""

    title: str
    classes: tuple[str, ...]
    training: Partition
    test: Partition | None  # without one, some of the training images are kept for testing
    skipped_files: Mapping[str, str] = field(default_factory=dict)  # files that could not be used, and why


class Split(NamedTuple):
    """Images, uint8 [N, height, width] if they are gray, else [N, 3, height, width]; labels, int64 [N]; the classes."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


class DatasetMetadata(NamedTuple):
    """What is to be said of a data set."""

    classes: tuple[str, ...]
    skipped_files: dict[str, str]  # files that could not be used, and why


def write_splits(path: str | Path, dataset: Dataset, *, sizes: Mapping[str, int], seed: int) -> None:
    """Choose the images of the three splits, read them, and write them with all that belongs to them.

    Args:
        sizes: how many "training" and "validation" images; the test images are all that there are.
        seed: of the choice.

    Raises:
        UserError: there are fewer images.
    """
    labels = dataset.training.labels
    pool, test = (np.arange(len(labels)), None) if dataset.test else hold_out(labels, seed=seed)
    wanted = [sizes["validation"], sizes["training"]]
    if sum(wanted) > len(pool):
        raise UserError(f"training_images and validation_images must add up to at most {len(pool):,}, the images there "
                        f"are for both in {dataset.title} (it is {sum(wanted)}): lower one in params.yaml")  # fmt: skip
    # Validation comes first: its images stay the same when the number of training images changes.
    validation, training = (pool[chosen] for chosen in stratified_split(labels[pool], sizes=wanted, seed=seed))
    if missing := missing_classes(labels[training], dataset.classes):
        named = abbreviate(missing)
        problem = f"training_images leaves none of {named} to train with ({len(missing):,} of {len(dataset.classes):,} "
        raise UserError(f"{problem}classes): raise it, or lower validation_images")
    parts = {"training": (dataset.training, training), "validation": (dataset.training, validation)}
    parts["test"] = (dataset.training, test) if dataset.test is None else (dataset.test, None)
    arrays: dict[str, np.ndarray] = {}
    for split, (part, chosen) in parts.items():
        indices = np.arange(len(part.labels)) if chosen is None else chosen
        arrays |= {f"{split}_images": part.read(indices), f"{split}_labels": part.labels[indices]}
    description = {"classes": dataset.classes, "skipped_files": dict(dataset.skipped_files)}
    files.write_arrays(path, _without_colour(arrays), description)


def missing_classes(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """The names of the classes that none of ``labels`` is."""
    there = set(labels.tolist())
    return [name for label, name in enumerate(classes) if label not in there]


def abbreviate(names: Sequence[str]) -> str:
    """The first three, for a line that says which."""
    return ", ".join(names[:3]) + (" …" if names[3:] else "")


def _without_colour(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with one channel of the images, where the three are equal in all of them."""
    images = {name: array for name, array in arrays.items() if array.ndim == 4}
    if any((array[:, :1] != array[:, channel : channel + 1]).any() for array in images.values() for channel in (1, 2)):
        return arrays
    return arrays | {name: array[:, 0] for name, array in images.items()}


def read_metadata(path: str | Path) -> DatasetMetadata:
    """Read what a file that ``write`` wrote says of its data set; ``read_split`` says what it raises."""
    return _description(path, files.read_arrays(path, "test_labels").description)


def _description(path: str | Path, found: Mapping[str, Any]) -> DatasetMetadata:
    if found.keys() != set(DatasetMetadata._fields):
        raise UserError(f"{path} does not say what `prepare` writes of a data set: delete it, and `dvc repro` makes it "
                        "anew")  # fmt: skip
    return DatasetMetadata(tuple(found["classes"]), found["skipped_files"])


def read_split(path: str | Path, split: str) -> Split:
    """Read one of ``SPLITS`` of a file that ``write`` wrote.

    Raises:
        UserError: the file is missing, or what is in it are not images and as many labels of its classes.
    """
    labels, classes = read_labels(path, split)
    [images] = files.read_arrays(path, f"{split}_images").arrays.values()
    square = images.ndim in (3, 4) and images.shape[-1] == images.shape[-2]
    if images.dtype != np.uint8 or not square or images.shape[:-2] not in ((len(labels),), (len(labels), 3)):
        raise _damaged(path, split)
    return Split(images, labels, classes)


def read_labels(path: str | Path, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the labels, int64 [N], and the class names of one of ``SPLITS``, without its images.

    Raises:
        UserError: the file is missing, or has no labels of its classes.
    """
    arrays, description = files.read_arrays(path, f"{split}_labels")
    classes = _description(path, description).classes
    [labels] = arrays.values()
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise _damaged(path, split)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise _damaged(path, split)
    return labels, classes


def _damaged(path: str | Path, split: str) -> UserError:
    return UserError(f"{path} has other {split} images or labels than `prepare` writes: delete it, and `dvc repro` "
                     "makes it anew")  # fmt: skip


def hold_out(labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of what is left, and those of a fifth of each class, at least one, to test with: ascending int64."""
    order = permutation(len(labels), np.random.RandomState(seed % 2**32))
    test = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        test += members[: max(1, round(TEST_SHARE * len(members)))].tolist()
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(np.array(test, dtype=np.int64))


def stratified_split(labels: np.ndarray, *, sizes: list[int], seed: int) -> list[np.ndarray]:
    """Choose disjoint sets of indices, each with every class in the proportion that it has in ``labels``.

    Images get a random order within their class; taking them class by class in turn, in proportion to the classes'
    sizes, makes every stretch of that order stratified: classes that are equally common to within one image, and of
    any others one that has the share p of the images to within 1 + p times the number of classes.

    Args:
        labels: integers [N].
        sizes: how many indices for each set; together at most N.
        seed: of the random order, the same whatever the sizes are.

    Returns:
        One int64 array [size] for each of ``sizes``, each in random order.
    """
    if sum(sizes) > len(labels):
        raise UserError(f"{sum(sizes):,} images are asked for, and there are {len(labels):,}: ask for fewer")
    generator = np.random.RandomState(seed % 2**32)
    turn = _stratified_order(labels, generator)
    sets = np.split(turn[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [chosen[permutation(len(chosen), generator)] for chosen in sets]


def _stratified_order(labels: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
    """A random order of which every stretch is stratified: see ``stratified_split``."""
    order = permutation(len(labels), generator)
    position = np.empty(len(labels), dtype=np.float32)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        position[members] = (np.arange(len(members), dtype=np.float32) + np.float32(0.5)) / np.float32(len(members))
    return order[position.argsort(stable=True)]


def nested_subset(labels: np.ndarray, n: int, *, seed: int) -> np.ndarray:
    """The indices of the ``n`` images that are labeled first: int64 [n], in random order.

    They are stratified, and with the same seed among those of any larger ``n``.

    Args:
        labels: integers [N].
        seed: of the order in which images are labeled.
    """
    return _stratified_order(labels, np.random.RandomState(seed % 2**32))[:n]


def permutation(n: int, generator: np.random.RandomState) -> np.ndarray:
    """The order of ``n`` things that torch.randperm gives with a CPU generator of the same seed: int64 [n].

    Both have the same Mersenne Twister, and the same shuffle (Fisher and Yates 1938, Durstenfeld 1964). So a study's
    images were the same when PyTorch chose them, and stay the same whatever PyTorch does.
    """
    draws = generator.randint(2**32, size=max(n - 1, 0), dtype=np.uint32) % np.arange(n, 1, -1)
    order = list(range(n))
    for at, draw in enumerate(draws.tolist()):
        order[at], order[at + draw] = order[at + draw], order[at]
    return np.array(order, dtype=np.int64)
