"""Collect the results of all earlier stages for the configurations in params.yaml."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from statistics import mean

import numpy as np
from torch import nn

from headstart import files, params
from headstart.console import UserError
from headstart.data import registry, splits
from headstart.network import models, splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration
from headstart.results import (
    audit,
    comparison,
    content,
    epochs,
    evaluation,
    examples,
    feature_maps,
    issues,
    label_efficiency,
    recipes,
)
from headstart.results.comparison import Correct
from headstart.results.content import Details, PartialData, ReportData, Row, Score
from headstart.results.epochs import Epoch
from headstart.results.issues import IssueReport
from headstart.results.label_efficiency import LabelEfficiency
from headstart.results.label_savings import LearningCurve
from stages.paths import (
    PROBE_INPUTS,
    audit_file,
    model_file,
    predictions_file,
    prepared_file,
    probes_file,
    probes_stage,
    training_file,
)

PUBLISHED = "docs/published.csv"


def collect(settings: params.Params) -> ReportData:
    """Read the results, and compute everything that the report shows.

    dvc.yaml cannot list the configurations' metrics as dependencies; it lists ``scores/``, which `evaluate` writes too.
    """
    study, prepared = settings.selected_study, prepared_file(settings)
    images, labels, classes = splits.read_split(prepared, "test")
    network = models.build(study.model_name, len(classes), study.image_size)
    configurations, from_scratch = _normalize_layers(settings, network)
    _require_one_precision(settings)
    predictions = {name: files.read_arrays(predictions_file(settings, name)).arrays for name in configurations}
    logits = {name: arrays["logits"] for name, arrays in predictions.items()}
    correct = {name: values.argmax(2) == labels for name, values in logits.items()}
    analysis = comparison.analyze(configurations, correct)
    training_labels, _ = splits.read_labels(prepared, "training")
    majority, majority_accuracy = evaluation.majority_baseline(training_labels=training_labels, labels=labels)
    is_comparable = content.is_comparable_with_published(study)
    published = content.published_results(files.read_csv(PUBLISHED)) if is_comparable else {}
    rows = [
        Row(
            name=name,
            configuration=configuration,
            metrics=files.read_json(f"metrics/{settings.study}/{name}.json"),
            accuracy=analysis.accuracy[name],
            published=published.get(configuration),
        )
        for name, configuration in configurations.items()
    ]
    ranked = [row.name for row in content.sort_rows(rows)]
    best_by_weights = {configurations[name].pretrained: name for name in reversed(ranked)}
    networks = {name: SavedModel.read(model_file(settings, name, study.seeds[0])) for name in best_by_weights.values()}
    return ReportData(
        study_name=settings.study,
        study=study,
        dataset=registry.title(study.dataset),
        classes=classes,
        skipped_files=splits.read_metadata(prepared).skipped_files,
        rows=rows,
        details={name: _details(settings, name, logits=values, labels=labels) for name, values in logits.items()},
        analysis=analysis,
        correct=correct,
        examples=examples.choose_examples(images, labels=labels, logits=logits[ranked[0]][0], classes=classes),
        feature_maps={
            f"{name}, {layer}": maps
            for name in sorted(networks, key=ranked.index)
            for layer, maps in feature_maps.feature_maps(networks[name], images[0]).items()
        },
        from_scratch=from_scratch,
        label_efficiency=_label_efficiency(settings, configurations, predictions, labels, from_scratch),
        augmented_images=_augmented_images(settings),
        issues=_issues(settings, correct),
        majority=(classes[majority], majority_accuracy),
    )


def collect_partial(settings: params.Params, finished: Collection[str]) -> PartialData:
    """Read the results of those of the stages `probe`, `audit` and `evaluate` that are ``finished``."""
    study, prepared = settings.selected_study, prepared_file(settings)
    labels, classes = splits.read_labels(prepared, "test")
    correct = {
        name: files.read_arrays(predictions_file(settings, name), "logits").arrays["logits"].argmax(2) == labels
        for name in settings.configurations
        if f"evaluate@{name}" in finished
    }
    probes = {
        label_efficiency.PROBES[inputs]: files.read_arrays(probes_file(settings, inputs)).arrays["predictions"][-1]
        == labels
        for inputs in (PROBE_INPUTS if study.probe_budgets else ())
        if probes_stage(inputs) in finished
    }
    scores = [Score(name, comparison.accuracy(values)) for name, values in {**correct, **probes}.items()]
    majority, majority_accuracy = evaluation.majority_baseline(
        training_labels=splits.read_labels(prepared, "training")[0], labels=labels
    )
    return PartialData(
        study_name=settings.study,
        study=study,
        dataset=registry.title(study.dataset),
        classes=classes,
        test_images=len(labels),
        ranked=sorted(scores, key=lambda score: -score.accuracy.value),
        missing=[name for name in settings.configurations if name not in correct],
        majority=(classes[majority], majority_accuracy),
        issues=_issues(settings, correct) if "audit" in finished else None,
    )


def _issues(settings: params.Params, correct: Correct) -> IssueReport | None:
    """Return the possible issues in the dataset; None if its images have no files."""
    prepared = prepared_file(settings)
    metadata = splits.read_metadata(prepared)
    if not metadata.file_names:
        return None
    data = [splits.read_split(prepared, split) for split in metadata.file_names]
    return issues.build(
        audit.read(audit_file(settings)),
        images=[split.images for split in data],
        labels=[split.labels for split in data],
        file_names=metadata.file_names,
        classes=metadata.classes,
        correct=correct,
    )


def _augmented_images(settings: params.Params) -> dict[str, np.ndarray]:
    """Return training images with the augmentations of the configurations; empty without augmentation."""
    if all(configuration.augmentation == "none" for configuration in settings.configurations.values()):
        return {}
    images = splits.read_split(prepared_file(settings), "training").images
    return recipes.augmented_images(settings.configurations, images, settings.selected_study.seeds[0])


def _normalize_layers(settings: params.Params, network: nn.Module) -> tuple[dict[str, Configuration], list[str]]:
    """Return the configurations with normalized `finetune_from`, and the names of those that train from scratch.

    Different values of `finetune_from`, such as `all` and the name of the first layer, may train the same parameters of
    ``network``. The returned values are equal if the parameters are, and None if they are those of the study's value.
    """

    def frozen(layer: str) -> tuple[str, ...]:
        return tuple(name for name, _ in splitting.split_backbone_head(network, layer)[0].named_parameters())

    default = frozen(settings.selected_study.finetune_from)
    layers: dict[tuple[str, ...], str | None] = {default: None}
    configurations, from_scratch = {}, []
    for name, configuration in settings.configurations.items():
        override = configuration.finetune_from
        parameters = default if override is None else frozen(override)
        layer = layers.setdefault(parameters, override if parameters else splitting.ALL)
        configurations[name] = dataclasses.replace(configuration, finetune_from=layer)
        if configuration.finetuning and not configuration.pretrained and not parameters:
            from_scratch.append(name)
    return configurations, from_scratch


def _label_efficiency(
    settings: params.Params,
    configurations: Mapping[str, Configuration],
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    labels: np.ndarray,
    from_scratch: Sequence[str],
) -> LabelEfficiency | None:
    """Analyze the trainings and the probes at all label budgets."""
    study = settings.selected_study
    probes = {}
    for inputs in PROBE_INPUTS if study.probe_budgets else ():
        predicted = files.read_arrays(probes_file(settings, inputs), "predictions").arrays["predictions"]
        probes[inputs] = LearningCurve(study.all_probe_budgets, predicted == labels)
    curves: dict[str, LearningCurve] = {}
    validation: dict[str, list[float]] = {}
    stopped_early: dict[str, list[int]] = {}
    for name in configurations if study.label_budgets else ():
        logits = np.concatenate([predictions[name]["budget_logits"], predictions[name]["logits"][None]])
        curves[name] = LearningCurve((*study.label_budgets, study.full_budget), logits.argmax(3) == labels)
        by_budget = _trainings_by_budget(settings, name)
        validation[name] = [
            mean(epochs.validation_accuracy(training, study.patience) for training in trainings)
            for trainings in by_budget
        ]
        if not study.validation_images:
            validation[name] = curves[name].accuracy.tolist()
        if study.patience is not None:
            stopped_early[name] = [
                sum(epochs.has_stopped_early(training, study.patience) for training in trainings)
                for trainings in by_budget
            ]
    return label_efficiency.analyze(
        configurations,
        curves=curves,
        probes=probes,
        validation=validation,
        stopped_early=stopped_early,
        from_scratch=from_scratch,
    )


def _trainings_by_budget(settings: params.Params, name: str) -> list[list[list[Epoch]]]:
    """Return the epochs of each training by label budget and seed; the last budget is the full one."""
    folder = model_file(settings, name, 0).parent
    subset_rows = groupby(files.read_csv(folder / "budget_epochs.csv"), itemgetter("label_budget"))
    trainings = [epochs.by_seed(list(rows)) for _, rows in subset_rows]
    return [*trainings, epochs.by_seed(files.read_csv(folder / "epochs.csv"))]


def _require_one_precision(settings: params.Params) -> None:
    """Raise UserError if the configurations were computed in different precisions, which are not comparable."""
    names: dict[str, str] = {}
    for name in settings.configurations:
        names.setdefault(files.read_json(training_file(settings, name))["precision"], name)
    if len(names) > 1:
        mixture = " and ".join(f"{name} in {precision}" for precision, name in names.items())
        raise UserError(f"configurations of one study were computed in different precisions: {mixture}. "
                        "Set HEADSTART_DTYPE to one of them and run `dvc repro --force`.")  # fmt: skip


def _details(settings: params.Params, name: str, *, logits: np.ndarray, labels: np.ndarray) -> Details:
    """Compute the tables behind the row of ``name`` from its logits [seeds, N, classes], all seeds together."""
    pooled = evaluation.pool_seeds(logits=logits, labels=labels)
    return Details(
        epochs=files.read_csv(model_file(settings, name, 0).with_name("epochs.csv")),
        training=files.read_json(training_file(settings, name)),
        confusion=evaluation.confusion_matrix(**pooled),
        f1=evaluation.per_class(**pooled)["f1"],
        calibration=evaluation.calibration(**pooled),
    )
