import math

import numpy as np
import pytest

from benchmarks import label_savings as simulation
from headstart.results import label_savings
from headstart.results.label_savings import LearningCurve, PowerLaw

LABELS = (100, 200, 400, 800)


def curve(*accuracies: float, seeds: int = 3, images: int = 1_000, labels=LABELS) -> LearningCurve:
    """With these accuracies for every seed, and the same images right first."""
    right = np.stack([np.tile(np.arange(images) < accuracy * images, (seeds, 1)) for accuracy in accuracies])
    return LearningCurve(labels, right)


def values(reference: LearningCurve, other: LearningCurve) -> list[float]:
    return [needed.value for needed in label_savings.labels_needed(reference, {"": other})[""]]


def test_where_the_reference_does_as_well():
    scratch = curve(0.5, 0.6, 0.7, 0.8)
    other = curve(0.6, 0.65, 0.75, 0.9)
    # Halfway between two accuracies is halfway between the logarithms of the labels.
    assert values(scratch, other) == pytest.approx(
        [200, math.sqrt(200 * 400), math.sqrt(400 * 800), math.inf], rel=1e-6
    )
    assert values(scratch, curve(0.4, 0.5, 0.8, 0.81))[::2] == pytest.approx([0, 800], rel=1e-6)


def test_a_reference_that_gets_worse_is_made_monotone():
    assert values(curve(0.5, 0.7, 0.6, 0.8), curve(0.65, 0.5, 0.5, 0.5))[0] == pytest.approx(200, rel=1e-6)
    # From 0.65 at 400 to 0.8 at 800: a third of the way.
    assert values(curve(0.5, 0.7, 0.6, 0.8), curve(0.7, 0.5, 0.5, 0.5))[0] == pytest.approx(
        400 * 2 ** (1 / 3), rel=1e-6
    )


def test_an_interval_has_the_value_in_it_and_narrows_with_more_images():
    scratch, other = ((0.5, 0.6, 0.7, 0.8), (0.65, 0.7, 0.75, 0.8))
    widths = []
    for images in (500, 5_000):
        generator = np.random.default_rng(0)
        curves = [
            LearningCurve(LABELS, generator.random((4, 3, images)) < np.reshape(each, (4, 1, 1)))
            for each in (scratch, other)
        ]
        found = label_savings.labels_needed(curves[0], {"": curves[1]}, resamples=1_000)[""][0]
        low, high = found.interval
        assert low < found.value < high
        widths.append(math.log(high / low))
    assert widths[1] < widths[0]


def test_one_seed_has_no_interval():
    [first, *_] = label_savings.labels_needed(curve(0.5, 0.6, 0.7, 0.8, seeds=1), {"": curve(*4 * [0.6], seeds=1)})[""]
    assert first.value == pytest.approx(200, rel=1e-6)
    assert first.interval is None


def test_an_interval_is_open_where_the_data_end():
    generator = np.random.default_rng(0)
    scratch = LearningCurve(LABELS, generator.random((4, 3, 300)) < np.reshape([0.5, 0.6, 0.7, 0.8], (4, 1, 1)))
    best = LearningCurve(LABELS, generator.random((4, 3, 300)) < 0.8)
    worst = LearningCurve(LABELS, generator.random((4, 3, 300)) < 0.5)
    found = label_savings.labels_needed(scratch, {"best": best, "worst": worst}, resamples=1_000)
    assert all(needed.interval[1] == math.inf for needed in found["best"])
    assert all(needed.interval[0] == 0 for needed in found["worst"])


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_the_truth_on_known_curves(seeds):
    """Of 150 studies 95 % are 142; two standard deviations fewer are 137."""
    found = simulation.coverage(seeds, 150, with_plain=False)["study"]
    assert found.covered >= 0.91


def test_a_power_law_is_found_again():
    law = PowerLaw(0.1, 4.0, -0.5)
    exact = LearningCurve((100, 200, 400, 800, 1600), np.stack([
        np.arange(1_000_000)[None] >= law.error(n) * 1_000_000 for n in (100, 200, 400, 800, 1600)
    ]))  # fmt: skip
    found = label_savings.power_law(exact)
    assert found.error(300) == pytest.approx(law.error(300), rel=1e-3)
    assert found.floor == pytest.approx(0.1, abs=0.01)
    assert law.labels(law.error(300)) == pytest.approx(300)
    assert law.labels(0.1) == math.inf
    assert label_savings.needed_by_power_laws(exact, exact)[1:4] == pytest.approx([200, 400, 800], rel=0.01)
    assert label_savings.power_law(curve(0.5, 0.6, labels=(1, 2))) is None
    assert label_savings.power_law(curve(0.8, 0.7, 0.6, 0.5)) is None
