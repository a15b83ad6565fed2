import gzip
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from headstart.console import UserError
from headstart.data import fashion_mnist

from .conftest import DOWNLOADS


def test_the_files_have_the_published_sizes_and_classes(training_set, test_set):
    for (images, labels), n in ((training_set, 60_000), (test_set, 10_000)):
        assert images.shape == (n, 28, 28)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [n // 10] * 10


def test_images_and_labels_are_in_the_same_order(test_set):
    # The first ten labels of the test set, and the mean gray value of its first image, read by another program.
    images, labels = test_set
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert images[0].double().mean().item() == pytest.approx(33_456 / 784, abs=1e-9)


def idx(shape: Sequence[int], values: bytes) -> bytes:
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return header + values


def test_an_idx_file_written_by_hand_is_parsed():
    content = b"\x00\x00\x08\x02\x00\x00\x00\x02\x00\x00\x00\x03" + bytes([1, 2, 3, 4, 5, 255])
    assert fashion_mnist.parse_idx(content).tolist() == [[1, 2, 3], [4, 5, 255]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file of unsigned bytes: its first bytes are wrong."),
        (b"<!doctype html>", "not an IDX file of unsigned bytes: its first bytes are wrong."),
        (idx((2, 2), b"abc"), "wrong size of an IDX file with the shape [2, 2] in its header. Got 15 bytes."),
        (idx((2, 2), b"abcde"), "wrong size of an IDX file with the shape [2, 2] in its header. Got 17 bytes."),
        (b"\x00\x00\x08\x03\x00\x00", "wrong size of an IDX file with the shape [0, 0, 0] in its header. Got 6 bytes."),
    ],
)
def test_other_files_than_idx_are_errors(content, message):
    with pytest.raises(UserError) as error:
        fashion_mnist.parse_idx(content)
    assert str(error.value) == message


SIZES = st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1]), max_size=6)


@given(st.binary(max_size=64) | st.builds(idx, SIZES, st.binary(max_size=30)))
@example(idx([0, 2**32 - 1, 2**32 - 1, 2**32 - 1], b""))
@example(idx([1] * 255, b"1"))
def test_any_bytes_are_an_array_or_a_user_error(content):
    try:
        array = fashion_mnist.parse_idx(content)
    except UserError:
        return
    assert array.size == len(content) - 4 - 4 * content[3]


def write_archive(folder, name, content):
    path = folder / f"{name}.gz"
    path.write_bytes(gzip.compress(content))
    return path


LABELS = "t10k-labels-idx1-ubyte"


def test_a_changed_byte_is_an_error(tmp_path, folder):
    content = bytearray(fashion_mnist.fetch(LABELS, folder, DOWNLOADS))
    content[-1] ^= 1
    path = write_archive(tmp_path, LABELS, bytes(content))
    with pytest.raises(UserError) as error:
        fashion_mnist.fetch(LABELS, tmp_path, DOWNLOADS)
    assert str(error.value) == f"damaged file: {path} has a wrong SHA-256. Replace it with the original file."


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"x"])
def test_a_wrong_length_is_an_error(tmp_path, folder, change):
    path = write_archive(tmp_path, LABELS, change(fashion_mnist.fetch(LABELS, folder, DOWNLOADS)))
    with pytest.raises(UserError) as error:
        fashion_mnist.fetch(LABELS, tmp_path, DOWNLOADS)
    assert str(error.value) == f"wrong file size: {path} does not have 10,008 bytes. Replace it with the original file."


@pytest.mark.parametrize("content", [b"", b"<html>502 Bad Gateway</html>", gzip.compress(b"x" * 20_000, mtime=0)[:-9]])
def test_other_files_than_gzip_are_errors(tmp_path, content):
    (tmp_path / f"{LABELS}.gz").write_bytes(content)
    with pytest.raises(UserError) as error:
        fashion_mnist.fetch(LABELS, tmp_path, DOWNLOADS)
    assert str(tmp_path / f"{LABELS}.gz") in str(error.value)
    assert "Replace it with the original file." in str(error.value)


def test_missing_data_without_a_network_is_an_error(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    with pytest.raises(UserError) as error:
        fashion_mnist.fetch(LABELS, tmp_path, tmp_path / "downloads")
    assert str(error.value).startswith(f"missing file: {LABELS}.gz is not in {tmp_path} and cannot be downloaded (")
    assert str(error.value).endswith(f"put the four files into {tmp_path}.")
