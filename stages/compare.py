"""Compare all configurations of a study: write the report, the tables for DVC's plots and the summary metrics."""

import sys

from headstart import files
from headstart.console import run_cli
from headstart.results import comparison, label_efficiency, page, tables
from pipeline.provenance import Run
from stages import collect, paths


def main(name: str = "") -> None:
    run = Run("compare", name)
    content = collect.collect(run.settings)
    study, efficiency = content.study_name, content.label_efficiency
    figures = page.render_figures(content)
    with files.atomic_write(f"report/{study}") as folder:
        (folder / "figures").mkdir(parents=True)
        for figure, svg in figures.items():
            files.write_text(folder / "figures" / f"{figure}.svg", svg)
        files.write_text(folder / "index.html", page.render_html(content, figures))
    csv_files = {f"plots/{study}/{table}.csv": rows for table, rows in tables.plot_tables(content).items()}
    csv_files[f"metrics/{study}/correct.csv"] = tables.correct_table(content)
    csv_files[f"metrics/{study}/correct_by_budget.csv"] = label_efficiency.correct_table(
        efficiency, content.study.seeds
    )
    for path, (header, *rows) in csv_files.items():
        files.write_csv(path, header, rows)
    for figure in page.TRACKED_FIGURES:
        files.write_text(f"plots/{study}/{figure}.svg", figures.get(figure, page.NO_FIGURE))
    files.write_json(f"metrics/{study}/majority-baseline.json", {"test_accuracy": round(content.majority[1], 4)})
    summary = comparison.summary_metrics(content.analysis, content.validation)
    files.write_json(f"metrics/{study}/study.json", summary | label_efficiency.metrics(efficiency))
    run.finish()
    if message := paths.stale_outputs_message(run.settings):
        print(f"headstart: {message}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
