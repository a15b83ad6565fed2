"""Write what a change does to the study, as Markdown for a pull request.

    python -m scripts.change BASE [HEAD] [--pictures URL]

BASE and HEAD are git revisions, HEAD the checked-out one if there is none. URL is where the repository's files of HEAD
can be seen, for the picture; without it there is none.
"""

import argparse
import json
import subprocess
from typing import Any

from headstart import params
from headstart.console import UserError, run_cli
from headstart.results.tables import percent
from scripts import results
from scripts.results import Results

ONE_SEED = ("differs on other test images", (
    "One seed in common: exact McNemar tests on the same test images, with Holm's correction, and a 95 % interval that "
    "excludes 0. They say what other test images would change, not what another training would."
))  # fmt: skip
SEVERAL_SEEDS = ("significant", (
    "Significant: p < 0.05 after Holm's correction, and a 95 % interval that excludes 0. Both are over test images and "
    "seeds."
))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--pictures", metavar="URL")
    options = parser.parse_args()
    print(report(options.base, options.head, options.pictures), end="")


def report(base: str, head: str, pictures: str | None = None) -> str:
    """The Markdown.

    Raises:
        UserError: git or DVC cannot read one of the revisions.
    """
    parts = ["## What this change does to the study", _parameters(base, head)]
    for study in params.read().studies:
        after, before = results.read(study, head), results.read(study, base)
        if after is None:
            continue
        parts += [f"### Study `{study}`", _accuracies(before, after)]
        if pictures:
            parts.append(f"![Test accuracy of every configuration]({pictures}/plots/{study}/accuracy.svg)")
        if before is not None:
            parts.append(_metrics(before, after))
    return "\n\n".join(part for part in parts if part) + "\n"


def _parameters(base: str, head: str) -> str:
    found = subprocess.run(["dvc", "params", "diff", "--json", base, head], capture_output=True, text=True, check=False)
    if found.returncode:
        raise UserError(f"dvc cannot compare {base} with {head}: {found.stderr.strip()}")
    changes: dict[str, dict[str, Any]] = json.loads(found.stdout)
    lines = [
        f"| `{name}` | {_value(change, 'old')} | {_value(change, 'new')} |"
        for file in sorted(changes)
        for name, change in sorted(changes[file].items())
    ]
    if not lines:
        return "No parameter is changed."
    return "\n".join(["| parameter | before | after |", "|---|---:|---:|", *lines])


def _value(change: dict[str, Any], when: str) -> str:
    value = change.get(when)
    return "–" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _accuracies(before: Results | None, after: Results) -> str:
    """Test accuracy before and after, and whether the difference is significant."""
    if before is None:
        return "These results are new."
    if before.accuracy == after.accuracy:
        return "No test accuracy is changed."
    ranked = sorted(after.accuracy, key=lambda name: after.accuracy[name].value, reverse=True)
    tested = results.changes(after, before)
    column, note = SEVERAL_SEEDS if all(gain.n_seeds > 1 for gain in tested.values()) else ONE_SEED
    lines = [
        f"| configuration | before % | after % | points | 95 % interval | {column} |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name in ranked:
        now = percent(after.accuracy[name].value, 2)
        if name not in before.accuracy:
            lines.append(f"| {name} | – | {now} | new | | |")
            continue
        old = before.accuracy[name].value
        points = after.accuracy[name].value - old
        change = tested.get(name)
        if change is None:
            interval, verdict = "", "no: the same images are right" if points == 0 else "not tested"
        else:
            interval = f"{100 * change.gain.low:+.2f} to {100 * change.gain.high:+.2f}"
            verdict = "**yes**" if change.is_significant else "no"
        lines.append(f"| {name} | {percent(old, 2)} | {now} | {100 * points:+.2f} | {interval} | {verdict} |")
    lines += [f"| {name} | {percent(old.value, 2)} | – | removed | | |" for name, old in before.accuracy.items()
              if name not in after.accuracy]  # fmt: skip
    return "\n".join([*lines, "", note])


def _metrics(before: Results, after: Results) -> str:
    """Every other number that is changed, folded away."""
    old, new = ({"study": found.summary, **found.metrics} for found in (before, after))
    lines = [
        f"| {name} | {metric} | {old[name][metric]:.4f} | {value:.4f} | {value - old[name][metric]:+.4f} |"
        for name, metrics in new.items()
        for metric, value in metrics.items()
        if name in old and metric in old[name] and old[name][metric] != value and not isinstance(value, str)
    ]
    if not lines:
        return ""
    table = ["| file | metric | before | after | difference |", "|---|---|---:|---:|---:|", *lines]
    return "\n".join(
        [f"<details><summary>All {len(lines)} metrics that changed</summary>", "", *table, "", "</details>"]
    )


if __name__ == "__main__":
    run_cli(main)
