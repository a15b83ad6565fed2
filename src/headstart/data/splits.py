"""Training, validation and test split of a dataset: choose, write and read them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from headstart import files
from headstart.console import UserError

SPLITS = ("training", "validation", "test")
TEST_SHARE = 0.2  # of each class, if a dataset has no test partition


@dataclass(frozen=True)
class Partition:
    """Images that a dataset provides together: those to train and validate with, or its test images."""

    labels: np.ndarray  # int64 [N]
    read: Callable[[np.ndarray], np.ndarray]  # indices [n] to uint8 [n, height, width] or [n, 3, height, width]
    file_names: tuple[str, ...] = ()  # of the images, [N]; empty if they are not in files of their own
    groups: np.ndarray | None = None  # int64 [N]; images of a group must not be in different splits


@dataclass(frozen=True)
class Dataset:
    """A dataset before its images are read and split."""

    title: str
    classes: tuple[str, ...]
    training: Partition
    test: Partition | None  # if None, some of the training images are held out for testing
    skipped_files: Mapping[str, str] = field(default_factory=dict)  # name to problem, of files that cannot be used


class Split(NamedTuple):
    """Images, uint8 [N, height, width] if gray, else [N, 3, height, width]; labels, int64 [N]; and the class names."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


class DatasetMetadata(NamedTuple):
    """The metadata that are stored with the splits."""

    classes: tuple[str, ...]
    skipped_files: dict[str, str]  # name to problem, of files that cannot be used
    file_names: Mapping[str, Sequence[str]]  # of the images of each split; empty if they are not in files of their own


def write_splits(
    path: str | Path,
    dataset: Dataset,
    *,
    training_images: int,
    validation_images: int,
    test_images: int | None = None,
    seed: int,
) -> None:
    """Choose the images of the three splits, read them, and write images, labels and metadata to ``path``.

    Args:
        test_images: None for all test images.
        seed: seed of the choice.

    Raises:
        UserError: there are too few images.
    """
    pool, test = pool_and_test(dataset, seed=seed)
    labels, test_partition = dataset.training.labels, dataset.test or dataset.training
    if test_images is not None:
        if test_images > len(test):
            raise UserError(f"test_images is too large for {dataset.title}: it must be at most {len(test):,}. Lower it "
                            f"in params.yaml, or set it to null. Got {test_images}.")  # fmt: skip
        [chosen] = stratified_split(test_partition.labels[test], sizes=[test_images], seed=seed)
        test = test[np.sort(chosen)]
    if training_images + validation_images > len(pool):
        raise UserError(
            f"too many images for {dataset.title}: training_images + validation_images, and pool_images, must be at "
            f"most {len(pool):,}. Lower them in params.yaml. Got {training_images + validation_images}."
        )
    training, validation = split_pool(
        dataset, pool, training_images=training_images, validation_images=validation_images, seed=seed
    )
    if missing := missing_classes(labels[training], dataset.classes):
        raise UserError(f"training_images is too small: {len(missing):,} of {len(dataset.classes):,} classes "
                        f"({abbreviate(missing)}) have no training image. Increase training_images, or decrease "
                        "validation_images.")  # fmt: skip
    chosen_images = {
        "training": (dataset.training, training),
        "validation": (dataset.training, validation),
        "test": (test_partition, test),
    }
    arrays: dict[str, np.ndarray] = {}
    for split, (partition, indices) in chosen_images.items():
        arrays |= {f"{split}_images": partition.read(indices), f"{split}_labels": partition.labels[indices]}
    metadata: dict[str, Any] = {"classes": dataset.classes, "skipped_files": dict(dataset.skipped_files)}
    if dataset.training.file_names:
        metadata["file_names"] = {
            split: [partition.file_names[index] for index in indices]
            for split, (partition, indices) in chosen_images.items()
        }
    files.write_arrays(path, _drop_equal_channels(arrays), metadata)


def pool_and_test(dataset: Dataset, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the images to train and validate with, and those of the test images: ascending int64.

    Training images that are in the group of a test image are in neither.

    Raises:
        UserError: the groups leave no test image, or a class without training images.
    """
    labels, groups = dataset.training.labels, dataset.training.groups
    if groups is None:
        if dataset.test is None:
            return hold_out(labels, seed=seed)
        return np.arange(len(labels)), np.arange(len(dataset.test.labels))
    if dataset.test is None:
        pool, test = hold_out_groups(labels, groups, round(TEST_SHARE * len(labels)), seed=seed)
    else:
        assert dataset.test.groups is not None
        pool, test = np.flatnonzero(~np.isin(groups, dataset.test.groups)), np.arange(len(dataset.test.labels))
    if not len(test):
        raise UserError(f"group_by leaves no test images: each class of {dataset.title} is one group. Choose another "
                        "value of group_by, or null.")  # fmt: skip
    if missing := missing_classes(labels[pool], dataset.classes):
        raise UserError(f"group_by leaves no training images of {abbreviate(missing)}: they are in the groups of test "
                        "images. Choose another value of group_by, or null.")  # fmt: skip
    return pool, test


def split_pool(
    dataset: Dataset, pool: np.ndarray, *, training_images: int | None, validation_images: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose training and validation images from ``pool``; no group is in both.

    Args:
        pool: indices of training images of ``dataset``.
        training_images: None for all that the validation images leave. With groups, there may then be fewer validation
            images than ``validation_images``.

    Returns:
        The indices of the training and of the validation images.

    Raises:
        UserError: with groups, too few images are available.
    """
    labels, groups = dataset.training.labels[pool], dataset.training.groups
    if groups is None:
        # Validation comes first: its images stay the same when the number of training images changes.
        sizes = [validation_images, len(pool) - validation_images if training_images is None else training_images]
        validation, training = (pool[chosen] for chosen in stratified_split(labels, sizes=sizes, seed=seed))
        return training, validation
    remaining, held_out = hold_out_groups(labels, groups[pool], validation_images, seed=seed)
    if training_images is None:
        training_images, validation_images = len(remaining), min(validation_images, len(held_out))
    if training_images > len(remaining) or validation_images > len(held_out):
        raise UserError(
            f"too many images for {dataset.title}: with group_by, at most {len(remaining):,} training images and "
            f"{len(held_out):,} validation images are available. Lower training_images or validation_images in "
            f"params.yaml. Got {training_images} and {validation_images}."
        )
    [validation] = stratified_split(labels[held_out], sizes=[validation_images], seed=seed)
    [training] = stratified_split(labels[remaining], sizes=[training_images], seed=seed)
    return pool[remaining[training]], pool[held_out[validation]]


def missing_classes(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return the names of the classes that do not occur in ``labels``."""
    present = set(labels.tolist())
    return [name for label, name in enumerate(classes) if label not in present]


def abbreviate(names: Sequence[str]) -> str:
    """Return the first three names, with an ellipsis if there are more."""
    return ", ".join(names[:3]) + (" …" if names[3:] else "")


def _drop_equal_channels(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keep one channel of the images if the three channels are equal in all of them."""
    images = {name: array for name, array in arrays.items() if array.ndim == 4}
    if any((array[:, :1] != array[:, channel : channel + 1]).any() for array in images.values() for channel in (1, 2)):
        return arrays
    return arrays | {name: array[:, 0] for name, array in images.items()}


def read_metadata(path: str | Path) -> DatasetMetadata:
    """Read the metadata of a file that ``write_splits`` wrote. See ``read_split`` for errors."""
    return _parse_metadata(path, files.read_arrays(path, "test_labels").metadata)


def _parse_metadata(path: str | Path, metadata: Mapping[str, Any]) -> DatasetMetadata:
    if metadata.keys() | {"file_names"} != set(DatasetMetadata._fields):
        raise UserError(f"unexpected metadata: {path} does not have the metadata that `prepare` writes. Delete it and "
                        "run `dvc repro`.")  # fmt: skip
    return DatasetMetadata(tuple(metadata["classes"]), metadata["skipped_files"], metadata.get("file_names", {}))


def read_split(path: str | Path, split: str) -> Split:
    """Read one of ``SPLITS`` from a file that ``write_splits`` wrote.

    Raises:
        UserError: the file is missing, or its images and labels do not have the expected shape, dtype or label range.
    """
    labels, classes = read_labels(path, split)
    [images] = files.read_arrays(path, f"{split}_images").arrays.values()
    is_square = images.ndim in (3, 4) and images.shape[-1] == images.shape[-2]
    if images.dtype != np.uint8 or not is_square or images.shape[:-2] not in ((len(labels),), (len(labels), 3)):
        raise _damaged(path, split)
    return Split(images, labels, classes)


def read_labels(path: str | Path, split: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read the labels, int64 [N], and the class names of one of ``SPLITS``, without its images.

    Raises:
        UserError: the file is missing, or its labels do not have the expected shape, dtype or range.
    """
    arrays, metadata = files.read_arrays(path, f"{split}_labels")
    classes = _parse_metadata(path, metadata).classes
    [labels] = arrays.values()
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise _damaged(path, split)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise _damaged(path, split)
    return labels, classes


def _damaged(path: str | Path, split: str) -> UserError:
    return UserError(f"damaged file: {path} does not have the {split} images or labels that `prepare` writes (shape, "
                     "dtype or label range). Delete it and run `dvc repro`.")  # fmt: skip


def hold_out(labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a fifth of each class, at least one image, for testing.

    Returns:
        The indices of the remaining images and those of the test images: ascending int64.
    """
    order = permutation(len(labels), np.random.RandomState(seed % 2**32))
    test = []
    for label in np.unique(labels):
        members = order[labels[order] == label]
        test += members[: max(1, round(TEST_SHARE * len(members)))].tolist()
    return np.setdiff1d(np.arange(len(labels)), test), np.sort(np.array(test, dtype=np.int64))


def hold_out_groups(labels: np.ndarray, groups: np.ndarray, n: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out whole groups until they have ``n`` images, with about the class proportions of ``labels``.

    Every class keeps an image. Groups of more than ``n`` images are held out only if a class would otherwise have no
    held-out image. If most groups are that large, there are fewer than ``n`` images.

    Returns:
        The indices of the remaining and of the held-out images: ascending int64.
    """
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(index)
    n_remaining = np.bincount(labels)
    is_held_out = np.zeros(len(labels), dtype=bool)

    def hold_out_group(group: int) -> None:
        """Hold out a group, unless a class would lose its last remaining image."""
        own = np.bincount(labels[members[group]], minlength=len(n_remaining))
        if not is_held_out[members[group][0]] and (own < n_remaining)[own > 0].all():
            n_remaining[:] -= own
            is_held_out[members[group]] = True

    order = _stratified_order(labels, np.random.RandomState(seed % 2**32)).tolist()
    for index in order:
        if is_held_out.sum() < n and len(members[int(groups[index])]) <= n:
            hold_out_group(int(groups[index]))
    for label in np.setdiff1d(labels, labels[is_held_out]).tolist() if n else ():
        own_groups = {int(groups[index]) for index in order if labels[index] == label}
        hold_out_group(min(own_groups, key=lambda group: (len(members[group]), group)))
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def stratified_split(labels: np.ndarray, *, sizes: list[int], seed: int) -> list[np.ndarray]:
    """Choose disjoint sets of indices, each with every class in the same proportion as in ``labels``.

    Images get a random order within their class and are then taken from the classes in turn, in proportion to the class
    sizes. Every contiguous part of that order is therefore stratified: to within one image if all classes have the same
    size; otherwise to within 1 + p times the number of classes, for a class with the share p of the images.

    Args:
        labels: integers [N].
        sizes: number of indices in each set; together at most N.
        seed: seed of the random order, which does not depend on ``sizes``.

    Returns:
        One int64 array [size] per entry of ``sizes``, each in random order.
    """
    if sum(sizes) > len(labels):
        raise UserError(f"too few images: cannot choose {sum(sizes):,} of {len(labels):,}. Choose fewer.")
    generator = np.random.RandomState(seed % 2**32)
    order = _stratified_order(labels, generator)
    sets = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    return [chosen[permutation(len(chosen), generator)] for chosen in sets]


def _stratified_order(labels: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
    """Return a random order in which every contiguous part is stratified; see ``stratified_split``."""
    order = permutation(len(labels), generator)
    position = np.empty(len(labels), dtype=np.float32)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        position[members] = (np.arange(len(members), dtype=np.float32) + np.float32(0.5)) / np.float32(len(members))
    return order[position.argsort(stable=True)]


def nested_subset(labels: np.ndarray, n: int, *, seed: int) -> np.ndarray:
    """Choose ``n`` images as a stratified subset: int64 indices [n], in random order.

    Subsets with the same seed are nested: a larger ``n`` includes the images of every smaller one.

    Args:
        labels: integers [N].
        seed: seed of the order in which images are labeled.
    """
    return _stratified_order(labels, np.random.RandomState(seed % 2**32))[:n]


def permutation(n: int, generator: np.random.RandomState) -> np.ndarray:
    """Return the permutation that torch.randperm gives with a CPU generator of the same seed: int64 [n].

    Both use the Mersenne Twister and the same shuffle (Fisher and Yates 1938, Durstenfeld 1964). The splits are
    therefore those of earlier versions, which used PyTorch, and do not depend on the version of PyTorch.
    """
    draws = generator.randint(2**32, size=max(n - 1, 0), dtype=np.uint32) % np.arange(n, 1, -1)
    order = list(range(n))
    for i, draw in enumerate(draws.tolist()):
        order[i], order[i + draw] = order[i + draw], order[i]
    return np.array(order, dtype=np.int64)
