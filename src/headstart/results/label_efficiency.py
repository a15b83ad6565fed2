"""Label efficiency: learning curves over label budgets, labels needed and labels saved, and their tables."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.params import Configuration
from headstart.results import comparison, evaluation, label_savings
from headstart.results.comparison import Estimate
from headstart.results.label_savings import LabelsNeeded, LearningCurve

PROBES = {
    "pretrained": "probe of pretrained features",
    "random": "probe of random features",
    "pixels": "probe of pixels",
}

Table = list[list[Any]]


@dataclass(frozen=True, kw_only=True)
class LabelSavings:
    """The labels that ``reference`` needs to do as well as other configurations or probes."""

    reference: str
    curve: LearningCurve  # of the reference
    needed: Mapping[str, Sequence[LabelsNeeded]]  # by configuration or probe, at each of its label budgets
    headline: str  # the configuration or probe that the report names first
    headline_index: int  # of the budget that the report names first

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest label budget of ``reference``."""
        return self.curve.budgets[0], self.curve.budgets[-1]


@dataclass(frozen=True, kw_only=True)
class GainByBudget:
    """The gain in accuracy of one configuration or probe over another, on the same seeds and test images."""

    name: str
    baseline: str
    gains: Mapping[int, Estimate]  # by label budget
    mean: Estimate | None  # over the logarithm of the label budgets: the area between the curves; None for one budget


@dataclass(frozen=True, kw_only=True)
class LabelEfficiency:
    """Results of a study with several label budgets."""

    curves: Mapping[str, LearningCurve]  # of configurations, then of probes
    stopped_early: Mapping[str, Sequence[int]]  # number of trainings at each budget; empty without early stopping
    pretraining_savings: LabelSavings | None  # reference: from scratch; None if no configuration is
    feature_savings: LabelSavings | None  # pretrained features, reference: random features; None without probes
    power_laws: Mapping[str, Sequence[float]]  # labels needed as in ``pretraining_savings``, by fitted power laws
    gains: Sequence[GainByBudget]
    # Label budgets with which the probe of pixels is better than all configurations and probes with pretrained weights.
    pixels_win: Sequence[int]


def analyze(
    configurations: Mapping[str, Configuration],
    *,
    curves: Mapping[str, LearningCurve],
    probes: Mapping[str, LearningCurve],
    validation: Mapping[str, Sequence[float]],
    stopped_early: Mapping[str, Sequence[int]],
    from_scratch: Collection[str],
) -> LabelEfficiency | None:
    """Analyze learning curves over label budgets; return None if there is one budget.

    Args:
        curves: of all configurations, or of none.
        probes: of linear probes, by the key of ``PROBES``.
        validation: accuracies of ``curves``, by which the reference and the headline configuration are chosen. Chosen
            by test images, they would look better on them than they are.
        stopped_early: as in ``LabelEfficiency``.
        from_scratch: the configurations that are trained from scratch.
    """
    if not curves and not probes:
        return None
    pretraining_savings = feature_savings = None
    power_laws: dict[str, Sequence[float]] = {}
    pretrained = [name for name in curves if configurations[name].pretrained]
    references = [name for name in curves if name in from_scratch]
    if pretrained and references:
        reference = max(references, key=lambda name: validation[name][-1])
        index = _headline_index(curves[reference])
        compared = {name: curves[name] for name in pretrained}
        compared |= {PROBES["pretrained"]: probes["pretrained"]} if "pretrained" in probes else {}
        pretraining_savings = LabelSavings(
            reference=reference,
            curve=curves[reference],
            needed=label_savings.labels_needed(curves[reference], compared),
            headline=max(pretrained, key=lambda name: validation[name][index]),
            headline_index=index,
        )
        power_laws = {
            name: label_savings.needed_by_power_laws(curves[reference], curve) for name, curve in compared.items()
        }
    if {"pretrained", "random"} <= probes.keys():
        feature_savings = LabelSavings(
            reference=PROBES["random"],
            curve=probes["random"],
            needed=label_savings.labels_needed(probes["random"], {PROBES["pretrained"]: probes["pretrained"]}),
            headline=PROBES["pretrained"],
            headline_index=_headline_index(probes["pretrained"]),
        )
    all_curves = {**curves, **{PROBES[key]: curve for key, curve in probes.items()}}
    pairs = [(savings.headline, savings.reference) for savings in (pretraining_savings, feature_savings) if savings]
    pairs += [(name, PROBES["pixels"]) for name in dict.fromkeys(itertools.chain(*pairs)) if "pixels" in probes]
    return LabelEfficiency(
        curves=all_curves,
        stopped_early=stopped_early,
        pretraining_savings=pretraining_savings,
        feature_savings=feature_savings,
        power_laws=power_laws,
        gains=[gain_by_budget(name, baseline, all_curves) for name, baseline in pairs],
        pixels_win=_pixels_win(all_curves, [*pretrained, PROBES["pretrained"]]) if "pixels" in probes else [],
    )


def gain_by_budget(name: str, baseline: str, curves: Mapping[str, LearningCurve]) -> GainByBudget:
    """Return the gain of ``name`` over ``baseline`` at the label budgets that both have."""
    first, second = (dict(zip(curves[key].budgets, curves[key].correct, strict=True)) for key in (name, baseline))
    budgets = [n for n in first if n in second]
    differences = np.array([first[n].astype(float) - second[n] for n in budgets])  # [budgets, seeds, images]
    gains = {n: comparison.normal_interval(difference) for n, difference in zip(budgets, differences, strict=True)}
    if len(budgets) == 1:
        return GainByBudget(name=name, baseline=baseline, gains=gains, mean=None)
    x = np.log(budgets)
    means = np.trapezoid(differences, x, axis=0) / (x[-1] - x[0])
    return GainByBudget(name=name, baseline=baseline, gains=gains, mean=comparison.normal_interval(means))


def _pixels_win(curves: Mapping[str, LearningCurve], pretrained: Sequence[str]) -> list[int]:
    """Return the label budgets with which the probe of pixels is better than all of ``pretrained``, in the mean."""
    accuracies: dict[int, list[float]] = {}
    for name in pretrained:
        for n, accuracy in zip(curves[name].budgets, curves[name].accuracy, strict=True) if name in curves else ():
            accuracies.setdefault(n, []).append(accuracy)
    pixels = curves[PROBES["pixels"]]
    return [
        n for n, accuracy in zip(pixels.budgets, pixels.accuracy, strict=True) if accuracy > max(accuracies.get(n, [1]))
    ]


def _headline_index(curve: LearningCurve) -> int:
    """Return the index of the lower median of the budgets, which is fixed before any result is known."""
    return (len(curve.budgets) - 1) // 2


def metrics(efficiency: LabelEfficiency | None) -> dict[str, float | str]:
    """Return the labels that pretrained weights save; empty if that was not measured.

    If the labels needed are beyond the budgets of the reference, the number is a bound, and ``labels_saved_bound`` says
    which: "at least" or "at most".
    """
    if efficiency is None or efficiency.pretraining_savings is None:
        return {}
    savings = efficiency.pretraining_savings
    n = savings.curve.budgets[savings.headline_index]
    needed = savings.needed[savings.headline][savings.headline_index].value
    if needed == math.inf:
        return {"labels_saved": savings.range[1] - n, "labels_saved_bound": "at least"}
    if needed == 0:
        return {"labels_saved": savings.range[0] - n, "labels_saved_bound": "at most"}
    return {"labels_saved": round(needed) - n}


def format_count(
    value: float, bounds: tuple[int, int], change: Callable[[float], float], digits: str = "{:,.0f}"
) -> str:
    """Format ``change(value)`` of labels needed, for example "more than 750" if ``value`` is beyond ``bounds``."""
    if value == math.inf:
        return f"more than {_format_number(change(bounds[1]), digits)}"
    if value == 0:
        return f"fewer than {_format_number(change(bounds[0]), digits)}"
    return _format_number(change(value), digits)


def _format_number(value: float, digits: str) -> str:
    """Format ``value``; minus is U+2212, and a number that is rounded to 0 has no sign."""
    return digits.format(round(value, 6) + 0.0).replace("-", "−")


def two_digits(value: float) -> float:
    """Round to two significant digits."""
    return float(f"{value:.2g}")


def round_needed(needed: LabelsNeeded, n: int) -> LabelsNeeded:
    """Round the labels needed to do as well as with ``n`` to two significant digits.

    A number that differs from ``n`` by less than the rounding becomes ``n``. Labels saved and the factor are computed
    from the result, so that the three agree. The ends of the interval are label budgets and stay as they are.
    """
    value = needed.value
    if value not in (0, math.inf):
        unit = 10 ** (math.floor(math.log10(value)) - 1)
        value = n if abs(value - n) <= unit / 2 else two_digits(value)
        if needed.interval is not None:
            value = min(max(value, needed.interval[0]), needed.interval[1])
    return needed._replace(value=value)


def format_interval(
    needed: LabelsNeeded, bounds: tuple[int, int], change: Callable[[float], float], digits: str = "{:,.0f}"
) -> str:
    """Format the interval of ``needed`` as ``format_count`` formats its value; empty without an interval."""
    if needed.interval is None:
        return ""
    low, high = (format_count(end, bounds, change, digits) for end in needed.interval)
    if needed.interval == (0, bounds[0]):
        return f"at most {high}"
    if needed.interval == (bounds[1], math.inf):
        return f"at least {low}"
    return low if low == high else f"{low} to {high}"


def has_unstopped_runs(efficiency: LabelEfficiency, savings: LabelSavings, name: str, index: int) -> bool:
    """Return whether a training of ``name`` at that budget, or any of the reference, did not stop early."""
    n_seeds = savings.curve.correct.shape[1]
    of_reference = efficiency.stopped_early.get(savings.reference, ())
    of_name = efficiency.stopped_early.get(name, ())
    return any(n < n_seeds for n in of_reference) or (len(of_name) > 0 and of_name[index] < n_seeds)


def savings_rows(efficiency: LabelEfficiency, savings: LabelSavings, name: str) -> list[dict[str, Any]]:
    """Return labels needed, labels saved and factor of ``name`` with their intervals, formatted: one row per budget."""
    rows = []
    for n, exact in zip(efficiency.curves[name].budgets, savings.needed[name], strict=True):
        needed = round_needed(exact, n)
        row = {"labels": f"{n:,}", "is_saving": needed.value > n}
        for key, change, digits in (
            ("needed", lambda labels: labels, "{:,.0f}"),
            ("saved", lambda labels, n=n: labels - n, "{:,.0f}"),
            ("factor", lambda labels, n=n: two_digits(labels / n), "{:,.10g}"),
        ):
            row[key] = format_count(needed.value, savings.range, change, digits)
            row[f"{key}_interval"] = format_interval(needed, savings.range, change, digits)
        rows.append(row)
    return rows


def gain_rows(efficiency: LabelEfficiency) -> Table:
    """Return the gains of ``efficiency.gains``: one row each, one column per label budget, None where it has none."""
    budgets = sorted({n for gain in efficiency.gains for n in gain.gains})
    return [
        ["gain of", *(f"{n:,} labels" for n in budgets), "mean"],
        *([f"{gain.name} over {gain.baseline}", *map(gain.gains.get, budgets), gain.mean] for gain in efficiency.gains),
    ]


def curves_table(efficiency: LabelEfficiency | None, seeds: Sequence[int]) -> Table:
    """Return the test error in percent, one row per configuration or probe, label budget and seed."""
    rows: Table = [["configuration", "label_budget", "seed", "error"]]
    for name, curve in efficiency.curves.items() if efficiency else ():
        errors = 100 * (1 - curve.correct.mean(2))
        rows += [
            [name, n, seed, f"{error:.3f}"]
            for n, by_seed in zip(curve.budgets, errors, strict=True)
            for seed, error in zip(seeds, by_seed, strict=True)
        ]
    return rows


def savings_table(efficiency: LabelEfficiency | None) -> Table:
    """Return the labels that ``reference`` needs, one row per configuration or probe and label budget.

    ``inf`` is more than its largest budget, 0 fewer than its smallest. ``low`` and ``high`` are empty without an
    interval.
    """
    rows: Table = [["configuration", "reference", "label_budget", "needed", "low", "high"]]
    if efficiency is None:
        return rows
    for savings in (efficiency.pretraining_savings, efficiency.feature_savings):
        if savings is None:
            continue
        for name, by_budget in savings.needed.items():
            for n, needed in zip(efficiency.curves[name].budgets, by_budget, strict=True):
                ends = ["", ""] if needed.interval is None else [f"{end:.1f}" for end in needed.interval]
                rows.append([name, savings.reference, n, f"{needed.value:.1f}", *ends])
    return rows


def correct_table(efficiency: LabelEfficiency | None, seeds: Sequence[int]) -> Table:
    """Return which test images are correct: one row per configuration or probe, label budget and seed.

    The largest budget of a configuration is left out: ``metrics/<study>/correct.csv`` has it.
    """
    rows: Table = [["configuration", "label_budget", "seed", "images", "correct"]]
    for name, curve in efficiency.curves.items() if efficiency else ():
        n_budgets = len(curve.budgets) - (name not in PROBES.values())
        rows += [
            [name, n, seed, len(correct), evaluation.encode_bits(correct)]
            for n, by_seed in zip(curve.budgets[:n_budgets], curve.correct, strict=False)
            for seed, correct in zip(seeds, by_seed, strict=True)
        ]
    return rows
