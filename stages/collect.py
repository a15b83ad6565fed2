"""All that the stages before have found out about the configurations that params.yaml names."""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import mean

import numpy as np
from torch import nn

from headstart import files, params
from headstart.console import UserError
from headstart.data import registry, splits
from headstart.network import models, splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration
from headstart.results import comparison, evaluation, examples, feature_maps, label_efficiency, report
from headstart.results.label_savings import LearningCurve
from headstart.training import early_stopping
from stages.paths import model_file, predictions_file, prepared_file, probes_file, scores_folder, training_file

PUBLISHED = "docs/published.csv"


def read(settings: params.Params) -> report.ReportData:
    """Read it.

    dvc.yaml cannot list the configurations' metrics as dependencies; it has what they are computed from.
    """
    study = settings.study
    images, labels, classes = splits.read_split(prepared_file(settings), "test")
    network = models.build(settings.selected_study.model_name, len(classes), settings.selected_study.image_size)
    configurations, scratch = _by_layer(settings, network)
    _require_one_precision(settings)
    predictions = {name: files.read_arrays(predictions_file(settings, name)).arrays for name in configurations}
    logits = {name: found["logits"] for name, found in predictions.items()}
    right = {name: found.argmax(2) == labels for name, found in logits.items()}
    findings = comparison.analyze(configurations, right)
    training, _ = splits.read_labels(prepared_file(settings), "training")
    majority, majority_accuracy = evaluation.majority_baseline(training_labels=training, labels=labels)
    compared = report.is_published_size(settings.selected_study)
    published = report.published_results(files.read_csv(PUBLISHED)) if compared else {}
    rows = [
        report.Row(
            name=name,
            configuration=configuration,
            metrics=files.read_json(f"metrics/{study}/{name}.json"),
            accuracy=findings.accuracy[name],
            published=published.get(configuration),
        )
        for name, configuration in configurations.items()
    ]
    ranked = [row.name for row in report.sort_rows(rows)]
    best_of_start = {configurations[name].pretrained: name for name in reversed(ranked)}
    seed = settings.selected_study.seeds[0]
    snapshots = {name: SavedModel.read(model_file(settings, name, seed)) for name in best_of_start.values()}
    return report.ReportData(
        study=study,
        setting=settings.selected_study,
        dataset=registry.title(settings.selected_study.dataset),
        classes=classes,
        skipped_files=splits.read_metadata(prepared_file(settings)).skipped_files,
        rows=rows,
        details={name: _details(settings, name) for name in configurations},
        findings=findings,
        right=right,
        examples=examples.choose_examples(images, labels=labels, logits=logits[ranked[0]][0], classes=classes),
        feature_maps={
            f"{name}, {which}": found
            for name in sorted(snapshots, key=ranked.index)
            for which, found in feature_maps.feature_maps(snapshots[name], images[0]).items()
        },
        scratch=scratch,
        by_labels=_by_labels(settings, configurations, predictions, labels, scratch),
        majority=(classes[majority], majority_accuracy),
    )


def _by_layer(settings: params.Params, network: nn.Module) -> tuple[dict[str, Configuration], list[str]]:
    """Return the configurations by the layers that they train, and the names of those that train from scratch.

    `finetune_from` says the same in several ways, such as `all` and the name of the first layer. Here it is None where
    the same parameters of ``network`` are trained as by default in this study, and equal where they are equal.
    """

    def frozen(layer: str) -> tuple[str, ...]:
        return tuple(name for name, _ in splitting.split_backbone_head(network, layer)[0].named_parameters())

    default = frozen(settings.selected_study.finetune_from)
    layers: dict[tuple[str, ...], str | None] = {default: None}
    configurations, scratch = {}, []
    for name, configuration in settings.configurations.items():
        own = configuration.finetune_from
        parameters = default if own is None else frozen(own)
        layer = layers.setdefault(parameters, own if parameters else splitting.ALL)
        configurations[name] = dataclasses.replace(configuration, finetune_from=layer)
        if configuration.finetuning and not configuration.pretrained and not parameters:
            scratch.append(name)
    return configurations, scratch


def _by_labels(
    settings: params.Params,
    configurations: Mapping[str, Configuration],
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    labels: np.ndarray,
    scratch: Sequence[str],
) -> label_efficiency.LabelEfficiency | None:
    """What the trainings and the probes with some of the labels have come to."""
    study = settings.selected_study
    probes = {}
    for pretrained in (True, False) if study.probe_budgets else ():
        predicted = files.read_arrays(probes_file(settings, pretrained), "predictions").arrays["predictions"]
        probes[pretrained] = LearningCurve(study.all_probe_budgets, predicted == labels)
    curves: dict[str, LearningCurve] = {}
    validation: dict[str, list[float]] = {}
    stopped_early: dict[str, list[int]] = {}
    for name in configurations if study.label_budgets else ():
        logits = np.concatenate([predictions[name]["budget_logits"], predictions[name]["logits"][None]])
        curves[name] = LearningCurve((*study.label_budgets, study.full_budget), logits.argmax(3) == labels)
        trainings = _trainings(settings, name)
        validation[name] = [mean(accuracy for accuracy, _ in of_seeds) for of_seeds in trainings]
        if not study.validation_images:
            validation[name] = curves[name].accuracy.tolist()
        if study.patience is not None:
            stopped_early[name] = [sum(is_early for _, is_early in of_seeds) for of_seeds in trainings]
    return label_efficiency.analyze(configurations, curves=curves, probes=probes, validation=validation,
                           stopped_early=stopped_early, scratch=scratch)  # fmt: skip


def _trainings(settings: params.Params, name: str) -> list[list[tuple[float, bool]]]:
    """Of each number of labels and seed: validation accuracy of what was kept, or 0, and whether it stopped early."""
    folder, study = model_file(settings, name, 0).parent, settings.selected_study
    some = files.read_csv(folder / "budget_epochs.csv")
    every = [{"label_budget": str(study.full_budget), **epoch} for epoch in files.read_csv(folder / "epochs.csv")]
    found: list[list[tuple[float, bool]]] = []
    for _, of_number in groupby([*some, *every], itemgetter("label_budget")):
        found.append([])
        for _, of_seed in groupby(of_number, itemgetter("seed")):
            epochs = list(of_seed)
            losses = [float(epoch["validation_loss"] or 0) for epoch in epochs]
            accuracy = epochs[early_stopping.restored_epoch(losses, study.patience) - 1]["validation_accuracy"]
            found[-1].append((float(accuracy or 0), early_stopping.should_stop(losses, study.patience)))
    return found


def _require_one_precision(settings: params.Params) -> None:
    """Raise UserError where not all was computed in the same precision, so that it cannot stand in one table."""
    names: dict[str, str] = {}
    for name in settings.configurations:
        names.setdefault(files.read_json(training_file(settings, name))["precision"], name)
    if len(names) > 1:
        mixture = " and ".join(f"{name} in {precision}" for precision, name in names.items())
        raise UserError(f"the study was computed in several precisions ({mixture}): set HEADSTART_DTYPE to one, and "
                        "compute the rest anew with `dvc repro --force`")  # fmt: skip


def _details(settings: params.Params, name: str) -> report.Details:
    scores = scores_folder(settings, name)
    return report.Details(
        epochs=files.read_csv(model_file(settings, name, 0).with_name("epochs.csv")),
        training=files.read_json(training_file(settings, name)),
        confusion=_numbers(scores / "confusion.csv").astype(int),
        f1=np.array([float(row["f1"]) for row in files.read_csv(scores / "classes.csv")]),
        calibration=_numbers(scores / "calibration.csv"),
    )


def _numbers(path: Path) -> np.ndarray:
    """A table of numbers without the names of its columns and its rows."""
    return np.array([[float(value) for value in row[1:]] for row in files.read_rows(path)[1:]])
