"""The committed results of any revision: what the tables and the report of a change are made of."""

import csv
import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart import comparison, evaluation
from headstart.comparison import Estimate, Gain
from headstart.console import UserError


@dataclass(frozen=True)
class Results:
    """What git has of a study: fractions, not percent."""

    accuracy: dict[str, Estimate]
    metrics: dict[str, dict[str, float]]
    published: dict[str, float]
    study: dict[str, float]
    right: dict[str, np.ndarray]  # bool [seeds, test images]: which of them each configuration has right


def read(scale: str, revision: str | None = None) -> Results | None:
    """Read the results at ``scale`` of a git ``revision``, or of the working tree; None where there are none.

    Raises:
        UserError: there is no such revision.
    """
    text = _show(revision, f"plots/{scale}/accuracy.csv")
    study = _show(revision, f"metrics/{scale}/study.json")
    if text is None or study is None:
        return None
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [row["configuration"] for row in rows]
    metrics = {name: _show(revision, f"metrics/{scale}/{name}.json") for name in names}
    return Results(
        accuracy={row["configuration"]: _estimate(row) for row in rows},
        metrics={name: json.loads(found) for name, found in metrics.items() if found},
        published={row["configuration"]: float(row["published"]) / 100 for row in rows if row["published"]},
        study=json.loads(study),
        right=_right(_show(revision, f"metrics/{scale}/right.csv") or ""),
    )


def _estimate(row: dict[str, str]) -> Estimate:
    return Estimate(*(float(row[column]) / 100 for column in ("accuracy", "low", "high")))


def _right(text: str) -> dict[str, np.ndarray]:
    seeds: dict[str, list[np.ndarray]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        seeds.setdefault(row["configuration"], []).append(evaluation.unpack(row["right"], int(row["images"])))
    return {name: np.stack(right) for name, right in seeds.items()}


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


def changes(after: Results, before: Results) -> dict[str, Gain]:
    """What each configuration has gained, tested on the same images, where git knows which of them were right."""
    names = [
        name for name, right in after.right.items()
        if name in before.right and before.right[name].shape[1] == right.shape[1]
    ]  # fmt: skip
    found = comparison.gains([(after.right[name], before.right[name]) for name in names])
    return dict(zip(names, found, strict=True))
