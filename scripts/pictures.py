"""Make a study of a folder of pictures: copy it to data/pictures, and add the study to params.yaml.

    python -m scripts.pictures FOLDER [--name NAME] [--skip-unusable]

FOLDER has a folder with pictures for each class, or `train` and `test` (or `val`) with these. NAME: what the study and
its data set are called, the folder's name if there is none. `make pictures FOLDER=…` runs the study as well.
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
from headstart.data.scanning import ImageFile, Scan
from headstart.data.splits import Dataset
from headstart.network import initial_weights, models, splitting
from scripts import yaml_text
from stages.paths import PICTURES

NETWORK = {"model_name": models.LITE0_MODEL, "weights": initial_weights.DEFAULT, "finetune_from": splitting.AUTO}
SIDES = (224, 160, 128, 96, 64)
PIXELS = 14_000_000  # of all images, as long as they are not smaller than 64 pixels: some minutes on two cores
FEW = 2_000  # images: then chance decides much, so there are three seeds
SEED = 0
LONGEST_NAME = 100  # letters: file names of 255 bytes have it in them
BOOLEANS = ("yes", "no", "on", "off")  # in YAML 1.1; what rewrites params.yaml, as `dvc exp run -S` does, drops quotes
DEVICES = r"con|prn|aux|nul|(com|lpt)[0-9]"
HALVINGS = 5  # of the images, for linear probes with few of them
STEPS = 150  # of training at least, as long as that is no more than 30 epochs


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="")
    parser.add_argument("--name", default="")
    parser.add_argument("--skip-unusable", action="store_true")
    options = parser.parse_args(arguments)
    if not options.folder:
        raise UserError("which folder? For example: make pictures FOLDER=~/flowers")
    folder = Path(options.folder).expanduser()
    name = options.name or re.sub(r"[^A-Za-z0-9]+", "-", Path(os.path.abspath(folder)).name).strip("-").lower()
    _require_name(name)
    if not any((parent / ".git").exists() for parent in Path("params.yaml").absolute().parents):
        print("this is no git repository, which `dvc repro` needs: run `git init` first, or `python -m stages` instead")
    there = PICTURES / name
    is_new = folder.resolve() != there.resolve()
    scanned = scanning.scan(folder, follow_links=is_new)
    dataset = pictures.read(scanned, image_size=params.SMALLEST_IMAGE, skip_unusable=options.skip_unusable)
    before = None
    if is_new and there.exists():
        before = sizes(pictures.load(there, image_size=params.SMALLEST_IMAGE, skip_unusable=True))
    if is_new:
        _copy(scanned, there)
    _add(name, skip_unusable=options.skip_unusable, now=sizes(dataset), before=before)
    counts = f"{_count(dataset):,} pictures in {len(dataset.classes):,} classes"
    skipped_files = f", {len(dataset.skipped_files):,} files left out" if dataset.skipped_files else ""
    print(f"{PICTURES / name} has {counts}{skipped_files}; params.yaml has the study {name}")
    for note in scanned.notes:
        print(note)
    if scanned.ignored:
        suffixes = ", ".join(
            scanning.display_name(suffix or "no suffix") for suffix, _ in scanned.ignored.most_common(3)
        )
        print(f"{scanned.ignored.total():,} files that are no images are ignored ({suffixes})")


def _require_name(name: str) -> None:
    """Raise UserError where ``name`` cannot be the name of a study and of a folder on every system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"a study cannot be called {name!r}: give it a name with NAME=…, and {params.NAME_RULE}")
    if len(name) > LONGEST_NAME:
        raise UserError(f"a study cannot have a name of {len(name)} letters: give it a shorter one with NAME=…")
    if name.lower() in BOOLEANS or re.fullmatch(DEVICES, name.lower()):
        reader = "YAML reads it as true or false" if name.lower() in BOOLEANS else "it is a device on Windows"
        raise UserError(f"a study cannot be called {name}, because {reader}: give it another name with NAME=…")
    if name in registry.names():
        raise UserError(f"{name} is a data set already: give yours another name with NAME=…")
    study = params.read().studies.get(name)
    if study is not None and study.dataset != name:
        raise UserError(f"params.yaml has a study {name} of other images: give yours another name with NAME=…")


def _count(dataset: Dataset) -> int:
    return len(dataset.training.labels) + (len(dataset.test.labels) if dataset.test else 0)


def sizes(dataset: Dataset) -> dict[str, Any]:
    """How large the images, how many to train and to validate with, how long, and how often.

    Some minutes on two cores, for up to some thousand pictures.
    """
    labels = dataset.training.labels
    if dataset.test is None:
        labels = labels[splits.hold_out(labels, seed=SEED)[0]]
    images, validation = len(labels), len(labels) // 10
    training = images - validation
    _, trained = splits.stratified_split(labels, sizes=[validation, training], seed=SEED)
    if len(np.unique(labels[trained])) < len(dataset.classes):  # so few that validation would take a class's only one
        training, validation = images, 0
    batch_size = 128 if training >= 4_096 else 32
    if training % batch_size == 1:  # batch norm cannot train on one image
        training -= 1
    fitting = [side for side in SIDES if _count(dataset) * side**2 <= PIXELS]
    return {
        "image_size": max(fitting, default=min(SIDES)),
        "training_images": training,
        "validation_images": validation,
        "batch_size": batch_size,
        "n_epochs": min(30, max(2, -(-STEPS * batch_size // training))),
        "patience": None,
        "split_seed": SEED,
        "seeds": [0, 1, 2] if _count(dataset) <= FEW else [0],
        "label_budgets": [],
        "probe_budgets": _halves(training, validation, labels[trained]) if validation else [],
    }


def _halves(training: int, validation: int, labels: np.ndarray) -> list[int]:
    """A half of the images, a fourth … as long as every class keeps one to train with.

    It does where its share of those is two: ``splits.stratified_split`` says how far it may be from its share.

    Args:
        labels: of the training images.
    """
    rarest = np.bincount(labels)[np.unique(labels)].min() / len(labels)
    halves = [(training + validation) // 2**power for power in range(1, HALVINGS + 1)]
    share = validation / (training + validation)
    return [n for n in reversed(halves) if n * (1 - share) * rarest >= 2 and n * share >= 1]


def _copy(scanned: Scan, target: Path) -> None:
    """Copy the images of ``scanned`` to ``target``; what is there already must be among them, and stays as it is.

    Raises:
        UserError: ``target`` has other images, there is no room, or DVC cannot store a file's name.
    """
    folder = scanned.folder
    paths = [picture.path.relative_to(folder) for picture in scanned.pictures]
    if unnamed := [scanning.display_name(path) for path in paths if not _is_unicode(path)]:
        raise UserError(f"{folder} has names that are no UTF-8, which DVC cannot store: rename these", unnamed)
    there = {picture.path.relative_to(target) for picture in _pictures(target)}
    if any(not _same(folder / path, target / path) for path in there):
        raise UserError(f"{target} has pictures that {folder} has not: give the study another name with NAME=…, or "
                        f"delete {target}")  # fmt: skip
    new = [path for path in paths if path not in there]
    files.require_disk_space(target, sum((folder / path).stat().st_size for path in new), "free some space")
    staged = target.with_name(f".{target.name}.new.writing") if target.exists() else target
    if new:
        with files.atomic_write(staged) as beside:
            for path in new:
                (beside / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / path, beside / path)  # and not its mode: what is read-only stays so for ever
    if new and staged != target:  # added one by one: a folder that was there is never taken away
        for path in new:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (staged / path).replace(target / path)
        shutil.rmtree(staged)


def _pictures(target: Path) -> list[ImageFile]:
    return scanning.scan(target, follow_links=False).pictures if target.exists() else []


def _is_unicode(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


def _add(name: str, *, skip_unusable: bool, now: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Name ``name`` as the study of params.yaml, and add it there if it is new: all else stays as it is written.

    A study that is there gets the sizes ``now`` if it has those ``before``, which nobody has changed.
    """
    studies = params.read_yaml()["studies"]
    changes: list[tuple[tuple[str, ...], Any]] = [(("study",), name)]
    if name in studies:
        settings = studies[name]
        wanted = {"skip_unusable_images": skip_unusable}
        if before is not None and all(settings[key] == value for key, value in before.items()):
            wanted |= now
        elif any(settings[key] != value for key, value in now.items()):
            print(f"the sizes of the study {name} stay as they are in params.yaml")
        changes += [(("studies", name, key), value) for key, value in wanted.items() if settings[key] != value]
    else:
        new = {"dataset": name, "skip_unusable_images": skip_unusable, **NETWORK, **now, "cache_activations": True}
        changes.append((("studies", name), new))
    path = Path("params.yaml")
    content = yaml_text.changed(path.read_bytes().decode("utf-8"), changes).encode("utf-8")
    with files.atomic_write(path) as beside:
        beside.write_bytes(content)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
