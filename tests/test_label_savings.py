import math

import numpy as np
import pytest

from benchmarks import label_savings as simulation
from headstart.results import label_savings
from headstart.results.label_savings import LearningCurve, PowerLaw

BUDGETS = (100, 200, 400, 800)


def curve(*accuracies: float, n_seeds: int = 3, n_images: int = 1_000, budgets=BUDGETS) -> LearningCurve:
    """Return a curve with these accuracies for every seed; the first images are the correct ones."""
    correct = np.stack([np.tile(np.arange(n_images) < accuracy * n_images, (n_seeds, 1)) for accuracy in accuracies])
    return LearningCurve(budgets, correct)


def values(reference: LearningCurve, pretrained: LearningCurve) -> list[float]:
    return [needed.value for needed in label_savings.labels_needed(reference, {"": pretrained})[""]]


def test_labels_needed_by_hand():
    scratch = curve(0.5, 0.6, 0.7, 0.8)
    pretrained = curve(0.6, 0.65, 0.75, 0.9)
    # Halfway between two accuracies is halfway between the logarithms of the labels.
    assert values(scratch, pretrained) == pytest.approx(
        [200, math.sqrt(200 * 400), math.sqrt(400 * 800), math.inf], rel=1e-6
    )
    assert values(scratch, curve(0.4, 0.5, 0.8, 0.81))[::2] == pytest.approx([0, 800], rel=1e-6)


def test_reference_is_made_monotone():
    assert values(curve(0.5, 0.7, 0.6, 0.8), curve(0.65, 0.5, 0.5, 0.5))[0] == pytest.approx(200, rel=1e-6)
    # One third of the way from 0.65 at 400 to 0.8 at 800.
    assert values(curve(0.5, 0.7, 0.6, 0.8), curve(0.7, 0.5, 0.5, 0.5))[0] == pytest.approx(
        400 * 2 ** (1 / 3), rel=1e-6
    )


def test_interval_contains_the_value_and_narrows_with_more_images():
    scratch, pretrained = ((0.5, 0.6, 0.7, 0.8), (0.65, 0.7, 0.75, 0.8))
    widths = []
    for n_images in (500, 5_000):
        generator = np.random.default_rng(0)
        curves = [
            LearningCurve(BUDGETS, generator.random((4, 3, n_images)) < np.reshape(accuracies, (4, 1, 1)))
            for accuracies in (scratch, pretrained)
        ]
        needed = label_savings.labels_needed(curves[0], {"": curves[1]})[""][0]
        low, high = needed.interval
        assert low < needed.value < high
        widths.append(math.log(high / low))
    assert widths[1] < widths[0]


def test_no_interval_with_one_seed():
    scratch, pretrained = curve(0.5, 0.6, 0.7, 0.8, n_seeds=1), curve(*4 * [0.6], n_seeds=1)
    [first, *_] = label_savings.labels_needed(scratch, {"": pretrained})[""]
    assert first.value == pytest.approx(200, rel=1e-6)
    assert first.interval is None


def test_interval_is_open_beyond_the_budgets():
    generator = np.random.default_rng(0)
    scratch = LearningCurve(BUDGETS, generator.random((4, 3, 300)) < np.reshape([0.5, 0.6, 0.7, 0.8], (4, 1, 1)))
    best = LearningCurve(BUDGETS, generator.random((4, 3, 300)) < 0.8)
    worst = LearningCurve(BUDGETS, generator.random((4, 3, 300)) < 0.5)
    needed = label_savings.labels_needed(scratch, {"best": best, "worst": worst})
    assert all(point.interval[1] == math.inf for point in needed["best"])
    assert all(point.interval[0] == 0 for point in needed["worst"])


def test_interval_by_hand():
    """Its ends are the last budget that is significantly worse and the first that is significantly better."""
    scratch = curve(0.5, 0.6, 0.7, 0.8)
    intervals = [
        needed.interval for needed in label_savings.labels_needed(scratch, {"": curve(0.65, 0.7, 0.4, 0.9)})[""]
    ]
    assert intervals == [(200, 400), (200, 800), (0, 0), (math.inf, math.inf)]


def test_one_noisy_budget_between_does_not_end_the_interval():
    generator = np.random.default_rng(0)
    correct = curve(0.5, 0.6, 0.5, 0.8).correct
    correct[1] = generator.random((3, 1_000)) < np.reshape([0.3, 0.6, 0.9], (3, 1))  # not significantly different
    [needed, *_] = label_savings.labels_needed(LearningCurve(BUDGETS, correct), {"": curve(*4 * [0.6])})[""]
    assert needed.interval == (100, 800)


@pytest.mark.parametrize("n_seeds", [3, 5])
@pytest.mark.parametrize("scenario", simulation.SCENARIOS)
def test_intervals_cover_the_truth_on_known_curves(scenario, n_seeds):
    """95 % of 150 studies are 142; two standard deviations fewer are 137."""
    cell = simulation.run_cell(simulation.SCENARIOS[scenario], simulation.OCTAVES, n_seeds, 150)
    assert min(cell.covered_needed, cell.covered_gain, cell.covered_mean) >= 0.91


def test_power_law_is_recovered():
    law = PowerLaw(0.1, 4.0, -0.5)
    exact = LearningCurve((100, 200, 400, 800, 1600), np.stack([
        np.arange(1_000_000)[None] >= law.error(n) * 1_000_000 for n in (100, 200, 400, 800, 1600)
    ]))  # fmt: skip
    fitted = label_savings.power_law(exact)
    assert fitted.error(300) == pytest.approx(law.error(300), rel=1e-3)
    assert fitted.floor == pytest.approx(0.1, abs=0.01)
    assert law.labels(law.error(300)) == pytest.approx(300)
    assert law.labels(0.1) == math.inf
    assert label_savings.needed_by_power_laws(exact, exact)[1:4] == pytest.approx([200, 400, 800], rel=0.01)
    assert label_savings.power_law(curve(0.5, 0.6, budgets=(1, 2))) is None
    assert label_savings.power_law(curve(0.8, 0.7, 0.6, 0.5)) is None
