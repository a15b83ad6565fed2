"""The report as figures and as one HTML page."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader
from markupsafe import Markup, escape

from headstart.results import examples, figures, label_efficiency, recipes
from headstart.results.comparison import ALPHA, Hyperparameters, PairedComparison
from headstart.results.content import (
    FEW_CLASSES,
    PUBLISHED_TITLE,
    PartialData,
    ReportData,
    classes_by_f1,
    confounders,
    learning_curves,
    mistakes_by_frequency,
    run_facts,
)
from headstart.results.label_efficiency import LabelSavings
from headstart.results.networks import NetworksData
from headstart.results.overview import LabelFactor, StudyOverview
from headstart.results.tables import figure_tables, percent, points

TRACKED_FIGURES = ("accuracy", "learning_curves", "examples", "labels")  # in git, for README and pull requests
NO_FIGURE = '<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>\n'  # `labels` if there is one label budget


def render_figures(content: ReportData) -> dict[str, str]:
    """Return all figures as SVG, by name."""
    analysis, configurations = content.analysis, content.configurations
    published = {row.name: row.published["test_accuracy"] for row in content.rows if row.published}
    details = {name: content.details[name] for name in configurations}
    f1 = np.stack([detail.f1 for detail in details.values()], axis=1)
    labels = classes_by_f1(content)[:FEW_CLASSES]
    calibration = {name: detail.calibration for name, detail in details.items()}
    svg = figures.as_svg
    rendered = {
        "accuracy": svg(figures.accuracy, configurations, analysis.accuracy, published),
        "learning_curves": svg(figures.learning_curves, configurations, learning_curves(content)),
        "confusion_best": svg(figures.confusion, details[content.best.name].confusion, content.classes),
        "confusion_worst": svg(figures.confusion, details[content.worst.name].confusion, content.classes),
        "f1": svg(figures.f1, f1[labels], [content.classes[label] for label in labels], list(details)),
        "examples": svg(figures.examples, content.examples),
        "calibration": svg(figures.calibration, configurations, calibration),
    }
    if analysis.effects:
        rendered["effects"] = svg(figures.effects, analysis)
    if content.label_efficiency:
        rendered["labels"] = svg(figures.labels, configurations, content.label_efficiency)
    if learning_rates := recipes.learning_rates(configurations, content.study.n_epochs):
        rendered["learning_rates"] = svg(figures.learning_rates, configurations, learning_rates)
    for name, images in content.augmented_images.items():
        rendered[f"augmentation_{name}"] = svg(figures.image_grid, images)
    if content.feature_maps:
        rendered["feature_maps"] = svg(figures.feature_maps, content.feature_maps)
    return rendered


def render_html(content: ReportData, rendered: Mapping[str, str]) -> str:
    """Return the report as one HTML page without external files, with the figures of ``render_figures``."""
    template = _environment().get_template("report.html")
    differences = content.analysis.differences
    return template.render(
        content=content,
        style=_resource("report.css"),
        figure=partial(_inline, rendered),
        numbers=figure_tables(content),
        significant=[difference for difference in differences if difference.is_significant],
        not_significant=[difference for difference in differences if not difference.is_significant],
        p_value=format_p_value,
        mistakes=mistakes_by_frequency(content.details[content.best.name].confusion, content.classes),
        published_title=PUBLISHED_TITLE,
        confounders=[key.replace("_", " ") for key in confounders(content.analysis)],
        facts=run_facts(content),
        savings_rows=label_efficiency.savings_rows,
        number=_format_needed,
        not_stopped=[name for name, n in content.stopped_early.items() if n < len(content.study.seeds)],
        has_unstopped_runs=label_efficiency.has_unstopped_runs,
        has_marks=partial(_has_marks, content),
        alpha=ALPHA,
        gain_rows=label_efficiency.gain_rows(content.label_efficiency) if content.label_efficiency else [],
        recipes=recipes.table(content.configurations),
        max_example_classes=examples.MAX_CLASSES,
    )


def render_networks_html(content: NetworksData, svg: str) -> str:
    """Return the page of a comparison of networks, with the figure ``svg``."""
    return (
        _environment()
        .get_template("networks.html")
        .render(
            content=content,
            ranking=content.ranking,
            style=_resource("report.css"),
            figure=partial(_inline, {"networks": svg}),
            p_value=format_p_value,
            alpha=ALPHA,
        )
    )


def render_overview_html(studies: Sequence[StudyOverview], svg: str) -> str:
    """Return the page over several studies, with the figure ``svg``."""
    return (
        _environment()
        .get_template("overview.html")
        .render(
            studies=studies,
            style=_resource("report.css"),
            figure=partial(_inline, {"forest": svg}),
            format_factor=format_label_factor,
        )
    )


def render_partial_html(content: PartialData) -> str:
    """Return the page of a study whose trainings have not all finished, without figures."""
    return _environment().get_template("partial.html").render(content=content, style=_resource("report.css"))


def _environment() -> Environment:
    """Return the environment of the templates in this package."""
    loader = FunctionLoader(_resource)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": points, "hyperparameters": format_hyperparameters}
    return environment


def format_hyperparameters(hyperparameters: Hyperparameters) -> str:
    """Format the hyperparameters in which two configurations differ, for example "lr 0.01, not 0.001"."""

    def format_value(value: Any) -> str:
        return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

    return "; ".join(
        f"{key.replace('_', ' ')} {format_value(value)}, not {format_value(baseline)}"
        for key, (value, baseline) in hyperparameters.items()
    )


def format_label_factor(label_factor: LabelFactor) -> str:
    """Format the factor, for example "3.3 (2 to more) with 500 labels"; the interval of one seed is left out."""

    def format_end(value: float) -> str:
        return "more" if value == math.inf else "less" if value == 0 else f"{value:.1f}"

    value, low, high = label_factor.factor
    interval = "" if math.isnan(low) else f" ({format_end(low)} to {format_end(high)})"
    beyond = {math.inf: "more than all labels", 0: "less than the fewest labels"}
    return f"{beyond.get(value, format_end(value))}{interval} with {label_factor.budget:,} labels"


def format_p_value(difference: PairedComparison) -> str:
    return "< 0.0001" if difference.p < 0.0001 else f"{difference.p:.4f}"


def _format_needed(needed: float, bounds: tuple[int, int]) -> str:
    return label_efficiency.format_count(label_efficiency.two_digits(needed), bounds, lambda labels: labels)


def _has_marks(content: ReportData, savings: LabelSavings) -> bool:
    """Return whether a row in the table of ``savings`` is marked because not all of its trainings stopped early."""
    efficiency = content.label_efficiency
    assert efficiency is not None
    return any(
        label_efficiency.has_unstopped_runs(efficiency, savings, savings.headline, index)
        for index in range(len(savings.needed[savings.headline]))
    )


def _resource(name: str) -> str:
    return files("headstart.results").joinpath(name).read_text(encoding="utf-8")


def _inline(rendered: Mapping[str, str], name: str, label: str) -> Markup:
    """Return the figure ``name`` with the page's colors and width, and with ids that are unique on the page."""
    svg = rendered[name]
    for color, variable in figures.VARIABLES.items():
        svg = svg.replace(color, variable)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    opening = f'<svg role="img" aria-label="{escape(label)}" class="{name}"'
    return Markup(re.sub(r'<svg width="[^"]*" height="[^"]*"', lambda _: opening, svg, count=1))
