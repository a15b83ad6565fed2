"""Simulate studies on known learning curves: how often their 95 % confidence intervals contain the truth.

    python -m benchmarks.label_savings [--trials N]

The curves are a power law, a rise between two label budgets, a plateau, and two curves that cross. Each seed draws its
own images, so smaller label budgets are subsets of larger ones, and its noise grows as the label budget shrinks. Some
test images are harder than others for all networks. Three intervals are tested: of the labels needed, of the gain with
500 labels, and of the mean gain over all label budgets. Writes benchmarks/results/labels-saved.json.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from headstart import files
from headstart.console import run_cli
from headstart.results.comparison import Estimate
from headstart.results.label_efficiency import gain_by_budget
from headstart.results.label_savings import LearningCurve, PowerLaw, labels_needed

OCTAVES = (125, 250, 500, 1000, 2000, 4000)
HALF_OCTAVES = (125, 250, 500, 700, 1000, 1400, 2000, 4000)  # where the answer is expected
DESIGNS = ((OCTAVES, 3), (OCTAVES, 5), (HALF_OCTAVES, 3), (HALF_OCTAVES, 5), (OCTAVES, 10))  # budgets, seeds
BUDGET = 500  # that is tested
N_IMAGES = 2_000
DIFFICULTY_STD = 1.5  # of the test images, on the probit scale
SUBSET_STD, RESIDUAL_STD = 0.02, 0.015  # of a seed's accuracy with 500 labels: due to its images, and all else

Accuracy = Callable[[float], float]  # by number of labels


class Scenario(NamedTuple):
    scratch: Accuracy
    pretrained: Accuracy


class Cell(NamedTuple):
    """Shares of intervals that contain the truth, and median widths."""

    covered_needed: float
    factor: float  # high end / low end; infinity if most intervals are open
    covered_gain: float
    gain_points: float
    covered_mean: float
    mean_points: float


def through(*points: tuple[float, float]) -> Accuracy:
    """Return the curve through (labels, accuracy), linear in the logarithm of the labels."""
    labels, accuracies = zip(*points, strict=True)
    return lambda n: float(np.interp(math.log(n), np.log(labels), accuracies))


def of_law(*law: float) -> Accuracy:
    return lambda n: 1 - PowerLaw(*law).error(n)


SCENARIOS = {
    "power laws": Scenario(of_law(0.05, 8.0, -0.5), of_law(0.05, 3.0, -0.45)),
    "early rise": Scenario(
        through((125, 0.45), (500, 0.55), (530, 0.80), (4000, 0.85)), through((125, 0.6), (4000, 0.9))
    ),
    "late rise": Scenario(
        through((125, 0.45), (500, 0.58), (940, 0.62), (1000, 0.82), (4000, 0.88)), through((125, 0.6), (4000, 0.86))
    ),
    "plateau": Scenario(
        through((125, 0.4), (300, 0.74), (2000, 0.75), (2100, 0.83), (4000, 0.86)), through((125, 0.62), (4000, 0.92))
    ),
    "crossing": Scenario(through((125, 0.4), (4000, 0.92)), through((125, 0.62), (4000, 0.82))),
}


def true_labels_needed(scenario: Scenario, budgets: Sequence[int]) -> float:
    """Return the fewest labels, up to the largest budget, with which training from scratch does as well."""
    grid = np.geomspace(budgets[0], budgets[-1], 100_001)
    reached = np.flatnonzero([scenario.scratch(n) >= scenario.pretrained(BUDGET) for n in grid])
    return float(grid[reached[0]]) if len(reached) else math.inf


def simulate(
    generator: np.random.Generator, scenario: Scenario, budgets: Sequence[int], n_seeds: int
) -> tuple[LearningCurve, LearningCurve]:
    """Simulate the learning curves of a study: from scratch, and pretrained."""
    difficulty = generator.normal(0, DIFFICULTY_STD, N_IMAGES)
    # The images of a budget are the first of all images of the seed, so the effect of its images is a running mean.
    new_images = np.diff([0, *budgets])
    sums = np.cumsum(generator.normal(0, np.sqrt(new_images), (n_seeds, len(budgets))), axis=1)
    subset_effects = SUBSET_STD * math.sqrt(BUDGET) * sums / budgets  # shared by both curves

    def curve(accuracy: Accuracy) -> LearningCurve:
        correct = np.empty((len(budgets), n_seeds, N_IMAGES), dtype=bool)
        for index, n in enumerate(budgets):
            residuals = generator.normal(0, RESIDUAL_STD * math.sqrt(BUDGET / n), n_seeds)
            accuracies = (accuracy(n) + subset_effects[:, index] + residuals).clip(0.01, 0.99)
            threshold = np.hypot(1, DIFFICULTY_STD) * norm.ppf(accuracies)
            correct[index] = generator.random((n_seeds, N_IMAGES)) < norm.cdf(threshold[:, None] - difficulty)
        return LearningCurve(budgets, correct)

    return curve(scenario.scratch), curve(scenario.pretrained)


def run_cell(scenario: Scenario, budgets: Sequence[int], n_seeds: int, trials: int) -> Cell:
    """Simulate ``trials`` studies and return how often their intervals contain the truth."""
    generator = np.random.default_rng(n_seeds)
    needed = true_labels_needed(scenario, budgets)
    gains = np.array([scenario.pretrained(n) - scenario.scratch(n) for n in budgets])
    x = np.log(budgets)
    mean_gain = np.trapezoid(gains, x) / (x[-1] - x[0])
    rows = []
    for _ in range(trials):
        scratch, pretrained = simulate(generator, scenario, budgets, n_seeds)
        interval = labels_needed(scratch, {"": pretrained})[""][budgets.index(BUDGET)].interval
        gain = gain_by_budget("pretrained", "scratch", {"pretrained": pretrained, "scratch": scratch})
        assert interval is not None
        assert gain.mean is not None
        low, high = interval
        rows.append((
            low <= needed <= high,
            high / max(low, budgets[0]),
            *_contains(gain.gains[BUDGET], gains[budgets.index(BUDGET)]),
            *_contains(gain.mean, mean_gain),
        ))  # fmt: skip
    columns = np.array(rows, dtype=float).T
    return Cell(*(float((np.mean, np.median)[index % 2](column)) for index, column in enumerate(columns)))


def _contains(interval: Estimate, truth: float) -> tuple[bool, float]:
    """Return whether ``interval`` contains ``truth``, and its width in percentage points."""
    return bool(interval.low <= truth <= interval.high), 100 * (interval.high - interval.low)


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000, help="number of simulated studies per row (1,000)")
    trials = parser.parse_args(arguments).trials
    print(f"{trials:,} studies per row; {N_IMAGES:,} test images. Share of the intervals that contain the truth, and")
    print("their median width: labels needed, gain with 500 labels, mean gain.")
    print("| curves | budgets | seeds | trainings | D(500) | covered % | factor | gain % | points | mean % | points |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    rows = []
    for name, scenario in SCENARIOS.items():
        for budgets, n_seeds in DESIGNS:
            cell = run_cell(scenario, budgets, n_seeds, trials)
            needed = true_labels_needed(scenario, budgets)
            rows.append({
                "curves": name, "budgets": budgets, "seeds": n_seeds, "needed": needed, **cell._asdict(),
                "factor": str(cell.factor),
            })  # fmt: skip
            print(
                f"| {name} | {len(budgets)} | {n_seeds} | {2 * len(budgets) * n_seeds} | {needed:,.0f} | "
                f"{100 * cell.covered_needed:.1f} | {cell.factor:.1f} | {100 * cell.covered_gain:.1f} | "
                f"{cell.gain_points:.1f} | {100 * cell.covered_mean:.1f} | {cell.mean_points:.1f} |",
                flush=True,
            )
    files.write_json("benchmarks/results/labels-saved.json", {"trials": trials, "rows": rows})


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
