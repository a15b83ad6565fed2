"""What the factors of the study do to test accuracy, and which differences are more than noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from headstart.params import Experiment

# In each factor, the level whose gain over the other is the effect.
FACTORS = {"pretrained": True, "finetuning": True, "optimizer": "Adam"}
BELONGS_TO_OPTIMIZER = ("momentum", "weight_decay")

ERROR = 0.05  # intervals are 95 % intervals, and a difference is real if its p-value is below this
RESAMPLES = 10_000

Correct = Mapping[str, np.ndarray]  # of each configuration, whether it was right: bool [seeds, test images]


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Two configurations that differ in ``factor`` alone, on the same test images."""

    factor: str
    name: str  # with the level that gains
    other: str
    gain: Estimate  # in accuracy
    only_name: int  # images that it alone has right, of the networks of the first seed
    only_other: int
    p: float  # exact McNemar test, after Holm's correction for all differences

    @property
    def is_real(self) -> bool:
        """Whether the difference is more than noise, by the test and by the interval."""
        return self.p < ERROR and not self.gain.low <= 0 <= self.gain.high


@dataclass(frozen=True)
class Findings:
    """What the study found."""

    accuracy: dict[str, Estimate]
    effects: dict[str, Estimate]  # of each factor
    interactions: dict[tuple[str, str], Estimate]  # how much larger the first's effect is with the second's gain
    differences: list[Difference]


def pairs(experiments: Mapping[str, Experiment], factor: str) -> list[tuple[str, str]]:
    """Configurations that differ in ``factor`` and nothing else: (with the gaining level, with the other)."""

    def others(experiment: Experiment) -> dict[str, object]:
        ignored = {factor, *(BELONGS_TO_OPTIMIZER if factor == "optimizer" else ())}
        return {key: value for key, value in vars(experiment).items() if key not in ignored}

    return [
        (gaining, other)
        for gaining, left in experiments.items()
        for other, right in experiments.items()
        if others(left) == others(right)
        and getattr(left, factor) == FACTORS[factor]
        and getattr(right, factor) != FACTORS[factor]
    ]


def squares(experiments: Mapping[str, Experiment], first: str, second: str) -> list[tuple[str, str, str, str]]:
    """Two pairs of ``first`` that differ in ``second`` and nothing else: first the pair with ``second``'s gain."""
    ours, theirs = pairs(experiments, first), pairs(experiments, second)
    return [
        (*pair, *twin)
        for pair in ours
        for twin in ours
        if (pair[0], twin[0]) in theirs and (pair[1], twin[1]) in theirs
    ]


def contrast(correct: Correct, groups: Sequence[tuple[str, ...]], signs: tuple[int, ...]) -> np.ndarray:
    """The mean over ``groups`` of their configurations' correctness, added with ``signs``: [seeds, images]."""
    terms = [sign * correct[name].astype(float) for group in groups for name, sign in zip(group, signs, strict=True)]
    return np.sum(terms, axis=0) / len(groups)


def bootstrap(values: np.ndarray) -> Estimate:
    """The mean of ``values`` [seeds, images] with a percentile interval (Efron and Tibshirani 1993, chapter 13).

    The images are resampled as wholes, so values that are differences on the same images stay paired. With several
    seeds these are resampled too, and their spread is enlarged to what makes its variance unbiased: resampling two
    or three of them would show half or two thirds of it.
    """
    generator = np.random.default_rng(0)
    n_seeds, n_images = values.shape
    # Few values are distinct, so drawing how often each occurs is the same as drawing images, and much faster.
    distinct, counts = np.unique(values.mean(0), return_counts=True)
    means = generator.multinomial(n_images, counts / n_images, size=RESAMPLES) @ distinct / n_images
    if n_seeds > 1:
        deviations = values.mean(1) - values.mean()
        drawn = deviations[generator.integers(n_seeds, size=(RESAMPLES, n_seeds))].mean(1)
        means += drawn * math.sqrt(n_seeds / (n_seeds - 1))
    low, high = np.quantile(means, [ERROR / 2, 1 - ERROR / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def accuracy(correct: np.ndarray) -> Estimate:
    """Of one configuration, bool [seeds, images]: with Wilson's interval (1927), or bootstrapped with several seeds."""
    if len(correct) > 1:
        return bootstrap(correct.astype(float))
    low, high = proportion_confint(correct.sum(), correct.size, alpha=ERROR, method="wilson")
    return Estimate(float(correct.mean()), float(low), float(high))


def differences(experiments: Mapping[str, Experiment], correct: Correct) -> list[Difference]:
    """All pairs of all factors, by factor."""
    named = [(factor, *pair) for factor in FACTORS for pair in pairs(experiments, factor)]
    if not named:
        return []
    only = [_only(correct[name][0], correct[other][0]) for _, name, other in named]
    tests = [mcnemar([[0, left], [right, 0]], exact=True).pvalue for left, right in only]
    corrected = multipletests(tests, alpha=ERROR, method="holm")[1]
    gains = [bootstrap(contrast(correct, [(name, other)], (1, -1))) for _, name, other in named]
    return [
        Difference(*labels, gain, *counts, float(p))
        for labels, gain, counts, p in zip(named, gains, only, corrected, strict=True)
    ]


def _only(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    return int((left & ~right).sum()), int((right & ~left).sum())


def study(experiments: Mapping[str, Experiment], correct: Correct) -> Findings:
    """All that is said of the configurations together. A factor without a pair has no effect."""
    effects = {factor: pairs(experiments, factor) for factor in FACTORS}
    interactions = {factors: squares(experiments, *factors) for factors in combinations(FACTORS, 2)}
    return Findings(
        accuracy={name: accuracy(correct[name]) for name in experiments},
        effects={key: bootstrap(contrast(correct, found, (1, -1))) for key, found in effects.items() if found},
        interactions={
            key: bootstrap(contrast(correct, found, (1, -1, -1, 1))) for key, found in interactions.items() if found
        },
        differences=differences(experiments, correct),
    )


def metrics(findings: Findings) -> dict[str, float]:
    """The study in at most four numbers, rounded to four places."""
    named = {f"effect_{factor}": effect.value for factor, effect in findings.effects.items()}
    best = max(estimate.value for estimate in findings.accuracy.values())
    return {name: round(value, 4) for name, value in {"best_accuracy": best, **named}.items()}
