"""How often the 95 % interval of the labels needed has the true number in it, on curves that are known.

    python -m benchmarks.labels_saved [--trials N]

Errors fall as power laws of the labels, seeds differ in which images are labeled and in all other chance, and some
test images are harder than others for all networks. Beside the interval of the study stands a plain one, of percentiles
over resampled seeds and images. Writes benchmarks/results/labels-saved.json.
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

LABELS = (125, 250, 500, 1000, 2000, 4000)
AT = 2  # which of them is asked for
IMAGES = 2_000
HARDNESS = 1.5  # standard deviation of how hard test images are, on the scale of a probit
SUBSET, OTHER = 0.02, 0.015  # of a seed's accuracy with 500 labels: by the images labeled, by all else
SCRATCH = PowerLaw(0.05, 8.0, -0.5)
PRETRAINED = PowerLaw(0.05, 3.0, -0.45)
TRUE = SCRATCH.labels(PRETRAINED.error(LABELS[AT]))


class Coverage(NamedTuple):
    """Of many intervals."""

    covered: float  # what share has the true number in it
    factor: float  # from the low end to the high one, the median; infinity if most are open


def simulate(generator: np.random.Generator, seeds: int) -> tuple[LearningCurve, LearningCurve]:
    """The curve from scratch and the pretrained one of a study."""
    hard = generator.normal(0, HARDNESS, IMAGES)
    subset = generator.normal(0, SUBSET, (len(LABELS), seeds))  # which both curves share

    def curve(law: PowerLaw) -> LearningCurve:
        right = np.empty((len(LABELS), seeds, IMAGES), dtype=bool)
        for at, n in enumerate(LABELS):
            shrink = (LABELS[AT] / n) ** 0.5
            accuracy = 1 - law.error(n) + shrink * (subset[at] + generator.normal(0, OTHER, seeds))
            threshold = np.hypot(1, HARDNESS) * norm.ppf(accuracy.clip(0.01, 0.99))
            right[at] = generator.random((seeds, IMAGES)) < norm.cdf(threshold[:, None] - hard)
        return LearningCurve(LABELS, right)

    return curve(SCRATCH), curve(PRETRAINED)


def plain(
    generator: np.random.Generator, scratch: LearningCurve, pretrained: LearningCurve, resamples: int
) -> tuple[float, float]:
    """Percentiles of the number of labels needed, over resampled seeds and images."""
    seeds, images = scratch.correct.shape[1:]
    found = []
    for _ in range(resamples):
        chosen = np.ix_(generator.integers(0, seeds, seeds), generator.integers(0, images, images))
        again = [LearningCurve(LABELS, np.stack([one[chosen] for one in curve.correct]).mean(1, keepdims=True))
                 for curve in (scratch, pretrained)]  # fmt: skip
        found.append(labels_needed(again[0], {"": again[1]})[""][AT].value)
    low, high = np.quantile(found, [ALPHA / 2, 1 - ALPHA / 2], method="nearest")
    return float(low), float(high)


def coverage(seeds: int, trials: int, *, with_plain: bool = True) -> dict[str, Coverage]:
    """Of the study's interval and the plain one."""
    generator = np.random.default_rng(seeds)
    found: dict[str, list[tuple[float, float]]] = {"study": [], "plain": []}
    for _ in range(trials):
        scratch, pretrained = simulate(generator, seeds)
        interval = labels_needed(scratch, {"": pretrained}, resamples=1_000)[""][AT].interval
        assert interval is not None
        found["study"].append(interval)
        if with_plain:
            found["plain"].append(plain(generator, scratch, pretrained, 200))
    return {
        name: Coverage(
            float(np.mean([low <= TRUE <= high for low, high in intervals])),
            float(np.median([high / max(low, LABELS[0]) for low, high in intervals])),
        )
        for name, intervals in found.items()
        if intervals
    }


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1_000)
    trials = parser.parse_args(arguments).trials
    print(
        f"With {LABELS[AT]} labels pretrained weights do as well as with {TRUE:,.0f} without; {trials:,} studies each"
    )
    print("| seeds | interval | covers, % | high end over low end |\n|---:|---|---:|---:|", flush=True)
    rows = []
    for seeds in (2, 3, 5):
        for name, one in coverage(seeds, trials).items():
            rows.append({"seeds": seeds, "interval": name, "covered": one.covered, "factor": str(one.factor)})
            print(f"| {seeds} | {name} | {100 * one.covered:.1f} | {one.factor:.2f} |", flush=True)
    files.write_json("benchmarks/results/labels-saved.json", {"trials": trials, "true": TRUE, "coverage": rows})


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
