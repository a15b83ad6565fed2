"""Rows of ``epochs.csv``: the trainings of one configuration, one row per seed and epoch."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from headstart.training import early_stopping

Epoch = Mapping[str, str]


def by_seed(epochs: Sequence[Epoch]) -> list[list[Epoch]]:
    """Return the epochs of each training, in the order of the file, which has the epochs of a seed together."""
    return [list(rows) for _, rows in groupby(epochs, itemgetter("seed"))]


def has_stopped_early(training: Sequence[Epoch], patience: int | None) -> bool:
    """Return whether the last ``patience`` epochs of one training brought no lower validation loss."""
    return early_stopping.should_stop(_validation_losses(training), patience)


def validation_accuracy(training: Sequence[Epoch], patience: int | None) -> float:
    """Return the validation accuracy of the weights that one training ends with; 0 without validation images."""
    restored = early_stopping.restored_epoch(_validation_losses(training), patience)
    return float(training[restored - 1]["validation_accuracy"] or 0)


def _validation_losses(training: Sequence[Epoch]) -> list[float]:
    return [float(epoch["validation_loss"] or 0) for epoch in training]
