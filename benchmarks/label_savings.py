"""Simulate the coverage of the 95 % confidence interval of the labels needed, on known learning curves.

    python -m benchmarks.label_savings [--trials N]

Errors are power laws of the number of labels. Seeds differ in which images are labeled and in all other randomness, and
some test images are harder than others for all networks. The interval of Headstart is compared with a plain percentile
bootstrap over seeds and images. Writes benchmarks/results/labels-saved.json.
"""

import argparse
import sys
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from headstart import files
from headstart.console import run_cli
from headstart.results.comparison import ALPHA
from headstart.results.label_savings import LearningCurve, PowerLaw, labels_needed

BUDGETS = (125, 250, 500, 1000, 2000, 4000)
INDEX = 2  # of the budget that is tested
N_IMAGES = 2_000
DIFFICULTY_STD = 1.5  # of the test images, on the probit scale
SUBSET_STD, RESIDUAL_STD = 0.02, 0.015  # of a seed's accuracy with 500 labels: due to the subset, and all else
SCRATCH = PowerLaw(0.05, 8.0, -0.5)
PRETRAINED = PowerLaw(0.05, 3.0, -0.45)
TRUE = SCRATCH.labels(PRETRAINED.error(BUDGETS[INDEX]))


class Coverage(NamedTuple):
    """Coverage and width of many intervals."""

    covered: float  # share of the intervals that contain the true number
    factor: float  # median of high end / low end; infinity if most intervals are open


def simulate(generator: np.random.Generator, n_seeds: int) -> tuple[LearningCurve, LearningCurve]:
    """Simulate the learning curves of a study: from scratch, and pretrained."""
    difficulty = generator.normal(0, DIFFICULTY_STD, N_IMAGES)
    subset_effects = generator.normal(0, SUBSET_STD, (len(BUDGETS), n_seeds))  # shared by both curves

    def curve(law: PowerLaw) -> LearningCurve:
        correct = np.empty((len(BUDGETS), n_seeds, N_IMAGES), dtype=bool)
        for index, n in enumerate(BUDGETS):
            shrink = (BUDGETS[INDEX] / n) ** 0.5
            seed_effects = subset_effects[index] + generator.normal(0, RESIDUAL_STD, n_seeds)
            accuracy = 1 - law.error(n) + shrink * seed_effects
            threshold = np.hypot(1, DIFFICULTY_STD) * norm.ppf(accuracy.clip(0.01, 0.99))
            correct[index] = generator.random((n_seeds, N_IMAGES)) < norm.cdf(threshold[:, None] - difficulty)
        return LearningCurve(BUDGETS, correct)

    return curve(SCRATCH), curve(PRETRAINED)


def plain_interval(
    generator: np.random.Generator, scratch: LearningCurve, pretrained: LearningCurve, resamples: int
) -> tuple[float, float]:
    """Return percentiles of the labels needed over resampled seeds and images."""
    n_seeds, n_images = scratch.correct.shape[1:]
    needed = []
    for _ in range(resamples):
        chosen = np.ix_(generator.integers(0, n_seeds, n_seeds), generator.integers(0, n_images, n_images))
        resampled = [
            LearningCurve(BUDGETS, np.stack([correct[chosen] for correct in curve.correct]).mean(1, keepdims=True))
            for curve in (scratch, pretrained)
        ]
        needed.append(labels_needed(resampled[0], {"": resampled[1]})[""][INDEX].value)
    low, high = np.quantile(needed, [ALPHA / 2, 1 - ALPHA / 2], method="nearest")
    return float(low), float(high)


def coverage(n_seeds: int, trials: int, *, with_plain: bool = True) -> dict[str, Coverage]:
    """Return the coverage of Headstart's interval ("study") and of the plain one."""
    generator = np.random.default_rng(n_seeds)
    intervals: dict[str, list[tuple[float, float]]] = {"study": [], "plain": []}
    for _ in range(trials):
        scratch, pretrained = simulate(generator, n_seeds)
        interval = labels_needed(scratch, {"": pretrained}, resamples=1_000)[""][INDEX].interval
        assert interval is not None
        intervals["study"].append(interval)
        if with_plain:
            intervals["plain"].append(plain_interval(generator, scratch, pretrained, 200))
    return {
        name: Coverage(
            float(np.mean([low <= TRUE <= high for low, high in ends])),
            float(np.median([high / max(low, BUDGETS[0]) for low, high in ends])),
        )
        for name, ends in intervals.items()
        if ends
    }


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000, help="number of simulated studies (default: 1,000)")
    trials = parser.parse_args(arguments).trials
    print(
        f"With {BUDGETS[INDEX]} labels, pretrained weights do as well as a training from scratch with {TRUE:,.0f}; "
        f"{trials:,} studies per row"
    )
    print("| seeds | interval | coverage, % | high end / low end |\n|---:|---|---:|---:|", flush=True)
    rows = []
    for n_seeds in (2, 3, 5):
        for name, result in coverage(n_seeds, trials).items():
            rows.append({"seeds": n_seeds, "interval": name, "covered": result.covered, "factor": str(result.factor)})
            print(f"| {n_seeds} | {name} | {100 * result.covered:.1f} | {result.factor:.2f} |", flush=True)
    files.write_json("benchmarks/results/labels-saved.json", {"trials": trials, "true": TRUE, "coverage": rows})


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
