"""What a study says of numbers of labeled images: curves, what needs how many, and all of it in words and tables."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.params import Configuration
from headstart.results import evaluation, label_savings
from headstart.results.label_savings import LabelsNeeded, LearningCurve

PROBES = {True: "probe of pretrained features", False: "probe of random features"}  # by whether they are pretrained

Table = list[list[Any]]


@dataclass(frozen=True, kw_only=True)
class LabelSavings:
    """How many labels ``reference`` needs to do as well as others."""

    reference: str
    curve: LearningCurve  # its own
    needed: Mapping[str, Sequence[LabelsNeeded]]  # of the others, at each of their numbers of labels
    headline: str  # the one of them that is spoken of first
    headline_index: int  # and at which of its numbers of labels

    @property
    def range(self) -> tuple[int, int]:
        """The fewest and the most labels that ``reference`` was trained with."""
        return self.curve.budgets[0], self.curve.budgets[-1]


@dataclass(frozen=True, kw_only=True)
class LabelEfficiency:
    """What a study with several numbers of labels says of them."""

    curves: Mapping[str, LearningCurve]  # of configurations, then of probes
    stopped_early: Mapping[str, Sequence[int]]  # how many trainings at each number; empty where none has patience
    pretraining_savings: LabelSavings | None  # by pretrained weights; None where nothing is trained from scratch
    feature_savings: LabelSavings | None  # pretrained features, in labels that random ones need; None without probes
    power_laws: Mapping[str, Sequence[float]]  # ``saved``, by Hoiem's power laws


def analyze(
    configurations: Mapping[str, Configuration],
    *,
    curves: Mapping[str, LearningCurve],
    probes: Mapping[bool, LearningCurve],
    validation: Mapping[str, Sequence[float]],
    stopped_early: Mapping[str, Sequence[int]],
    scratch: Collection[str],
) -> LabelEfficiency | None:
    """All that is said of them; None where there is one number of labels.

    Args:
        curves: of all configurations, or of none.
        probes: of linear probes, by whether the features are pretrained.
        validation: accuracies of ``curves``, by which the reference and the configuration that is spoken of first are
            chosen. What is chosen by test images looks better on them than it is.
        stopped_early: as in ``LabelEfficiency``.
        scratch: the configurations that train a whole network from random weights.
    """
    if not curves and not probes:
        return None
    named = {PROBES[pretrained]: curve for pretrained, curve in probes.items()}
    saved = worth = None
    laws: dict[str, Sequence[float]] = {}
    ours = [name for name in curves if configurations[name].pretrained]
    theirs = [name for name in curves if name in scratch]
    if ours and theirs:
        reference = max(theirs, key=lambda name: validation[name][-1])
        at = _middle(curves[reference])
        others = {name: curves[name] for name in ours}
        others |= {PROBES[True]: probes[True]} if True in probes else {}
        saved = LabelSavings(
            reference=reference,
            curve=curves[reference],
            needed=label_savings.labels_needed(curves[reference], others),
            headline=max(ours, key=lambda name: validation[name][at]),
            headline_index=at,
        )
        laws = {name: label_savings.needed_by_power_laws(curves[reference], other) for name, other in others.items()}
    if len(probes) == len(PROBES):
        features = {PROBES[True]: probes[True]}
        found = label_savings.labels_needed(probes[False], features)
        worth = LabelSavings(reference=PROBES[False], curve=probes[False], needed=found, headline=PROBES[True],
                       headline_index=_middle(probes[True]))  # fmt: skip
    return LabelEfficiency(
        curves={**curves, **named},
        stopped_early=stopped_early,
        pretraining_savings=saved,
        feature_savings=worth,
        power_laws=laws,
    )


def _middle(curve: LearningCurve) -> int:
    """Which of its numbers of labels is spoken of first: settled before any of them is looked at."""
    return (len(curve.budgets) - 1) // 2


def metrics(found: LabelEfficiency | None) -> dict[str, float]:
    """What pretrained weights save, for a study's metrics; nothing where nobody knows."""
    if found is None or found.pretraining_savings is None:
        return {}
    answer = found.pretraining_savings
    n, value = answer.curve.budgets[answer.headline_index], answer.needed[answer.headline][answer.headline_index].value
    if value == math.inf:
        return {"labels_saved_at_least": answer.range[1] - n}
    return {"labels_saved": round(value) - n} if value else {"labels_saved_at_most": answer.range[0] - n}


def format_count(
    value: float, bounds: tuple[int, int], change: Callable[[float], float], digits: str = "{:,.0f}"
) -> str:
    """A number that ``change`` makes of labels needed, in words where these are beyond ``bounds``."""
    if value == math.inf:
        return f"more than {_format_number(change(bounds[1]), digits)}"
    if value == 0:
        return f"fewer than {_format_number(change(bounds[0]), digits)}"
    return _format_number(change(value), digits)


def _format_number(value: float, digits: str) -> str:
    """Return the number without the sign of what rounding leaves of 0."""
    return digits.format(round(value, 6) + 0.0).replace("-", "−")


def two_digits(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")


def round_needed(needed: LabelsNeeded, n: int) -> LabelsNeeded:
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
    return LabelsNeeded(round_one(needed.value), interval)


def format_interval(
    needed: LabelsNeeded, bounds: tuple[int, int], change: Callable[[float], float], digits: str = "{:,.0f}"
) -> str:
    """The interval of the same; nothing where there is none."""
    if needed.interval is None:
        return ""
    low, high = (format_count(end, bounds, change, digits) for end in needed.interval)
    return low if low == high else f"{low} to {high}"


def has_unstopped_runs(found: LabelEfficiency, answer: LabelSavings, name: str, at: int) -> bool:
    """Return whether a training of ``name`` with that number of labels, or one of the reference, did not stop early."""
    n_seeds = answer.curve.correct.shape[1]
    of_reference = found.stopped_early.get(answer.reference, ())
    of_name = found.stopped_early.get(name, ())
    return any(n < n_seeds for n in of_reference) or (len(of_name) > 0 and of_name[at] < n_seeds)


def saved_rows(found: LabelEfficiency, answer: LabelSavings, name: str) -> list[dict[str, Any]]:
    """What ``name`` saves at each of its numbers of labels: needed, saved and factor, with intervals, in words."""
    rows = []
    for n, exact in zip(found.curves[name].budgets, answer.needed[name], strict=True):
        needed = round_needed(exact, n)
        row = {"labels": f"{n:,}", "saves": needed.value > n}
        for key, change, digits in (
            ("needed", lambda labels: labels, "{:,.0f}"),
            ("saved", lambda labels, n=n: labels - n, "{:,.0f}"),
            ("factor", lambda labels, n=n: two_digits(labels / n), "{:,.10g}"),
        ):
            row[key] = format_count(needed.value, answer.range, change, digits)
            row[f"{key}_interval"] = format_interval(needed, answer.range, change, digits)
        rows.append(row)
    return rows


def curves_table(found: LabelEfficiency | None, seeds: Sequence[int]) -> Table:
    """A row a configuration or probe, number of labels and seed: the error on test images in percent."""
    rows: Table = [["configuration", "label_budget", "seed", "error"]]
    for name, curve in found.curves.items() if found else ():
        errors = 100 * (1 - curve.correct.mean(2))
        rows += [
            [name, n, seed, f"{error:.3f}"]
            for n, of_seeds in zip(curve.budgets, errors, strict=True)
            for seed, error in zip(seeds, of_seeds, strict=True)
        ]
    return rows


def saved_table(found: LabelEfficiency | None) -> Table:
    """A row a configuration or probe and number of labels: how many ``reference`` needs, with the interval's ends.

    ``inf`` is more than there are, 0 fewer than the fewest; an end is empty where there is no interval.
    """
    rows: Table = [["configuration", "reference", "label_budget", "needed", "low", "high"]]
    if found is None:
        return rows
    for answer in (found.pretraining_savings, found.feature_savings):
        if answer is None:
            continue
        for name, every in answer.needed.items():
            for n, needed in zip(found.curves[name].budgets, every, strict=True):
                ends = ["", ""] if needed.interval is None else [f"{end:.1f}" for end in needed.interval]
                rows.append([name, answer.reference, n, f"{needed.value:.1f}", *ends])
    return rows


def correct_table(found: LabelEfficiency | None, seeds: Sequence[int]) -> Table:
    """Return which test images are correct: a row per configuration or probe, number of labels and seed.

    The largest number of labels of a configuration is left out: ``metrics/<study>/correct.csv`` has it.
    """
    rows: Table = [["configuration", "label_budget", "seed", "images", "correct"]]
    for name, curve in found.curves.items() if found else ():
        n_counts = len(curve.budgets) - (name not in PROBES.values())
        rows += [
            [name, n, seed, len(correct), evaluation.encode_bits(correct)]
            for n, of_seeds in zip(curve.budgets[:n_counts], curve.correct, strict=False)
            for seed, correct in zip(seeds, of_seeds, strict=True)
        ]
    return rows


def read_curves(
    rows: Sequence[Mapping[str, str]], right: Sequence[Mapping[str, str]], *, labels: int
) -> dict[str, LearningCurve]:
    """Return the curves of a study from its committed files.

    Args:
        rows: of ``metrics/<study>/correct_by_budget.csv``, which is ``correct_table``.
        right: of ``metrics/<study>/correct.csv``.
        labels: how many labeled images the study has: those that ``right`` was trained with.
    """
    names = {row["configuration"] for row in rows}
    largest = [{**row, "label_budget": str(labels)} for row in right if row["configuration"] in names]
    found: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for row in [*rows, *largest]:
        correct = evaluation.decode_bits(row["correct"], int(row["images"]))
        found[row["configuration"]][int(row["label_budget"])].append(correct)
    return {name: LearningCurve(list(by_count), np.array(list(by_count.values()))) for name, by_count in found.items()}
