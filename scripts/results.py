"""The committed results of any revision: what the tables and the report of a change are made of."""

import csv
import io
import json
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path

from headstart.comparison import Estimate
from headstart.console import UserError


@dataclass(frozen=True)
class Results:
    """What git has of a study: fractions, not percent."""

    accuracy: dict[str, Estimate]
    metrics: dict[str, dict[str, float]]
    published: dict[str, float]
    study: dict[str, float]


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
    metrics = {row["configuration"]: _show(revision, f"metrics/{scale}/{row['configuration']}.json") for row in rows}
    return Results(
        accuracy={row["configuration"]: _estimate(row) for row in rows},
        metrics={name: json.loads(found) for name, found in metrics.items() if found},
        published={row["configuration"]: float(row["published"]) / 100 for row in rows if row["published"]},
        study=json.loads(study),
    )


def _estimate(row: dict[str, str]) -> Estimate:
    return Estimate(*(float(row[column]) / 100 for column in ("accuracy", "low", "high")))


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


def difference(after: Estimate, before: Estimate) -> Estimate:
    """``after`` minus ``before`` with the interval that theirs give: Newcombe 1998, method 10.

    Their test images are taken for independent samples. They are the same ones, so the interval is too wide rather
    than too narrow.
    """
    value = after.value - before.value
    low = value - math.hypot(after.value - after.low, before.high - before.value)
    high = value + math.hypot(after.high - after.value, before.value - before.low)
    return Estimate(value, low, high)
