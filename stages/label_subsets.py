"""Which images are labeled, where it is some of them."""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from headstart.console import UserError
from headstart.data import splits
from headstart.params import Params
from stages.paths import prepared_file


class LabelSubset(NamedTuple):
    """The images of a number of labels: int64 indices of those to train with, and of those to validate with."""

    training: np.ndarray
    validation: np.ndarray


def label_subsets(settings: Params, counts: Sequence[int]) -> dict[tuple[int, int], LabelSubset]:
    """By seed and count which images are labeled: all configurations share them, the larger have the smaller.

    Raises:
        UserError: a class would have no image to train with.
    """
    found: dict[tuple[int, int], LabelSubset] = {}
    study = settings.selected_study
    if not counts:
        return found
    prepared = prepared_file(settings)
    (training, classes), (validation, _) = (splits.read_labels(prepared, split) for split in ("training", "validation"))
    for seed, count in product(study.seeds, counts):
        sizes = study.train_val_sizes(count)
        chosen = LabelSubset(*(splits.nested_subset(labels, size, seed=seed)
                            for labels, size in zip((training, validation), sizes, strict=True)))  # fmt: skip
        if missing := splits.missing_classes(training[chosen.training], classes):
            problem = (
                f"{count} labels, of which {sizes[0]} are trained with, leave none of {splits.abbreviate(missing)}"
            )
            raise UserError(f"{problem} to train with: raise the lowest of label_budgets and probe_budgets")
        found[seed, count] = chosen
    return found
