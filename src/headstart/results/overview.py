"""What pretrained weights bought in several studies, side by side."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headstart.params import Configuration
from headstart.results import comparison
from headstart.results.comparison import Correct, Estimate
from headstart.results.label_efficiency import PROBES

FINETUNING_BY_LABEL = {"fine-tuned": True, "classifier only": False}


class LabelFactor(NamedTuple):
    """Labels that training from scratch needs to match pretrained weights, divided by the labels of those."""

    budget: int  # labels with pretrained weights
    factor: Estimate  # inf: more than all labels; 0: fewer than the smallest budget; low and high are NaN with one seed


@dataclass(frozen=True, kw_only=True)
class StudyOverview:
    """The results of one study, for one row of the overview."""

    name: str
    dataset: str  # its title
    model_name: str
    n_images: int  # for training
    image_size: int
    best_accuracy: float  # on the test images
    gains: Mapping[str, Estimate]  # of pretrained weights: the result of ``gains``
    label_factor: LabelFactor | None

    @property
    def label(self) -> str:
        """Return the name of the study and what it is about, in two lines."""
        return f"{self.name}: {self.dataset}\n{self.model_name}, {self.n_images:,} images, {self.image_size} px"


def gains(configurations: Mapping[str, Configuration], correct: Correct) -> dict[str, Estimate]:
    """Return the gain of pretrained weights by ``FINETUNING_BY_LABEL``, the mean over pairs of configurations."""
    estimates = {}
    for name, is_finetuned in FINETUNING_BY_LABEL.items():
        chosen = {key: value for key, value in configurations.items() if value.finetuning is is_finetuned}
        effect = comparison.analyze(chosen, correct).effects.get("pretrained")
        if effect is not None:
            estimates[name] = effect
    return estimates


def label_factor(rows: Sequence[Mapping[str, str]]) -> LabelFactor | None:
    """Return the label factor of the first configuration; None without label budgets.

    It is that of the lower median of the label budgets, which is fixed before any result is known.

    Args:
        rows: of ``plots/<study>/labels_saved.csv``.
    """
    rows = [row for row in rows if row["configuration"] not in PROBES.values()]
    rows = [row for row in rows if row["configuration"] == rows[0]["configuration"]]
    if not rows:
        return None
    row = rows[(len(rows) - 1) // 2]
    budget = int(row["label_budget"])
    factors = [float(row[key]) / budget if row[key] else math.nan for key in ("needed", "low", "high")]
    return LabelFactor(budget, Estimate(*factors))
