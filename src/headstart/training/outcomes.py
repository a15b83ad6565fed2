"""The outcomes of the trainings of a configuration, and the files that the stage `train` writes about them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headstart import files
from headstart.network.saved_model import SavedModel
from headstart.training.checkpoints import TrainingResult
from headstart.training.loop import EpochMetrics
from headstart.training.trainings import Training

COLUMNS = [field.name for field in fields(EpochMetrics) if field.name != "seconds"]  # times differ from run to run


class Outcome(NamedTuple):
    """One training with its result."""

    seed: int
    budget: int  # number of labeled images
    result: TrainingResult
    model: SavedModel | None  # None with a smaller label budget
    first_layer: str  # of the head
    n_parameters: int  # of the head
    n_images: int  # for training
    storage: str  # of the head's inputs

    @classmethod
    def of(cls, training: Training, result: TrainingResult, model: SavedModel | None, first_layer: str) -> "Outcome":
        """Return what is needed of ``training``, without its head and its inputs: both may be large."""
        n_parameters = sum(parameter.numel() for parameter in training.head.parameters())
        inputs, labels = training.data.training
        return cls(
            training.seed, training.budget, result, model, first_layer, n_parameters, len(labels), inputs.storage
        )


Groups = Mapping[int, Sequence[Outcome]]  # by label budget, in increasing order; in each group by seed


def by_budget(outcomes: Iterable[Outcome]) -> Groups:
    """Group the outcomes by label budget."""
    groups: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.budget, []).append(outcome)
    return dict(sorted(groups.items()))


def write_models(folder: Path, groups: Groups) -> None:
    """Write the model of each seed, the metrics of all epochs, and what the report shows of the training."""
    *smaller, full = groups.values()
    for outcome in full:
        assert outcome.model is not None
        outcome.model.write(folder / f"model-{outcome.seed}.safetensors")
    rows = [[outcome.seed, *row] for outcome in full for row in _epoch_rows(outcome)]
    files.write_csv(folder / "epochs.csv", ["seed", *COLUMNS], rows)
    if smaller:
        rows = [[outcome.budget, outcome.seed, *row] for group in smaller for outcome in group
                for row in _epoch_rows(outcome)]  # fmt: skip
        files.write_csv(folder / "budget_epochs.csv", ["label_budget", "seed", *COLUMNS], rows)
    files.write_json(folder / "training.json", _summary(full[-1]))


def _epoch_rows(outcome: Outcome) -> list[list[Any]]:
    return [[getattr(epoch, column) for column in COLUMNS] for epoch in outcome.result.epochs]


def logits(groups: Groups) -> dict[str, torch.Tensor]:
    """Return ``logits`` [seeds, N, classes], and with label budgets ``budget_logits`` [budgets, seeds, N, classes]."""
    *smaller, full = [torch.stack([outcome.result.logits for outcome in group]) for group in groups.values()]
    return {"logits": full, "budget_logits": torch.stack(smaller)} if smaller else {"logits": full}


def _summary(outcome: Outcome) -> dict[str, Any]:
    """Return what the report shows of the training. It does not differ from run to run."""
    assert outcome.model is not None
    return {
        "precision": outcome.model.precision,
        "weights": outcome.model.weights,
        "weights_sha256": outcome.model.sha256,
        "trained_from": outcome.first_layer,
        "trained_parameters": outcome.n_parameters,
    }


def costs(groups: Groups) -> dict[str, Any]:
    """Return where the inputs were stored, and the seconds of all trainings."""
    *smaller, seconds = [
        [epoch.seconds for outcome in group for epoch in outcome.result.epochs] for group in groups.values()
    ]
    last = list(groups.values())[-1][-1]
    return {
        "activations": last.storage,
        "training_seconds": round(sum(seconds), 3),
        **({"label_budgets_seconds": round(sum(map(sum, smaller)), 3)} if smaller else {}),
        "images_per_second": round(last.n_images / min(seconds), 1),
    }
