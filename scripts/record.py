"""Write what the results of a study were made with, so that it can be committed beside them.

    python -m scripts.record [STUDY] [--substitute-for WEIGHTS --top1 PERCENT --license TEXT]

STUDY: the one that params.yaml names if there is none. `metrics/STUDY/record.json` then has settings, commit, device,
precision, weights, versions, dates, the seconds of the stages, and the hashes of the results. A study that was run with
weights from a file may stand in for the one that the committed params.yaml describes: --substitute-for is what `weights`
is there, and the record says of the file how good it is on ImageNet, and under which license it is.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.network import initial_weights
from headstart.params import Params
from pipeline.dvc_yaml import Stage, lookup, stages
from pipeline.provenance import run_file
from stages.paths import RAW

# What a reader wants to know of the stages that compute on the device; starts are made on the CPU in float32 always.
FACTS = ("device", "precision", "threads", "python", "torch", "torchvision", "timm")
PEAKS = ("peak_memory_mb", "peak_gpu_memory_mb")
TRAINING = ("training_seconds", "label_budgets_seconds")
COMPUTED = ("features", "train")
TOP1 = "imagenet_top1_percent"


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?")
    parser.add_argument("--substitute-for", metavar="WEIGHTS")
    parser.add_argument("--top1", type=float, metavar="PERCENT")
    parser.add_argument("--license", metavar="TEXT")
    options = parser.parse_args(arguments)
    stand_in = [options.substitute_for, options.top1, options.license]
    if any(stand_in) and not all(stand_in):
        raise UserError("--substitute-for, --top1 and --license belong together: give all three, or none")
    settings = params.read()
    study = options.study or settings.study
    made = record(params.for_study(settings, study))
    if options.substitute_for:
        made["settings"]["weights"] = options.substitute_for
        made["weights"] |= {"substitute_for": options.substitute_for, TOP1: options.top1, "license": options.license}
    files.write_json(path(study), made)
    print(f"{path(study)} says what the results of {study} were made with: commit it with them")


def path(study: str) -> Path:
    return Path(f"metrics/{study}/record.json")


def record(settings: Params) -> dict[str, Any]:
    """What the results of a study in the working tree were made with.

    Raises:
        UserError: not all stages have run, or some with other settings than params.yaml has or with uncommitted code.
    """
    document = params.read_yaml()
    runs = {
        stage.name: _run(settings.study, stage, document) for stage in stages({**document, "study": settings.study})
    }
    computed = {name: run for name, run in runs.items() if name.startswith(COMPUTED)}
    study = dataclasses.asdict(settings.selected_study)
    return {
        "settings": {**study, "weights": weights_name(study["weights"])},
        "configurations": {
            name: dataclasses.asdict(configuration) for name, configuration in settings.configurations.items()
        },
        "weights": _weights(settings, runs),
        "commit": sorted({run["commit"] for run in runs.values()}),
        **{fact: sorted({run[fact] for run in computed.values() if fact in run}) for fact in FACTS},
        "started_at": min(run["started_at"] for run in runs.values()),
        "finished_at": max(run["finished_at"] for run in runs.values()),
        "training_seconds": round(sum(run.get(kind, 0) for run in runs.values() for kind in TRAINING), 1),
        "stage_seconds": {name: run["seconds"] for name, run in runs.items()},
        **_peaks(runs.values()),
        "sha256": {file.as_posix(): files.sha256(file) for file in results(settings)},
    }


def _peaks(runs: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The most memory that a stage took, of the machine's and of the GPU's, where it is known."""
    found: dict[str, float] = {}
    for one in runs:
        found |= {peak: max(one[peak], found.get(peak, 0)) for peak in PEAKS if peak in one}
    return found


def weights_name(weights: str) -> str:
    """``weights`` of params.yaml as a record has them: where a file lies says nothing elsewhere."""
    return Path(weights).name


def results(settings: Params) -> list[Path]:
    """The files that git has of the results."""
    study = settings.study
    metrics = [
        Path(f"metrics/{study}/{name}")
        for name in (
            "correct.csv",
            "correct_by_budget.csv",
            "study.json",
            "majority-baseline.json",
            *(f"{name}.json" for name in settings.configurations),
        )
    ]
    by_labels = (
        ("labels", "labels_saved")
        if settings.selected_study.label_budgets or settings.selected_study.probe_budgets
        else ()
    )
    tables = [Path(f"plots/{study}/{name}.csv") for name in ("accuracy", "confusion", "learning_curves", *by_labels)]
    drawn = ("accuracy", "examples", "learning_curves", *by_labels[:1])
    figures = [Path(f"plots/{study}/{name}.svg") for name in drawn]
    return [*metrics, *tables, *figures]


def _run(study: str, stage: Stage, document: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of ``stage``.

    Raises:
        UserError: it is missing, or it is not that of the outputs in the workspace, made with the parameters in
            ``document`` and committed code.
    """
    file = run_file(study, stage.name)
    again = f"run `dvc repro --force --single-item {stage.name}`"
    if not file.is_file():
        raise UserError(f"{file} is missing: {stage.name} did not run here, or DVC restored its outputs; {again}")
    run = files.read_json(file)
    if run["commit"].endswith("+"):
        raise UserError(f"{stage.name} was run with code that is not committed: commit it, and {again}")
    for key in stage.params:
        was, now = run["settings"].get(key), lookup(document, key)
        if was != now:
            raise UserError(f"{stage.name} was run with another {key} than params.yaml has ({was}, now {now}): "
                            "set it back, or run `dvc repro`")  # fmt: skip
    for path in files.list_source_files(out for out in stage.outs if Path(out) != RAW):  # which any study may replace
        if run["sha256"].get(path.as_posix()) != files.sha256(path):
            raise UserError(f"{file} does not describe {path}, which comes from another run: {again}")
    return run


def _weights(settings: Params, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The pretrained weights by name, hash and ImageNet accuracy, None where it is not known; empty without any."""
    start = runs.get("initialize@pretrained")
    if start is None:
        return {}
    top1 = initial_weights.resolve_weights(settings.selected_study.model_name, settings.selected_study.weights).top1
    return {"name": start["weights"], "sha256": start["weights_sha256"], TOP1: top1}


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
