"""Choose the images of smaller label budgets, for trainings and probes."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from headstart.console import UserError
from headstart.data import splits
from headstart.params import Study


class LabelSubset(NamedTuple):
    """The images of a label budget: int64 indices of the images for training and of those for validation."""

    training: np.ndarray
    validation: np.ndarray


def label_subsets(prepared: Path, study: Study, budgets: Sequence[int]) -> dict[tuple[int, int], LabelSubset]:
    """Return the subset of each seed and label budget. All configurations share them; smaller budgets are nested.

    Args:
        prepared: the file that the stage `prepare` wrote.

    Raises:
        UserError: a class would have no training image.
    """
    subsets: dict[tuple[int, int], LabelSubset] = {}
    if not budgets:
        return subsets
    (training, classes), (validation, _) = (splits.read_labels(prepared, split) for split in ("training", "validation"))
    for seed, budget in product(study.seeds, budgets):
        sizes = study.train_val_sizes(budget)
        subset = LabelSubset(*(splits.nested_subset(labels, size, seed=seed)
                               for labels, size in zip((training, validation), sizes, strict=True)))  # fmt: skip
        if missing := splits.missing_classes(training[subset.training], classes):
            raise UserError(
                f"label budget {budget} ({sizes[0]} training images) is too small: {splits.abbreviate(missing)} would "
                "have no training image. Increase the smallest of label_budgets and probe_budgets."
            )
        subsets[seed, budget] = subset
    return subsets
