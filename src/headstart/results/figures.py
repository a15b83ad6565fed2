"""The figures of a study as SVG, in one style: pure functions of its results."""

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from headstart.params import Configuration
from headstart.results.comparison import Estimate, StudyAnalysis, differing_hyperparameters, pairs
from headstart.results.content import FEW_CLASSES, MetricCurve
from headstart.results.examples import Example, ExampleSet
from headstart.results.label_efficiency import PROBES, LabelEfficiency, LabelSavings, format_count, round_needed
from headstart.results.label_savings import LearningCurve
from headstart.results.networks import NetworkComparison
from headstart.results.overview import LabelFactor, StudyOverview
from headstart.results.tables import points

# Two hues of Okabe and Ito's palette (2008), which the color-blind can tell apart. Lines and markers show the rest.
PRETRAINED, RANDOM = "#0072b2", "#d55e00"
INK, SOFT, LINE, BACK = "#1d2433", "#59617a", "#d5d9e2", "#fffffe"
# The report replaces these colors with its CSS variables, so that the figures follow light and dark mode.
VARIABLES = {
    PRETRAINED: "var(--pretrained)", RANDOM: "var(--random)", INK: "var(--ink)", SOFT: "var(--soft)",
    LINE: "var(--line)", BACK: "none",
}  # fmt: skip
MARKERS = {"Adam": "o^", "SGD": "sv"}
DEFAULT_MARKERS = "Dd"  # of all other optimizers
EXAMPLES_PER_ROW = 5
NAME_HEIGHT = 10  # points
MAX_NAMED_NETWORKS = 30  # in the figure: the most accurate, and those on the Pareto front
MIN_LABEL_GAP = 8  # points; the labels of two accuracies on one line overlap below it
NAMED_CLASSES = 50  # at most so many class names fit next to a matrix
MAX_NAME_LENGTH = 28  # of a class
MAX_LR_RATIO = 10_000  # of the learning rates that are shown
MIN_BIN_COUNT = 20  # images in a bin of confidence, or its accuracy is too noisy to be shown
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
STYLE: Any = {
    "axes.edgecolor": SOFT, "axes.labelcolor": INK, "axes.spines.right": False, "axes.spines.top": False,
    "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.titlesize": 9, "axes.labelsize": 9,
    "axes.facecolor": "none", "axes.axisbelow": True, "figure.facecolor": BACK, "font.size": 9, "grid.color": LINE,
    "grid.linewidth": 0.8, "legend.fontsize": 8, "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 5,
    "svg.fonttype": "none", "svg.hashsalt": "headstart", "text.color": INK, "xtick.color": SOFT, "ytick.color": SOFT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "image.interpolation": "nearest", "text.parse_math": False,
}  # fmt: skip


def _svg(figure: Figure) -> str:
    """Render a figure as a deterministic SVG element, with text as text."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", svg, flags=re.DOTALL)
    return svg.replace("'DejaVu Sans'", FONTS)


def _figure(width: float, height: float, **grid: Any) -> tuple[Figure, np.ndarray]:
    """Create a figure, in inches, and its axes as [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(squeeze=False, **grid)


def _style(configuration: Configuration) -> dict[str, Any]:
    """Return the line style. Color: initial weights; filled and solid: fine-tuned; marker shape: optimizer.

    Triangles and thin diamonds override the study's `finetune_from`: Adam's triangle points up, SGD's down.
    """
    color = PRETRAINED if configuration.pretrained else RANDOM
    return {
        "color": color,
        "markerfacecolor": color if configuration.finetuning else BACK,
        "linestyle": "-" if configuration.finetuning else (0, (2, 1.5)),
        "marker": MARKERS.get(configuration.optimizer, DEFAULT_MARKERS)[configuration.finetune_from is not None],
    }


def _legend(figure: Figure, configurations: Mapping[str, Configuration], **options: Any) -> None:
    handles = [Line2D([], [], label=name, **_style(configuration)) for name, configuration in configurations.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=3, **options)


def accuracy(
    configurations: Mapping[str, Configuration], accuracies: Mapping[str, Estimate], published: Mapping[str, float]
) -> Figure:
    """Plot the test accuracy of every configuration; two that differ in their initial weights only share a line."""
    baselines = {
        name: baseline
        for name, baseline in pairs(configurations, "pretrained")
        if not differing_hyperparameters(configurations[name], configurations[baseline])
    }
    paired = {*baselines, *baselines.values()}
    lines: dict[str, tuple[str, ...]] = {pair[0].removeprefix("pretrained-"): pair for pair in baselines.items()}
    lines |= {name: (name,) for name in configurations if name not in paired}
    ordered = sorted(lines, key=lambda line: max(accuracies[name].value for name in lines[line]))
    figure, [[axes]] = _figure(5.2, 0.9 + 0.5 * len(ordered))
    for row, line in enumerate(ordered):
        values = [100 * accuracies[name].value for name in lines[line]]
        axes.plot([min(values), max(values)], [row, row], color=LINE, linewidth=5, solid_capstyle="round", zorder=1)
        for name in lines[line]:
            value, low, high = (100 * number for number in accuracies[name])
            color = PRETRAINED if configurations[name].pretrained else RANDOM
            axes.plot([low, high], [row, row], color=color, linewidth=3.5, zorder=2)
            axes.plot(value, row, "o", color=color, markersize=7, zorder=3)
            is_close = len(values) > 1 and max(values) - min(values) < MIN_LABEL_GAP
            alignment = "center" if not is_close else "left" if value == max(values) else "right"
            axes.annotate(f"{value:.1f}", (value, row), (0, 7), textcoords="offset points", ha=alignment, fontsize=8)
            if name in published:
                axes.plot(100 * published[name], row - 0.24, "D", color=color, markerfacecolor=BACK, markersize=4.5)
    axes.set(xlim=(0, 100), xlabel="test accuracy, %", yticks=range(len(ordered)), yticklabels=ordered)
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=PRETRAINED, marker="o", linestyle="", label="pretrained"),
        Line2D([], [], color=RANDOM, marker="o", linestyle="", label="random"),
    ]
    if published:
        handles.append(Line2D([], [], color=SOFT, marker="D", markerfacecolor=BACK, linestyle="", label="published"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def networks(ranking: NetworkComparison) -> Figure:
    """Plot the accuracy of networks versus their cost, with confidence intervals and the Pareto front.

    Filled markers are not significantly worse than the best network. The most accurate networks and those on the front
    are named.
    """
    figure, [[axes]] = _figure(6.4, 4.2)
    costs = [ranking.cost(network) for network in ranking.networks]
    front = sorted((cost, 100 * row.accuracy.value) for cost, row in zip(costs, ranking.networks, strict=True)
                   if row.is_on_front)  # fmt: skip
    axes.step(*zip(*front, strict=True), where="post", color=SOFT, linestyle=(0, (2, 1.5)), zorder=1)
    for cost, network in zip(costs, ranking.networks, strict=True):
        value, low, high = (100 * number for number in network.accuracy)
        color = SOFT if network.is_significantly_worse else PRETRAINED
        axes.plot([cost, cost], [low, high], color=color, linewidth=2, zorder=2)
        axes.plot(cost, value, "o", color=color, markerfacecolor=BACK if network.is_significantly_worse else color,
                  markersize=7, zorder=3)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.5, max(costs) * 3.5)  # names are to the right of their markers
    ticks = [factor * 10.0**power for power in range(-3, 6) for factor in (1, 2, 5)]
    _log_ticks(axes.xaxis, ticks)
    lows, highs = ([100 * getattr(row.accuracy, end) for row in ranking.networks] for end in ("low", "high"))
    axes.set_ylim(min(lows) - 1, max(highs) + 1)
    named = {
        row.result.name: (cost, 100 * row.accuracy.value)
        for index, (cost, row) in enumerate(zip(costs, ranking.networks, strict=True))
        if index < MAX_NAMED_NETWORKS or row.is_on_front
    }
    _name_points(axes, named)
    cost_name = "milliseconds" if ranking.cost_is_time else "billions of multiply-accumulate operations"
    axes.set(xlabel=f"{cost_name} per image", ylabel="test accuracy of the linear probe, %")
    axes.grid()
    handles = [
        Line2D([], [], color=PRETRAINED, marker="o", linestyle="", label="best, or not significantly worse"),
        Line2D([], [], color=SOFT, marker="o", markerfacecolor=BACK, linestyle="", label="significantly worse"),
        Line2D([], [], color=SOFT, linestyle=(0, (2, 1.5)), label="Pareto front"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def _name_points(axes: Axes, named: Mapping[str, tuple[float, float]]) -> None:
    """Write names to the right of points on a logarithmic x-axis, moved down where they would overlap."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = 5.6 * 72, 3.2 * 72  # of the axes in points, about
    placed: list[tuple[float, float, float]] = []  # left, right and y in points
    for name, (x, y) in sorted(named.items(), key=lambda item: -item[1][1]):
        start = math.log(x / left) / math.log(right / left) * width + 7
        end = start + 4.5 * len(name)
        position = wanted = (y - bottom) / (top - bottom) * height
        while any(start < other_end and end > other_start and abs(position - other) < NAME_HEIGHT
                  for other_start, other_end, other in placed):  # fmt: skip
            position -= 1
        placed.append((start, end, position))
        # Above the line of the Pareto front.
        axes.annotate(name, (x, y), (5, position - wanted + 6), textcoords="offset points", va="center", fontsize=8)


def forest(studies: Sequence[StudyOverview]) -> Figure:
    """Plot what pretrained weights bought in each study, with confidence intervals: points of accuracy, and labels."""
    factors = {row: study.label_factor for row, study in enumerate(reversed(studies)) if study.label_factor}
    figure, [panels] = _figure(
        7.6 if factors else 6.4, 1.1 + 0.42 * len(studies), ncols=1 + bool(factors), sharey=True,
        width_ratios=[2, 1] if factors else [1],
    )  # fmt: skip
    axes = panels[0]
    for row, study in enumerate(reversed(studies)):
        for offset, (name, (value, low, high)) in zip((0.14, -0.14), study.gains.items(), strict=False):
            fill = PRETRAINED if name == "fine-tuned" else BACK
            axes.plot([100 * low, 100 * high], [row + offset] * 2, color=PRETRAINED, linewidth=2.5)
            axes.plot(100 * value, row + offset, "o", color=PRETRAINED, markerfacecolor=fill)
            axes.annotate(points(value), (100 * high, row + offset), (5, 0), textcoords="offset points", va="center",
                          fontsize=7.5)  # fmt: skip
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set(xlabel="gain, points of test accuracy", yticks=range(len(studies)),
             yticklabels=[study.label for study in reversed(studies)], ylim=(-0.6, len(studies) - 0.4))  # fmt: skip
    axes.margins(x=0.12)
    if factors:
        _draw_label_factors(panels[1], factors)
    for panel in panels:
        panel.grid(axis="x")
        panel.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=PRETRAINED, marker="o", linestyle="", label="fine-tuned"),
        Line2D([], [], color=PRETRAINED, marker="o", markerfacecolor=BACK, linestyle="", label="classifier only"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return figure


def _draw_label_factors(axes: Axes, factors: Mapping[int, LabelFactor]) -> None:
    """Draw the label factor of each row; an arrow points to an end that is beyond the budgets of the study."""
    ends = [end for _, factor in factors.values() for end in factor if math.isfinite(end) and end > 0]
    smallest, largest = min([*ends, 1]) / 1.5, max([*ends, 1]) * 2
    for row, (_, (value, low, high)) in factors.items():
        if math.isnan(low):  # one seed: no interval, but an arrow if the value is beyond the panel
            low, high = min(value, largest / 1.3), max(value, smallest * 1.3)
        arrow = ("<" if low < smallest else "") + "-" + (">" if high > largest else "")
        if arrow != "-" or low < high:
            axes.annotate("", (min(high, largest), row), (max(low, smallest), row), arrowprops={
                "arrowstyle": arrow, "color": PRETRAINED, "linewidth": 2, "shrinkA": 0, "shrinkB": 0})  # fmt: skip
        if smallest < value < largest:
            axes.plot(value, row, "o", color=PRETRAINED)
            axes.annotate(f"{value:.1f}×", (value, row), (0, 6), textcoords="offset points", ha="center", fontsize=7.5)
    axes.set_xscale("log")
    axes.set_xlim(smallest, largest)
    _log_ticks(axes.xaxis, [0.2, 0.5, 1, 2, 5, 10, 20, 50])
    axes.axvline(1, color=SOFT, linewidth=1)
    axes.set_xlabel("factor in labels")


def effects(analysis: StudyAnalysis) -> Figure:
    """Plot effects and interactions with their confidence intervals, in percentage points."""
    named: dict[str, Estimate] = dict(analysis.effects)
    named |= {f"{first} × {second}": effect for (first, second), effect in analysis.interactions.items()}
    named = {name.replace("optimizer", "optimizer*"): effect for name, effect in named.items()}
    figure, [[axes]] = _figure(5.2, 0.7 + 0.3 * len(named))
    for row, (value, low, high) in enumerate(reversed(named.values())):
        axes.plot([100 * low, 100 * high], [row, row], color=PRETRAINED, linewidth=3)
        axes.plot(100 * value, row, "o", color=PRETRAINED)
        axes.annotate(points(value), (100 * value, row), (0, 6), textcoords="offset points", ha="center",
                      fontsize=8)  # fmt: skip
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set(yticks=range(len(named)), yticklabels=list(reversed(named)))
    axes.set_xlabel("percentage points of test accuracy\n* with the settings that each optimizer brings along")
    axes.set_ylim(-0.5, len(named) - 0.3)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return figure


def learning_curves(
    configurations: Mapping[str, Configuration], curves: Mapping[str, Mapping[str, MetricCurve]]
) -> Figure:
    """Plot ``curves``, by metric and configuration, with one panel per metric."""
    figure, [row] = _figure(5.6, 3.4, ncols=len(curves), sharey=True)
    for axes, (metric, by_name) in zip(row, curves.items(), strict=True):
        for name, curve in by_name.items():
            axes.plot(curve.epochs, [100 * value for value in curve.values], **_style(configurations[name]))
        axes.set(title=metric, xlabel="epoch", ylim=(0, 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid()
    row[0].set_ylabel("accuracy, %")
    _legend(figure, configurations)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Plot a confusion matrix ``counts`` [classes, classes]: rows are actual classes, columns predicted ones.

    With many classes there are no numbers, and classes that are often confused are next to each other.
    """
    share = counts / counts.sum(1, keepdims=True).clip(min=1)
    if len(classes) > FEW_CLASSES:
        return _large_confusion(share, classes)
    figure, [[axes]] = _figure(4.6, 4.4)
    _heat(axes, share, [[str(count) if count else "" for count in row] for row in counts], classes, classes)
    axes.set(xlabel="predicted", ylabel="actual")
    return figure


def _large_confusion(share: np.ndarray, classes: Sequence[str]) -> Figure:
    figure, [[axes]] = _figure(5.4, 5.2)
    order = by_similarity(share)
    # The square root makes rare mistakes visible.
    axes.imshow(share[order][:, order] ** 0.5, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    names = [_abbreviate(classes[label]) for label in order] if len(classes) <= NAMED_CLASSES else []
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    axes.set_yticks(range(len(names)), names, fontsize=5)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="actual")
    return figure


def by_similarity(share: np.ndarray) -> np.ndarray:
    """Return an order of the classes in which those that are often confused are next to each other.

    It is the order of the leaves of a hierarchical clustering with average linkage. The similarity of two classes is
    the mean of their shares in ``share`` [classes, classes] that are predicted as the other class; rows are actual.
    """
    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average"))


def f1(scores: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> Figure:
    """Plot the F1 of each class (row) in each configuration (column): [classes, configurations]."""
    figure, [[axes]] = _figure(5.2, 1.2 + 0.32 * len(classes))
    _heat(axes, scores, [[f"{100 * score:.0f}" for score in row] for row in scores], classes, names)
    return figure


def _heat(
    axes: Axes, values: np.ndarray, texts: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """Draw a matrix of values from 0 to 1 as colors, with a text in each cell."""
    axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=1, edgecolors="#ffffff", linewidth=0.5)
    axes.invert_yaxis()
    names = [_abbreviate(name) for name in columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_abbreviate(name) for name in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, x in np.ndindex(values.shape):
        color = "#ffffff" if values[y, x] > 0.7 else "#10131a"
        axes.text(x + 0.5, y + 0.5, texts[y][x], color=color, fontsize=7, ha="center", va="center")


def _abbreviate(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 1]}…"


def examples(chosen: ExampleSet) -> Figure:
    """Show test images with their actual and their predicted class: the correct ones first, then the mistakes."""
    rows = [row[start : start + EXAMPLES_PER_ROW] for row in chosen for start in range(0, len(row), EXAMPLES_PER_ROW)]
    figure, grid = _figure(5.6, 1.3 * len(rows), nrows=len(rows), ncols=EXAMPLES_PER_ROW)
    for axes in grid.flat:
        axes.axis("off")
    for row, line in zip(rows, grid, strict=True):
        for example, axes in zip(row, line, strict=False):
            if example is not None:
                _example(axes, example)
    return figure


def _example(axes: Axes, example: Example) -> None:
    is_large = example.image.shape[0] > 72  # larger than in the report, so the browser resizes it
    axes.imshow(example.image, cmap="gray", vmin=0, vmax=255, interpolation="none" if is_large else None)
    axes.set_title(_abbreviate(example.actual), fontsize=8, loc="center", pad=3)
    confidence = f"{100 * example.confidence:.0f} %"
    is_wrong = example.actual != example.predicted
    text = f"{_abbreviate(example.predicted)}\n{confidence}" if is_wrong else confidence
    axes.text(0.5, -0.06, text, transform=axes.transAxes, ha="center", va="top", fontsize=8,
              color=RANDOM if is_wrong else INK)  # fmt: skip


def feature_maps(maps: Mapping[str, np.ndarray]) -> Figure:
    """Show one row of maps [maps, height, width] per title, each map from its smallest value to its largest."""
    n = max(len(row) for row in maps.values())
    figure = Figure(figsize=(5.6, 0.86 * len(maps)), layout="constrained")
    for subfigure, (title, row) in zip(figure.subfigures(len(maps), 1, squeeze=False).flat, maps.items(), strict=True):
        subfigure.suptitle(title, fontsize=8, x=0.01, ha="left")
        for axes, image in zip(subfigure.subplots(1, n, squeeze=False).flat, row, strict=False):
            axes.imshow(image, cmap="gray")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=LINE)
    return figure


def learning_rates(
    configurations: Mapping[str, Configuration], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure:
    """Plot the learning rate over the epochs, on a logarithmic axis; ``curves`` are epochs and rates."""
    figure, [[axes]] = _figure(5.2, 2.8)
    for name, (epochs, rates) in curves.items():
        axes.plot(epochs, rates, **_style(configurations[name]) | {"marker": ""})
    highest = max(max(rates) for _, rates in curves.values())
    axes.set(xlabel="epoch", ylabel="learning rate", yscale="log", ylim=(highest / MAX_LR_RATIO, 2 * highest))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid()
    _legend(figure, configurations)
    return figure


def image_grid(images: np.ndarray) -> Figure:
    """Show uint8 images [rows, columns, height, width] or [rows, columns, height, width, 3] side by side."""
    n_rows, n_columns = images.shape[:2]
    figure, grid = _figure(5.6, 5.6 / n_columns * n_rows, nrows=n_rows, ncols=n_columns)
    for axes, image in zip(grid.flat, images.reshape(-1, *images.shape[2:]), strict=True):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        axes.axis("off")
    return figure


def calibration(configurations: Mapping[str, Configuration], bins: Mapping[str, np.ndarray]) -> Figure:
    """Plot accuracy over confidence; ``bins`` [bins, 3] has mean confidence, accuracy and number of images."""
    figure, [[axes]] = _figure(4.6, 4.6)
    axes.plot([0, 100], [0, 100], color=SOFT, linewidth=1)
    for name, values in bins.items():
        confidence, accuracies, _ = values[values[:, 2] >= MIN_BIN_COUNT].T
        axes.plot(
            100 * confidence, 100 * accuracies, **_style(configurations[name]) | {"markersize": 4, "linewidth": 1.2}
        )
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence, %", ylabel="accuracy, %", aspect="equal")
    axes.grid()
    _legend(figure, configurations)
    return figure


def labels(configurations: Mapping[str, Configuration], efficiency: LabelEfficiency) -> Figure:
    """Plot the test error over labeled images: one dot per seed, and their mean as a line.

    The arrow shows the labels saved: from the headline budget to the labels that the reference needs.
    """
    savings = efficiency.pretraining_savings or efficiency.feature_savings
    styles = {
        name: _style(configurations[name]) if name in configurations else _probe_style(name)
        for name in efficiency.curves
    }
    figure, [[axes]] = _figure(5.6, 4.4)
    for name, curve in efficiency.curves.items():
        style = styles[name]
        errors = _percent_wrong(curve.correct.mean(2), curve)
        axes.plot(curve.budgets, _percent_wrong(curve.accuracy, curve), **style)
        if errors.shape[1] > 1:
            axes.plot(curve.budgets, errors, linestyle="", marker=".", markersize=3, color=style["color"], alpha=0.6)
    axes.set(xscale="log", yscale="log")
    if savings is not None:
        _draw_savings_arrow(axes, efficiency, savings)
    _log_ticks(axes.xaxis, sorted({n for curve in efficiency.curves.values() for n in curve.budgets}))
    _log_ticks(axes.yaxis, [1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100])
    axes.set(xlabel="labeled images", ylabel="test error, %")
    axes.grid()
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=3)
    return figure


def _percent_wrong(accuracies: np.ndarray, curve: LearningCurve) -> np.ndarray:
    """Return errors in percent; an error of 0 becomes half an image, for a logarithmic axis."""
    return 100 * (1 - accuracies).clip(0.5 / curve.correct.shape[2])


def _probe_style(name: str) -> dict[str, Any]:
    color = {PROBES["pretrained"]: PRETRAINED, PROBES["random"]: RANDOM}.get(name, INK)
    return {"color": color, "linestyle": (0, (1, 1.5)), "marker": "x", "linewidth": 1.2}


def _draw_savings_arrow(axes: Axes, efficiency: LabelEfficiency, savings: LabelSavings) -> None:
    """Draw an arrow from the headline budget to the labels that the reference needs, at most to its largest budget."""
    curve, index = efficiency.curves[savings.headline], savings.headline_index
    n, height = curve.budgets[index], _percent_wrong(curve.accuracy, curve)[index]
    needed = savings.needed[savings.headline][index]
    rounded = round_needed(needed, n).value
    if rounded <= n:
        return
    end = min(needed.value, savings.range[1])
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (end, height), (n, height), arrowprops=arrow, zorder=5)
    # The text is below the curves, where it overlaps nothing.
    bottom = axes.get_ylim()[0] * 0.8
    axes.plot([n, n], [bottom, height], [end, end], [bottom, height], color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    text = format_count(rounded, savings.range, lambda labels: labels - n)
    axes.annotate(f"{text} labels saved", ((n * end) ** 0.5, bottom), (0, 4), textcoords="offset points", ha="center",
                  va="bottom", fontsize=8)  # fmt: skip
    axes.set_ylim(bottom=bottom)


def _log_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """Label those of ``ticks`` that are on the axis with plain numbers."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:,.10g}" for tick in shown])
    axis.set_minor_formatter(NullFormatter())
    axis.set_ticks([], minor=True)


def as_svg(draw: Any, *arguments: Any) -> str:
    """Return the figure that ``draw``, one of the functions above, draws for ``arguments``, as an SVG element."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text, and the browser has the glyph
        return _svg(draw(*arguments))
