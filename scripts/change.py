"""Print a Markdown report for a pull request: the results of HEAD compared with those of BASE."""

import subprocess
import sys

from headstart import params
from headstart.console import UserError, run_cli
from headstart.results.tables import percent
from scripts import argument_parser, results
from scripts.results import Results

DIGITS = 4  # of metrics; metrics/ has as many
ONE_SEED = ("expected to hold on other test images", (
    "Expected to hold: exact McNemar test on the same test images, p < 0.05 after Holm's correction, and a 95% CI that "
    "excludes 0. With one seed in common, the test covers the choice of test images only, not the variance between "
    "trainings."
))  # fmt: skip
SEVERAL_SEEDS = ("significant", (
    "Significant: p < 0.05 after Holm's correction, and a 95% CI that excludes 0. Both cover test images and seeds."
))  # fmt: skip


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("base", metavar="BASE", help="git revision to compare with, for example main")
    parser.add_argument(
        "head", metavar="HEAD", nargs="?", default="HEAD", help="git revision of the new results (default: HEAD)"
    )
    parser.add_argument(
        "--figures-url", metavar="URL", help="base URL of the files of HEAD; adds the figures to the report"
    )
    options = parser.parse_args(arguments)
    print(report(options.base, options.head, options.figures_url), end="")


def report(base: str, head: str, figures_url: str | None = None) -> str:
    """Return the report as Markdown.

    Raises:
        UserError: git or DVC cannot read one of the revisions.
    """
    parts = ["## Results of this change", _diff("params", base, head) or "No parameters changed."]
    metrics_files: list[str] = []
    for study in params.read().studies:
        after, before = results.read(study, head), results.read(study, base)
        if after is None:
            continue
        parts += [f"### Study `{study}`", _accuracy_table(before, after)]
        if figures_url:
            parts.append(f"![Test accuracy of every configuration]({figures_url}/plots/{study}/accuracy.svg)")
        if before is not None:
            names = {"study", "majority-baseline", *before.metrics, *after.metrics}
            metrics_files += [f"metrics/{study}/{name}.json" for name in sorted(names)]
    if metrics_files:
        parts.append(_diff("metrics", base, head, f"--precision={DIGITS}", "--targets", *metrics_files))
    return "\n\n".join(part for part in parts if part) + "\n"


def _diff(kind: str, base: str, head: str, *options: str) -> str:
    """Return the folded table of `dvc params diff` or `dvc metrics diff`; empty if there are no differences."""
    command = ["dvc", kind, "diff", "--md", *options, "--", base, head]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if result.returncode:
        raise UserError(f"`dvc {kind} diff {base} {head}` failed: {result.stderr.strip()}")
    columns, rule, *rows = result.stdout.splitlines()
    rows = sorted(row for row in rows if row)  # DVC's order of files varies
    if not rows:
        return ""
    summary = f"<details><summary>Changed {kind}: {len(rows)}</summary>"
    return "\n".join([summary, "", columns, rule, *rows, "", "</details>"])


def _accuracy_table(before: Results | None, after: Results) -> str:
    """Return test accuracy before and after, and whether the difference is significant."""
    if before is None:
        return "These results are new."
    if before.accuracy == after.accuracy:
        return "No test accuracy changed."
    ranked = sorted(after.accuracy, key=lambda name: after.accuracy[name].value, reverse=True)
    comparisons = results.compare_results(after, before)
    column, note = SEVERAL_SEEDS if all(match.n_seeds > 1 for match in comparisons.values()) else ONE_SEED
    lines = [
        f"| configuration | before % | after % | points | 95% CI | {column} |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name in ranked:
        new = percent(after.accuracy[name].value, 2)
        if name not in before.accuracy:
            lines.append(f"| {name} | – | {new} | new | | |")
            continue
        old = percent(before.accuracy[name].value, 2)
        points = 100 * (after.accuracy[name].value - before.accuracy[name].value)
        comparison = comparisons.get(name)
        if comparison is None:
            interval, verdict = "", "no: the same images are correct" if points == 0 else "not tested"
        else:
            interval = f"{100 * comparison.gain.low:+.2f} to {100 * comparison.gain.high:+.2f}"
            verdict = "**yes**" if comparison.is_significant else "no"
        lines.append(f"| {name} | {old} | {new} | {points:+.2f} | {interval} | {verdict} |")
    removed = {name: estimate for name, estimate in before.accuracy.items() if name not in after.accuracy}
    lines += [f"| {name} | {percent(estimate.value, 2)} | – | removed | | |" for name, estimate in removed.items()]
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
