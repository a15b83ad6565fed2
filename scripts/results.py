"""Read the results of a study from the working tree or from a git revision, and compare two of them."""

import csv
import io
import json
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart import params
from headstart.console import UserError
from headstart.params import Configuration
from headstart.results import comparison, evaluation
from headstart.results.comparison import Estimate, PairedComparison
from headstart.results.label_savings import LearningCurve


@dataclass(frozen=True)
class Results:
    """The results of a study, as fractions, not percent."""

    accuracy: dict[str, Estimate]
    metrics: dict[str, dict[str, float]]
    published: dict[str, float]
    summary: dict[str, Any]  # numbers, and whether `labels_saved` is a bound
    correct: dict[str, dict[int, np.ndarray]]  # by configuration and seed: correctness of each test image, bool [N]
    majority: float | None = None  # accuracy of the majority baseline; older records do not have it


def read(study: str, revision: str | None = None) -> Results | None:
    """Read the results of ``study`` from a git ``revision``, or from the working tree; None if there are none.

    Raises:
        UserError: there is no such revision.
    """
    rows = read_csv(f"plots/{study}/accuracy.csv", revision)
    summary = read_text(f"metrics/{study}/study.json", revision)
    if not rows or summary is None:
        return None
    names = [row["configuration"] for row in rows]
    metrics = {name: read_text(f"metrics/{study}/{name}.json", revision) for name in names}
    majority = read_text(f"metrics/{study}/majority-baseline.json", revision)
    return Results(
        accuracy={row["configuration"]: _estimate(row) for row in rows},
        metrics={name: json.loads(text) for name, text in metrics.items() if text},
        published={row["configuration"]: float(row["published"]) / 100 for row in rows if row["published"]},
        summary=json.loads(summary),
        correct=_decode(read_csv(f"metrics/{study}/correct.csv", revision)),
        majority=json.loads(majority)["test_accuracy"] if majority else None,
    )


def read_record(study: str, revision: str | None = None) -> dict[str, Any] | None:
    """Read `metrics/<study>/record.json`; None if there is none."""
    text = read_text(f"metrics/{study}/record.json", revision)
    return None if text is None else json.loads(text)


def read_csv(path: str, revision: str | None = None) -> list[dict[str, str]]:
    """Read the rows of a CSV file; empty if there is no such file."""
    return list(csv.DictReader(io.StringIO(read_text(path, revision) or "")))


def read_text(path: str, revision: str | None = None) -> str | None:
    """Read a file from a git ``revision``, or from the working tree; None if there is no such file."""
    if revision is None:
        return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
    if not exists(revision):
        raise UserError(f"unknown git revision. Fetch it, or choose another one. Got {revision!r}.")
    command = ["git", "show", f"{revision}:{path}"]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return None if result.returncode else result.stdout


def exists(revision: str) -> bool:
    """Return whether git knows ``revision``."""
    command = ["git", "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def stack_seeds(correct: dict[str, dict[int, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the correctness of each configuration as one array, bool [seeds, images]."""
    return {name: np.stack(list(by_seed.values())) for name, by_seed in correct.items()}


def configurations(record: dict[str, Any]) -> dict[str, Configuration]:
    """Return the configurations that a record contains."""
    return {name: params.validate(values, Configuration, {}, name) for name, values in record["configurations"].items()}


def read_curves(
    subset_rows: Sequence[Mapping[str, str]], full_rows: Sequence[Mapping[str, str]], *, full_budget: int
) -> dict[str, LearningCurve]:
    """Return the learning curves of a study from its committed files.

    Args:
        subset_rows: of ``metrics/<study>/correct_by_budget.csv``.
        full_rows: of ``metrics/<study>/correct.csv``.
        full_budget: the label budget of ``full_rows``.
    """
    names = {row["configuration"] for row in subset_rows}
    full_rows = [{**row, "label_budget": str(full_budget)} for row in full_rows if row["configuration"] in names]
    curves: dict[str, dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for row in [*subset_rows, *full_rows]:
        correct = evaluation.decode_bits(row["correct"], int(row["images"]))
        curves[row["configuration"]][int(row["label_budget"])].append(correct)
    return {
        name: LearningCurve(list(by_budget), np.array(list(by_budget.values()))) for name, by_budget in curves.items()
    }


def compare_results(after: Results, before: Results) -> dict[str, PairedComparison]:
    """Test the gain of each configuration, on the same test images and with networks of the same seeds.

    Configurations without a common seed are left out. So are those with identical correctness: their gain is known to
    be 0, and their tests would make Holm's correction stricter for the others.
    """
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, correct in after.correct.items():
        earlier = before.correct.get(name, {})
        seeds = [seed for seed in correct if seed in earlier and len(correct[seed]) == len(earlier[seed])]
        if seeds:
            now, then = (np.stack([by_seed[seed] for seed in seeds]) for by_seed in (correct, earlier))
            if not np.array_equal(now, then):
                pairs[name] = now, then
    return dict(zip(pairs, comparison.compare_pairs(list(pairs.values())), strict=True))


def _estimate(row: dict[str, str]) -> Estimate:
    return Estimate(*(float(row[column]) / 100 for column in ("accuracy", "low", "high")))


def _decode(rows: list[dict[str, str]]) -> dict[str, dict[int, np.ndarray]]:
    correct: dict[str, dict[int, np.ndarray]] = {}
    for row in rows:
        bits = evaluation.decode_bits(row["correct"], int(row["images"]))
        correct.setdefault(row["configuration"], {})[int(row["seed"])] = bits
    return correct
