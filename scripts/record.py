"""Write what the results of a study were made with, so that it can be committed beside them.

    python -m scripts.record [SCALE] [--stands-in-for WEIGHTS --top1 PERCENT --licence TEXT]

SCALE: the one that params.yaml names if there is none. `metrics/SCALE/record.json` then has settings, commit, device,
precision, weights, versions, dates, the seconds of every stage, and the hashes of the results. A study that was run
with weights from a file may stand in for the one that params.yaml describes: --stands-in-for is what `weights` is
there, and the record says of the file how good it is on ImageNet, and under which licence it is.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from headstart import files, params, starts
from headstart.console import UserError, run
from headstart.params import Params

# What a reader wants to know of a run, and the stages that know it.
FACTS = ("commit", "device", "precision", "threads", "python", "torch", "torchvision", "timm")
IMAGENET_TOP1 = "ImageNet top-1 %"


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scale", nargs="?")
    parser.add_argument("--stands-in-for", metavar="WEIGHTS")
    parser.add_argument("--top1", type=float, metavar="PERCENT")
    parser.add_argument("--licence", metavar="TEXT")
    options = parser.parse_args(arguments)
    settings = params.read()
    name = options.scale or settings.scale
    if name not in settings.scales:
        raise UserError(f"there is no scale {name!r} in params.yaml: it has {', '.join(settings.scales)}")
    made = record(dataclasses.replace(settings, scale=name))
    if options.stands_in_for:
        made["settings"]["weights"] = options.stands_in_for
        made["weights"] |= {"stands in for": options.stands_in_for, IMAGENET_TOP1: options.top1,
                            "licence": options.licence}  # fmt: skip
    files.write_json(path(name), made)
    print(f"{path(name)} says what the results of {name} were made with: commit it with them")


def path(scale: str) -> Path:
    return Path(f"metrics/{scale}/record.json")


def record(settings: Params) -> dict[str, Any]:
    """What the results of a scale in the working tree were made with.

    Raises:
        UserError: something is missing, because not all stages have run.
    """
    runs = {name: _run(settings.scale, name) for name in stage_names(settings)}
    trainings = {name: runs[f"train-{name}"] for name in settings.experiments}
    pretrained = runs.get("start-pretrained-true", {})
    scale = dataclasses.asdict(settings.current)
    scale["weights"] = Path(scale["weights"]).name  # a path says nothing elsewhere
    return {
        "settings": scale,
        "experiments": {
            name: {key: value for key, value in dataclasses.asdict(experiment).items() if value is not None}
            for name, experiment in settings.experiments.items()
        },
        "weights": {
            "name": pretrained.get("weights", ""),
            "sha256": pretrained.get("weights_sha256", ""),
            IMAGENET_TOP1: starts.find(settings.current.model_name, settings.current.weights).top1,
        },
        **{fact: sorted({str(run[fact]) for run in runs.values() if fact in run}) for fact in FACTS},
        "began and ended": [min(run["ended"] for run in runs.values()), max(run["ended"] for run in runs.values())],
        "seconds of all trainings": round(sum(run["training_seconds"] for run in trainings.values()), 1),
        "seconds": {name: run["seconds"] for name, run in runs.items()},
        "peak memory in MB": max(run.get("peak_memory_mb", 0) for run in runs.values()),
        "sha256": {str(file): files.sha256(file) for file in results(settings.scale, settings.experiments)},
    }


def stage_names(settings: Params) -> list[str]:
    """The stages that leave a record of their run, under the names of these records."""
    starts = sorted({str(experiment.pretrained).lower() for experiment in settings.experiments.values()})
    return [
        "prepare",
        *(f"{stage}-pretrained-{start}" for stage in ("start", "features") for start in starts),
        *(f"{stage}-{name}" for stage in ("train", "evaluate") for name in settings.experiments),
    ]


def results(scale: str, experiments: Any) -> list[Path]:
    """The files that git has of the results."""
    metrics = [Path(f"metrics/{scale}/{name}.json") for name in ("study", *experiments)]
    plots = [Path(f"plots/{scale}/{name}.csv") for name in ("accuracy", "confusion", "learning_curves")]
    return [*metrics, Path(f"metrics/{scale}/right.csv"), *plots]


def _run(scale: str, name: str) -> dict[str, Any]:
    file = Path(f"runs/{scale}/{name}.json")
    if not file.is_file():
        raise UserError(f"{file} is missing, so the study {scale} is not complete: run `dvc repro` at that scale first")
    return files.read_json(file)


if __name__ == "__main__":
    run(main, *sys.argv[1:])
