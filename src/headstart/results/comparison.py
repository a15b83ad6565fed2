"""Effects of the study's factors on test accuracy, with confidence intervals and significance tests."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from headstart.params import Configuration

# An effect is the gain of this level over the factor's baseline level.
FACTORS = {"pretrained": True, "finetuning": True, "optimizer": "Adam"}
HYPERPARAMETERS = ("lr", "momentum", "weight_decay")  # may differ within a pair, like other options of the optimizer
# Must be equal within a pair, like the other factors.
RECIPE = ("finetune_from", "schedule", "warmup_epochs", "label_smoothing", "class_weights", "augmentation")

ALPHA = 0.05  # significance level; confidence intervals are 95 % intervals
RESAMPLES = 10_000
BISECTIONS = 60  # of the search for a p-value
MAX_QUANTILE = 20.0  # standard errors; the p-value is 6e-89 there

Correct = Mapping[str, np.ndarray]  # by configuration, whether each prediction is correct: bool [seeds, test images]
Hyperparameters = Mapping[str, tuple[Any, Any]]  # of a configuration and its baseline, if they differ


class Estimate(NamedTuple):
    """A number and its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """The gain of one configuration over its baseline, on the same seeds and test images."""

    gain: Estimate  # in accuracy, the mean over seeds
    n_seeds: int
    p: float  # with Holm's correction for all pairs that are tested together

    @property
    def is_significant(self) -> bool:
        """Return whether the corrected p-value is below ``ALPHA`` and the interval excludes 0.

        With one seed the test is over test images only: the two trained networks are expected to differ on other test
        images too. It says nothing about other trainings.
        """
        return self.p < ALPHA and not self.gain.low <= 0 <= self.gain.high


@dataclass(frozen=True, kw_only=True)
class Difference(PairedComparison):
    """Two configurations that differ in one ``factor``."""

    factor: str
    name: str  # with the level of ``FACTORS``
    baseline: str
    hyperparameters: Hyperparameters  # that differ too


@dataclass(frozen=True)
class StudyAnalysis:
    """Accuracies, effects and differences of a study."""

    accuracy: dict[str, Estimate]
    effects: dict[str, Estimate]  # by factor
    interactions: dict[
        tuple[str, str], Estimate
    ]  # the first factor's effect at the second's level, minus at its baseline
    differences: list[Difference]


def pairs(configurations: Mapping[str, Configuration], factor: str) -> list[tuple[str, str]]:
    """Return the pairs that differ in ``factor`` and no other factor: (with the level of ``FACTORS``, baseline).

    Paired configurations may differ in hyperparameters, so tuning one of them does not change the set of pairs. They
    must share ``RECIPE``: a configuration that overrides `finetune_from`, for example, has no frozen counterpart and
    does not enter the effect of fine-tuning.
    """
    shared = [*RECIPE, *(name for name in FACTORS if name != factor)]

    def key(configuration: Configuration) -> list[object]:
        return [getattr(configuration, name) for name in shared]

    return [
        (name, baseline)
        for name, configuration in configurations.items()
        for baseline, baseline_configuration in configurations.items()
        if key(configuration) == key(baseline_configuration)
        and getattr(configuration, factor) == FACTORS[factor]
        and getattr(baseline_configuration, factor) != FACTORS[factor]
    ]


def differing_hyperparameters(configuration: Configuration, baseline: Configuration) -> Hyperparameters:
    """Return the hyperparameters in which two configurations differ; None for one that the optimizer does not have."""
    values = {key: (getattr(configuration, key), getattr(baseline, key)) for key in HYPERPARAMETERS}
    options, baseline_options = dict(configuration.options), dict(baseline.options)
    values |= {key: (options.get(key), baseline_options.get(key)) for key in options | baseline_options}
    return {key: pair for key, pair in values.items() if pair[0] != pair[1]}


def interaction_groups(
    configurations: Mapping[str, Configuration], first: str, second: str
) -> list[tuple[str, str, str, str]]:
    """Return two pairs of ``first`` that differ in ``second`` and no other factor, the second pair at its baseline."""
    first_pairs, second_pairs = pairs(configurations, first), pairs(configurations, second)
    return [
        (*pair, *baseline_pair)
        for pair in first_pairs
        for baseline_pair in first_pairs
        if all(names in second_pairs for names in zip(pair, baseline_pair, strict=True))
    ]


def cell_means(
    configurations: Mapping[str, Configuration], correct: Correct
) -> tuple[dict[str, Configuration], dict[str, np.ndarray]]:
    """Average configurations that differ in hyperparameters only, and name each cell after its first configuration.

    Otherwise a combination of levels that was run with several hyperparameters would be over-weighted.
    """
    cells: dict[tuple[object, ...], list[str]] = {}
    for name, configuration in configurations.items():
        combination = tuple(getattr(configuration, name) for name in (*RECIPE, *FACTORS))
        cells.setdefault(combination, []).append(name)
    representatives = {names[0]: configurations[names[0]] for names in cells.values()}
    return representatives, {names[0]: np.mean([correct[name] for name in names], axis=0) for names in cells.values()}


def contrast(correct: Correct, groups: Sequence[tuple[str, ...]], signs: tuple[int, ...]) -> np.ndarray:
    """Return the mean over ``groups`` of the signed sum of their configurations' correctness: [seeds, images]."""
    terms = [sign * correct[name].astype(float) for group in groups for name, sign in zip(group, signs, strict=True)]
    return np.sum(terms, axis=0) / len(groups)


def bootstrap(values: np.ndarray) -> Estimate:
    """Return the mean of ``values`` [seeds, images] with its confidence interval.

    The seeds and the images are crossed random effects. The interval of the images is a percentile bootstrap interval
    (Efron and Tibshirani 1993, chapter 13). Images are resampled with all their seeds, so differences on the same
    images stay paired. The interval of the seeds is Student's interval of their means. The two half-widths are added in
    quadrature, as MOVER does with the limits of independent estimates (Zou and Donner 2008, Statistics in Medicine 27,
    1693–1702). Here they are not independent: both contain the noise of each seed on each image, so the interval is
    somewhat too wide.
    """
    generator = np.random.default_rng(0)
    n_seeds, n_images = values.shape
    # Few values are distinct. Drawing the count of each is equivalent to drawing images, and much faster.
    distinct, counts = np.unique(values.mean(0), return_counts=True)
    means = generator.multinomial(n_images, counts / n_images, size=RESAMPLES) @ distinct / n_images
    value = float(values.mean())
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2]).tolist()
    if n_seeds == 1:
        return Estimate(value, low, high)
    half_width = float(student.ppf(1 - ALPHA / 2, n_seeds - 1)) * values.mean(1).std(ddof=1) / math.sqrt(n_seeds)
    return Estimate(value, value - math.hypot(value - low, half_width), value + math.hypot(high - value, half_width))


def normal_interval(values: np.ndarray) -> Estimate:
    """Return the mean of ``values`` [seeds, images] with its confidence interval, as ``bootstrap`` does.

    Here the half-width over images is that of a normal distribution, 1.96 standard errors. With hundreds of test images
    the two agree, and this one is computed a thousand times as fast.
    """
    n_seeds, n_images = values.shape
    value = float(values.mean())
    half_width = float(ndtri(1 - ALPHA / 2)) * values.mean(0).std() / math.sqrt(n_images)
    if n_seeds > 1:
        quantile = float(student.ppf(1 - ALPHA / 2, n_seeds - 1))
        half_width = math.hypot(half_width, quantile * values.mean(1).std(ddof=1) / math.sqrt(n_seeds))
    return Estimate(value, value - half_width, value + half_width)


def p_values(values: np.ndarray) -> np.ndarray:
    """Return the p-values of the means of ``values`` [tests, seeds, images], with two seeds or more: [tests].

    A p-value is the smallest significance level at which the interval of ``bootstrap`` excludes 0. Here the half-width
    over images is that of a normal distribution.
    """
    _, n_seeds, n_images = values.shape
    gains = abs(values.mean((1, 2)))
    image_errors = values.mean(1).std(1) / math.sqrt(n_images)  # standard errors
    seed_errors = values.mean(2).std(1, ddof=1) / math.sqrt(n_seeds)
    low, high = np.zeros_like(gains), np.full_like(gains, MAX_QUANTILE)  # quantiles of the normal distribution
    for _ in range(BISECTIONS):
        quantiles = (low + high) / 2
        excludes = np.hypot(quantiles * image_errors, stdtrit(n_seeds - 1, ndtr(-quantiles)) * seed_errors) < gains
        low, high = np.where(excludes, quantiles, low), np.where(excludes, high, quantiles)
    return 2 * ndtr(-low)


def accuracy(correct: np.ndarray) -> Estimate:
    """Return the accuracy of ``correct``, bool [seeds, images].

    The interval of one seed is Wilson's (1927), that of several seeds ``bootstrap``'s.
    """
    if len(correct) > 1:
        value, low, high = bootstrap(correct.astype(float))
        return Estimate(value, max(low, 0.0), min(high, 1.0))
    low, high = proportion_confint(correct.sum(), correct.size, alpha=ALPHA, method="wilson")
    return Estimate(float(correct.mean()), float(low), float(high))


def compare_pairs(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[PairedComparison]:
    """Test each of ``pairs``: correctness of a configuration and of its baseline, bool [seeds, images], same seeds."""
    if not pairs:
        return []
    corrected = multipletests([p_value(*pair) for pair in pairs], alpha=ALPHA, method="holm")[1]
    return [
        PairedComparison(gain=bootstrap(correct.astype(float) - baseline), n_seeds=len(correct), p=float(p))
        for (correct, baseline), p in zip(pairs, corrected, strict=True)
    ]


def p_value(correct: np.ndarray, baseline: np.ndarray) -> float:
    """Return the p-value of one test: of McNemar's exact test with one seed, of ``p_values`` with several."""
    if len(correct) > 1:
        return float(p_values(correct[None].astype(float) - baseline)[0])
    discordant = (correct & ~baseline).sum(), (baseline & ~correct).sum()
    return float(mcnemar([[0, discordant[0]], [discordant[1], 0]], exact=True).pvalue)


def differences(configurations: Mapping[str, Configuration], correct: Correct) -> list[Difference]:
    """Compare the pairs of all factors, by factor."""
    named = [(factor, *pair) for factor in FACTORS for pair in pairs(configurations, factor)]
    comparisons = compare_pairs([(correct[name], correct[baseline]) for _, name, baseline in named])
    return [
        Difference(
            **vars(comparison),
            factor=factor,
            name=name,
            baseline=baseline,
            hyperparameters=differing_hyperparameters(configurations[name], configurations[baseline]),
        )
        for (factor, name, baseline), comparison in zip(named, comparisons, strict=True)
    ]


def analyze(configurations: Mapping[str, Configuration], correct: Correct) -> StudyAnalysis:
    """Analyze all configurations together. A factor without a pair has no effect."""
    representatives, means = cell_means(configurations, correct)
    effects = {factor: pairs(representatives, factor) for factor in FACTORS}
    interactions = {factors: interaction_groups(representatives, *factors) for factors in combinations(FACTORS, 2)}
    return StudyAnalysis(
        accuracy={name: accuracy(correct[name]) for name in configurations},
        effects={key: bootstrap(contrast(means, groups, (1, -1))) for key, groups in effects.items() if groups},
        interactions={
            key: bootstrap(contrast(means, groups, (1, -1, -1, 1))) for key, groups in interactions.items() if groups
        },
        differences=differences(configurations, correct),
    )


def summary_metrics(analysis: StudyAnalysis, validation: Mapping[str, float]) -> dict[str, float]:
    """Return the best accuracy and the effects, at most four metrics, rounded to four places.

    Args:
        validation: accuracy of each configuration on validation images; empty without validation images. If there is
            one, the best accuracy is the best of these, because a number that is looked at while hyperparameters are
            tuned must not come from the test images.
    """
    effects = {f"effect_{factor}": effect.value for factor, effect in analysis.effects.items()}
    test = {name: estimate.value for name, estimate in analysis.accuracy.items()}
    best = {f"best_{'validation' if validation else 'test'}_accuracy": max((validation or test).values())}
    return {name: round(value, 4) for name, value in {**best, **effects}.items()}
