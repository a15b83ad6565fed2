import dataclasses

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from headstart import comparison, params
from headstart.comparison import Estimate

from .conftest import ROOT

EXPERIMENTS = params.read(ROOT / "params.yaml").experiments

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


def test_the_pairs_of_a_factor_differ_in_nothing_else():
    assert comparison.pairs(EXPERIMENTS, "optimizer") == [
        ("pretrained-finetuned-adam", "pretrained-finetuned-sgd"),
        ("pretrained-frozen-adam", "pretrained-frozen-sgd"),
        ("random-finetuned-adam", "random-finetuned-sgd"),
        ("random-frozen-adam", "random-frozen-sgd"),
    ]
    assert [len(comparison.pairs(EXPERIMENTS, factor)) for factor in comparison.FACTORS] == [4, 4, 4]


def test_effects_and_interactions_by_hand():
    findings = comparison.study(EXPERIMENTS, CORRECT)
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
    assert comparison.metrics(findings) == {
        "best_accuracy": 0.8462,
        "effect_pretrained": 0.3008,
        "effect_finetuning": 0.0001,  # 0.00005
        "effect_optimizer": 0.0042,
    }


def test_a_configuration_with_another_lr_is_no_twin():
    changed = dataclasses.replace(EXPERIMENTS["random-frozen-adam"], lr=0.01)
    experiments = EXPERIMENTS | {"random-frozen-adam": changed}
    assert len(comparison.pairs(experiments, "pretrained")) == 3
    assert len(comparison.squares(experiments, "pretrained", "optimizer")) == 1


def test_without_pairs_there_is_no_effect():
    name = "pretrained-frozen-adam"
    findings = comparison.study({name: EXPERIMENTS[name]}, {name: right(5_000)})
    assert comparison.metrics(findings) == {"best_accuracy": 0.5}
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
    experiments = {name: EXPERIMENTS[name] for name in names}
    [difference] = comparison.study(experiments, dict(zip(names, (one, other), strict=True))).differences
    assert (difference.only_name, difference.only_other) == (9, 1)
    assert difference.p == pytest.approx(22 / 1024)
    assert difference.gain.value == pytest.approx(0.08)
    assert difference.is_real


def test_holm_by_hand():
    # Sorted 0.005·4, 0.01·3, 0.03·2, 0.04·1, and none smaller than the one before.
    corrected = multipletests([0.01, 0.04, 0.03, 0.005], method="holm")[1]
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_all_pairs_are_corrected_together():
    findings = comparison.study(EXPERIMENTS, CORRECT)
    assert len(findings.differences) == 12
    by_pair = {(found.name, found.other): found for found in findings.differences}
    close = by_pair["random-finetuned-sgd", "random-frozen-sgd"]  # 5 images, all on one side
    # Alone p is 2 · 0.5⁵ = 0.0625, the largest of the twelve, which Holm multiplies by 1.
    assert close.p == pytest.approx(0.0625)
    assert not close.is_real
    # The one before it, 13 images on one side, is multiplied by 2.
    assert by_pair["pretrained-finetuned-sgd", "pretrained-frozen-sgd"].p == pytest.approx(2 * 2 * 0.5**13)
    assert sum(found.is_real for found in findings.differences) == 11


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
    # Every image is as good as every other within a seed, so all the spread is between seeds: 1.96 · sd / √seeds.
    by_seed = np.random.default_rng(0).normal(0.8, 0.05, 40)
    _, low, high = comparison.bootstrap(np.repeat(by_seed[:, np.newaxis], 50, axis=1))
    half = 1.96 * by_seed.std(ddof=1) / 40**0.5
    assert (low, high) == pytest.approx((by_seed.mean() - half, by_seed.mean() + half), abs=0.0015)
    # With three, resampling them alone would give two thirds of the variance.
    three = np.repeat(np.array([[0.7], [0.8], [0.9]]), 50, axis=1)
    _, low, high = comparison.bootstrap(three)
    assert (low, high) == pytest.approx((0.8 - 0.1 * 1.5**0.5, 0.8 + 0.1 * 1.5**0.5))


def test_an_accuracy_of_several_seeds_is_their_mean():
    seeds = np.concatenate([right(80, 100), right(90, 100)])
    value, low, high = comparison.accuracy(seeds)
    assert value == pytest.approx(0.85)
    assert low < 0.8
    assert high > 0.9
