"""Labels that pretrained weights save: how many more labeled images a training from scratch needs to do as well.

Both are trained with nested subsets of the same images. D(n) is the number of labeled images at which the learning
curve from scratch reaches the accuracy that the pretrained network has with n labeled images (Hernandez et al. 2021,
"Scaling Laws for Transfer"; Newell and Deng 2020, "How Useful is Self-Supervised Pretraining for Visual Tasks?").
Nothing is extrapolated.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, nnls
from scipy.stats import t as student

from headstart.results.comparison import ALPHA, RESAMPLES

STEPS = 20  # of the search between two label budgets
CHUNK = 250  # resamples at once
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


def labels_needed(
    reference: LearningCurve, curves: Mapping[str, LearningCurve], *, resamples: int = RESAMPLES
) -> dict[str, list[LabelsNeeded]]:
    """Return the labels that ``reference`` needs to do as well as each of ``curves`` at each of its budgets.

    The curve of the reference is its mean accuracy, made monotone by isotonic regression (Barlow et al. 1972) and
    linear in the logarithm of the labels in between. A confidence interval contains every number of labels at which the
    two accuracies do not differ significantly. So it follows from an interval of their difference (an inverted test, as
    Fieller 1954 has it for a quotient). ``_Differences`` computes that interval over seeds and test images together:
    both curves have the same seeds and images, so they stay paired.

    Args:
        curves: of the same seeds and test images.
        resamples: minimum number of resamples of the test images.
    """
    labels, weights = _interpolation_weights(reference)
    reference_accuracy = weights @ reference.accuracy
    has_interval = reference.correct.shape[1] > 1
    differences = _Differences(reference, curves, resamples) if has_interval else None
    needed: dict[str, list[LabelsNeeded]] = {}
    for name, curve in curves.items():
        needed[name] = []
        for index, accuracy in enumerate(curve.accuracy):
            interval = None
            if differences is not None:
                low, high = differences.interval(weights, name, index)
                interval = (_first_reached(labels, high), _last_below(labels, low))
            needed[name].append(LabelsNeeded(_first_reached(labels, reference_accuracy - accuracy), interval))
    return needed


def _interpolation_weights(reference: LearningCurve) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of labels, [m], and the weights [m, budgets] that interpolate the reference's accuracies there."""
    knots = np.log(reference.budgets)
    blocks = isotonic_regression(reference.accuracy).blocks
    monotone = np.zeros((len(knots), len(knots)))
    for start, end in pairwise(blocks):
        monotone[start:end, start:end] = 1 / (end - start)
    steps = [np.linspace(start, end, STEPS, endpoint=False) for start, end in pairwise(knots)]
    grid = np.concatenate([*steps, knots[-1:]])
    linear = np.stack([np.interp(grid, knots, unit) for unit in np.eye(len(knots))], axis=1)
    return np.exp(grid), linear @ monotone


class _Differences:
    """Differences between the reference's curve and a point of another curve, with several seeds."""

    def __init__(self, reference: LearningCurve, curves: Mapping[str, LearningCurve], resamples: int) -> None:
        correct = [reference.correct, *(curve.correct for curve in curves.values())]
        points = np.concatenate(correct).astype(np.float32)  # [points, seeds, images]
        starts = np.cumsum([0, *map(len, correct)])
        self._starts = dict(zip(curves, starts[1:].tolist(), strict=False))
        self._n_reference = len(reference.budgets)
        self._seed_means = points.mean(2, dtype=float).T  # [seeds, points]
        self._resampled = np.concatenate(list(_resample(points.mean(1).T, resamples)))  # [resamples, points]

    def interval(self, weights: np.ndarray, name: str, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the interval of the difference between each row of ``weights`` [m, budgets] and a point of a curve.

        As in ``comparison.bootstrap``, the half-widths of a percentile interval over resampled images and of Student's
        interval over the seeds are added in quadrature.

        Args:
            name: of the curve.
            index: of the curve's budget.

        Returns:
            The low ends and the high ends, [m] each.
        """
        point = self._starts[name] + index
        seeds = self._seed_means[:, : self._n_reference] @ weights.T - self._seed_means[:, [point]]  # [seeds, m]
        images = self._resampled[:, : self._n_reference] @ weights.T - self._resampled[:, [point]]  # [resamples, m]
        value = seeds.mean(0)
        low, high = np.quantile(images, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
        half_width = student.ppf(1 - ALPHA / 2, len(seeds) - 1) * seeds.std(0, ddof=1) / math.sqrt(len(seeds))
        return value - np.hypot(value - low, half_width), value + np.hypot(high - value, half_width)


def _resample(values: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """Yield means of ``values`` [images, points] over resampled images, [CHUNK, points] at a time."""
    generator, n = np.random.default_rng(0), len(values)
    for _ in range(-(-resamples // CHUNK)):
        resample_ids = generator.integers(0, n, (CHUNK, n)) + n * np.arange(CHUNK)[:, None]
        counts = np.bincount(resample_ids.ravel(), minlength=CHUNK * n).reshape(CHUNK, n)
        yield counts.astype(np.float32) @ values / n


def _first_reached(labels: np.ndarray, differences: np.ndarray) -> float:
    """Return the fewest labels at which ``differences`` [m] are >= 0: 0 if the first is, infinity if none is."""
    above = np.flatnonzero(differences >= -ATOL)
    if not len(above):
        return math.inf
    return 0.0 if above[0] == 0 else _interpolate_root(labels, differences, above[0] - 1)


def _last_below(labels: np.ndarray, differences: np.ndarray) -> float:
    """Return the most labels at which ``differences`` [m] are <= 0: infinity if the last is, 0 if none is."""
    below = np.flatnonzero(differences <= ATOL)
    if not len(below):
        return 0.0
    return math.inf if below[-1] == len(labels) - 1 else _interpolate_root(labels, differences, below[-1])


def _interpolate_root(labels: np.ndarray, differences: np.ndarray, index: int) -> float:
    """Return the labels between ``index`` and the next at which the difference is 0, linear in the logarithm."""
    start, end = differences[index : index + 2]
    share = -start / (end - start)
    return float(np.exp((1 - share) * np.log(labels[index]) + share * np.log(labels[index + 1])))


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
