"""The results of a study as a page and as a Markdown table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from headstart.params import Experiment

PUBLISHED_SECONDS = 7_008.95  # all eight trainings of the published study, on one A6000


@dataclass(frozen=True)
class Row:
    """One configuration, measured and published; None where it was not published."""

    name: str
    experiment: Experiment
    metrics: Mapping[str, float]
    run: Mapping[str, Any]
    published: Mapping[str, float] | None


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """The best test accuracy first."""
    return sorted(rows, key=lambda row: row.metrics["test_accuracy"], reverse=True)


def published_results(rows: Sequence[Mapping[str, str]]) -> dict[tuple[bool, bool, str], dict[str, float]]:
    """The published table, read from its CSV file, by (pretrained, finetuning, optimizer)."""
    results = {}
    for row in rows:
        key = (row["pretrained"] == "true", row["finetuning"] == "true", row["optimizer"])
        metrics = ("average_train_loss", "average_train_accuracy", "test_accuracy")
        results[key] = {name: float(row[name]) for name in metrics}
    return results


def page(rows: Sequence[Row], *, scale: str, setting: Mapping[str, Any], study: Mapping[str, float]) -> str:
    """The results as one self-contained HTML page."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("headstart").joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        rows=sort_rows(rows),
        scale=scale,
        setting=setting,
        study=study,
        seconds=sum(row.run["seconds"] for row in rows),
        published_seconds=PUBLISHED_SECONDS,
        runs=unique_runs(rows),
    )


def unique_runs(rows: Sequence[Row]) -> dict[str, str]:
    """How the configurations were run: each fact once, and all its values where they differ."""
    facts = ("device", "precision", "torch", "python")
    found = {fact: sorted({str(row.run[fact]) for row in rows}) for fact in facts}
    weights = {
        f"{row.run['weights']} (SHA-256 {row.run['weights_sha256']})" for row in rows if row.experiment.pretrained
    }
    return {fact: ", ".join(values) for fact, values in {**found, "weights": sorted(weights)}.items() if values}


def markdown_table(rows: Sequence[Row]) -> str:
    """The results as a Markdown table, accuracies in percent."""
    lines = [
        "| pretrained | finetuning | optimizer | avg train loss | avg train accuracy | test accuracy % | published % |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in sort_rows(rows):
        published = f"{100 * row.published['test_accuracy']:.2f}" if row.published else "–"
        cells = [
            str(row.experiment.pretrained).lower(),
            str(row.experiment.finetuning).lower(),
            row.experiment.optimizer,
            f"{row.metrics['average_train_loss']:.4f}",
            f"{row.metrics['average_train_accuracy']:.4f}",
            f"{100 * row.metrics['test_accuracy']:.2f}",
            published,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
