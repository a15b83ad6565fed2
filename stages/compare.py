"""Compare all configurations that params.yaml names: the study in four numbers, and the results page."""

from dataclasses import asdict
from pathlib import Path

from headstart import comparison, files, params, report
from headstart.console import run


def main() -> None:
    settings = params.read()
    published = report.published_results(files.read_csv("docs/published.csv"))
    rows = [
        report.Row(
            name=name,
            experiment=experiment,
            metrics=files.read_json(f"metrics/{settings.scale}/{name}.json"),
            run=files.read_json(f"models/{settings.scale}/{name}/run.json"),
            published=published.get((experiment.pretrained, experiment.finetuning, experiment.optimizer)),
        )
        for name, experiment in settings.experiments.items()
    ]
    accuracy = {row.name: row.metrics["test_accuracy"] for row in rows}
    study = comparison.study_metrics(settings.experiments, accuracy)
    with files.replacing(f"report/{settings.scale}") as folder:
        folder.mkdir()
        page = report.page(rows, scale=settings.scale, setting=asdict(settings.current), study=study)
        Path(folder, "index.html").write_text(page, encoding="utf-8")
        Path(folder, "results.md").write_text(report.markdown_table(rows), encoding="utf-8")
    files.write_json(f"metrics/{settings.scale}/study.json", study)


if __name__ == "__main__":
    run(main)
