"""Which data sets there are: Fashion-MNIST, torchvision's by name, and folders of pictures."""

from pathlib import Path

from headstart.console import UserError
from headstart.data import fashion_mnist, pictures, torchvision_sets
from headstart.data.splits import Dataset

FASHION_MNIST = "fashion-mnist"


def names() -> list[str]:
    """The data sets that have a name of their pictures_dir."""
    return [FASHION_MNIST, *torchvision_sets.SETS]


def title(name: str) -> str:
    """What a reader is told that the data set is."""
    if name == FASHION_MNIST:
        return fashion_mnist.TITLE
    return torchvision_sets.SETS[name].title if name in torchvision_sets.SETS else name


def fetch(name: str, dataset_dir: str | Path, pictures_dir: Path, *, downloads: Path, dest: Path) -> None:
    """Put the files of the data set ``name`` into the new folder ``into``, verified; of pictures there is nothing.

    Args:
        dataset_dir: where to look first, in the folder of the data set's name; what is not there is downloaded.
        pictures_dir: a folder in it is a data set of pictures.
        downloads: where to keep what is downloaded, so that it is once for all studies.

    Raises:
        UserError: there is no such data set, or its files are damaged, or cannot be downloaded.
    """
    theirs = Path(dataset_dir).expanduser() / name
    if (pictures_dir / name).exists() and name in names():
        raise UserError(f"{pictures_dir / name} has the name of a data set that is not yours: rename the folder")
    dest.mkdir()
    if name == FASHION_MNIST:
        for file in fashion_mnist.SHA256:
            (dest / file).write_bytes(fashion_mnist.fetch(file, theirs, downloads / name))
    elif name in torchvision_sets.SETS:
        torchvision_sets.fetch(name, theirs, downloads=downloads / name, dest=dest)
    elif not (pictures_dir / name).exists():
        there = ", ".join(sorted(path.name for path in pictures_dir.glob("*/"))) or "there is none"
        raise UserError(f"there is no data set {name!r}: it must be a folder in {pictures_dir} ({there}), or one of "
                        f"{', '.join(names())}")  # fmt: skip


def load(name: str, raw: str | Path, pictures_dir: Path, *, image_size: int, skip_unusable: bool) -> Dataset:
    """The data set ``name``, of what ``fetch`` put into ``raw``.

    Args:
        pictures_dir: a folder in it is a data set of pictures.
        image_size: what larger images are reduced to as they are read: pixels of the shorter side.
        skip_unusable: leave out pictures that cannot be used.

    Raises:
        UserError: files are missing, damaged, or cannot be used.
    """
    if name == FASHION_MNIST:
        return fashion_mnist.load(raw)
    if name in torchvision_sets.SETS:
        return torchvision_sets.load(name, raw, image_size=image_size)
    return pictures.load(pictures_dir / name, image_size=image_size, skip_unusable=skip_unusable)
