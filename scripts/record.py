"""Write metrics/STUDY/record.json, the provenance of the results of a study, to be committed with the results.

The file has the settings, commit, device, precision, weights, package versions, dates, the seconds of each stage, and
the hashes of the results.

If the study was run with weights from a file instead of the `weights` in the committed params.yaml, give
--substitute-for, --top1 and --license. The record is then valid for the committed settings and describes the file.
"""

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
from scripts import argument_parser
from stages.paths import RAW

ENVIRONMENT = ("device", "precision", "threads", "python", "torch", "torchvision", "timm")
PEAKS = ("peak_memory_mb", "peak_gpu_memory_mb")
TRAINING = ("training_seconds", "label_budgets_seconds")
DEVICE_STAGES = ("features", "train")  # initial weights are always made on the CPU in float32
TOP1 = "imagenet_top1_percent"


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "study", metavar="STUDY", nargs="?", help="a section of studies in params.yaml (default: the selected study)"
    )
    parser.add_argument("--substitute-for", metavar="WEIGHTS", help="weights of the study in the committed params.yaml")
    parser.add_argument(
        "--top1", type=float, metavar="PERCENT", help="ImageNet top-1 accuracy of the weights in the file"
    )
    parser.add_argument("--license", metavar="TEXT", help="license of the weights in the file")
    options = parser.parse_args(arguments)
    substitute = [options.substitute_for, options.top1, options.license]
    if any(substitute) and not all(substitute):
        raise UserError("--substitute-for, --top1 and --license must be used together. Give all three, or none.")
    settings = params.read()
    study = options.study or settings.study
    content = build_record(params.for_study(settings, study))
    if options.substitute_for:
        content["settings"]["weights"] = options.substitute_for
        content["weights"] |= {"substitute_for": options.substitute_for, TOP1: options.top1, "license": options.license}
    files.write_json(path(study), content)
    print(f"wrote {path(study)}: commit it with the results of {study}")


def path(study: str) -> Path:
    return Path(f"metrics/{study}/record.json")


def build_record(settings: Params) -> dict[str, Any]:
    """Return the provenance of the results in the working tree.

    Raises:
        UserError: a stage has not run, or it ran with uncommitted code or with settings that differ from params.yaml.
    """
    document = params.read_yaml()
    runs = {
        stage.name: _read_run(settings.study, stage, document)
        for stage in stages({**document, "study": settings.study})
    }
    device_runs = [run for name, run in runs.items() if name.startswith(DEVICE_STAGES)]
    study = dataclasses.asdict(settings.selected_study)
    return {
        "settings": {**study, "weights": weights_name(study["weights"])},
        "configurations": {name: configuration.settings for name, configuration in settings.configurations.items()},
        "weights": _weights(settings, runs),
        "commit": sorted({run["commit"] for run in runs.values()}),
        **{key: sorted({run[key] for run in device_runs if key in run}) for key in ENVIRONMENT},
        "started_at": min(run["started_at"] for run in runs.values()),
        "finished_at": max(run["finished_at"] for run in runs.values()),
        "training_seconds": round(sum(run.get(key, 0) for run in runs.values() for key in TRAINING), 1),
        "stage_seconds": {name: run["seconds"] for name, run in runs.items()},
        **_peaks(runs.values()),
        "sha256": {file.as_posix(): files.sha256(file) for file in result_files(settings)},
    }


def _peaks(runs: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the peak memory over all stages, of RAM and of the GPU, if it is known."""
    peaks: dict[str, float] = {}
    for run in runs:
        peaks |= {key: max(run[key], peaks.get(key, 0)) for key in PEAKS if key in run}
    return peaks


def weights_name(weights: str) -> str:
    """Return ``weights`` of params.yaml as the record has it: a file without its folder, which differs by machine."""
    return Path(weights).name


def result_files(settings: Params) -> list[Path]:
    """Return the files of the results that are committed to git."""
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
    has_budgets = settings.selected_study.label_budgets or settings.selected_study.probe_budgets
    of_labels = ("labels", "labels_saved") if has_budgets else ()
    tables = [Path(f"plots/{study}/{name}.csv") for name in ("accuracy", "confusion", "learning_curves", *of_labels)]
    names = ("accuracy", "examples", "learning_curves", *of_labels[:1])
    figures = [Path(f"plots/{study}/{name}.svg") for name in names]
    return [*metrics, *tables, *figures]


def _read_run(study: str, stage: Stage, document: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of ``stage``.

    Raises:
        UserError: the file is missing, the stage ran with uncommitted code or with other parameters than ``document``,
            or the outputs in the workspace are from another run.
    """
    file = run_file(study, stage.name)
    remedy = f"run `dvc repro --force --single-item {stage.name}`"
    if not file.is_file():
        raise UserError(
            f"missing provenance: {file}. {stage.name} did not run here, or DVC restored its outputs. "
            f"To create it, {remedy}."
        )
    run = files.read_json(file)
    if run["commit"].endswith("+"):
        raise UserError(f"{stage.name} was run with uncommitted code. Commit the code, and {remedy}.")
    for key in stage.params:
        used, current = run["settings"].get(key), lookup(document, key)
        if used != current:
            raise UserError(f"{key} in params.yaml changed after {stage.name} ran. Restore it, or run `dvc repro`. "
                            f"Got {current} instead of {used}.")  # fmt: skip
    for path in files.list_source_files(out for out in stage.outs if Path(out) != RAW):  # all studies share RAW
        if run["sha256"].get(path.as_posix()) != files.sha256(path):
            raise UserError(f"{file} does not describe {path}, which is from another run. To update it, {remedy}.")
    return run


def _weights(settings: Params, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return name, hash and ImageNet accuracy (None if unknown) of the pretrained weights; empty if none are used."""
    run = runs.get("initialize@pretrained")
    if run is None:
        return {}
    top1 = initial_weights.resolve_weights(settings.selected_study.model_name, settings.selected_study.weights).top1
    return {"name": run["weights"], "sha256": run["weights_sha256"], TOP1: top1}


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
