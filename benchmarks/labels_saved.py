"""How often the 95 % interval of the labels needed has the true number in it, on curves that are known.

    python -m benchmarks.labels_saved [--trials N]

Errors fall as power laws of the labels, seeds differ in which images are labelled and in all other chance, and some
test images are harder than others for all networks. Beside the interval of the study stands a plain one, of percentiles
over resampled seeds and images. Writes benchmarks/results/labels-saved.json.
"""

import argparse
import sys
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from headstart import files
from headstart.console import run
from headstart.results.comparison import ERROR
from headstart.results.labels_saved import Curve, PowerLaw, needed

LABELS = (125, 250, 500, 1000, 2000, 4000)
AT = 2  # which of them is asked for
IMAGES = 2_000
HARDNESS = 1.5  # standard deviation of how hard test images are, on the scale of a probit
SUBSET, OTHER = 0.02, 0.015  # of a seed's accuracy with 500 labels: by the images labelled, by all else
SCRATCH = PowerLaw(0.05, 8.0, -0.5)
PRETRAINED = PowerLaw(0.05, 3.0, -0.45)
TRUE = SCRATCH.labels(PRETRAINED.error(LABELS[AT]))


class Coverage(NamedTuple):
    """Of many intervals."""

    covered: float  # what share has the true number in it
    factor: float  # from the low end to the high one, the median; infinity if most are open


def simulate(generator: np.random.Generator, seeds: int) -> tuple[Curve, Curve]:
    """The curve from scratch and the pretrained one of a study."""
    hard = generator.normal(0, HARDNESS, IMAGES)
    subset = generator.normal(0, SUBSET, (len(LABELS), seeds))  # which both curves share

    def curve(law: PowerLaw) -> Curve:
        right = np.empty((len(LABELS), seeds, IMAGES), dtype=bool)
        for at, n in enumerate(LABELS):
            shrink = (LABELS[AT] / n) ** 0.5
            accuracy = 1 - law.error(n) + shrink * (subset[at] + generator.normal(0, OTHER, seeds))
            threshold = np.hypot(1, HARDNESS) * norm.ppf(accuracy.clip(0.01, 0.99))
            right[at] = generator.random((seeds, IMAGES)) < norm.cdf(threshold[:, None] - hard)
        return Curve(LABELS, right)

    return curve(SCRATCH), curve(PRETRAINED)


def plain(generator: np.random.Generator, scratch: Curve, pretrained: Curve, resamples: int) -> tuple[float, float]:
    """Percentiles of the number of labels needed, over resampled seeds and images."""
    seeds, images = scratch.right.shape[1:]
    found = []
    for _ in range(resamples):
        chosen = np.ix_(generator.integers(0, seeds, seeds), generator.integers(0, images, images))
        again = [Curve(LABELS, np.stack([one[chosen] for one in curve.right]).mean(1, keepdims=True))
                 for curve in (scratch, pretrained)]  # fmt: skip
        found.append(needed(again[0], {"": again[1]})[""][AT].value)
    low, high = np.quantile(found, [ERROR / 2, 1 - ERROR / 2], method="nearest")
    return float(low), float(high)


def coverage(seeds: int, trials: int, *, with_plain: bool = True) -> dict[str, Coverage]:
    """Of the study's interval and the plain one."""
    generator = np.random.default_rng(seeds)
    found: dict[str, list[tuple[float, float]]] = {"study": [], "plain": []}
    for _ in range(trials):
        scratch, pretrained = simulate(generator, seeds)
        interval = needed(scratch, {"": pretrained}, resamples=1_000)[""][AT].interval
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
    run(main, *sys.argv[1:])
