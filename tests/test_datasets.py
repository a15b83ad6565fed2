import gzip

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from headstart.console import UserError
from headstart.data import datasets


def test_the_files_hold_what_the_authors_published(training_set, test_set):
    for (images, labels), n in ((training_set, 60_000), (test_set, 10_000)):
        assert images.shape == (n, 28, 28)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [n // 10] * 10


def test_images_and_labels_belong_together(test_set):
    # The first ten labels of the test set, and the mean grey value of its first image, from another reader.
    images, labels = test_set
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert images[0].double().mean().item() == pytest.approx(33_456 / 784, abs=1e-9)


def idx(shape: tuple[int, ...], values: bytes) -> bytes:
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return header + values


def test_idx_by_hand():
    content = b"\x00\x00\x08\x02\x00\x00\x00\x02\x00\x00\x00\x03" + bytes([1, 2, 3, 4, 5, 255])
    assert datasets.parse_idx(content).tolist() == [[1, 2, 3], [4, 5, 255]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file of unsigned bytes: its first bytes are wrong"),
        (b"<!doctype html>", "not an IDX file of unsigned bytes: its first bytes are wrong"),
        (idx((2, 2), b"abc"), "not a whole IDX file: its header names the shape [2, 2], it has 15 bytes"),
        (idx((2, 2), b"abcde"), "not a whole IDX file: its header names the shape [2, 2], it has 17 bytes"),
        (b"\x00\x00\x08\x03\x00\x00", "not a whole IDX file: its header names the shape [0, 0, 0], it has 6 bytes"),
    ],
)
def test_what_is_no_idx_file(content, message):
    with pytest.raises(UserError) as error:
        datasets.parse_idx(content)
    assert str(error.value) == message


def idx(sizes: list[int], values: bytes) -> bytes:
    return b"\x00\x00\x08" + bytes([len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes) + values


SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]), max_size=6)


@given(st.binary(max_size=64) | st.builds(idx, SIZES, st.binary(max_size=30)))
@example(idx([0, 2**32 - 1, 2**32 - 1, 2**32 - 1], b""))
@example(idx([1] * 255, b"1"))
def test_any_bytes_are_an_array_or_a_complaint(content):
    try:
        array = datasets.parse_idx(content)
    except UserError:
        return
    assert array.size == len(content) - 4 - 4 * content[3]


def write_archive(folder, name, content):
    path = folder / f"{name}.gz"
    path.write_bytes(gzip.compress(content))
    return path


LABELS = "t10k-labels-idx1-ubyte"


def test_a_changed_byte_is_noticed(tmp_path, folder):
    content = bytearray(datasets.fetch(LABELS, folder))
    content[-1] ^= 1
    path = write_archive(tmp_path, LABELS, bytes(content))
    with pytest.raises(UserError) as error:
        datasets.fetch(LABELS, tmp_path)
    assert str(error.value) == f"{path} is damaged, its SHA-256 is wrong: replace it by the original"


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"x"])
def test_a_wrong_length_is_noticed(tmp_path, folder, change):
    path = write_archive(tmp_path, LABELS, change(datasets.fetch(LABELS, folder)))
    with pytest.raises(UserError) as error:
        datasets.fetch(LABELS, tmp_path)
    assert str(error.value) == f"{path} does not hold 10,008 bytes: replace it by the original"


@pytest.mark.parametrize("content", [b"", b"<html>502 Bad Gateway</html>", gzip.compress(b"x" * 20_000)[:-9]])
def test_what_is_no_gzip_file(tmp_path, content):
    (tmp_path / f"{LABELS}.gz").write_bytes(content)
    with pytest.raises(UserError) as error:
        datasets.fetch(LABELS, tmp_path)
    assert str(tmp_path / f"{LABELS}.gz") in str(error.value)
    assert "replace it by the original" in str(error.value)


def test_no_data_and_no_network(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    with pytest.raises(UserError) as error:
        datasets.fetch(LABELS, tmp_path)
    assert str(error.value).startswith(f"{LABELS}.gz is not in {tmp_path} and cannot be downloaded (")
    assert str(error.value).endswith("put the four files into a folder and name it as dataset.folder in params.yaml")


def test_the_split_is_stratified_disjoint_and_exact(training_set):
    labels = training_set[1].numpy()
    validation, training = datasets.stratified_split(labels, sizes=[1_000, 10_000], seed=0)
    assert np.bincount(labels[validation]).tolist() == [100] * 10
    assert np.bincount(labels[training]).tolist() == [1_000] * 10
    assert len({*validation.tolist(), *training.tolist()}) == 11_000


@pytest.mark.parametrize("seed", [0, 1, 2**31])
def test_the_order_is_pytorch_s(seed):
    ours, theirs = np.random.RandomState(seed), torch.Generator().manual_seed(seed)
    for n in (0, 1, 2, 10, 60_000):
        assert datasets.permutation(n, ours).tolist() == torch.randperm(n, generator=theirs).tolist()


def test_all_images_can_be_used_and_validation_does_not_depend_on_training(training_set):
    labels = training_set[1].numpy()
    nothing, everything = datasets.stratified_split(labels, sizes=[0, 60_000], seed=3)
    assert len(nothing) == 0
    assert sorted(everything.tolist()) == list(range(60_000))
    few, _ = datasets.stratified_split(labels, sizes=[500, 1_000], seed=3)
    same, _ = datasets.stratified_split(labels, sizes=[500, 50_000], seed=3)
    assert sorted(few.tolist()) == sorted(same.tolist())
    other, _ = datasets.stratified_split(labels, sizes=[500, 1_000], seed=4)
    assert sorted(few.tolist()) != sorted(other.tolist())


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_splits_of_any_size_keep_the_proportions(counts, first, second, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    n = len(labels)
    a = int(first * n)
    b = int(second * (n - a))
    left, right = datasets.stratified_split(labels, sizes=[a, b], seed=seed)
    assert (len(left), len(right)) == (a, b)
    assert len({*left.tolist(), *right.tolist()}) == a + b
    for chosen in (left, right):
        expected = np.array(counts) * len(chosen) / n
        assert abs(np.bincount(labels[chosen], minlength=len(counts)) - expected).max() <= 2


def test_more_images_than_there_are():
    with pytest.raises(UserError) as error:
        datasets.stratified_split(np.zeros(5), sizes=[3, 3], seed=0)
    assert str(error.value) == "6 images are asked for, and there are 5: ask for fewer"
