"""Labels that pretrained weights save: how many more labeled images a training from scratch needs to do as well.

Both are trained with nested subsets of the same images. D(n) is the number of labeled images at which the learning
curve from scratch reaches the accuracy that the pretrained network has with n labeled images (Hernandez et al. 2021,
"Scaling Laws for Transfer"; Newell and Deng 2020, "How Useful is Self-Supervised Pretraining for Visual Tasks?").
Nothing is extrapolated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, nnls

from headstart.results import comparison

ATOL = 1e-9  # equal accuracies may differ by rounding
EXPONENTS = -np.geomspace(0.05, 2, 200)  # of the power laws that are fitted


@dataclass(frozen=True)
class LearningCurve:
    """Per-image correctness of one configuration, by label budget."""

    budgets: Sequence[int]  # increasing
    correct: np.ndarray  # bool [budgets, seeds, test images]

    @property
    def accuracy(self) -> np.ndarray:
        """The mean over seeds and images, [budgets]."""
        return self.correct.mean((1, 2))


class LabelsNeeded(NamedTuple):
    """D(n), a number of labeled images: infinity if it is above the largest budget, 0 if below the smallest."""

    value: float
    interval: tuple[float, float] | None  # 95 % confidence interval; None with one seed


def labels_needed(reference: LearningCurve, curves: Mapping[str, LearningCurve]) -> dict[str, list[LabelsNeeded]]:
    """Return the labels that ``reference`` needs to do as well as each of ``curves`` at each of its budgets.

    The curve of the reference is its mean accuracy, made monotone by isotonic regression (Barlow et al. 1972) and
    linear in the logarithm of the labels in between. The confidence interval does not rely on that interpolation: see
    ``_bracket``.

    Args:
        curves: of the same seeds and test images.
    """
    monotone_accuracy = isotonic_regression(reference.accuracy).x
    has_interval = reference.correct.shape[1] > 1
    return {
        name: [
            LabelsNeeded(
                _first_reached(reference.budgets, monotone_accuracy - correct.mean()),
                _bracket(reference, correct) if has_interval else None,
            )
            for correct in curve.correct
        ]
        for name, curve in curves.items()
    }


def _bracket(reference: LearningCurve, correct: np.ndarray) -> tuple[float, float]:
    """Return the 95 % confidence interval of the labels that ``reference`` needs to match ``correct``.

    Its ends are label budgets. At the low end, and at all smaller budgets, the reference is significantly worse; at the
    high end, and at all larger budgets, it is significantly better. The 95 % confidence interval of each difference is
    that of ``comparison.normal_interval``, paired by seed and test image. So the interval only relies on accuracy not
    decreasing with more labels, whatever the curve does between two budgets. The number of budgets does not reduce its
    coverage: it is wrong only if one certain difference is, at the first budget above the true number or at the last
    budget below it.

    Args:
        correct: of the configuration to match, bool [seeds, test images].
    """
    differences = [comparison.normal_interval(at_budget.astype(float) - correct) for at_budget in reference.correct]
    budgets = reference.budgets
    n_worse = len(list(takewhile(lambda difference: difference.high < 0, differences)))
    n_better = len(list(takewhile(lambda difference: difference.low > 0, reversed(differences))))
    low = math.inf if n_worse == len(budgets) else budgets[n_worse - 1] if n_worse else 0
    high = 0 if n_better == len(budgets) else budgets[-n_better] if n_better else math.inf
    return low, high


def _first_reached(budgets: Sequence[int], differences: np.ndarray) -> float:
    """Return the fewest labels at which ``differences`` are >= 0: 0 if the first is, infinity if none is.

    Args:
        budgets: [m], increasing.
        differences: at the budgets, [m], not decreasing. Between two budgets they are linear in the logarithm.
    """
    reached = np.flatnonzero(differences >= -ATOL)
    if not len(reached):
        return math.inf
    if reached[0] == 0:
        return 0.0
    last = reached[0] + 1
    return float(np.exp(np.interp(0, differences[last - 2 : last], np.log(budgets[last - 2 : last]))))


class PowerLaw(NamedTuple):
    """An error of ``floor + scale * n ** power`` with n labels (Hoiem et al. 2021, "Learning Curves for Analysis")."""

    floor: float
    scale: float
    power: float

    def error(self, n: float) -> float:
        return self.floor + self.scale * n**self.power

    def labels(self, error: float) -> float:
        """Return the number of labels at which the error is ``error``; infinity if there is none."""
        return math.inf if error <= self.floor else ((error - self.floor) / self.scale) ** (1 / self.power)


def power_law(curve: LearningCurve) -> PowerLaw | None:
    """Fit the errors of ``curve`` by least squares; return None if it has fewer than three points or does not fall.

    Do not interpret single parameters: very different ones give nearly the same curve.
    """
    errors = 1 - curve.accuracy
    if len(errors) < 3:
        return None
    fits = []
    for power in EXPONENTS:
        columns = np.stack([np.ones(len(errors)), np.asarray(curve.budgets, float) ** power], axis=1)
        (floor, scale), residual = nnls(columns, errors)
        fits.append((residual, PowerLaw(floor, scale, float(power))))
    best = min(fits)[1]
    return best if best.scale > 0 else None


def needed_by_power_laws(reference: LearningCurve, curve: LearningCurve) -> list[float]:
    """Return D(n) at each budget of ``curve`` by power laws fitted to both curves; empty without fits.

    This is a sensitivity check of the interpolation only. Infinity and 0 have the meaning of ``LabelsNeeded``.
    """
    scratch, pretrained = power_law(reference), power_law(curve)
    if scratch is None or pretrained is None:
        return []
    needed = [scratch.labels(pretrained.error(n)) for n in curve.budgets]
    smallest, largest = reference.budgets[0], reference.budgets[-1]
    return [0.0 if n < smallest else math.inf if n > largest else n for n in needed]
