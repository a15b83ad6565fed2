"""The figures of a study, in one style, as SVG: pure functions of what was found."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
from headstart.results.examples import Example, ExampleSet
from headstart.results.label_efficiency import PROBES, LabelEfficiency, LabelSavings, format_count, round_needed
from headstart.results.label_savings import LearningCurve

# Two hues of Okabe and Ito's palette (2008), which the color-blind can tell apart; lines and markers say the rest.
PRETRAINED, RANDOM = "#0072b2", "#d55e00"
INK, SOFT, LINE, BACK = "#1d2433", "#59617a", "#d5d9e2", "#fffffe"
# The page replaces these by its own variables, so that the figures follow light and dark.
VARIABLES = {
    PRETRAINED: "var(--pretrained)", RANDOM: "var(--random)", INK: "var(--ink)", SOFT: "var(--soft)",
    LINE: "var(--line)", BACK: "none",
}  # fmt: skip
MARKERS = {"Adam": "o^", "SGD": "sv"}
OTHER_MARKERS = "Dd"  # of every other optimizer
PER_ROW = 5  # examples
CLOSE = 8  # points, at which two accuracies on one line would be written over each other
FEW_CLASSES = 20  # so many can be shown each with its number
NAMED_CLASSES = 50  # so many names of classes fit beside a matrix
LONGEST_NAME = 28  # of a class
FEWEST = 20  # images in a bin of confidence whose accuracy is worth showing
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


class Metric(NamedTuple):
    """One metric of one configuration over its epochs, the mean over the seeds."""

    epochs: Sequence[int]
    values: Sequence[float]


def signed(number: float, digits: int = 1) -> str:
    """A number with its sign, which is a real minus sign."""
    return f"{number:+.{digits}f}".replace("-", "−")


def _svg(figure: Figure) -> str:
    """The figure as an SVG element, the same for the same figure, with text as text."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", svg, flags=re.DOTALL)
    return svg.replace("'DejaVu Sans'", FONTS)


def _figure(width: float, height: float, **grid: Any) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches, and its axes as [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(squeeze=False, **grid)


def _look(configuration: Configuration) -> dict[str, Any]:
    """Color: the start; filled and drawn through: fine-tuned; circle, square or diamond: the optimizer.

    Triangles and thin diamonds are fine-tuned from a layer of their own: Adam's triangle points up, SGD's down.
    """
    color = PRETRAINED if configuration.pretrained else RANDOM
    return {
        "color": color,
        "markerfacecolor": color if configuration.finetuning else BACK,
        "linestyle": "-" if configuration.finetuning else (0, (2, 1.5)),
        "marker": MARKERS.get(configuration.optimizer, OTHER_MARKERS)[configuration.finetune_from is not None],
    }


def _legend(figure: Figure, configurations: Mapping[str, Configuration], **options: Any) -> None:
    handles = [Line2D([], [], label=name, **_look(configuration)) for name, configuration in configurations.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=3, **options)


def accuracy(
    configurations: Mapping[str, Configuration], found: Mapping[str, Estimate], published: Mapping[str, float]
) -> Figure:
    """Test accuracy of every configuration; those that differ in their start and nothing else stand on one line."""
    partners = {
        name: other
        for name, other in pairs(configurations, "pretrained")
        if not differing_hyperparameters(configurations[name], configurations[other])
    }
    paired = {*partners, *partners.values()}
    lines: dict[str, tuple[str, ...]] = {pair[0].removeprefix("pretrained-"): pair for pair in partners.items()}
    lines |= {name: (name,) for name in configurations if name not in paired}
    ordered = sorted(lines, key=lambda line: max(found[name].value for name in lines[line]))
    figure, [[axes]] = _figure(5.2, 0.9 + 0.5 * len(ordered))
    for row, line in enumerate(ordered):
        values = [100 * found[name].value for name in lines[line]]
        axes.plot([min(values), max(values)], [row, row], color=LINE, linewidth=5, solid_capstyle="round", zorder=1)
        for name in lines[line]:
            value, low, high = (100 * number for number in found[name])
            color = PRETRAINED if configurations[name].pretrained else RANDOM
            axes.plot([low, high], [row, row], color=color, linewidth=3.5, zorder=2)
            axes.plot(value, row, "o", color=color, markersize=7, zorder=3)
            close = len(values) > 1 and max(values) - min(values) < CLOSE
            side = "center" if not close else "left" if value == max(values) else "right"
            axes.annotate(f"{value:.1f}", (value, row), (0, 7), textcoords="offset points", ha=side, fontsize=8)
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


def effects(findings: StudyAnalysis) -> Figure:
    """Effects and interactions with their intervals, in percentage points."""
    named: dict[str, Estimate] = dict(findings.effects)
    named |= {f"{first} × {second}": effect for (first, second), effect in findings.interactions.items()}
    named = {name.replace("optimizer", "optimizer*"): effect for name, effect in named.items()}
    figure, [[axes]] = _figure(5.2, 0.7 + 0.3 * len(named))
    for row, (value, low, high) in enumerate(reversed(named.values())):
        axes.plot([100 * low, 100 * high], [row, row], color=PRETRAINED, linewidth=3)
        axes.plot(100 * value, row, "o", color=PRETRAINED)
        axes.annotate(signed(100 * value), (100 * value, row), (0, 6), textcoords="offset points", ha="center",
                      fontsize=8)  # fmt: skip
    axes.axvline(0, color=SOFT, linewidth=1)
    axes.set(yticks=range(len(named)), yticklabels=list(reversed(named)))
    axes.set_xlabel("percentage points of test accuracy\n* with the settings that each optimizer brings along")
    axes.set_ylim(-0.5, len(named) - 0.3)
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    return figure


def learning_curves(configurations: Mapping[str, Configuration], curves: Mapping[str, Mapping[str, Metric]]) -> Figure:
    """A panel for each metric, which ``curves`` has by its name and then by configuration."""
    figure, [row] = _figure(5.6, 3.4, ncols=len(curves), sharey=True)
    for axes, (metric, by_name) in zip(row, curves.items(), strict=True):
        for name, curve in by_name.items():
            axes.plot(curve.epochs, [100 * value for value in curve.values], **_look(configurations[name]))
        axes.set(title=metric, xlabel="epoch", ylim=(0, 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid()
    row[0].set_ylabel("accuracy, %")
    _legend(figure, configurations)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """How often each actual class (row) was taken for each class (column): counts [classes, classes].

    Many classes are in an order in which those that are taken for each other stand together, and without numbers.
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
    # The root, or what is rare could not be seen.
    axes.imshow(share[order][:, order] ** 0.5, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    names = [_short(classes[at]) for at in order] if len(classes) <= NAMED_CLASSES else []
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
    axes.set_yticks(range(len(names)), names, fontsize=5)
    axes.tick_params(length=0)
    axes.set(xlabel="predicted", ylabel="actual")
    return figure


def by_similarity(share: np.ndarray) -> np.ndarray:
    """An order of the classes in which those that are taken for each other stand together.

    It is that of the leaves of a tree that joins the most similar groups first (average linkage), similar being what
    share of the one class is taken for the other and the other way round: ``share`` [classes, classes], rows actual.
    """
    distance = 1 - (share + share.T) / 2
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average"))


def f1(scores: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> Figure:
    """F1 of each class (row) in each configuration (column): [classes, configurations]."""
    figure, [[axes]] = _figure(5.2, 1.2 + 0.32 * len(classes))
    _heat(axes, scores, [[f"{100 * score:.0f}" for score in row] for row in scores], classes, names)
    return figure


def _heat(
    axes: Axes, values: np.ndarray, texts: Sequence[Sequence[str]], rows: Sequence[str], columns: Sequence[str]
) -> None:
    """A matrix of values from 0 to 1 as colors, with a text in each cell."""
    axes.pcolormesh(values, cmap="Blues", vmin=0, vmax=1, edgecolors="#ffffff", linewidth=0.5)
    axes.invert_yaxis()
    names = [_short(name) for name in columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=55, ha="right", rotation_mode="anchor")
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_short(name) for name in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y, x in np.ndindex(values.shape):
        color = "#ffffff" if values[y, x] > 0.7 else "#10131a"
        axes.text(x + 0.5, y + 0.5, texts[y][x], color=color, fontsize=7, ha="center", va="center")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def examples(chosen: ExampleSet) -> Figure:
    """Test images, each with what it is and what it was taken for: those that are right, then those that are wrong."""
    rows = [row[start : start + PER_ROW] for row in chosen for start in range(0, len(row), PER_ROW)]
    figure, grid = _figure(5.6, 1.3 * len(rows), nrows=len(rows), ncols=PER_ROW)
    for axes in grid.flat:
        axes.axis("off")
    for row, line in zip(rows, grid, strict=True):
        for example, axes in zip(row, line, strict=False):
            if example is not None:
                _example(axes, example)
    return figure


def _example(axes: Axes, example: Example) -> None:
    photograph = example.image.shape[0] > 72  # larger than it is shown, so the reader's browser reduces it
    axes.imshow(example.image, cmap="gray", vmin=0, vmax=255, interpolation="none" if photograph else None)
    axes.set_title(_short(example.actual), fontsize=8, loc="center", pad=3)
    confidence = f"{100 * example.confidence:.0f} %"
    wrong = example.actual != example.predicted
    text = f"{_short(example.predicted)}\n{confidence}" if wrong else confidence
    axes.text(0.5, -0.06, text, transform=axes.transAxes, ha="center", va="top", fontsize=8,
              color=RANDOM if wrong else INK)  # fmt: skip


def feature_maps(maps: Mapping[str, np.ndarray]) -> Figure:
    """Rows of maps, each [maps, height, width] by its title, each map from its smallest value to its largest."""
    n = max(len(row) for row in maps.values())
    figure = Figure(figsize=(5.6, 0.86 * len(maps)), layout="constrained")
    for part, (title, row) in zip(figure.subfigures(len(maps), 1, squeeze=False).flat, maps.items(), strict=True):
        part.suptitle(title, fontsize=8, x=0.01, ha="left")
        for axes, image in zip(part.subplots(1, n, squeeze=False).flat, row, strict=False):
            axes.imshow(image, cmap="gray")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=LINE)
    return figure


def calibration(configurations: Mapping[str, Configuration], bins: Mapping[str, np.ndarray]) -> Figure:
    """Accuracy over confidence: of each configuration [bins, 3] with mean confidence, accuracy and number of images."""
    figure, [[axes]] = _figure(4.6, 4.6)
    axes.plot([0, 100], [0, 100], color=SOFT, linewidth=1)
    for name, values in bins.items():
        confidence, right, _ = values[values[:, 2] >= FEWEST].T
        axes.plot(100 * confidence, 100 * right, **_look(configurations[name]) | {"markersize": 4, "linewidth": 1.2})
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence, %", ylabel="accuracy, %", aspect="equal")
    axes.grid()
    _legend(figure, configurations)
    return figure


def labels(configurations: Mapping[str, Configuration], found: LabelEfficiency) -> Figure:
    """Test error over labeled images: every seed as a dot, and their mean as a line.

    The arrow is what is saved: from what the one needs to what the other needs for the same error.
    """
    answer = found.pretraining_savings or found.feature_savings
    looks = {
        name: _look(configurations[name]) if name in configurations else _probe_look(name) for name in found.curves
    }
    figure, [[axes]] = _figure(5.6, 4.4)
    for name, curve in found.curves.items():
        look = looks[name]
        errors = _percent_wrong(curve.correct.mean(2), curve)
        axes.plot(curve.budgets, _percent_wrong(curve.accuracy, curve), **look)
        if errors.shape[1] > 1:
            axes.plot(curve.budgets, errors, linestyle="", marker=".", markersize=3, color=look["color"], alpha=0.6)
    axes.set(xscale="log", yscale="log")
    if answer is not None:
        _arrow(axes, found, answer)
    _log_ticks(axes.xaxis, sorted({n for curve in found.curves.values() for n in curve.budgets}))
    _log_ticks(axes.yaxis, [1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100])
    axes.set(xlabel="labeled images", ylabel="test error, %")
    axes.grid()
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, handlelength=3)
    return figure


def _percent_wrong(accuracies: np.ndarray, curve: LearningCurve) -> np.ndarray:
    """Errors in percent; for a logarithmic axis none is half an image."""
    return 100 * (1 - accuracies).clip(0.5 / curve.correct.shape[2])


def _probe_look(name: str) -> dict[str, Any]:
    color = PRETRAINED if name == PROBES[True] else RANDOM
    return {"color": color, "linestyle": (0, (1, 1.5)), "marker": "x", "linewidth": 1.2}


def _arrow(axes: Axes, found: LabelEfficiency, answer: LabelSavings) -> None:
    """From a number of labels to what the reference needs, or to the edge where that is more than there are."""
    n = found.curves[answer.headline].budgets[answer.headline_index]
    height = _percent_wrong(found.curves[answer.headline].accuracy, found.curves[answer.headline])[
        answer.headline_index
    ]
    needed = answer.needed[answer.headline][answer.headline_index]
    about = round_needed(needed, n).value
    if about <= n:
        return
    end = min(needed.value, answer.range[1])
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (end, height), (n, height), arrowprops=arrow, zorder=5)
    # Written below the curves, where there is room.
    bottom = axes.get_ylim()[0] * 0.8
    axes.plot([n, n], [bottom, height], [end, end], [bottom, height], color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    text = format_count(about, answer.range, lambda labels: labels - n)
    axes.annotate(f"{text} labels saved", ((n * end) ** 0.5, bottom), (0, 4), textcoords="offset points", ha="center",
                  va="bottom", fontsize=8)  # fmt: skip
    axes.set_ylim(bottom=bottom)


def _log_ticks(axis: Any, ticks: Sequence[float]) -> None:
    """Plain numbers at ``ticks``, as far as they are on the axis."""
    low, high = axis.get_view_interval()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_ticks(shown, [f"{tick:,.10g}" for tick in shown])
    axis.set_minor_formatter(NullFormatter())
    axis.set_ticks([], minor=True)


def as_svg(draw: Any, *arguments: Any) -> str:
    """What ``draw``, one of the functions above, draws of ``arguments``: an SVG element."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # text stays text, and the reader's browser has the glyph
        return _svg(draw(*arguments))
