"""Compare all configurations that params.yaml names: the study in four numbers, the page, and what DVC plots."""

import sys

from headstart import files
from headstart.console import run_cli
from headstart.results import comparison, label_efficiency, report
from pipeline.provenance import Run
from stages import collect, paths


def main(name: str = "") -> None:
    run = Run("compare", name)
    settings = run.settings
    found = collect.read(settings)
    drawn = report.render_figures(found)
    with files.atomic_write(f"report/{found.study}") as folder:
        (folder / "figures").mkdir(parents=True)
        for name, svg in drawn.items():
            files.write_text(folder / "figures" / f"{name}.svg", svg)
        files.write_text(folder / "index.html", report.render_html(found, drawn))
        files.write_text(folder / "results.md", report.markdown_table(found.rows))
    for name, table in report.tables(found).items():
        files.write_csv(f"plots/{found.study}/{name}.csv", table[0], table[1:])
    right = report.correct_table(found)
    files.write_csv(f"metrics/{found.study}/correct.csv", right[0], right[1:])
    correct = label_efficiency.correct_table(found.by_labels, found.setting.seeds)
    files.write_csv(f"metrics/{found.study}/correct_by_budget.csv", correct[0], correct[1:])
    files.write_json(f"metrics/{found.study}/majority-baseline.json", {"test_accuracy": round(found.majority[1], 4)})
    for name in report.TRACKED_FIGURES:
        files.write_text(f"plots/{found.study}/{name}.svg", drawn.get(name, report.NO_FIGURE))
    summary = comparison.summary_metrics(found.findings, found.validation) | label_efficiency.metrics(found.by_labels)
    files.write_json(f"metrics/{found.study}/study.json", summary)
    run.finish()
    if left := paths.stale_outputs_message(settings):
        print(f"headstart: {left}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
