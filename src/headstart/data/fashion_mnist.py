"""Fashion-MNIST: download, verify and parse its four IDX files.

Source: https://github.com/zalandoresearch/fashion-mnist (MIT), Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747.
"""

import gzip
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np

from headstart.console import MachineError, UserError
from headstart.data.splits import Dataset, Partition

TITLE = "Fashion-MNIST"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# Of the uncompressed files: Debian compresses them again, so its archives differ from the original ones.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SIZES = {  # bytes
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}
REPLACE = "Replace it with the original file."


def fetch(name: str, folder: str | Path, downloads: Path) -> bytes:
    """Return the uncompressed, verified file ``name`` from ``folder``, or else from torchvision's mirrors.

    Args:
        downloads: the folder that caches downloaded archives.

    Raises:
        UserError: the file is damaged, or it is not in ``folder`` and cannot be downloaded.
    """
    archive = Path(folder) / f"{name}.gz"
    if archive.is_file():
        return _read_verified(archive)
    return _read_verified(_download(archive.name, downloads, missing_from=folder))


def _download(filename: str, folder: Path, missing_from: str | Path) -> Path:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    error: Exception | None = None
    for mirror in FashionMNIST.mirrors:
        try:
            # Downloads nothing if the complete file exists.
            download_url(f"{mirror}{filename}", str(folder), md5=dict(FashionMNIST.resources)[filename])
            return folder / filename
        except (OSError, RuntimeError) as download_error:  # no network, or a wrong checksum
            error = download_error
    raise MachineError(
        f"missing file: {filename} is not in {missing_from} and cannot be downloaded ({error}). Install Debian's "
        f"dataset-fashion-mnist, or put the four files into {missing_from}."
    )


def _read_verified(archive: Path) -> bytes:
    name = archive.stem
    try:
        with gzip.open(archive) as file:
            content = file.read(SIZES[name] + 1)  # one more byte reveals a longer file without unpacking all of it
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"not a readable gzip file: {archive} ({error}). {REPLACE}") from None
    _check(content, archive, name, REPLACE)
    return content


def _check(content: bytes, path: Path, name: str, remedy: str) -> None:
    if len(content) != SIZES[name]:
        raise UserError(f"wrong file size: {path} does not have {SIZES[name]:,} bytes. {remedy}")
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError(f"damaged file: {path} has a wrong SHA-256. {remedy}")


def read_raw(folder: str | Path, name: str) -> np.ndarray:
    """Read, verify and parse one uncompressed file: uint8, in the shape of its header.

    Raises:
        UserError: the file is missing or is not the original.
    """
    path, remedy = Path(folder, name), "Delete the folder and run `dvc repro`."
    try:
        with path.open("rb") as file:
            content = file.read(SIZES[name] + 1)
    except FileNotFoundError:
        raise UserError(f"missing file: {path}. {remedy}") from None
    _check(content, path, name, remedy)
    return parse_idx(content)


def load(folder: str | Path) -> Dataset:
    """Load the dataset from the four uncompressed files in ``folder``. See ``read_raw`` for errors."""
    train, test = (_load_partition(folder, prefix) for prefix in ("train", "t10k"))
    return Dataset(TITLE, CLASSES, train, test)


def _load_partition(folder: str | Path, prefix: str) -> Partition:
    images, labels = (read_raw(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    return Partition(labels.astype(np.int64), images.__getitem__)


def parse_idx(content: bytes) -> np.ndarray:
    """Parse an IDX file of unsigned bytes to a uint8 array in the shape of its header.

    The format is http://yann.lecun.com/exdb/mnist/: two zero bytes, the type (8), the number of dimensions, the
    sizes as big-endian 32-bit integers, then the values.

    Raises:
        UserError: it is not such a file.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise UserError("not an IDX file of unsigned bytes: its first bytes are wrong.")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[offset : offset + 4], "big") for offset in range(4, start, 4)]
    # An empty array is not a dataset, and its other sizes could be anything; NumPy has at most 64 dimensions.
    if len(content) < start or len(content) - start != math.prod(shape) or 0 in shape or len(shape) > 64:
        raise UserError(f"wrong size of an IDX file with the shape {shape} in its header. Got {len(content)} bytes.")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
