"""Make a study from a folder of images: copy it to data/pictures, and add the study to params.yaml.

    python -m scripts.pictures FOLDER [--name NAME] [--skip-unusable]

FOLDER has one folder with images per class, or the folders `train` and `test` (or `val`) with such class folders. For
example, `make pictures FOLDER=~/flowers` makes the study `flowers` and runs it.
"""

import argparse
import filecmp
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.data import pictures, registry, scanning, splits
from headstart.data.scanning import Scan
from headstart.data.splits import Dataset
from headstart.network import initial_weights, models, splitting
from scripts import yaml_text
from stages.paths import PICTURES

NETWORK = {"model_name": models.LITE0_MODEL, "weights": initial_weights.DEFAULT, "finetune_from": splitting.AUTO}
IMAGE_SIZES = (224, 160, 128, 96, 64)
PIXEL_BUDGET = 14_000_000  # pixels of all images together, for some minutes on two cores; exceeded at the smallest size
SMALL_DATASET = 2_000  # up to this number of images chance matters much, so there are three seeds
SPLIT_SEED = 0
MAX_NAME_LENGTH = 100  # file names, which are limited to 255 bytes, contain it
YAML_BOOLEANS = ("yes", "no", "on", "off")  # in YAML 1.1; tools that rewrite params.yaml, such as DVC, drop quotes
WINDOWS_DEVICES = r"con|prn|aux|nul|(com|lpt)[0-9]"
N_PROBE_BUDGETS = 5
MIN_STEPS = 150  # optimizer steps per training, if MAX_EPOCHS allow
MAX_EPOCHS = 30


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="", metavar="FOLDER",
                        help="folder of images, with one folder per class")  # fmt: skip
    parser.add_argument("--name", default="", help="name of the study and its dataset; default: the name of FOLDER")
    parser.add_argument("--skip-unusable", action="store_true",
                        help="skip unusable files, such as damaged ones; default: report them and stop")  # fmt: skip
    options = parser.parse_args(arguments)
    if not options.folder:
        raise UserError("no folder of images given. For example: make pictures FOLDER=~/flowers")
    folder = Path(options.folder).expanduser()
    name = options.name or re.sub(r"[^A-Za-z0-9]+", "-", Path(os.path.abspath(folder)).name).strip("-").lower()
    _require_valid_name(name)
    if not any((parent / ".git").exists() for parent in Path("params.yaml").absolute().parents):
        print("not a git repository, which `dvc repro` needs: run `git init` first, or use `python -m stages` instead")
    target = PICTURES / name
    is_new = folder.resolve() != target.resolve()
    scanned = scanning.scan(folder, follow_links=is_new)
    dataset = pictures.read(scanned, image_size=params.SMALLEST_IMAGE, skip_unusable=options.skip_unusable)
    previous = None
    if is_new and target.exists():
        previous = suggest_settings(pictures.load(target, image_size=params.SMALLEST_IMAGE, skip_unusable=True))
    if is_new:
        _copy(scanned, target)
    _update_params(name, skip_unusable=options.skip_unusable, suggested=suggest_settings(dataset), previous=previous)
    counts = f"{_count(dataset):,} images in {len(dataset.classes):,} classes"
    skipped_files = f", {len(dataset.skipped_files):,} skipped files" if dataset.skipped_files else ""
    print(f"{target} has {counts}{skipped_files}; params.yaml has the study {name}")
    for note in scanned.notes:
        print(note)
    if scanned.ignored:
        most_common = scanned.ignored.most_common(3)
        suffixes = ", ".join(scanning.display_name(suffix or "no suffix") for suffix, _ in most_common)
        print(f"{scanned.ignored.total():,} files that are not images are ignored ({suffixes})")


def _require_valid_name(name: str) -> None:
    """Raise UserError if ``name`` cannot be the name of a study and of a folder on every system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"invalid study name: {name!r}. Choose a name with NAME=…, and {params.NAME_RULE}.")
    if len(name) > MAX_NAME_LENGTH:
        raise UserError(f"study name of more than {MAX_NAME_LENGTH} characters. Choose a shorter name with NAME=…. Got "
                        f"{len(name)}.")  # fmt: skip
    if name.lower() in YAML_BOOLEANS or re.fullmatch(WINDOWS_DEVICES, name.lower()):
        reason = "YAML reads it as true or false" if name.lower() in YAML_BOOLEANS else "it is a device on Windows"
        raise UserError(f"invalid study name: {name}, because {reason}. Choose another name with NAME=….")
    if name in registry.names():
        raise UserError(f"reserved study name: {name} is a built-in dataset. Choose another name with NAME=….")
    study = params.read().studies.get(name)
    if study is not None and study.dataset != name:
        raise UserError(f"study name in use: params.yaml has a study {name} of other images. Choose another name with "
                        "NAME=….")  # fmt: skip


def _count(dataset: Dataset) -> int:
    return len(dataset.training.labels) + (len(dataset.test.labels) if dataset.test else 0)


def suggest_settings(dataset: Dataset) -> dict[str, Any]:
    """Return settings for a study of ``dataset``.

    For up to some thousand images, the study takes some minutes on two cores.
    """
    labels = dataset.training.labels
    if dataset.test is None:
        labels = labels[splits.hold_out(labels, seed=SPLIT_SEED)[0]]
    n_images, n_validation = len(labels), len(labels) // 10
    n_training = n_images - n_validation
    _, training = splits.stratified_split(labels, sizes=[n_validation, n_training], seed=SPLIT_SEED)
    if len(np.unique(labels[training])) < len(dataset.classes):  # validation would take the only image of a class
        n_training, n_validation = n_images, 0
    batch_size = 128 if n_training >= 4_096 else 32
    if n_training % batch_size == 1:  # batch norm cannot train on a batch of one image
        n_training -= 1
    affordable = [size for size in IMAGE_SIZES if _count(dataset) * size**2 <= PIXEL_BUDGET]
    return {
        "image_size": max(affordable, default=min(IMAGE_SIZES)),
        "training_images": n_training,
        "validation_images": n_validation,
        "pool_images": None,
        "test_images": None,
        "batch_size": batch_size,
        "n_epochs": min(MAX_EPOCHS, max(2, -(-MIN_STEPS * batch_size // n_training))),
        "patience": None,
        "split_seed": SPLIT_SEED,
        "seeds": [0, 1, 2] if _count(dataset) <= SMALL_DATASET else [0],
        "label_budgets": [],
        "probe_budgets": _probe_budgets(n_training, n_validation, labels[training]) if n_validation else [],
    }


def _probe_budgets(n_training: int, n_validation: int, labels: np.ndarray) -> list[int]:
    """Return half of the images, a quarter, and so on, as long as every class has a training image.

    Two expected images of the rarest class guarantee at least one: see the bound in ``splits.stratified_split``.

    Args:
        labels: labels of the training images.
    """
    rarest_share = np.bincount(labels)[np.unique(labels)].min() / len(labels)
    budgets = [(n_training + n_validation) // 2**power for power in range(1, N_PROBE_BUDGETS + 1)]
    validation_share = n_validation / (n_training + n_validation)
    return [
        n for n in reversed(budgets)
        if n * (1 - validation_share) * rarest_share >= 2 and n * validation_share >= 1
    ]  # fmt: skip


def _copy(scanned: Scan, target: Path) -> None:
    """Copy the images of ``scanned`` to ``target``, whose images must be among them and are not written again.

    Raises:
        UserError: ``target`` has other images, the disk is too small, or DVC cannot store a file name.
    """
    folder = scanned.folder
    paths = [file.path.relative_to(folder) for file in scanned.image_files]
    if not_utf8 := [scanning.display_name(path) for path in paths if not _is_utf8(path)]:
        raise UserError(
            f"file names that are not UTF-8, which DVC cannot store: {folder}. Rename these files.", not_utf8
        )
    existing = set()
    if target.exists():
        existing = {file.path.relative_to(target) for file in scanning.scan(target, follow_links=False).image_files}
    if any(not _is_same_file(folder / path, target / path) for path in existing):
        raise UserError(f"{target} has images that are not in {folder}. Choose another study name with NAME=…, or "
                        f"delete {target}.")  # fmt: skip
    new = [path for path in paths if path not in existing]
    files.require_disk_space(target, sum((folder / path).stat().st_size for path in new), "Free some space.")
    staged = target.with_name(f".{target.name}.new.writing") if target.exists() else target
    if new:
        with files.atomic_write(staged) as tmp_path:
            for path in new:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / path, tmp_path / path)  # not the mode: copies of read-only files are writable
    if new and staged != target:  # move files one by one, so that an existing folder is never deleted
        for path in new:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (staged / path).replace(target / path)
        shutil.rmtree(staged)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_same_file(path: Path, copy: Path) -> bool:
    return path.is_file() and filecmp.cmp(path, copy, shallow=False)


def _update_params(
    name: str, *, skip_unusable: bool, suggested: dict[str, Any], previous: dict[str, Any] | None
) -> None:
    """Select the study ``name`` in params.yaml, and add it if it is new; everything else in the file stays the same.

    An existing study gets the ``suggested`` settings if it still has the ``previous`` suggestion.
    """
    studies = params.read_yaml()["studies"]
    changes: list[tuple[tuple[str, ...], Any]] = [(("study",), name)]
    if name in studies:
        settings = studies[name]
        new_settings = {"skip_unusable_images": skip_unusable}
        if previous is not None and all(settings[key] == value for key, value in previous.items()):
            new_settings |= suggested
        elif any(settings[key] != value for key, value in suggested.items()):
            print(f"kept your settings of the study {name} in params.yaml")
        changes += [(("studies", name, key), value) for key, value in new_settings.items() if settings[key] != value]
    else:
        study = {
            "dataset": name,
            "skip_unusable_images": skip_unusable,
            **NETWORK,
            **suggested,
            "cache_activations": True,
        }
        changes.append((("studies", name), study))
    path = Path("params.yaml")
    content = yaml_text.edit(path.read_bytes().decode("utf-8"), changes).encode("utf-8")
    with files.atomic_write(path) as tmp_path:
        tmp_path.write_bytes(content)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
