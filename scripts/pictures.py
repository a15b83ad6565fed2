"""Make a study from a folder of images: copy it to data/pictures, and add the study to params.yaml.

    python -m scripts.pictures FOLDER [--name NAME] [--skip-unusable] [--group-by RULE] [--minutes N]

FOLDER has one folder with images per class, or the folders `train` and `test` (or `val`) with such class folders. For
example, `make pictures FOLDER=~/flowers` makes the study `flowers` and runs it. Image size and seeds are chosen so that
the study takes about N minutes on this machine.
"""

import argparse
import filecmp
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.data import pictures, registry, scanning, splits
from headstart.data.scanning import Scan
from headstart.data.splits import Dataset
from headstart.network import initial_weights, models, splitting
from headstart.params import Configuration, GroupBy
from scripts import params_lock, time_estimate, yaml_text
from scripts.time_estimate import Counts, Speed
from stages.paths import PICTURES

NETWORK = {"model_name": models.LITE0_MODEL, "weights": initial_weights.DEFAULT, "finetune_from": splitting.AUTO}
IMAGE_SIZES = (224, 160, 128, 96, 64)
SEEDS = ([0, 1, 2], [0])
SMALL_DATASET = 1_000  # images
DEFAULT_MINUTES = (5, 12)  # time limit of a study: up to ``SMALL_DATASET`` images, and above
SPLIT_SEED = 0
MAX_NAME_LENGTH = 100  # file names, which are limited to 255 bytes, contain it
GROUP_RULES = get_args(GroupBy)
NO_GROUPS = "none"  # turns grouping off; without a value, an existing study keeps its own
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
    parser.add_argument("--group-by", default="", metavar="RULE",
                        help=f"images that must stay in one split: {', '.join((*GROUP_RULES, NO_GROUPS))}")  # fmt: skip
    parser.add_argument("--minutes", default="", metavar="N",
                        help="time for the study; default: 5 for up to 1,000 images, 12 for more")  # fmt: skip
    options = parser.parse_args(arguments)
    minutes = parse_minutes(options.minutes)
    check_group_by(options.group_by)
    if not options.folder:
        raise UserError("no folder of images given. For example: make pictures FOLDER=~/flowers")
    with params_lock():
        add_study(options, minutes)


def check_group_by(rule: str) -> None:
    """Raise UserError if ``rule`` is no value of GROUP_BY."""
    if rule not in ("", NO_GROUPS, *GROUP_RULES):
        choices = ", ".join((*GROUP_RULES, NO_GROUPS))
        raise UserError(f"unknown value: GROUP_BY must be one of {choices}. Got {rule!r}.")


def add_study(options: argparse.Namespace, minutes: float) -> None:
    """Copy the images, and add or update their study."""
    folder = Path(options.folder).expanduser()
    name = options.name or default_name(folder)
    require_valid_name(name)
    if not any((parent / ".git").exists() for parent in Path("params.yaml").absolute().parents):
        print("not a git repository, which `dvc repro` needs: run `git init` first, or use `python -m stages` instead")
    target = PICTURES / name
    is_new = folder.resolve() != target.resolve()
    scanned = scanning.scan(folder, follow_links=is_new)
    previous = params.read_yaml()["studies"].get(name, {})
    group_by = (options.group_by or previous.get("group_by")) if options.group_by != NO_GROUPS else None
    request = Request(name, options.skip_unusable, group_by, 60 * minutes or None)
    started = time.perf_counter()
    dataset = pictures.read(scanned, image_size=params.SMALLEST_IMAGE, skip_unusable=request.skip_unusable)
    speed = time_estimate.measure((time.perf_counter() - started) / len(scanned.image_files))
    settings = _choose_settings(request, scanned, dataset, speed)
    if is_new:
        copy_images(scanned, target)
    # The networks of another study would be compared on these images.
    update_params(name, name, settings, networks={}, finetuned_networks=[])
    _print_summary(name, scanned, dataset, speed, request.limit)


def default_name(folder: Path) -> str:
    """Return the name of the dataset in ``folder``."""
    return re.sub(r"[^A-Za-z0-9]+", "-", Path(os.path.abspath(folder)).name).strip("-").lower()


class Request(NamedTuple):
    """What the user asks for."""

    name: str
    skip_unusable: bool
    group_by: GroupBy | None
    limit: float | None  # seconds of the study; None if the user gave no limit


def _choose_settings(request: Request, scanned: Scan, dataset: Dataset, speed: Speed) -> dict[str, Any]:
    """Return the settings of the study that change in params.yaml.

    An existing study keeps its image size and seeds, unless the user gave a limit. Its other settings are updated only
    if nobody has edited them, that is, if they equal the suggestion for its previous images.
    """
    settings = params.read()
    rules: dict[str, Any] = {"skip_unusable_images": request.skip_unusable, "group_by": request.group_by}
    previous = params.read_yaml()["studies"].get(request.name)
    if previous is None or request.limit:
        size, seeds = fit_to_time(dataset, settings.configurations, speed, request.limit)
    else:
        size, seeds = previous["image_size"], previous["seeds"]
    if request.group_by:  # near-duplicates may differ by image size
        dataset = pictures.read(
            scanned, image_size=size, skip_unusable=request.skip_unusable, group_by=request.group_by
        )
        pool, test = splits.pool_and_test(dataset, seed=SPLIT_SEED)
        if n_left_out := len(dataset.training.labels) - len(pool) - (0 if dataset.test else len(test)):
            print(f"{n_left_out:,} training images are left out, because a test image is in their group")
    suggested = suggest_settings(dataset, size, seeds)
    if previous is None or _has(previous, suggested) or is_suggestion(previous):
        return rules | suggested
    if request.limit:
        rules |= {"image_size": size, "seeds": seeds}
    print(f"kept your {'other ' if request.limit else ''}settings of the study {request.name} in params.yaml")
    return rules


def is_suggestion(study: Mapping[str, Any]) -> bool:
    """Return whether a study has the settings that were suggested for the images in data/pictures."""
    group_by = study.get("group_by")
    image_size = study["image_size"] if group_by == "near-duplicates" else params.SMALLEST_IMAGE
    try:
        dataset = pictures.load(
            PICTURES / study["dataset"], image_size=image_size, skip_unusable=True, group_by=group_by
        )
        return _has(study, suggest_settings(dataset, study["image_size"], study["seeds"]))
    except UserError:  # no such folder, or too few images
        return False


def _print_summary(name: str, scanned: Scan, dataset: Dataset, speed: Speed, limit: float | None) -> None:
    """Print what the study has and how long it will take, and keep the estimate for the progress of the study."""
    settings = params.read()
    study = settings.studies[name]
    counts = f"{count_images(dataset):,} images in {len(dataset.classes):,} classes"
    skipped_files = f", {len(dataset.skipped_files):,} skipped files" if dataset.skipped_files else ""
    print(f"{PICTURES / name} has {counts}{skipped_files}; params.yaml has the study {name}")
    for note in scanned.notes:
        print(note)
    if scanned.ignored:
        most_common = scanned.ignored.most_common(3)
        suffixes = ", ".join(scanning.display_name(suffix or "no suffix") for suffix, _ in most_common)
        print(f"{scanned.ignored.total():,} files that are not images are ignored ({suffixes})")
    if any(getattr(study, key) != NETWORK[key] for key in ("model_name", "finetune_from")) or study.label_budgets:
        time_estimate.path(name).unlink(missing_ok=True)  # the estimate is for the network of `make pictures`
        return
    seconds = _estimate(dataset, vars(study), settings.configurations, speed)
    files.write_json(time_estimate.path(name), seconds)
    first = sum(seconds[stage] for stage in time_estimate.FIRST_STAGES)
    seeds = "1 seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    times = [time_estimate.in_words(value) for value in (first, sum(seconds.values()))]
    print(f"{study.image_size} pixels, {study.n_epochs} epochs, {seeds}: on this machine, the first result takes about "
          f"{times[0]}, and the whole study about {times[1]}. Set MINUTES=… to change the time limit.")  # fmt: skip
    if limit and sum(seconds.values()) > limit:
        is_smallest = study.image_size == IMAGE_SIZES[-1] and len(study.seeds) == 1
        reason = (
            "this is the smallest image size and one seed" if is_smallest else "your settings of the study take longer"
        )
        print(f"MINUTES={limit / 60:g} is too short: {reason}")


def require_valid_name(name: str) -> None:
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


def count_images(dataset: Dataset) -> int:
    return len(dataset.training.labels) + (len(dataset.test.labels) if dataset.test else 0)


def _estimate(
    dataset: Dataset, study: Mapping[str, Any], configurations: Mapping[str, Configuration], speed: Speed
) -> dict[str, float]:
    """Return the seconds of each stage of ``study``."""
    _, test = splits.pool_and_test(dataset, seed=SPLIT_SEED)
    counts = Counts(study["training_images"], study["validation_images"], len(test), len(dataset.classes))
    return time_estimate.stage_seconds(study, configurations, counts, speed)


def parse_minutes(text: str) -> float:
    """Return a number of minutes; 0 for an empty text.

    Raises:
        UserError: it is not a positive number.
    """
    try:
        minutes = float(text or "0")
    except ValueError:
        minutes = math.nan
    if text and not 0 < minutes < math.inf:
        raise UserError(f"MINUTES must be a positive number. Got {text!r}.")
    return minutes


def fit_to_time(
    dataset: Dataset, configurations: Mapping[str, Configuration], speed: Speed, limit: float | None
) -> tuple[int, list[int]]:
    """Return the largest image size with which the study takes at most ``limit`` seconds, and the most seeds.

    If no size fits, return the smallest size and one seed. The default limit depends on the number of images.
    """
    if limit is None:
        limit = 60 * DEFAULT_MINUTES[count_images(dataset) > SMALL_DATASET]
    for size in IMAGE_SIZES:
        for seeds in SEEDS:
            seconds = _estimate(dataset, suggest_settings(dataset, size, seeds), configurations, speed)
            if sum(seconds.values()) <= limit:
                return size, seeds
    return IMAGE_SIZES[-1], SEEDS[-1]


def _has(study: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether ``study`` has all values of ``settings``."""
    return all(study.get(key) == value for key, value in settings.items())


def suggest_settings(dataset: Dataset, image_size: int, seeds: list[int]) -> dict[str, Any]:
    """Return settings for a study of ``dataset``."""
    pool, _ = splits.pool_and_test(dataset, seed=SPLIT_SEED)
    labels = dataset.training.labels
    training, validation = splits.split_pool(
        dataset, pool, training_images=None, validation_images=len(pool) // 10, seed=SPLIT_SEED
    )
    n_validation = len(validation)
    if len(np.unique(labels[training])) < len(dataset.classes):  # validation would take the only image of a class
        training, n_validation = pool, 0
    n_training = len(training)
    batch_size = 128 if n_training >= 4_096 else 32
    if n_training % batch_size == 1:  # batch norm cannot train on a batch of one image
        n_training -= 1
    return {
        "image_size": image_size,
        "training_images": n_training,
        "validation_images": n_validation,
        "pool_images": None,
        "test_images": None,
        "batch_size": batch_size,
        "n_epochs": min(MAX_EPOCHS, max(2, -(-MIN_STEPS * batch_size // n_training))),
        "patience": None,
        "split_seed": SPLIT_SEED,
        "seeds": seeds,
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


def copy_images(scanned: Scan, target: Path) -> None:
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


def update_params(study: str, dataset: str, settings: Mapping[str, Any], **values: Any) -> None:
    """Select ``study`` in params.yaml and give it ``settings``; everything else in the file stays the same.

    Args:
        dataset: of a new study.
        values: top-level values that change too.

    Raises:
        UserError: the new values do not fit together. The file does not change.
    """
    document = params.read_yaml()
    studies = document["studies"]
    changes: list[tuple[tuple[str, ...], Any]] = [(("study",), study)]
    if study in studies:
        changes += [
            (("studies", study, key), value) for key, value in settings.items() if studies[study].get(key) != value
        ]
    else:
        first = {"dataset": dataset, "skip_unusable_images": False, "group_by": None}
        changes.append((("studies", study), {**first, **NETWORK, **settings, "cache_activations": True}))
    changes += [((key,), value) for key, value in values.items() if document.get(key) != value]
    path = Path("params.yaml")
    text = yaml_text.edit(path.read_bytes().decode("utf-8"), changes)
    with files.atomic_write(path) as tmp_path:
        tmp_path.write_bytes(text.encode("utf-8"))
        params.validate(params.read_yaml(tmp_path), params.Params, params.SECTIONS, path)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
