"""The committed results of any revision: what the tables and the report of a change are made of."""

import csv
import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart.console import UserError
from headstart.results import comparison, evaluation
from headstart.results.comparison import Estimate, PairedComparison


@dataclass(frozen=True)
class Results:
    """What git has of a study: fractions, not percent."""

    accuracy: dict[str, Estimate]
    metrics: dict[str, dict[str, float]]
    published: dict[str, float]
    summary: dict[str, Any]  # numbers, and of a bound which it is
    right: dict[str, dict[int, np.ndarray]]  # by configuration and seed: which test images are right, bool [N]
    majority: float | None = None  # accuracy of the majority baseline; older records do not have it


def read(study: str, revision: str | None = None) -> Results | None:
    """Read the results of ``study`` of a git ``revision``, or of the working tree; None where there are none.

    Raises:
        UserError: there is no such revision.
    """
    text = _show(revision, f"plots/{study}/accuracy.csv")
    summary = _show(revision, f"metrics/{study}/study.json")
    if text is None or summary is None:
        return None
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [row["configuration"] for row in rows]
    metrics = {name: _show(revision, f"metrics/{study}/{name}.json") for name in names}
    majority = _show(revision, f"metrics/{study}/majority-baseline.json")
    return Results(
        accuracy={row["configuration"]: _estimate(row) for row in rows},
        metrics={name: json.loads(found) for name, found in metrics.items() if found},
        published={row["configuration"]: float(row["published"]) / 100 for row in rows if row["published"]},
        summary=json.loads(summary),
        right=_right(_show(revision, f"metrics/{study}/correct.csv") or ""),
        majority=json.loads(majority)["test_accuracy"] if majority else None,
    )


def _estimate(row: dict[str, str]) -> Estimate:
    return Estimate(*(float(row[column]) / 100 for column in ("accuracy", "low", "high")))


def _right(text: str) -> dict[str, dict[int, np.ndarray]]:
    found: dict[str, dict[int, np.ndarray]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        right = evaluation.decode_bits(row["correct"], int(row["images"]))
        found.setdefault(row["configuration"], {})[int(row["seed"])] = right
    return found


def _show(revision: str | None, path: str) -> str | None:
    """A file as git has it in ``revision``, or as it is; None where it is not there."""
    if revision is None:
        return Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
    if not exists(revision):
        raise UserError(f"git knows no revision {revision!r} here: fetch it, or name another one")
    shown = subprocess.run(["git", "show", f"{revision}:{path}"], capture_output=True, text=True, check=False)
    return None if shown.returncode else shown.stdout


def exists(revision: str) -> bool:
    """Whether git knows ``revision``."""
    command = ["git", "rev-parse", "--quiet", "--verify", f"{revision}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def changes(after: Results, before: Results) -> dict[str, PairedComparison]:
    """What each configuration has gained, tested on the same images with the networks of the same seeds.

    Left out is what has nothing to be tested with, and what has the same images right: it is known not to differ, and
    would make the correction for many tests stricter.
    """
    different: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, right in after.right.items():
        earlier = before.right.get(name, {})
        seeds = [seed for seed in right if seed in earlier and len(right[seed]) == len(earlier[seed])]
        if seeds:
            now, then = (np.stack([found[seed] for seed in seeds]) for found in (right, earlier))
            if not np.array_equal(now, then):
                different[name] = now, then
    return dict(zip(different, comparison.compare_pairs(list(different.values())), strict=True))
