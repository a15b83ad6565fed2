import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headstart.console import UserError
from headstart.data import splits


def test_the_split_is_stratified_disjoint_and_exact(training_set):
    labels = training_set[1].numpy()
    validation, training = splits.stratified_split(labels, sizes=[1_000, 10_000], seed=0)
    assert np.bincount(labels[validation]).tolist() == [100] * 10
    assert np.bincount(labels[training]).tolist() == [1_000] * 10
    assert len({*validation.tolist(), *training.tolist()}) == 11_000


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_permutations_are_those_of_pytorch(seed):
    numpy_generator, torch_generator = np.random.RandomState(seed), torch.Generator().manual_seed(seed)
    for n in (0, 1, 2, 10, 60_000):
        expected = torch.randperm(n, generator=torch_generator).tolist()
        assert splits.permutation(n, numpy_generator).tolist() == expected


def test_all_images_can_be_used_and_validation_does_not_depend_on_the_training_size(training_set):
    labels = training_set[1].numpy()
    empty, full = splits.stratified_split(labels, sizes=[0, 60_000], seed=3)
    assert len(empty) == 0
    assert sorted(full.tolist()) == list(range(60_000))
    validation, _ = splits.stratified_split(labels, sizes=[500, 1_000], seed=3)
    with_more_training, _ = splits.stratified_split(labels, sizes=[500, 50_000], seed=3)
    assert sorted(validation.tolist()) == sorted(with_more_training.tolist())
    with_another_seed, _ = splits.stratified_split(labels, sizes=[500, 1_000], seed=4)
    assert sorted(validation.tolist()) != sorted(with_another_seed.tolist())


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_splits_of_any_size_have_the_class_proportions(counts, first, second, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    n = len(labels)
    a = int(first * n)
    b = int(second * (n - a))
    validation, training = splits.stratified_split(labels, sizes=[a, b], seed=seed)
    assert (len(validation), len(training)) == (a, b)
    assert len({*validation.tolist(), *training.tolist()}) == a + b
    for chosen in (validation, training):
        expected = np.array(counts) * len(chosen) / n
        error = abs(np.bincount(labels[chosen], minlength=len(counts)) - expected)
        assert (error <= 1 + len(counts) * np.array(counts) / n).all()


def test_choosing_more_images_than_exist_is_an_error():
    with pytest.raises(UserError) as error:
        splits.stratified_split(np.zeros(5), sizes=[3, 3], seed=0)
    assert str(error.value) == "too few images: cannot choose 6 of 5. Choose fewer."


def dataset(labels: list[int], n_classes: int) -> splits.Dataset:
    images = np.zeros((len(labels), 4, 4), dtype=np.uint8)
    partition = splits.Partition(np.array(labels, dtype=np.int64), images.__getitem__)
    return splits.Dataset("Pets", tuple("abcdefghij"[:n_classes]), partition, None)


def test_a_fifth_of_each_class_is_held_out():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2)
    rest, test = splits.hold_out(labels, seed=0)
    assert np.bincount(labels[test]).tolist() == [10, 2, 1]
    assert sorted([*rest, *test]) == list(range(62))
    assert (np.diff(test) > 0).all()
    assert splits.hold_out(labels, seed=1)[1].tolist() != test.tolist()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"training_images": 40, "validation_images": 10},
            "too many images for Pets: training_images + validation_images, and pool_images, must be at most 48. Lower "
            "them in params.yaml. Got 50.",
        ),
        (
            {"training_images": 3, "validation_images": 0},
            "training_images is too small: 2 of 3 classes (b, c) have no training image. Increase training_images, or "
            "decrease validation_images.",
        ),
        (
            {"training_images": 40, "validation_images": 0, "test_images": 13},
            "test_images is too large for Pets: it must be at most 12. Lower it in params.yaml, or set it to null. "
            "Got 13.",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_dataset_are_errors(tmp_path, sizes, message):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError) as error:
        splits.write_splits(path, dataset([0] * 50 + [1] * 5 + [2] * 5, 3), **sizes, seed=0)
    assert str(error.value) == message
    assert not path.exists()


def test_some_test_images_are_a_stratified_subset_of_all(tmp_path):
    labels = [0] * 50 + [1] * 30 + [2] * 20
    for name, test_images in (("all", None), ("some", 10)):
        splits.write_splits(tmp_path / name, dataset(labels, 3), training_images=40, validation_images=10,
                            test_images=test_images, seed=0)  # fmt: skip
    all_labels, labels = (splits.read_split(tmp_path / name, "test").labels for name in ("all", "some"))
    assert np.bincount(all_labels).tolist() == [10, 6, 4]
    assert np.bincount(labels).tolist() == [5, 3, 2]
    for split in ("training", "validation"):
        first, second = (splits.read_split(tmp_path / name, split).labels for name in ("all", "some"))
        assert (first == second).all()


def test_subsets_are_stratified_and_nested():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [500, 300, 200]))
    subsets = [splits.nested_subset(labels, n, seed=3) for n in (10, 100, 1_000)]
    assert [len(subset) for subset in subsets] == [10, 100, 1_000]
    assert set(subsets[0]) < set(subsets[1]) < set(subsets[2]) == set(range(1_000))
    for subset, n in zip(subsets, (10, 100, 1_000), strict=True):
        assert np.abs(np.bincount(labels[subset], minlength=3) - n * np.array([0.5, 0.3, 0.2])).max() <= 1
    assert set(splits.nested_subset(labels, 10, seed=4)) != set(subsets[0])
