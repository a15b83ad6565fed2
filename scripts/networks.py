"""Choose pretrained networks to compare, and write them to params.yaml.

    python -m scripts.networks [FOLDER | --study STUDY] [--networks "NAME NAME=WEIGHTS …"] [--from-timm PATTERN]
        [--max-networks N] [--minutes N] [--finetune K] [--name NAME] [--skip-unusable] [--group-by RULE]

For example, `make networks FOLDER=~/flowers` makes the study `flowers-networks` and compares a dozen networks on it.
WEIGHTS is as `weights` in params.yaml: a name, the path of a state dict, or `default`. A network is left out if its
weights cannot be loaded, if it does not accept the image size, or if it is too large for this machine. Without FOLDER
and STUDY, the selected study is used; if no networks are named either, params.yaml does not change.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.data import pictures, scanning, splits
from headstart.data.splits import Dataset
from headstart.params import Network
from headstart.training import compute
from scripts import argument_parser, network_candidates, params_lock, time_estimate
from scripts import pictures as own_pictures
from scripts.network_candidates import Candidate
from scripts.time_estimate import Counts
from stages.paths import PICTURES

IMAGE_SIZE = 224  # pixels of a new study: that of most pretrained weights


def main(*arguments: str) -> None:
    options = _parse(arguments)
    limit = 60 * own_pictures.parse_minutes(options.minutes)
    own_pictures.check_group_by(options.group_by)
    if options.folder and options.study:
        raise UserError("FOLDER and STUDY cannot be combined. Give one of them.")
    for variable in ("minutes", "name", "skip_unusable", "group_by"):
        if getattr(options, variable) and not options.folder:
            name = {"skip_unusable": "SKIP"}.get(variable, variable.upper())
            raise UserError(f"{name} cannot be used without FOLDER. Remove {name}, or set FOLDER.")
    with params_lock():
        networks = _requested(options)
        check_finetune(options.finetune, len(networks or params.read().networks))
        if options.folder:
            _choose_for_folder(options, networks, limit)
        elif networks:
            _choose_for_study(options.study, networks)


def _parse(arguments: tuple[str, ...]) -> argparse.Namespace:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "folder", nargs="?", default="", metavar="FOLDER", help="folder of images, one folder per class"
    )
    parser.add_argument("--study", default="", help="compare on the images of this study in params.yaml instead")
    parser.add_argument(
        "--networks", default="", metavar="NAMES", help="names in torchvision or timm, as NAME or NAME=WEIGHTS; "
        "default with FOLDER or STUDY: 12 networks",
    )  # fmt: skip
    parser.add_argument(
        "--from-timm", default="", metavar="PATTERN", help="pretrained networks of timm, for example 'convnext*'"
    )
    parser.add_argument("--max-networks", default="", metavar="N", help="use the first N networks that match PATTERN")
    parser.add_argument(
        "--minutes", default="", metavar="N", help="time limit of the probes, which may lower the image size from 224"
    )
    parser.add_argument("--finetune", default="", metavar="K", help="number of networks that will be fine-tuned")
    parser.add_argument("--name", default="", help="name of the dataset; default: the name of FOLDER")
    parser.add_argument("--skip-unusable", action="store_true", help="skip unusable files; default: report and stop")
    rules = ", ".join((*own_pictures.GROUP_RULES, own_pictures.NO_GROUPS))
    parser.add_argument("--group-by", default="", metavar="RULE", help=f"images that must stay in one split: {rules}")
    return parser.parse_args(arguments)


def _requested(options: argparse.Namespace) -> dict[str, Network]:
    """Return the networks that the command names, or else the default ones; none if params.yaml should not change.

    Raises:
        UserError: a name or a pattern is wrong, or there is nothing to compare.
    """
    maximum = parse_count(options.max_networks, "MAX_NETWORKS")
    if maximum and not options.from_timm:
        raise UserError("MAX_NETWORKS requires FROM_TIMM. Set FROM_TIMM, or remove MAX_NETWORKS.")
    named = network_candidates.parse(options.networks)
    if options.from_timm:
        named += network_candidates.match_timm(options.from_timm, maximum)
    if not named and (options.folder or options.study):
        named = network_candidates.parse(" ".join(network_candidates.DEFAULT_NETWORKS))
    if not named and not params.read().networks:
        raise UserError("no folder of images given. For example: make networks FOLDER=~/flowers")
    return network_candidates.name_networks(named)


def parse_count(text: str, variable: str) -> int | None:
    """Return a positive integer; None for an empty text.

    Raises:
        UserError: ``text`` is not a positive integer.
    """
    if text and (not text.isdecimal() or int(text) < 1):
        raise UserError(f"{variable} must be a positive integer. Got {text!r}.")
    return int(text) if text else None


def check_finetune(text: str, n_networks: int) -> int:
    """Return the number of networks to fine-tune; 0 for an empty text.

    Raises:
        UserError: ``text`` is not a positive integer, or there are fewer networks.
    """
    n_finetuned = parse_count(text, "FINETUNE") or 0
    if n_finetuned > n_networks:
        raise UserError(f"FINETUNE must be at most {n_networks}, the number of networks. Got {n_finetuned}.")
    return n_finetuned


def _choose_for_study(name: str, networks: Mapping[str, Network]) -> None:
    settings = params.read()
    if name and name not in settings.studies:
        raise UserError(f"unknown study in STUDY. Choose one of {', '.join(settings.studies)}. Got {name!r}.")
    name = name or settings.study
    study = settings.studies[name]
    candidates, left_out = network_candidates.check_all(networks, study.image_size, compute.configure())
    _write(name, study.dataset, {}, candidates, left_out)
    time_estimate.path(name, "networks").unlink(missing_ok=True)  # the number of test images is not known here


def _choose_for_folder(options: argparse.Namespace, networks: Mapping[str, Network], limit: float) -> None:
    """Copy the images of the folder, make or update its study, and choose the networks."""
    folder = Path(options.folder).expanduser()
    dataset_name = options.name or own_pictures.default_name(folder)
    own_pictures.require_valid_name(dataset_name)
    name, target = f"{dataset_name}-networks", PICTURES / dataset_name
    previous: dict[str, Any] = params.read_yaml()["studies"].get(name, {})
    if previous and previous["dataset"] != dataset_name:
        raise UserError(f"study name in use: params.yaml has a study {name} of other images. Choose another name with "
                        "NAME=….")  # fmt: skip
    group_by = None if options.group_by == own_pictures.NO_GROUPS else options.group_by or previous.get("group_by")
    settings = {"skip_unusable_images": options.skip_unusable, "group_by": group_by}
    is_new = folder.resolve() != target.resolve()
    scanned = scanning.scan(folder, follow_links=is_new)
    started = time.perf_counter()
    dataset = pictures.read(
        scanned, image_size=params.SMALLEST_IMAGE, skip_unusable=options.skip_unusable, group_by=group_by
    )
    read_seconds = time.perf_counter() - started
    print(f"{own_pictures.count_images(dataset):,} images in {len(dataset.classes):,} classes")
    size = previous["image_size"] if previous and not limit else IMAGE_SIZE
    candidates, left_out = network_candidates.check_all(networks, size, compute.configure())
    seeds = previous.get("seeds", [0])
    if limit:
        size = _fit_to_time(dataset, seeds, candidates, left_out, read_seconds, limit)
    if group_by:  # near-duplicates may differ by image size
        dataset = pictures.read(scanned, image_size=size, skip_unusable=options.skip_unusable, group_by=group_by)
    suggested = own_pictures.suggest_settings(dataset, size, seeds)
    if not previous or own_pictures.is_suggestion(previous):
        settings |= suggested
    else:
        settings |= {"image_size": size}
        print(f"kept your {'other ' if limit else ''}settings of the study {name} in params.yaml")
    if is_new:
        own_pictures.copy_images(scanned, target)
    _write(name, dataset_name, settings, candidates, left_out)
    seconds = _estimate(dataset, suggested, candidates, read_seconds)
    files.write_json(time_estimate.path(name, "networks"), seconds)
    total = sum(seconds.values())
    n_networks = "1 network" if len(candidates) == 1 else f"{len(candidates):,} networks"
    print(f"{n_networks} at {size} pixels: on this machine, the probes take about {time_estimate.in_words(total)}")
    if limit and total > limit:
        print(f"MINUTES is too short. Increase it, or name fewer networks with NETWORKS=…. Got {limit / 60:g}.")


def _fit_to_time(
    dataset: Dataset, seeds: list[int], candidates: dict[str, Candidate], left_out: dict[str, str], read_seconds: float,
    limit: float,
) -> int:  # fmt: skip
    """Return the largest image size at which the comparison takes at most ``limit`` seconds, or else the smallest size.

    Networks that do not accept a size that is tried move from ``candidates`` to ``left_out``. The seconds of the others
    are scaled to the new size. A size that no network accepts is not used.

    Args:
        read_seconds: of reading all images.
    """
    device, size = compute.configure(), IMAGE_SIZE
    for smaller in (side for side in own_pictures.IMAGE_SIZES if side < IMAGE_SIZE):
        suggested = own_pictures.suggest_settings(dataset, size, seeds)
        if sum(_estimate(dataset, suggested, candidates, read_seconds).values()) <= limit:
            break
        problems = {}
        for name, candidate in candidates.items():
            try:
                network_candidates.require_memory(candidate.network, smaller, device)
            except UserError as error:
                problems[name] = str(error)
        if len(problems) == len(candidates):
            break
        for name, problem in problems.items():
            del candidates[name]
            print(f"{name} is left out: {problem}")
        left_out |= problems
        for name, candidate in candidates.items():
            candidates[name] = candidate._replace(seconds=candidate.seconds * (smaller / size) ** 2)
        size = smaller
    return size


def _estimate(
    dataset: Dataset, study: Mapping[str, Any], candidates: Mapping[str, Candidate], read_seconds: float
) -> dict[str, float]:
    """Return the seconds of each stage of the comparison."""
    _, test = splits.pool_and_test(dataset, seed=own_pictures.SPLIT_SEED)
    counts = Counts(study["training_images"], study["validation_images"], len(test), len(dataset.classes))
    return {
        "download": time_estimate.START_SECONDS,
        "prepare": time_estimate.START_SECONDS + read_seconds,
        **{
            f"probe_network@{name}": time_estimate.network_seconds(study, counts, row.seconds, row.n_features)
            for name, row in candidates.items()
        },
    }


def _write(
    study: str, dataset: str, settings: Mapping[str, Any], candidates: Mapping[str, Candidate], left_out: dict[str, str]
) -> None:
    """Write the study and its networks to params.yaml, and the reasons why networks were left out to runs/."""
    networks = {name: dict(vars(candidate.network)) for name, candidate in candidates.items()}
    own_pictures.update_params(study, dataset, settings, networks=networks, finetuned_networks=[])
    files.write_json(left_out_file(study), left_out)


def left_out_file(study: str) -> Path:
    """Return the file with the networks that are left out of the comparison, and the reasons."""
    return Path(f"runs/{study}/networks/left_out.json")


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
