"""Datasets by name: Fashion-MNIST, datasets of torchvision, and folders of images."""

from pathlib import Path

from headstart.console import UserError
from headstart.data import fashion_mnist, pictures, torchvision_sets
from headstart.data.splits import Dataset
from headstart.params import GroupBy

FASHION_MNIST = "fashion-mnist"


def names() -> list[str]:
    """Return the names of the built-in datasets."""
    return [FASHION_MNIST, *torchvision_sets.SETS]


def title(name: str) -> str:
    """Return the name of the dataset for readers."""
    if name == FASHION_MNIST:
        return fashion_mnist.TITLE
    return torchvision_sets.SETS[name].title if name in torchvision_sets.SETS else name


def fetch(name: str, dataset_dir: str | Path, pictures_dir: Path, *, downloads: Path, dest: Path) -> None:
    """Put the verified files of the dataset ``name`` into the new folder ``dest``.

    For a folder of images, write only a note that says where the images are.

    Args:
        dataset_dir: look first in its folder ``name``, and download the files that are not there.
        pictures_dir: each folder in it is a dataset.
        downloads: the folder that caches downloads for all studies.

    Raises:
        UserError: there is no such dataset, or its files are damaged or cannot be downloaded.
    """
    local_dir = Path(dataset_dir).expanduser() / name
    if (pictures_dir / name).exists() and name in names():
        raise UserError(f"reserved name: {pictures_dir / name} has the name of a built-in dataset. Rename the folder.")
    dest.mkdir()
    if name == FASHION_MNIST:
        for file in fashion_mnist.SHA256:
            (dest / file).write_bytes(fashion_mnist.fetch(file, local_dir, downloads / name))
    elif name in torchvision_sets.SETS:
        torchvision_sets.fetch(name, local_dir, downloads=downloads / name, dest=dest)
    elif (pictures_dir / name).exists():
        (dest / "README").write_text(
            f"The images are in {pictures_dir.as_posix()}.\n"
        )  # DVC warns about an empty folder
    else:
        folders = ", ".join(sorted(path.name for path in pictures_dir.glob("*/"))) or "none yet"
        raise UserError(f"unknown dataset: {name!r}. Choose a folder in {pictures_dir} ({folders}), or one of "
                        f"{', '.join(names())}.")  # fmt: skip


def load(
    name: str,
    raw: str | Path,
    pictures_dir: Path,
    *,
    image_size: int,
    skip_unusable: bool,
    group_by: GroupBy | None = None,
) -> Dataset:
    """Load the dataset ``name`` from the files that ``fetch`` put into ``raw``.

    Args:
        pictures_dir: each folder in it is a dataset.
        image_size: reduce larger images to this size (pixels of the shorter side) as they are read.
        skip_unusable: skip images that cannot be used.
        group_by: which images of a folder must not be in different splits.

    Raises:
        UserError: files are missing, damaged, or cannot be used, or a built-in dataset has no groups.
    """
    if group_by is not None and name in names():
        raise UserError(f"group_by works only with your own images, and {name} is built in. Set group_by to null. Got "
                        f"{group_by}.")  # fmt: skip
    if name == FASHION_MNIST:
        return fashion_mnist.load(raw)
    if name in torchvision_sets.SETS:
        return torchvision_sets.load(name, raw, image_size=image_size)
    return pictures.load(pictures_dir / name, image_size=image_size, skip_unusable=skip_unusable, group_by=group_by)
