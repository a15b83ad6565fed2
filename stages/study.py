"""All that the stages before have found out about the configurations that params.yaml names."""

import torch

from headstart import files, params
from headstart.console import UserError
from headstart.data import datasets
from headstart.network.snapshot import Snapshot
from headstart.results import comparison, evaluation, gallery, report
from stages.paths import model_file, prepared_file, run_file, stage_names

PUBLISHED = "docs/published.csv"


def read(settings: params.Params) -> report.Content:
    """Read it."""
    study, experiments = settings.study, settings.experiments
    images, labels = datasets.read_split(prepared_file(settings), "test")
    predictions = {name: f"predictions/{study}/{name}/logits.safetensors" for name in experiments}
    _require_one_precision(settings)
    logits = {name: files.read_tensors(path, "logits").tensors["logits"] for name, path in predictions.items()}
    right = {name: (found.argmax(2) == labels).numpy() for name, found in logits.items()}
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
        classes=datasets.CLASSES,
        rows=rows,
        details={name: _details(study, name, logits[name], labels) for name in experiments},
        findings=findings,
        right=right,
        stage_seconds=_stage_seconds(settings),
        examples=gallery.choose_examples(images, labels=labels, logits=logits[ranked[0]][0], classes=datasets.CLASSES),
        feature_maps={
            f"{name}, {which}": maps
            for name in sorted(models, key=ranked.index)
            for which, maps in gallery.feature_maps(models[name], images[0]).items()
        },
    )


def _require_one_precision(settings: params.Params) -> None:
    """Raise UserError where not all was computed in the same precision, so that it cannot stand in one table."""
    found: dict[str, str] = {}
    for stage in stage_names(settings):
        if not stage.startswith(("prepare", "start")):  # which compute nothing, or always in float32
            found.setdefault(files.read_json(run_file(settings.study, stage))["precision"], stage)
    if len(found) > 1:
        mixture = " and ".join(f"{stage} in {precision}" for precision, stage in found.items())
        raise UserError(f"the study was computed in several precisions ({mixture}): set HEADSTART_DTYPE to one, and "
                        "compute the rest anew with `dvc repro --force`")  # fmt: skip


def _details(study: str, name: str, logits: torch.Tensor, labels: torch.Tensor) -> report.Details:
    every, repeated = logits.flatten(0, 1), labels.repeat(len(logits))  # all seeds together
    confusion = evaluation.confusion_matrix(logits=every, labels=repeated)
    return report.Details(
        epochs=files.read_csv(f"models/{study}/{name}/epochs.csv"),
        run=files.read_json(f"runs/{study}/train-{name}.json"),
        confusion=confusion.numpy(),
        f1=evaluation.per_class(confusion)["f1"].numpy(),
        calibration=evaluation.calibration(logits=every, labels=repeated).numpy(),
    )


def _stage_seconds(settings: params.Params) -> dict[str, float]:
    """Of each stage but the first and the last, which belong to no study and are still running."""
    seconds: dict[str, float] = {}
    for name in stage_names(settings):
        stage = name.partition("-")[0]
        seconds[stage] = seconds.get(stage, 0.0) + files.read_json(run_file(settings.study, name))["seconds"]
    return seconds
