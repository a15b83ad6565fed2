"""Fashion-MNIST: from its four IDX files to arrays.

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

# Of the uncompressed files: Debian compresses them anew, so the archives differ from the original ones.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SIZES = {
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}


def fetch(name: str, folder: str | Path, downloads: Path) -> bytes:
    """Return the uncompressed, verified file ``name`` from ``folder``, or else from torchvision's mirrors.

    Args:
        downloads: where what comes from there is kept, for the next time.

    Raises:
        UserError: it is damaged, or it is not in ``folder`` and cannot be downloaded.
    """
    archive = Path(folder) / f"{name}.gz"
    if archive.is_file():
        return _verified(archive)
    return _verified(_download(archive.name, downloads, missing_from=folder))


def _download(filename: str, folder: Path, missing_from: str | Path) -> Path:
    from torchvision.datasets import FashionMNIST
    from torchvision.datasets.utils import download_url

    error: Exception | None = None
    for mirror in FashionMNIST.mirrors:
        try:
            # Which downloads nothing where the whole file is there.
            download_url(f"{mirror}{filename}", str(folder), md5=dict(FashionMNIST.resources)[filename])
            return folder / filename
        except (OSError, RuntimeError) as problem:  # no network, or a checksum that does not fit
            error = problem
    raise MachineError(
        f"{filename} is not in {missing_from} and cannot be downloaded ({error}): install Debian's "
        "dataset-fashion-mnist, or put the four files there"
    )


def _verified(archive: Path) -> bytes:
    name = archive.stem
    try:
        with gzip.open(archive) as file:
            content = file.read(SIZES[name] + 1)  # one byte more tells a longer file, without unpacking all of it
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is not a readable gzip file ({error}): replace it by the original") from None
    _check(content, archive, name, "replace it by the original")
    return content


def _check(content: bytes, path: Path, name: str, remedy: str) -> None:
    if len(content) != SIZES[name]:
        raise UserError(f"{path} does not hold {SIZES[name]:,} bytes: {remedy}")
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        raise UserError(f"{path} is damaged, its SHA-256 is wrong: {remedy}")


def read_raw(folder: str | Path, name: str) -> np.ndarray:
    """Read one uncompressed file, verified before it is parsed: uint8, of the shape that it names.

    Raises:
        UserError: it is missing or is not the original.
    """
    path, remedy = Path(folder, name), "delete the folder, and `dvc repro` makes it anew"
    try:
        with path.open("rb") as file:
            content = file.read(SIZES[name] + 1)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {remedy}") from None
    _check(content, path, name, remedy)
    return parse_idx(content)


def load(folder: str | Path) -> Dataset:
    """The data set, of the four uncompressed files in ``folder``; ``read_raw`` says what it raises."""
    train, test = (_part(folder, split) for split in ("train", "t10k"))
    return Dataset(TITLE, CLASSES, train, test)


def _part(folder: str | Path, split: str) -> Partition:
    images, labels = (read_raw(folder, f"{split}-{what}-ubyte") for what in ("images-idx3", "labels-idx1"))
    return Partition(labels.astype(np.int64), images.__getitem__)


def parse_idx(content: bytes) -> np.ndarray:
    """Parse an IDX file of unsigned bytes to a uint8 array of the shape it names.

    The format is http://yann.lecun.com/exdb/mnist/: two zero bytes, the type (8), the number of dimensions, the
    sizes as big-endian 32-bit integers, then the values.

    Raises:
        UserError: it is something else.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise UserError("not an IDX file of unsigned bytes: its first bytes are wrong")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    # An empty array is nobody's data, and its other sizes could be anything; NumPy has at most 64 dimensions.
    if len(content) < start or len(content) - start != math.prod(shape) or 0 in shape or len(shape) > 64:
        raise UserError(f"not a whole IDX file: its header names the shape {shape}, it has {len(content)} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
