"""Make a study of a folder of pictures: copy it to data/pictures, and add the study to params.yaml.

    python -m scripts.pictures FOLDER [--name NAME] [--skip-unusable]

FOLDER has a folder with pictures for each class, or `train` and `test` with these. NAME: what the study and its data
set are called, the folder's name if there is none. `make pictures FOLDER=…` runs the study as well.
"""

import argparse
import filecmp
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from headstart import files, params
from headstart.console import UserError, run
from headstart.data import catalogue, pictures, splits
from headstart.data.splits import Dataset
from headstart.network import models, starts
from stages.paths import PICTURES

NETWORK = {"model_name": models.TIMM, "weights": starts.DEFAULT, "finetune_from": models.AUTO}
SIDES = (224, 160, 128, 96, 64)
PIXELS = 14_000_000  # of all images, as long as they are not smaller than 64 pixels: some minutes on two cores
FEW = 2_000  # images: then chance decides much, so there are three seeds
SEED = 0
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
    name = options.name or re.sub(r"[^A-Za-z0-9]+", "-", folder.resolve().name).strip("-").lower()
    _require_name(name)
    dataset = _load(folder, skip_unusable=options.skip_unusable)
    there = PICTURES / name
    is_new = folder.resolve() != there.resolve()
    before = sizes(_load(there, skip_unusable=True)) if there.exists() and is_new else None
    if is_new:
        _copy(folder, there)
    _add(name, skip_unusable=options.skip_unusable, now=sizes(dataset), before=before)
    counts = f"{_count(dataset):,} pictures in {len(dataset.classes):,} classes"
    left_out = f", {len(dataset.left_out):,} files left out" if dataset.left_out else ""
    print(f"{PICTURES / name} has {counts}{left_out}; params.yaml has the study {name}")


def _load(folder: Path, *, skip_unusable: bool) -> Dataset:
    return pictures.load(folder, image_size=params.SMALLEST_IMAGE, skip_unusable=skip_unusable)


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"a study cannot be called {name!r}: give it a name with NAME=…, and {params.NAMES}")
    if name in catalogue.names():
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
        "seed": SEED,
        "seeds": [0, 1, 2] if _count(dataset) <= FEW else [0],
        "label_counts": [],
        "probe_counts": _halves(training, validation, labels[trained]) if validation else [],
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


def _copy(folder: Path, target: Path) -> None:
    """Copy the files that ``folder`` has in its classes to ``target``; what is there already must be in ``folder`` too.

    Raises:
        UserError: ``target`` has other pictures, or there is no room.
    """
    ours = [picture.path.relative_to(folder) for picture in pictures.find(folder)[0]]
    theirs = [picture.path.relative_to(target) for picture in pictures.find(target)[0]] if target.exists() else []
    if any(not _same(folder / path, target / path) for path in theirs):
        raise UserError(f"{target} has pictures that {folder} has not: give the study another name with NAME=…, or "
                        f"delete {target}")  # fmt: skip
    files.require_room(target, sum((folder / path).stat().st_size for path in ours), "free some space")
    with files.replacing(target) as beside:
        for path in ours:
            (beside / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / path, beside / path)  # and not its mode: what is read-only could not be replaced


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and filecmp.cmp(one, other, shallow=False)


def _add(name: str, *, skip_unusable: bool, now: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Name ``name`` as the study of params.yaml, and add it there if it is new: all else stays as it is written.

    A study that is there gets the sizes ``now`` if it has those ``before``, which nobody has changed.
    """
    path, yaml = Path("params.yaml"), YAML()
    yaml.preserve_quotes, yaml.width = True, 4_096
    document = yaml.load(path.read_text(encoding="utf-8"))
    document["study"] = name
    new = {"dataset": name, "skip_unusable_images": skip_unusable, **NETWORK, **now, "store_activations": True}
    settings = document["studies"].setdefault(name, new)
    settings["skip_unusable_images"] = skip_unusable
    if before is not None and all(settings[key] == value for key, value in before.items()):
        settings |= now
    elif any(settings[key] != value for key, value in now.items()):
        print(f"the sizes of the study {name} stay as they are in params.yaml")
    with files.replacing(path) as beside, beside.open("w", encoding="utf-8", newline="\n") as file:
        yaml.dump(document, file)


if __name__ == "__main__":
    run(main, *sys.argv[1:])
