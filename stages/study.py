"""All that the stages before have found out about the configurations that params.yaml names."""

from pathlib import Path

import numpy as np

from headstart import files, params
from headstart.console import UserError
from headstart.data import catalogue, splits
from headstart.network.snapshot import Snapshot
from headstart.results import comparison, gallery, maps, report
from stages import paths
from stages.paths import model_file, predictions_file, prepared_file, run_file, scores_folder, stage_names

PUBLISHED = "docs/published.csv"


def read(settings: params.Params) -> report.Content:
    """Read it.

    dvc.yaml cannot list the configurations' metrics as dependencies; it has what they are computed from.
    """
    study, experiments = settings.study, settings.experiments
    images, labels, classes = splits.read_split(prepared_file(settings), "test")
    _require_one_precision(settings)
    logits = {name: files.read_arrays(predictions_file(settings, name)).arrays["logits"] for name in experiments}
    right = {name: found.argmax(2) == labels for name, found in logits.items()}
    findings = comparison.study(experiments, right)
    compared = report.is_published_size(settings.current)
    published = report.published_results(files.read_csv(PUBLISHED)) if compared else {}
    rows = [
        report.Row(
            name=name,
            experiment=experiment,
            metrics=files.read_json(f"metrics/{study}/{name}.json"),
            accuracy=findings.accuracy[name],
            published=published.get(experiment),
        )
        for name, experiment in experiments.items()
    ]
    ranked = [row.name for row in report.sort_rows(rows)]
    best_of_start = {experiments[name].pretrained: name for name in reversed(ranked)}
    seed = settings.current.seeds[0]
    models = {name: Snapshot.read(model_file(settings, name, seed)) for name in best_of_start.values()}
    return report.Content(
        study=study,
        setting=settings.current,
        dataset=catalogue.title(settings.current.dataset),
        classes=classes,
        left_out=splits.read_description(prepared_file(settings)).left_out,
        others=_others(settings),
        rows=rows,
        details={name: _details(settings, name) for name in experiments},
        findings=findings,
        right=right,
        stage_seconds=_stage_seconds(settings),
        examples=gallery.choose_examples(images, labels=labels, logits=logits[ranked[0]][0], classes=classes),
        feature_maps={
            f"{name}, {which}": found
            for name in sorted(models, key=ranked.index)
            for which, found in maps.feature_maps(models[name], images[0]).items()
        },
    )


def _require_one_precision(settings: params.Params) -> None:
    """Raise UserError where not all was computed in the same precision, so that it cannot stand in one table."""
    found: dict[str, str] = {}
    for stage in stage_names(settings):
        if stage.startswith(("features", "train")):  # the others compute nothing, or always in float32
            found.setdefault(files.read_json(run_file(settings.study, stage))["precision"], stage)
    if len(found) > 1:
        mixture = " and ".join(f"{stage} in {precision}" for precision, stage in found.items())
        raise UserError(f"the study was computed in several precisions ({mixture}): set HEADSTART_DTYPE to one, and "
                        "compute the rest anew with `dvc repro --force`")  # fmt: skip


def _details(settings: params.Params, name: str) -> report.Details:
    scores = scores_folder(settings, name)
    return report.Details(
        epochs=files.read_csv(model_file(settings, name, 0).with_name("epochs.csv")),
        run=files.read_json(run_file(settings.study, f"train-{name}")),
        confusion=_numbers(scores / "confusion.csv").astype(int),
        f1=np.array([float(row["f1"]) for row in files.read_csv(scores / "classes.csv")]),
        calibration=_numbers(scores / "calibration.csv"),
    )


def _numbers(path: Path) -> np.ndarray:
    """A table of numbers without the names of its columns and its rows."""
    return np.array([[float(value) for value in row[1:]] for row in files.read_rows(path)[1:]])


def _others(settings: params.Params) -> list[report.Other]:
    """The studies beside this one that have results: as they are now, whatever was there when they were made."""
    found = []
    for name, study in settings.studies.items():
        summary, page = Path(f"metrics/{name}/study.json"), Path(f"report/{name}/index.html")
        if name != settings.study and summary.is_file():
            made_with, _ = paths.made_with(name) or (vars(study), {})
            results = files.read_json(summary)
            title = catalogue.title(made_with["dataset"])
            found.append(report.Other(name, title, made_with, results, page.is_file()))
    return found


def _stage_seconds(settings: params.Params) -> dict[str, float]:
    """Of each stage but the first and the last, which belong to no study and are still running."""
    seconds: dict[str, float] = {}
    for name in stage_names(settings):
        stage = name.partition("-")[0]
        seconds[stage] = seconds.get(stage, 0.0) + files.read_json(run_file(settings.study, name))["seconds"]
    return seconds
