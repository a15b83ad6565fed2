"""What pretrained weights are worth in labeled images: how many a training from scratch needs to do as well.

Both are trained with nested subsets of the same images. D(n) is where the curve of the one that begins from scratch
reaches what the other has with n labeled images (Hernandez et al. 2021, "Scaling Laws for Transfer"; Newell and Deng
2020, "How Useful is Self-Supervised Pretraining for Visual Tasks?"). Nothing is extrapolated.
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

STEPS = 20  # of the search between two numbers of labels
CHUNK = 250  # resamples at once
ATOL = 1e-9  # of accuracies: what rounding may do to equal ones
EXPONENTS = -np.geomspace(0.05, 2, 200)  # that a power law may have


@dataclass(frozen=True)
class LearningCurve:
    """What one configuration has right, by number of labeled images."""

    budgets: Sequence[int]  # increasing, [counts]
    correct: np.ndarray  # bool [counts, seeds, test images]

    @property
    def accuracy(self) -> np.ndarray:
        """[counts], the mean over seeds and images."""
        return self.correct.mean((1, 2))


class LabelsNeeded(NamedTuple):
    """D(n), a number of labeled images: infinity where it is more than there are, 0 where fewer than the fewest."""

    value: float
    interval: tuple[float, float] | None  # of 95 %; None where there is one seed, which says nothing of others


def labels_needed(
    reference: LearningCurve, curves: Mapping[str, LearningCurve], *, resamples: int = RESAMPLES
) -> dict[str, list[LabelsNeeded]]:
    """How many labels ``reference`` needs to do as well as each of ``curves`` at each of its numbers of labels.

    The curve of the reference is its mean accuracy, made monotone by isotonic regression (Barlow et al. 1972) and
    linear in the logarithm of the labels in between. An interval has in it every number of labels at which the two do
    not differ for sure, so it comes from an interval of the difference there (a test inverted, as Fieller 1954 does for
    a quotient), which ``_Differences`` makes of seeds and test images together: both have the same of each, so they
    stay paired.

    Args:
        curves: of the same seeds and test images.
        resamples: of the test images, at least.
    """
    labels, weights = _interpolation_weights(reference)
    drawn = weights @ reference.accuracy
    several = reference.correct.shape[1] > 1
    differences = _Differences(reference, curves, resamples) if several else None
    found: dict[str, list[LabelsNeeded]] = {}
    for name, curve in curves.items():
        found[name] = []
        for at, accuracy in enumerate(curve.accuracy):
            interval = None
            if differences is not None:
                low, high = differences.interval(weights, name, at)
                interval = (_first_reached(labels, high), _last_below(labels, low))
            found[name].append(LabelsNeeded(_first_reached(labels, drawn - accuracy), interval))
    return found


def _interpolation_weights(reference: LearningCurve) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of labels, [m], and the weights of the reference's points that give its curve there, [m, counts]."""
    knots = np.log(reference.budgets)
    blocks = isotonic_regression(reference.accuracy).blocks
    monotone = np.zeros((len(knots), len(knots)))
    for start, end in pairwise(blocks):
        monotone[start:end, start:end] = 1 / (end - start)
    steps = [np.linspace(one, other, STEPS, endpoint=False) for one, other in pairwise(knots)]
    grid = np.concatenate([*steps, knots[-1:]])
    linear = np.stack([np.interp(grid, knots, unit) for unit in np.eye(len(knots))], axis=1)
    return np.exp(grid), linear @ monotone


class _Differences:
    """Of the reference's curve and a point of another curve, of several seeds."""

    def __init__(self, reference: LearningCurve, curves: Mapping[str, LearningCurve], resamples: int) -> None:
        every = [reference.correct, *(curve.correct for curve in curves.values())]
        points = np.concatenate(every).astype(np.float32)  # [points, seeds, images]
        starts = np.cumsum([0, *(len(right) for right in every)])
        self._starts = dict(zip(curves, starts[1:].tolist(), strict=False))
        self._reference = len(reference.budgets)
        self._of_seeds = points.mean(2, dtype=float).T  # [seeds, points]
        self._resampled = np.concatenate(list(_resample(points.mean(1).T, resamples)))  # [resamples, points]

    def interval(self, weights: np.ndarray, name: str, at: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the difference at each row of ``weights`` [m, counts] to the point ``at`` of a curve: low and high, [m].

        Combined as in ``comparison.bootstrap``: a percentile interval over resampled images and Student's interval over
        the seeds, their half-widths added in squares.
        """
        point = self._starts[name] + at
        seeds = self._of_seeds[:, : self._reference] @ weights.T - self._of_seeds[:, [point]]  # [seeds, m]
        images = self._resampled[:, : self._reference] @ weights.T - self._resampled[:, [point]]  # [resamples, m]
        value = seeds.mean(0)
        low, high = np.quantile(images, [ALPHA / 2, 1 - ALPHA / 2], axis=0)
        of_seeds = student.ppf(1 - ALPHA / 2, len(seeds) - 1) * seeds.std(0, ddof=1) / math.sqrt(len(seeds))
        return value - np.hypot(value - low, of_seeds), value + np.hypot(high - value, of_seeds)


def _resample(values: np.ndarray, resamples: int) -> Iterator[np.ndarray]:
    """Means of ``values`` [images, points] over resampled images, [CHUNK, points] at a time."""
    generator, n = np.random.default_rng(0), len(values)
    for _ in range(-(-resamples // CHUNK)):
        drawn = generator.integers(0, n, (CHUNK, n)) + n * np.arange(CHUNK)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=CHUNK * n).reshape(CHUNK, n)
        yield counts.astype(np.float32) @ values / n


def _first_reached(labels: np.ndarray, differences: np.ndarray) -> float:
    """The fewest labels at which ``differences`` [m] is 0 or more: 0 if it is so at once, infinity if it never is."""
    above = np.flatnonzero(differences >= -ATOL)
    if not len(above):
        return math.inf
    return 0.0 if above[0] == 0 else _interpolate_root(labels, differences, above[0] - 1)


def _last_below(labels: np.ndarray, differences: np.ndarray) -> float:
    """The most labels at which ``differences`` [m] is 0 or less: infinity if it is so at the end, 0 if it never is."""
    below = np.flatnonzero(differences <= ATOL)
    if not len(below):
        return 0.0
    return math.inf if below[-1] == len(labels) - 1 else _interpolate_root(labels, differences, below[-1])


def _interpolate_root(labels: np.ndarray, differences: np.ndarray, at: int) -> float:
    """Where between ``at`` and the next the difference is 0, linear in the logarithm."""
    here, there = differences[at : at + 2]
    share = -here / (there - here)
    return float(np.exp((1 - share) * np.log(labels[at]) + share * np.log(labels[at + 1])))


class PowerLaw(NamedTuple):
    """An error of ``floor + scale * n ** power`` with n labels (Hoiem et al. 2021, "Learning Curves for Analysis")."""

    floor: float
    scale: float
    power: float

    def error(self, n: float) -> float:
        return self.floor + self.scale * n**self.power

    def labels(self, error: float) -> float:
        """How many labels have this ``error``; infinity where no number has."""
        return math.inf if error <= self.floor else ((error - self.floor) / self.scale) ** (1 / self.power)


def power_law(curve: LearningCurve) -> PowerLaw | None:
    """The least squares fit to a curve of three points or more that falls; None of another.

    One by one its numbers are not to be relied on: very different ones give nearly the same curve.
    """
    errors = 1 - curve.accuracy
    if len(errors) < 3:
        return None
    fits = []
    for power in EXPONENTS:
        columns = np.stack([np.ones(len(errors)), np.asarray(curve.budgets, float) ** power], axis=1)
        (floor, scale), rest = nnls(columns, errors)
        fits.append((rest, PowerLaw(floor, scale, float(power))))
    best = min(fits)[1]
    return best if best.scale > 0 else None


def needed_by_power_laws(reference: LearningCurve, curve: LearningCurve) -> list[float]:
    """D(n) at each number of labels of ``curve``, of fits to both; infinity and 0 as in ``LabelsNeeded``; empty without fits.

    To see whether the answer hangs on how the curve is drawn; it is not the answer.
    """
    scratch, pretrained = power_law(reference), power_law(curve)
    if scratch is None or pretrained is None:
        return []
    found = [scratch.labels(pretrained.error(n)) for n in curve.budgets]
    fewest, most = reference.budgets[0], reference.budgets[-1]
    return [0.0 if n < fewest else math.inf if n > most else n for n in found]
