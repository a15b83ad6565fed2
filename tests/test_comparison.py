import dataclasses

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from headstart import params
from headstart.results import comparison
from headstart.results.comparison import Estimate

from .conftest import ROOT

EXPERIMENTS = params.read(ROOT / "params.yaml").configurations

# The published test accuracies, typed in again.
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


def right(count: int, of: int = 10_000) -> np.ndarray:
    """One seed's correctness with the first ``count`` images right."""
    return (np.arange(of) < count)[np.newaxis]


CORRECT = {name: right(round(10_000 * accuracy)) for name, accuracy in PUBLISHED.items()}


def test_the_pairs_of_a_factor_differ_in_no_other_factor():
    assert comparison.pairs(EXPERIMENTS, "optimizer") == [
        ("pretrained-finetuned-adam", "pretrained-finetuned-sgd"),
        ("pretrained-frozen-adam", "pretrained-frozen-sgd"),
        ("random-finetuned-adam", "random-finetuned-sgd"),
        ("random-frozen-adam", "random-frozen-sgd"),
    ]
    assert [len(comparison.pairs(EXPERIMENTS, factor)) for factor in comparison.FACTORS] == [4, 4, 4]


def test_effects_and_interactions_by_hand():
    findings = comparison.analyze(EXPERIMENTS, CORRECT)
    assert {name: effect.value for name, effect in findings.effects.items()} == pytest.approx({
        "pretrained": ((0.8462 - 0.4345) + (0.8437 - 0.4386) + (0.7338 - 0.5402) + (0.7325 - 0.5397)) / 4,
        "finetuning": ((0.8462 - 0.8437) + (0.7338 - 0.7325) + (0.5402 - 0.5397) + (0.4345 - 0.4386)) / 4,
        "optimizer": ((0.8462 - 0.7338) + (0.8437 - 0.7325) + (0.4345 - 0.5402) + (0.4386 - 0.5397)) / 4,
    })  # fmt: skip
    assert {factors: found.value for factors, found in findings.interactions.items()} == pytest.approx({
        # The gain of pretraining with fine-tuning minus that without, with Adam and with SGD; and so on.
        ("pretrained", "finetuning"):
            ((0.8462 - 0.4345) - (0.8437 - 0.4386) + (0.7338 - 0.5402) - (0.7325 - 0.5397)) / 2,
        ("pretrained", "optimizer"):
            ((0.8462 - 0.4345) - (0.7338 - 0.5402) + (0.8437 - 0.4386) - (0.7325 - 0.5397)) / 2,
        ("finetuning", "optimizer"):
            ((0.8462 - 0.8437) - (0.7338 - 0.7325) + (0.4345 - 0.4386) - (0.5402 - 0.5397)) / 2,
    })  # fmt: skip
    assert comparison.summary_metrics(findings, {}) == {
        "best_test_accuracy": 0.8462,
        "effect_pretrained": 0.3008,
        "effect_finetuning": 0.0001,  # 0.00005
        "effect_optimizer": 0.0042,
    }


def test_a_tuned_lr_drops_no_pair():
    """Else an effect would change because its mean is over other pairs, and not because anything got better."""
    changed = dataclasses.replace(EXPERIMENTS["random-frozen-adam"], lr=0.01)
    configurations = EXPERIMENTS | {"random-frozen-adam": changed}
    before, after = (comparison.analyze(these, CORRECT) for these in (EXPERIMENTS, configurations))
    assert after.effects == before.effects
    assert after.interactions == before.interactions
    pairs = [[(found.name, found.other, found.p) for found in study.differences] for study in (before, after)]
    assert pairs[0] == pairs[1]
    settings = {(found.name, found.other): found.settings for found in after.differences}
    assert settings["pretrained-frozen-adam", "random-frozen-adam"] == {"lr": (0.001, 0.01)}
    assert settings["pretrained-frozen-sgd", "random-frozen-sgd"] == {}
    brought_along = {"momentum": (None, 0.9), "weight_decay": (None, 0.1)}
    assert settings["pretrained-frozen-adam", "pretrained-frozen-sgd"] == brought_along
    assert settings["random-frozen-adam", "random-frozen-sgd"] == {"lr": (0.01, 0.001), **brought_along}


def test_a_combination_that_was_tried_twice_counts_once():
    name = "pretrained-frozen-adam"
    configurations = EXPERIMENTS | {"again": dataclasses.replace(EXPERIMENTS[name], lr=0.01)}
    before = comparison.analyze(EXPERIMENTS, CORRECT)
    same = comparison.analyze(configurations, CORRECT | {"again": CORRECT[name]})
    assert {key: effect.value for key, effect in same.effects.items()} == pytest.approx(
        {key: effect.value for key, effect in before.effects.items()}
    )
    better = comparison.analyze(configurations, CORRECT | {"again": right(8_837)})  # 4 points more: the two have 2 more
    assert better.effects["pretrained"].value == pytest.approx(before.effects["pretrained"].value + 0.02 / 4)


def test_without_pairs_there_is_no_effect():
    name = "pretrained-frozen-adam"
    findings = comparison.analyze({name: EXPERIMENTS[name]}, {name: right(5_000)})
    assert comparison.summary_metrics(findings, {}) == {"best_test_accuracy": 0.5}
    assert comparison.summary_metrics(findings, {name: 0.56781}) == {"best_validation_accuracy": 0.5678}
    assert (findings.effects, findings.interactions, findings.differences) == ({}, {}, [])


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_s_interval_as_newcombe_has_it(count, of, low, high):
    """Newcombe 1998, Statistics in Medicine 17, 857–872, table I, method 3."""
    estimate = comparison.accuracy(right(count, of))
    assert estimate == pytest.approx((count / of, low, high), abs=0.00005)


def test_exact_mcnemar_by_hand():
    # 1 image only the one has right, 9 only the other: 2 · (C(10,0) + C(10,1)) / 2¹⁰ = 22 / 1024.
    names = ("pretrained-frozen-adam", "random-frozen-adam")
    one, other = np.ones((2, 1, 100), dtype=bool)
    one[0, 0] = False
    other[0, 1:10] = False
    configurations = {name: EXPERIMENTS[name] for name in names}
    [difference] = comparison.analyze(configurations, dict(zip(names, (one, other), strict=True))).differences
    assert difference.p == pytest.approx(22 / 1024)
    assert difference.gain.value == pytest.approx(0.08)
    assert difference.n_seeds == 1
    assert difference.is_significant


def test_holm_by_hand():
    # Sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1, and none smaller than the one before.
    corrected = multipletests([0.01, 0.04, 0.03, 0.005], method="holm")[1]
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_all_pairs_are_corrected_together():
    findings = comparison.analyze(EXPERIMENTS, CORRECT)
    assert len(findings.differences) == 12
    by_pair = {(found.name, found.other): found for found in findings.differences}
    close = by_pair["random-finetuned-sgd", "random-frozen-sgd"]  # 5 images, all on one side
    # Alone p is 2 · 0.5⁵ = 0.0625, the largest of the twelve, which Holm multiplies by 1.
    assert close.p == pytest.approx(0.0625)
    assert not close.is_significant
    # The one before it, 13 images on one side, is multiplied by 2.
    assert by_pair["pretrained-finetuned-sgd", "pretrained-frozen-sgd"].p == pytest.approx(2 * 2 * 0.5**13)
    assert sum(found.is_significant for found in findings.differences) == 11


def test_the_bootstrap_is_scipy_s():
    generator = np.random.default_rng(1)
    one, other = generator.random((2, 1, 2_000)) < [[[0.8]], [[0.7]]]
    values = one.astype(float) - other
    ours = comparison.bootstrap(values)
    theirs = stats.bootstrap((values[0],), np.mean, n_resamples=9_999, method="percentile", rng=2, batch=100)
    assert ours.value == pytest.approx(values.mean())
    assert ours[1:] == pytest.approx(tuple(theirs.confidence_interval), abs=0.0015)


def test_images_stay_paired():
    # Two networks that err on the same images: their difference is certain, though their accuracies are not.
    shared = np.random.default_rng(0).random((1, 1_000)) < 0.5
    assert comparison.bootstrap(shared.astype(float) - shared) == Estimate(0.0, 0.0, 0.0)
    alone = comparison.bootstrap(shared.astype(float))
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * (0.25 / 1_000) ** 0.5, abs=0.003)


def test_several_seeds_bring_their_own_spread():
    # Every image is as good as every other within a seed, so all the spread is between seeds: t · sd / √seeds.
    three = np.repeat(np.array([[0.7], [0.8], [0.9]]), 50, axis=1)
    _, low, high = comparison.bootstrap(three)
    half = 4.302653 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=1e-6)
    # Both spreads at once: the root of the sum of their squares.
    images = np.random.default_rng(0).random((1, 2_000)) < 0.5
    alone = comparison.bootstrap(images.astype(float))
    both = comparison.bootstrap(images + np.array([[-0.1], [0.0], [0.1]]))
    assert both.value == pytest.approx(alone.value)
    assert both.high - both.value == pytest.approx(np.hypot(alone.high - alone.value, half), abs=1e-6)
    assert both.value - both.low == pytest.approx(np.hypot(alone.value - alone.low, half), abs=1e-6)


def test_p_values_over_seeds_are_student_s_over_images_normal_ones():
    # Every image is as good as every other within a seed: the paired t-test over seeds.
    seeds = np.array([0.01, 0.03, 0.02])
    assert comparison.p_values(np.repeat(seeds[:, None], 50, axis=1)[None]) == pytest.approx(
        [stats.ttest_1samp(seeds, 0).pvalue]
    )
    # Every seed has the same images right: the z-test over images.
    images = (np.arange(1_000) < 60).astype(float) - (np.arange(1_000) >= 960)  # 60 gained, 40 lost
    z = images.mean() / (images.std() / 1_000**0.5)
    assert comparison.p_values(np.stack([images, images])[None]) == pytest.approx([2 * stats.norm.sf(z)])
    # No difference, and one that is the same on every image of every seed.
    assert comparison.p_values(np.zeros((1, 3, 10))) == [1]
    assert comparison.p_values(np.full((1, 3, 10), 0.5))[0] < 1e-80


def test_with_several_seeds_no_seed_comes_first():
    """McNemar's test of the first seed depended on the order of the seeds; it found 2 of these 5 to differ."""
    generator = np.random.default_rng(0)
    one = generator.random((5, 2_000)) < np.array([[0.8], [0.86], [0.8], [0.74], [0.8]])
    other = generator.random((5, 2_000)) < 0.8
    for order in ([0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [3, 4, 0, 1, 2]):
        [gain] = comparison.compare_pairs([(one[order], other[order])])
        assert gain.p == pytest.approx(comparison.compare_pairs([(one, other)])[0].p)
        assert not gain.is_significant
    alone = [comparison.compare_pairs([(one[[seed]], other[[seed]])])[0].is_significant for seed in range(5)]
    assert alone == [False, True, False, True, False]


PAIRS = [pair for factor in comparison.FACTORS for pair in comparison.pairs(EXPERIMENTS, factor)]


def null_study(generator: np.random.Generator, n_seeds: int, spread: float) -> dict[str, np.ndarray]:
    """Eight configurations of the same accuracy, 85 %, whose seeds spread: bool [seeds, 2,000 images].

    Some images are harder than others for all networks, and some for all networks of one configuration.
    """
    shape = (len(EXPERIMENTS), n_seeds, 2_000)
    hard = generator.normal(0, 1.5, shape[2]) + generator.normal(0, 0.5, (shape[0], 1, shape[2]))
    accuracies = generator.normal(0.85, spread, shape[:2])[..., None].clip(0.01, 0.99)
    level = stats.norm.ppf(accuracies) * (1 + 1.5**2 + 0.5**2) ** 0.5
    found = generator.standard_normal(shape, dtype=np.float32) + hard < level
    return dict(zip(EXPERIMENTS, found, strict=True))


@pytest.mark.parametrize(
    ("n_seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.01), (3, 0.03), (5, 0.0), (5, 0.01), (5, 0.03)]
)
def test_among_twelve_null_differences_hardly_any_study_has_a_significant_one(n_seeds, spread):
    """Of 1,000 studies at most 6 %. With one seed the spread is 0: the test is about other images."""
    generator = np.random.default_rng(n_seeds)
    studies = 0
    for _ in range(1_000):
        correct = null_study(generator, n_seeds, spread)
        pairs = [(correct[one], correct[other]) for one, other in PAIRS]
        if n_seeds == 1:
            p = [comparison.p_value(*pair) for pair in pairs]
        else:
            p = comparison.p_values(np.stack([one.astype(np.float32) - other for one, other in pairs]))
        studies += min(p) * len(PAIRS) < comparison.ALPHA  # Holm's first step, without which there is no second
    assert studies <= 60
    table = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert f"| {n_seeds} | {100 * spread:.0f} | {studies / 10:.1f} |" in table.partition("family-wise error")[2]


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.01, 0.03])
def test_an_interval_over_few_seeds_keeps_what_it_promises(monkeypatch, n_seeds, spread):
    """Of 1,000 studies whose seeds spread by so much, at least 93 % have the truth in their 95 % interval."""
    monkeypatch.setattr(comparison, "RESAMPLES", 1_000)
    generator = np.random.default_rng(n_seeds)
    covered, widths = 0, []
    for _ in range(1_000):
        accuracies = generator.normal(0.5, spread, (n_seeds, 1))
        found = comparison.bootstrap((generator.random((n_seeds, 10_000)) < accuracies).astype(float))
        covered += found.low <= 0.5 <= found.high
        widths.append(100 * (found.high - found.low))
    assert covered >= 930
    table = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    row = f"| {n_seeds} | {100 * spread:.0f} | {covered / 10:.1f} | {np.median(widths):.1f} |"
    assert row in table, row


def test_an_accuracy_of_several_seeds_is_their_mean():
    seeds = np.concatenate([right(80, 100), right(90, 100)])
    value, low, high = comparison.accuracy(seeds)
    assert value == pytest.approx(0.85)
    assert low == pytest.approx(0.85 - np.hypot(0.85 - 0.785, 12.7062 * 0.05), abs=0.01)
    assert high == 1.0  # two seeds tell little, and an accuracy is at most 1
