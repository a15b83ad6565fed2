import dataclasses

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from headstart import params
from headstart.results import comparison
from headstart.results.comparison import Estimate

from .conftest import ROOT

CONFIGURATIONS = params.read(ROOT / "params.yaml").configurations

# The published test accuracies, independent of docs/published.csv.
PUBLISHED = {
    "pretrained-finetuned-adam": 0.8462,
    "pretrained-frozen-adam": 0.8437,
    "pretrained-finetuned-sgd": 0.7338,
    "pretrained-frozen-sgd": 0.7325,
    "random-finetuned-sgd": 0.5402,
    "random-frozen-sgd": 0.5397,
    "random-frozen-adam": 0.4386,
    "random-finetuned-adam": 0.4345,
}


def first_correct(count: int, n: int = 10_000) -> np.ndarray:
    """Return the correctness of one seed of which the first ``count`` of ``n`` images are correct: bool [1, n]."""
    return (np.arange(n) < count)[np.newaxis]


CORRECT = {name: first_correct(round(10_000 * accuracy)) for name, accuracy in PUBLISHED.items()}


def test_pairs_differ_in_exactly_one_factor():
    assert comparison.pairs(CONFIGURATIONS, "optimizer") == [
        ("pretrained-finetuned-adam", "pretrained-finetuned-sgd"),
        ("pretrained-frozen-adam", "pretrained-frozen-sgd"),
        ("random-finetuned-adam", "random-finetuned-sgd"),
        ("random-frozen-adam", "random-frozen-sgd"),
    ]
    assert [len(comparison.pairs(CONFIGURATIONS, factor)) for factor in comparison.FACTORS] == [4, 4, 4]


def test_effects_and_interactions_by_hand():
    analysis = comparison.analyze(CONFIGURATIONS, CORRECT)
    assert {name: effect.value for name, effect in analysis.effects.items()} == pytest.approx({
        "pretrained": ((0.8462 - 0.4345) + (0.8437 - 0.4386) + (0.7338 - 0.5402) + (0.7325 - 0.5397)) / 4,
        "finetuning": ((0.8462 - 0.8437) + (0.7338 - 0.7325) + (0.5402 - 0.5397) + (0.4345 - 0.4386)) / 4,
        "optimizer": ((0.8462 - 0.7338) + (0.8437 - 0.7325) + (0.4345 - 0.5402) + (0.4386 - 0.5397)) / 4,
    })  # fmt: skip
    assert {factors: interaction.value for factors, interaction in analysis.interactions.items()} == pytest.approx({
        # The gain of pretraining with fine-tuning minus that without, with Adam and with SGD; and so on.
        ("pretrained", "finetuning"):
            ((0.8462 - 0.4345) - (0.8437 - 0.4386) + (0.7338 - 0.5402) - (0.7325 - 0.5397)) / 2,
        ("pretrained", "optimizer"):
            ((0.8462 - 0.4345) - (0.7338 - 0.5402) + (0.8437 - 0.4386) - (0.7325 - 0.5397)) / 2,
        ("finetuning", "optimizer"):
            ((0.8462 - 0.8437) - (0.7338 - 0.7325) + (0.4345 - 0.4386) - (0.5402 - 0.5397)) / 2,
    })  # fmt: skip
    assert comparison.summary_metrics(analysis, {}) == {
        "best_test_accuracy": 0.8462,
        "effect_pretrained": 0.3008,
        "effect_finetuning": 0.0001,  # 0.00005
        "effect_optimizer": 0.0042,
    }


def test_tuning_lr_does_not_change_the_pairs():
    """Otherwise an effect would change because its mean is over other pairs, not because a configuration improved."""
    changed = dataclasses.replace(CONFIGURATIONS["random-frozen-adam"], lr=0.01)
    configurations = CONFIGURATIONS | {"random-frozen-adam": changed}
    before, after = (comparison.analyze(named, CORRECT) for named in (CONFIGURATIONS, configurations))
    assert after.effects == before.effects
    assert after.interactions == before.interactions
    pairs = [[(pair.name, pair.baseline, pair.p) for pair in analysis.differences] for analysis in (before, after)]
    assert pairs[0] == pairs[1]
    differing = {(pair.name, pair.baseline): pair.hyperparameters for pair in after.differences}
    assert differing["pretrained-frozen-adam", "random-frozen-adam"] == {"lr": (0.001, 0.01)}
    assert differing["pretrained-frozen-sgd", "random-frozen-sgd"] == {}
    of_optimizers = {"momentum": (None, 0.9), "weight_decay": (None, 0.1)}
    assert differing["pretrained-frozen-adam", "pretrained-frozen-sgd"] == of_optimizers
    assert differing["random-frozen-adam", "random-frozen-sgd"] == {"lr": (0.01, 0.001), **of_optimizers}


def test_a_combination_with_two_learning_rates_counts_once():
    name = "pretrained-frozen-adam"
    configurations = CONFIGURATIONS | {"again": dataclasses.replace(CONFIGURATIONS[name], lr=0.01)}
    before = comparison.analyze(CONFIGURATIONS, CORRECT)
    same = comparison.analyze(configurations, CORRECT | {"again": CORRECT[name]})
    assert {key: effect.value for key, effect in same.effects.items()} == pytest.approx(
        {key: effect.value for key, effect in before.effects.items()}
    )
    better = comparison.analyze(
        configurations, CORRECT | {"again": first_correct(8_837)}
    )  # +4 points, so their mean has +2
    assert better.effects["pretrained"].value == pytest.approx(before.effects["pretrained"].value + 0.02 / 4)


def test_no_effects_without_pairs():
    name = "pretrained-frozen-adam"
    analysis = comparison.analyze({name: CONFIGURATIONS[name]}, {name: first_correct(5_000)})
    assert comparison.summary_metrics(analysis, {}) == {"best_test_accuracy": 0.5}
    assert comparison.summary_metrics(analysis, {name: 0.56781}) == {"best_validation_accuracy": 0.5678}
    assert (analysis.effects, analysis.interactions, analysis.differences) == ({}, {}, [])


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_matches_newcombe(count, n, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 857–872, table I, method 3."""
    estimate = comparison.accuracy(first_correct(count, n))
    assert estimate == pytest.approx((count / n, low, high), abs=0.00005)


def test_exact_mcnemar_by_hand():
    # 1 image is correct only in the baseline, 9 only in the configuration: 2 · (C(10,0) + C(10,1)) / 2¹⁰ = 22 / 1024.
    names = ("pretrained-frozen-adam", "random-frozen-adam")
    correct, baseline = np.ones((2, 1, 100), dtype=bool)
    correct[0, 0] = False
    baseline[0, 1:10] = False
    configurations = {name: CONFIGURATIONS[name] for name in names}
    [difference] = comparison.analyze(configurations, dict(zip(names, (correct, baseline), strict=True))).differences
    assert difference.p == pytest.approx(22 / 1024)
    assert difference.gain.value == pytest.approx(0.08)
    assert difference.n_seeds == 1
    assert difference.is_significant


def test_holm_by_hand():
    # Sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1; a corrected p-value is never smaller than the previous one.
    corrected = multipletests([0.01, 0.04, 0.03, 0.005], method="holm")[1]
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_corrects_all_pairs_together():
    analysis = comparison.analyze(CONFIGURATIONS, CORRECT)
    assert len(analysis.differences) == 12
    by_pair = {(pair.name, pair.baseline): pair for pair in analysis.differences}
    close = by_pair["random-finetuned-sgd", "random-frozen-sgd"]  # 5 discordant images, all on one side
    # Uncorrected, p is 2 · 0.5⁵ = 0.0625, the largest of the twelve, which Holm multiplies by 1.
    assert close.p == pytest.approx(0.0625)
    assert not close.is_significant
    # The next smaller p-value, of 13 discordant images on one side, is multiplied by 2.
    assert by_pair["pretrained-finetuned-sgd", "pretrained-frozen-sgd"].p == pytest.approx(2 * 2 * 0.5**13)
    assert sum(pair.is_significant for pair in analysis.differences) == 11


def test_bootstrap_matches_scipy():
    generator = np.random.default_rng(1)
    correct, baseline = generator.random((2, 1, 2_000)) < [[[0.8]], [[0.7]]]
    values = correct.astype(float) - baseline
    estimate = comparison.bootstrap(values)
    expected = stats.bootstrap((values[0],), np.mean, n_resamples=9_999, method="percentile", rng=2, batch=100)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate[1:] == pytest.approx(tuple(expected.confidence_interval), abs=0.0015)


def test_bootstrap_keeps_images_paired():
    # Two networks with the same mistakes: their difference has no variance, although their accuracies have.
    shared = np.random.default_rng(0).random((1, 1_000)) < 0.5
    assert comparison.bootstrap(shared.astype(float) - shared) == Estimate(0.0, 0.0, 0.0)
    alone = comparison.bootstrap(shared.astype(float))
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * (0.25 / 1_000) ** 0.5, abs=0.003)


def test_interval_includes_seed_variance():
    # All images of a seed have the same value, so all variance is between seeds: t · sd / √seeds.
    three = np.repeat(np.array([[0.7], [0.8], [0.9]]), 50, axis=1)
    _, low, high = comparison.bootstrap(three)
    half_width = 4.302653 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    assert (low, high) == pytest.approx((0.8 - half_width, 0.8 + half_width), abs=1e-6)
    # Both variances at once: the half-widths are added in squares.
    images = np.random.default_rng(0).random((1, 2_000)) < 0.5
    alone = comparison.bootstrap(images.astype(float))
    both = comparison.bootstrap(images + np.array([[-0.1], [0.0], [0.1]]))
    assert both.value == pytest.approx(alone.value)
    assert both.high - both.value == pytest.approx(np.hypot(alone.high - alone.value, half_width), abs=1e-6)
    assert both.value - both.low == pytest.approx(np.hypot(alone.value - alone.low, half_width), abs=1e-6)


def test_p_values_use_student_s_t_over_seeds_and_a_normal_distribution_over_images():
    # All images of a seed have the same value: the paired t-test over seeds.
    seeds = np.array([0.01, 0.03, 0.02])
    assert comparison.p_values(np.repeat(seeds[:, None], 50, axis=1)[None]) == pytest.approx(
        [stats.ttest_1samp(seeds, 0).pvalue]
    )
    # All seeds have the same images correct: the z-test over images.
    images = (np.arange(1_000) < 60).astype(float) - (np.arange(1_000) >= 960)  # 60 gained, 40 lost
    z = images.mean() / (images.std() / 1_000**0.5)
    assert comparison.p_values(np.stack([images, images])[None]) == pytest.approx([2 * stats.norm.sf(z)])
    # No difference, and a difference that is the same for all images of all seeds.
    assert comparison.p_values(np.zeros((1, 3, 10))) == [1]
    assert comparison.p_values(np.full((1, 3, 10), 0.5))[0] < 1e-80


def test_p_value_does_not_depend_on_the_order_of_seeds():
    """McNemar's test of the first seed alone depends on the order: 2 of these 5 seeds are significant on their own."""
    generator = np.random.default_rng(0)
    correct = generator.random((5, 2_000)) < np.array([[0.8], [0.86], [0.8], [0.74], [0.8]])
    baseline = generator.random((5, 2_000)) < 0.8
    for order in ([0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [3, 4, 0, 1, 2]):
        [result] = comparison.compare_pairs([(correct[order], baseline[order])])
        assert result.p == pytest.approx(comparison.compare_pairs([(correct, baseline)])[0].p)
        assert not result.is_significant
    alone = [comparison.compare_pairs([(correct[[seed]], baseline[[seed]])])[0].is_significant for seed in range(5)]
    assert alone == [False, True, False, True, False]


PAIRS = [pair for factor in comparison.FACTORS for pair in comparison.pairs(CONFIGURATIONS, factor)]


def null_study(generator: np.random.Generator, n_seeds: int, spread: float) -> dict[str, np.ndarray]:
    """Simulate eight configurations with the same expected accuracy, 85 %: bool [seeds, 2,000 images] each.

    Some images are harder than others for all networks, and some for all networks of one configuration.

    Args:
        spread: standard deviation of the accuracy between seeds.
    """
    shape = (len(CONFIGURATIONS), n_seeds, 2_000)
    hard = generator.normal(0, 1.5, shape[2]) + generator.normal(0, 0.5, (shape[0], 1, shape[2]))
    accuracies = generator.normal(0.85, spread, shape[:2])[..., None].clip(0.01, 0.99)
    level = stats.norm.ppf(accuracies) * (1 + 1.5**2 + 0.5**2) ** 0.5
    correct = generator.standard_normal(shape, dtype=np.float32) + hard < level
    return dict(zip(CONFIGURATIONS, correct, strict=True))


@pytest.mark.parametrize(
    ("n_seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.01), (3, 0.03), (5, 0.0), (5, 0.01), (5, 0.03)]
)
def test_family_wise_error_of_twelve_null_differences_is_at_most_six_percent(n_seeds, spread):
    """Simulate 1,000 studies. With one seed the spread is 0, because the test is over images only."""
    generator = np.random.default_rng(n_seeds)
    n_significant = 0
    for _ in range(1_000):
        correct = null_study(generator, n_seeds, spread)
        pairs = [(correct[name], correct[baseline]) for name, baseline in PAIRS]
        if n_seeds == 1:
            p = [comparison.p_value(*pair) for pair in pairs]
        else:
            p = comparison.p_values(np.stack([values.astype(np.float32) - baseline for values, baseline in pairs]))
        n_significant += min(p) * len(PAIRS) < comparison.ALPHA  # Holm's first step; without it there is no second
    assert n_significant <= 60
    table = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert f"| {n_seeds} | {100 * spread:.0f} | {n_significant / 10:.1f} |" in table.partition("family-wise error")[2]


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.03])
def test_interval_over_few_seeds_covers_the_truth(monkeypatch, n_seeds, spread):
    """At least 93 % of the 95 % confidence intervals of 1,000 simulated studies contain the truth."""
    monkeypatch.setattr(comparison, "RESAMPLES", 1_000)
    generator = np.random.default_rng(n_seeds)
    covered, widths = 0, []
    for _ in range(1_000):
        accuracies = generator.normal(0.5, spread, (n_seeds, 1))
        estimate = comparison.bootstrap((generator.random((n_seeds, 10_000)) < accuracies).astype(float))
        covered += estimate.low <= 0.5 <= estimate.high
        widths.append(100 * (estimate.high - estimate.low))
    assert covered >= 930
    table = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    row = f"| {n_seeds} | {100 * spread:.0f} | {covered / 10:.1f} | {np.median(widths):.1f} |"
    assert row in table, row


def test_accuracy_of_several_seeds_is_their_mean():
    seeds = np.concatenate([first_correct(80, 100), first_correct(90, 100)])
    value, low, high = comparison.accuracy(seeds)
    assert value == pytest.approx(0.85)
    assert low == pytest.approx(0.85 - np.hypot(0.85 - 0.785, 12.7062 * 0.05), abs=0.01)
    assert high == 1.0  # the interval of two seeds is wide, and an accuracy is at most 1
