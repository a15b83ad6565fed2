"""What a study says of numbers of labelled images: curves, what needs how many, and all of it in words and tables."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.params import Experiment
from headstart.results import evaluation, labels_saved
from headstart.results.labels_saved import Curve, Needed

PROBES = {True: "probe of pretrained features", False: "probe of random features"}  # by whether they are pretrained

Table = list[list[Any]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How many labels ``reference`` needs to do as well as others."""

    reference: str
    curve: Curve  # its own
    needed: Mapping[str, Sequence[Needed]]  # of the others, at each of their numbers of labels
    chosen: str  # the one of them that is spoken of first
    at: int  # and at which of its numbers of labels

    @property
    def range(self) -> tuple[int, int]:
        """The fewest and the most labels that ``reference`` was trained with."""
        return self.curve.labels[0], self.curve.labels[-1]


@dataclass(frozen=True, kw_only=True)
class ByLabels:
    """What a study with several numbers of labels says of them."""

    curves: Mapping[str, Curve]  # of configurations, then of probes
    stopped_early: Mapping[str, Sequence[int]]  # how many trainings at each number; empty where none has patience
    saved: Answer | None  # by pretrained weights; None where nothing is trained from scratch
    worth: Answer | None  # pretrained features, in labels that random ones need; None without probes
    power_laws: Mapping[str, Sequence[float]]  # ``saved``, by Hoiem's power laws


def study(
    experiments: Mapping[str, Experiment],
    *,
    curves: Mapping[str, Curve],
    probes: Mapping[bool, Curve],
    validation: Mapping[str, Sequence[float]],
    stopped_early: Mapping[str, Sequence[int]],
    scratch: Collection[str],
) -> ByLabels | None:
    """All that is said of them; None where there is one number of labels.

    Args:
        curves: of all configurations, or of none.
        probes: of linear probes, by whether the features are pretrained.
        validation: accuracies of ``curves``, by which the reference and the configuration that is spoken of first are
            chosen. What is chosen by test images looks better on them than it is.
        stopped_early: as in ``ByLabels``.
        scratch: the configurations that train a whole network from random weights.
    """
    if not curves and not probes:
        return None
    named = {PROBES[pretrained]: curve for pretrained, curve in probes.items()}
    saved = worth = None
    laws: dict[str, Sequence[float]] = {}
    ours = [name for name in curves if experiments[name].pretrained]
    theirs = [name for name in curves if name in scratch]
    if ours and theirs:
        reference = max(theirs, key=lambda name: validation[name][-1])
        at = _middle(curves[reference])
        others = {name: curves[name] for name in ours}
        others |= {PROBES[True]: probes[True]} if True in probes else {}
        saved = Answer(
            reference=reference,
            curve=curves[reference],
            needed=labels_saved.needed(curves[reference], others),
            chosen=max(ours, key=lambda name: validation[name][at]),
            at=at,
        )
        laws = {name: labels_saved.needed_by_power_laws(curves[reference], other) for name, other in others.items()}
    if len(probes) == len(PROBES):
        features = {PROBES[True]: probes[True]}
        found = labels_saved.needed(probes[False], features)
        worth = Answer(reference=PROBES[False], curve=probes[False], needed=found, chosen=PROBES[True],
                       at=_middle(probes[True]))  # fmt: skip
    return ByLabels(curves={**curves, **named}, stopped_early=stopped_early, saved=saved, worth=worth, power_laws=laws)


def _middle(curve: Curve) -> int:
    """Which of its numbers of labels is spoken of first: settled before any of them is looked at."""
    return (len(curve.labels) - 1) // 2


def metrics(found: ByLabels | None) -> dict[str, float]:
    """What pretrained weights save, for a study's metrics; nothing where nobody knows."""
    if found is None or found.saved is None:
        return {}
    answer = found.saved
    n, value = answer.curve.labels[answer.at], answer.needed[answer.chosen][answer.at].value
    if value == math.inf:
        return {"labels_saved_at_least": answer.range[1] - n}
    return {"labels_saved": round(value) - n} if value else {"labels_saved_at_most": answer.range[0] - n}


def number(value: float, bounds: tuple[int, int], change: Callable[[float], float], digits: str = "{:,.0f}") -> str:
    """A number that ``change`` makes of labels needed, in words where these are beyond ``bounds``."""
    if value == math.inf:
        return f"more than {_said(change(bounds[1]), digits)}"
    if value == 0:
        return f"fewer than {_said(change(bounds[0]), digits)}"
    return _said(change(value), digits)


def _said(value: float, digits: str) -> str:
    """Return the number without the sign of what rounding leaves of 0."""
    return digits.format(round(value, 6) + 0.0).replace("-", "−")


def two_digits(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")


def rounded(needed: Needed, n: int) -> Needed:
    """Round labels needed to do as well as with ``n``: intervals allow two significant digits at most.

    What differs from ``n`` by less than the rounding is ``n``. Labels saved and the factor are computed from the
    result, so that the three agree.
    """

    def round_one(value: float) -> float:
        if value in (0, math.inf):
            return value
        unit = 10 ** (math.floor(math.log10(value)) - 1)
        return n if abs(value - n) <= unit / 2 else two_digits(value)

    interval = needed.interval and (round_one(needed.interval[0]), round_one(needed.interval[1]))
    return Needed(round_one(needed.value), interval)


def interval(needed: Needed, bounds: tuple[int, int], change: Callable[[float], float], digits: str = "{:,.0f}") -> str:
    """The interval of the same; nothing where there is none."""
    if needed.interval is None:
        return ""
    low, high = (number(end, bounds, change, digits) for end in needed.interval)
    return low if low == high else f"{low} to {high}"


def unsure(found: ByLabels, answer: Answer, name: str, at: int) -> bool:
    """Return whether a training of ``name`` with that number of labels, or one of the reference, did not stop early."""
    n_seeds = answer.curve.right.shape[1]
    of_reference = found.stopped_early.get(answer.reference, ())
    of_name = found.stopped_early.get(name, ())
    return any(n < n_seeds for n in of_reference) or (len(of_name) > 0 and of_name[at] < n_seeds)


def saved_rows(found: ByLabels, answer: Answer, name: str) -> list[dict[str, Any]]:
    """What ``name`` saves at each of its numbers of labels: needed, saved and factor, with intervals, in words."""
    rows = []
    for n, exact in zip(found.curves[name].labels, answer.needed[name], strict=True):
        needed = rounded(exact, n)
        row = {"labels": f"{n:,}", "saves": needed.value > n}
        for key, change, digits in (
            ("needed", lambda labels: labels, "{:,.0f}"),
            ("saved", lambda labels, n=n: labels - n, "{:,.0f}"),
            ("factor", lambda labels, n=n: two_digits(labels / n), "{:,.10g}"),
        ):
            row[key] = number(needed.value, answer.range, change, digits)
            row[f"{key}_interval"] = interval(needed, answer.range, change, digits)
        rows.append(row)
    return rows


def curves_table(found: ByLabels | None, seeds: Sequence[int]) -> Table:
    """A row a configuration or probe, number of labels and seed: the error on test images in percent."""
    rows: Table = [["configuration", "labels", "seed", "error"]]
    for name, curve in found.curves.items() if found else ():
        errors = 100 * (1 - curve.right.mean(2))
        rows += [
            [name, n, seed, f"{error:.3f}"]
            for n, of_seeds in zip(curve.labels, errors, strict=True)
            for seed, error in zip(seeds, of_seeds, strict=True)
        ]
    return rows


def saved_table(found: ByLabels | None) -> Table:
    """A row a configuration or probe and number of labels: how many ``reference`` needs, with the interval's ends.

    ``inf`` is more than there are, 0 fewer than the fewest; an end is empty where there is no interval.
    """
    rows: Table = [["configuration", "reference", "labels", "needed", "low", "high"]]
    if found is None:
        return rows
    for answer in (found.saved, found.worth):
        if answer is None:
            continue
        for name, every in answer.needed.items():
            for n, needed in zip(found.curves[name].labels, every, strict=True):
                ends = ["", ""] if needed.interval is None else [f"{end:.1f}" for end in needed.interval]
                rows.append([name, answer.reference, n, f"{needed.value:.1f}", *ends])
    return rows


def correct_table(found: ByLabels | None, seeds: Sequence[int]) -> Table:
    """Return which test images are correct: a row per configuration or probe, number of labels and seed.

    The largest number of labels of a configuration is left out: ``metrics/<study>/right.csv`` has it.
    """
    rows: Table = [["configuration", "labels", "seed", "images", "correct"]]
    for name, curve in found.curves.items() if found else ():
        n_counts = len(curve.labels) - (name not in PROBES.values())
        rows += [
            [name, n, seed, len(correct), evaluation.pack(correct)]
            for n, of_seeds in zip(curve.labels[:n_counts], curve.right, strict=False)
            for seed, correct in zip(seeds, of_seeds, strict=True)
        ]
    return rows


def read_curves(
    rows: Sequence[Mapping[str, str]], right: Sequence[Mapping[str, str]], *, labels: int
) -> dict[str, Curve]:
    """Return the curves of a study from its committed files.

    Args:
        rows: of ``metrics/<study>/correct_by_budget.csv``, which is ``correct_table``.
        right: of ``metrics/<study>/right.csv``.
        labels: how many labelled images the study has: those that ``right`` was trained with.
    """
    names = {row["configuration"] for row in rows}
    largest = [
        {**row, "labels": str(labels), "correct": row["right"]} for row in right if row["configuration"] in names
    ]
    found: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for row in [*rows, *largest]:
        correct = evaluation.unpack(row["correct"], int(row["images"]))
        found[row["configuration"]][int(row["labels"])].append(correct)
    return {name: Curve(list(by_count), np.array(list(by_count.values()))) for name, by_count in found.items()}
