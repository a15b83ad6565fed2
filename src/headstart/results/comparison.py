"""What the factors of the study do to test accuracy, and which differences are significant."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, stdtrit
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from headstart.params import Configuration

# In each factor, the level whose gain over the other is the effect.
FACTORS = {"pretrained": True, "finetuning": True, "optimizer": "Adam"}
HYPERPARAMETERS = ("lr", "momentum", "weight_decay")  # what a level may bring along, and what may be tuned for each

ALPHA = 0.05  # intervals are 95 % intervals, and a difference is significant if its p-value is below this
RESAMPLES = 10_000
BISECTIONS = 60  # of the search for a p-value
FARTHEST = 20.0  # standard errors, at which a p-value is 6e-89

Correct = Mapping[str, np.ndarray]  # of each configuration, whether it was right: bool [seeds, test images]


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """What one network has over another, on the same test images; of several seeds the mean."""

    gain: Estimate  # in accuracy
    n_seeds: int
    p: float  # after Holm's correction for all that are tested together

    @property
    def is_significant(self) -> bool:
        """Whether the corrected p-value is below ``ALPHA`` and the interval excludes 0.

        With one seed this says that the two trained networks differ on other test images too. It says nothing about
        other trainings.
        """
        return self.p < ALPHA and not self.gain.low <= 0 <= self.gain.high


@dataclass(frozen=True, kw_only=True)
class Difference(PairedComparison):
    """Two configurations that differ in one ``factor``."""

    factor: str
    name: str  # with the level that gains
    other: str
    settings: dict[str, tuple[float | None, float | None]]  # that differ too: of the one and of the other


@dataclass(frozen=True)
class StudyAnalysis:
    """What the study found."""

    accuracy: dict[str, Estimate]
    effects: dict[str, Estimate]  # of each factor
    interactions: dict[tuple[str, str], Estimate]  # how much larger the first's effect is with the second's gain
    differences: list[Difference]


def pairs(configurations: Mapping[str, Configuration], factor: str) -> list[tuple[str, str]]:
    """Configurations that differ in ``factor`` and no other factor: (with the gaining level, with the other).

    Their settings may differ: which pairs there are does not change when one of them is tuned. The layer that they are
    fine-tuned from may not; so what has a layer of its own has no pair that is frozen, and leaves the effect of
    fine-tuning what it is.
    """

    def others(configuration: Configuration) -> list[object]:
        return [configuration.finetune_from, *(getattr(configuration, other) for other in FACTORS if other != factor)]

    return [
        (gaining, other)
        for gaining, left in configurations.items()
        for other, right in configurations.items()
        if others(left) == others(right)
        and getattr(left, factor) == FACTORS[factor]
        and getattr(right, factor) != FACTORS[factor]
    ]


def differing_hyperparameters(one: Configuration, other: Configuration) -> dict[str, tuple[float | None, float | None]]:
    """The settings in which two configurations differ, None where an optimizer has no such setting."""
    values = {key: (getattr(one, key), getattr(other, key)) for key in HYPERPARAMETERS}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def interaction_groups(
    configurations: Mapping[str, Configuration], first: str, second: str
) -> list[tuple[str, str, str, str]]:
    """Two pairs of ``first`` that differ in ``second`` and no other factor: first the pair with ``second``'s gain."""
    ours, theirs = pairs(configurations, first), pairs(configurations, second)
    return [
        (*pair, *twin)
        for pair in ours
        for twin in ours
        if (pair[0], twin[0]) in theirs and (pair[1], twin[1]) in theirs
    ]


def cell_means(
    configurations: Mapping[str, Configuration], correct: Correct
) -> tuple[dict[str, Configuration], dict[str, np.ndarray]]:
    """One configuration for each combination of levels and layers, and the mean correctness of all that have it.

    Else a combination that was tried with several settings would count as often.
    """
    members: dict[tuple[object, ...], list[str]] = {}
    for name, configuration in configurations.items():
        combination = (configuration.finetune_from, *(getattr(configuration, factor) for factor in FACTORS))
        members.setdefault(combination, []).append(name)
    first = {names[0]: configurations[names[0]] for names in members.values()}
    return first, {names[0]: np.mean([correct[name] for name in names], axis=0) for names in members.values()}


def contrast(correct: Correct, groups: Sequence[tuple[str, ...]], signs: tuple[int, ...]) -> np.ndarray:
    """The mean over ``groups`` of their configurations' correctness, added with ``signs``: [seeds, images]."""
    terms = [sign * correct[name].astype(float) for group in groups for name, sign in zip(group, signs, strict=True)]
    return np.sum(terms, axis=0) / len(groups)


def bootstrap(values: np.ndarray) -> Estimate:
    """Return the mean of ``values`` [seeds, images] with its interval.

    The seeds and the images are crossed random effects. The interval of the images is a percentile bootstrap interval
    (Efron and Tibshirani 1993, chapter 13). Images are resampled with all their seeds, so differences on the same
    images stay paired. The interval of the seeds is Student's interval of their means. The two half-widths are added in
    squares, as MOVER does with the limits of independent estimates (Zou and Donner 2008, Statistics in Medicine 27,
    1693–1702). Here they are not independent: both contain the noise of each seed on each image, so the interval is
    somewhat too wide.
    """
    generator = np.random.default_rng(0)
    n_seeds, n_images = values.shape
    # Few values are distinct, so drawing how often each occurs is the same as drawing images, and much faster.
    distinct, counts = np.unique(values.mean(0), return_counts=True)
    means = generator.multinomial(n_images, counts / n_images, size=RESAMPLES) @ distinct / n_images
    value = float(values.mean())
    low, high = (float(end) for end in np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2]))
    if n_seeds == 1:
        return Estimate(value, low, high)
    seeds = float(student.ppf(1 - ALPHA / 2, n_seeds - 1)) * values.mean(1).std(ddof=1) / math.sqrt(n_seeds)
    return Estimate(value, value - math.hypot(value - low, seeds), value + math.hypot(high - value, seeds))


def p_values(values: np.ndarray) -> np.ndarray:
    """Return the p-values of the means of ``values`` [tests, seeds, images], with two seeds or more: [tests].

    A p-value is the smallest error rate at which the interval excludes 0 that ``bootstrap`` describes. The half-width
    over images is the normal one here.
    """
    _, n_seeds, n_images = values.shape
    gains = abs(values.mean((1, 2)))
    images = values.mean(1).std(1) / math.sqrt(n_images)  # standard errors
    seeds = values.mean(2).std(1, ddof=1) / math.sqrt(n_seeds)
    low, high = np.zeros_like(gains), np.full_like(gains, FARTHEST)  # quantiles of the normal distribution
    for _ in range(BISECTIONS):
        quantiles = (low + high) / 2
        excludes = np.hypot(quantiles * images, stdtrit(n_seeds - 1, ndtr(-quantiles)) * seeds) < gains
        low, high = np.where(excludes, quantiles, low), np.where(excludes, high, quantiles)
    return 2 * ndtr(-low)


def accuracy(correct: np.ndarray) -> Estimate:
    """Of one configuration, bool [seeds, images]: with Wilson's interval (1927); of several seeds ``bootstrap``'s."""
    if len(correct) > 1:
        value, low, high = bootstrap(correct.astype(float))
        return Estimate(value, max(low, 0.0), min(high, 1.0))
    low, high = proportion_confint(correct.sum(), correct.size, alpha=ALPHA, method="wilson")
    return Estimate(float(correct.mean()), float(low), float(high))


def compare_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[PairedComparison]:
    """Test each of ``pairs``, the correctness of the one and of the other: bool [seeds, images], of the same seeds."""
    if not pairs:
        return []
    corrected = multipletests([p_value(*pair) for pair in pairs], alpha=ALPHA, method="holm")[1]
    return [
        PairedComparison(gain=bootstrap(one.astype(float) - other), n_seeds=len(one), p=float(p))
        for (one, other), p in zip(pairs, corrected, strict=True)
    ]


def p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Return the p-value of one test: with one seed that of McNemar's exact test, else that of ``p_values``."""
    if len(one) > 1:
        return float(p_values(one[None].astype(float) - other)[0])
    return float(mcnemar([[0, (one & ~other).sum()], [(other & ~one).sum(), 0]], exact=True).pvalue)


def differences(configurations: Mapping[str, Configuration], correct: Correct) -> list[Difference]:
    """All pairs of all factors, by factor."""
    named = [(factor, *pair) for factor in FACTORS for pair in pairs(configurations, factor)]
    return [
        Difference(**vars(gain), factor=factor, name=name, other=other,
                   settings=differing_hyperparameters(configurations[name], configurations[other]))
        for (factor, name, other), gain in zip(
            named, compare_pairs([(correct[name], correct[other]) for _, name, other in named]), strict=True
        )
    ]  # fmt: skip


def analyze(configurations: Mapping[str, Configuration], correct: Correct) -> StudyAnalysis:
    """All that is said of the configurations together. A factor without a pair has no effect."""
    representatives, mean = cell_means(configurations, correct)
    effects = {factor: pairs(representatives, factor) for factor in FACTORS}
    interactions = {factors: interaction_groups(representatives, *factors) for factors in combinations(FACTORS, 2)}
    return StudyAnalysis(
        accuracy={name: accuracy(correct[name]) for name in configurations},
        effects={key: bootstrap(contrast(mean, found, (1, -1))) for key, found in effects.items() if found},
        interactions={
            key: bootstrap(contrast(mean, found, (1, -1, -1, 1))) for key, found in interactions.items() if found
        },
        differences=differences(configurations, correct),
    )


def summary_metrics(findings: StudyAnalysis, validation: Mapping[str, float]) -> dict[str, float]:
    """The study in at most four numbers, rounded to four places.

    Args:
        validation: accuracy of each configuration on validation images, empty where there are none. The best is then
            the best of these: a number that is looked at while settings are tuned must not be of the test images.
    """
    named = {f"effect_{factor}": effect.value for factor, effect in findings.effects.items()}
    test = {name: estimate.value for name, estimate in findings.accuracy.items()}
    best = {f"best_{'validation' if validation else 'test'}_accuracy": max((validation or test).values())}
    return {name: round(value, 4) for name, value in {**best, **named}.items()}
