"""The committed results: they are plausible and consistent, and the tables in README and docs show them."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import line
from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.results import comparison, evaluation, label_efficiency, label_savings, tables
from headstart.results.label_efficiency import PROBES, LabelEfficiency
from scripts import doc_tables, results

from .conftest import ROOT

SETTINGS = params.read(ROOT / "params.yaml")
CONFIGURATIONS, STUDIES = SETTINGS.configurations, SETTINGS.studies
COMMITTED = [study for study in STUDIES if (ROOT / f"metrics/{study}/study.json").is_file()]


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    """Work in the repository. After `make study`, its files may differ from the committed ones, which HEAD has."""
    monkeypatch.chdir(ROOT)


def committed(path: str) -> dict:
    """Return the content of a JSON file in HEAD."""
    return json.loads(results.read_text(path, "HEAD"))


def cells(table: str) -> list[list[str]]:
    """Return the rows of a Markdown table, without the header and the rule."""
    return [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text.replace("−", "-").replace(",", ""))]


def section(study: str) -> str:
    """Return the section of docs/results.md on ``study``."""
    return (
        Path("docs/results.md")
        .read_text(encoding="utf-8")
        .partition(f"\n## Study `{study}`\n")[2]
        .partition("\n## ")[0]
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_fresh_run_agrees_with_the_committed_one(name):
    """After `make study` in a fresh clone the files are new; before it they are the committed ones."""
    path = f"metrics/quick/{name}.json"
    fresh = json.loads(Path(path).read_text(encoding="utf-8"))
    tolerance = 0.03 if name.startswith("random") else 0.01
    assert fresh.keys() == committed(path).keys()
    assert fresh["test_accuracy"] == pytest.approx(committed(path)["test_accuracy"], abs=tolerance)


def test_pretrained_weights_gain_eight_points_and_reach_87_percent():
    accuracy = {name: committed(f"metrics/quick/{name}.json")["test_accuracy"] for name in CONFIGURATIONS}
    assert accuracy["pretrained-finetuned-adam"] >= 0.87
    for name in CONFIGURATIONS:
        if name.startswith("pretrained"):
            assert accuracy[name] - accuracy[name.replace("pretrained", "random")] >= 0.08, name


@pytest.mark.parametrize("study", COMMITTED)
def test_committed_correctness_gives_the_committed_accuracies(study):
    study_results = results.read(study, "HEAD")
    for name, correct in results.stack_seeds(study_results.correct).items():
        accuracy = correct.mean()
        assert committed(f"metrics/{study}/{name}.json")["test_accuracy"] == pytest.approx(accuracy, abs=5.1e-5), name
        assert study_results.accuracy[name].value == pytest.approx(accuracy, abs=5.1e-5), name
        assert study_results.accuracy[name].low < accuracy < study_results.accuracy[name].high


@pytest.mark.parametrize(
    "study", [study for study in STUDIES if (ROOT / f"metrics/{study}/correct_by_budget.csv").is_file()]
)  # older records do not have the file
def test_committed_correctness_gives_the_committed_errors_and_labels_needed(study):
    settings = STUDIES[study]
    by_budget, correct = (files.read_csv(f"metrics/{study}/{name}.csv") for name in ("correct_by_budget", "correct"))
    curves = results.read_curves(by_budget, correct, full_budget=settings.full_budget)
    efficiency = LabelEfficiency(
        curves=curves, stopped_early={}, pretraining_savings=None, feature_savings=None, power_laws={}, gains=[],
        pixels_win=[],
    )  # fmt: skip
    [_, *errors] = label_efficiency.curves_table(efficiency, settings.seeds)
    assert [[str(cell) for cell in row] for row in errors] == [
        list(row.values()) for row in files.read_csv(f"plots/{study}/labels.csv")
    ]
    rows = files.read_csv(f"plots/{study}/labels_saved.csv")
    assert bool(rows) == bool(settings.label_budgets or settings.probe_budgets)
    for row in rows:
        curve = curves[row["configuration"]]
        needed = label_savings.labels_needed(curves[row["reference"]], {"": curve})[""]
        assert f"{needed[list(curve.budgets).index(int(row['label_budget']))].value:.1f}" == row["needed"]


def test_tables_in_readme_and_docs_show_the_committed_results():
    doc_tables.main("--check", "--revision", "HEAD")


@pytest.mark.parametrize("study", STUDIES)
def test_docs_have_the_configurations_of_every_committed_study(study):
    assert (f"<!-- table: {study}-configurations -->" in section(study)) == (study in COMMITTED)


@pytest.mark.parametrize("study", COMMITTED)
def test_docs_have_the_main_effects_and_the_provenance_of_every_committed_study(study):
    content = committed(f"metrics/{study}/record.json")
    facts = [content["weights"]["name"], content["weights"]["sha256"], str(content["weights"]["imagenet_top1_percent"])]
    facts += [*content["device"], *content["precision"], *content["torch"], content["finished_at"][:10]]
    facts += [commit[:7] for commit in content["commit"]]
    summary = results.read(study, "HEAD").summary
    facts += [f"{100 * value:+.1f}" for key, value in summary.items() if key.startswith("effect_")]
    assert [fact for fact in facts if fact not in section(study)] == []


@pytest.mark.parametrize("study", COMMITTED)
def test_configuration_table_has_the_metrics(study):
    rows = cells(doc_tables.build(f"{study}-configurations", "HEAD"))
    configurations = results.configurations(committed(f"metrics/{study}/record.json"))
    assert len(rows) == len(configurations)
    for name, configuration in configurations.items():
        factors = [
            str(configuration.pretrained).lower(),
            str(configuration.finetuning).lower(),
            configuration.optimizer,
        ]
        [row] = [row for row in rows if row[:3] == factors]
        metrics = committed(f"metrics/{study}/{name}.json")
        assert numbers(row[3]) == [metrics["average_train_loss"]]
        assert numbers(row[4]) == [metrics["average_train_accuracy"]]
        accuracy, low, high = numbers(row[5])
        assert accuracy == pytest.approx(100 * metrics["test_accuracy"], abs=0.0101)  # both are rounded
        assert low < accuracy < high
    accuracies = [numbers(row[5])[0] for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)


def test_published_accuracies_are_those_of_the_published_table():
    published = {
        (row["pretrained"], row["finetuning"], row["optimizer"]): 100 * float(row["test_accuracy"])
        for row in files.read_csv("docs/published.csv")
    }
    rows = cells(doc_tables.build("full-configurations", "HEAD"))
    assert {tuple(row[:3]): numbers(row[6])[0] for row in rows} == pytest.approx(published)


def accuracy(study: str, name: str) -> float:
    return 100 * committed(f"metrics/{study}/{name}.json")["test_accuracy"]


def test_gain_table_has_both_accuracies_and_their_difference():
    rows = cells(doc_tables.build("full-gain", "HEAD"))
    pairs = [(layers, optimizer) for layers in ("finetuned", "frozen") for optimizer in ("adam", "sgd")]
    assert [row[:2] for row in rows] == [
        ["last stage + classifier", "Adam"], ["last stage + classifier", "SGD"],
        ["classifier only", "Adam"], ["classifier only", "SGD"],
    ]  # fmt: skip
    for (layers, optimizer), row in zip(pairs, rows, strict=True):
        values = [accuracy("full", f"{weights}-{layers}-{optimizer}") for weights in ("pretrained", "random")]
        assert [numbers(cell)[0] for cell in row[2:4]] == pytest.approx(values)
        gain, low, high = numbers(row[4])
        assert gain == pytest.approx(values[0] - values[1], abs=0.0501)
        assert 0 < low < gain < high


def test_quick_table_has_the_accuracies_in_order():
    rows = cells(doc_tables.build("quick", "HEAD"))
    assert {row[0]: numbers(row[1])[0] for row in rows} == pytest.approx(
        {name: accuracy("quick", name) for name in CONFIGURATIONS}
    )
    assert [row[0] for row in rows] == sorted(CONFIGURATIONS, key=lambda name: -accuracy("quick", name))
    assert all(numbers(row[2])[0] < numbers(row[1])[0] < numbers(row[2])[1] for row in rows)


@pytest.mark.parametrize(
    ("factor", "label", "columns", "names"),
    [
        ("pretrained", "pretrained − random", ["fine-tuned, Adam", "fine-tuned, SGD", "frozen, Adam", "frozen, SGD"],
         ["{}-finetuned-adam", "{}-finetuned-sgd", "{}-frozen-adam", "{}-frozen-sgd"]),
        ("finetuning", "fine-tuned − frozen", ["pretrained, Adam", "pretrained, SGD", "random, Adam", "random, SGD"],
         ["pretrained-{}-adam", "pretrained-{}-sgd", "random-{}-adam", "random-{}-sgd"]),
        ("optimizer", "Adam − SGD, each with its own hyperparameters",
         ["pretrained, fine-tuned", "pretrained, frozen", "random, fine-tuned", "random, frozen"],
         ["pretrained-finetuned-{}", "pretrained-frozen-{}", "random-finetuned-{}", "random-frozen-{}"]),
    ],
)  # fmt: skip
def test_effect_table_has_the_differences_of_accuracies(factor, label, columns, names):
    table = doc_tables.build(f"full-{factor}", "HEAD")
    assert table.splitlines()[0].strip("| ").split(" | ")[1:] == columns
    [[first, *gains]] = cells(table)
    assert first == label
    levels = {
        "pretrained": ("pretrained", "random"),
        "finetuning": ("finetuned", "frozen"),
        "optimizer": ("adam", "sgd"),
    }
    for name, gain in zip(names, gains, strict=True):
        higher, lower = (accuracy("full", name.format(level)) for level in levels[factor])
        value, low, high = numbers(gain)
        assert value == pytest.approx(higher - lower, abs=0.0501)
        assert low < value < high


def test_error_table_has_the_means_over_seeds():
    rows = cells(doc_tables.build("labels-errors", "HEAD"))
    assert [name for name, *_ in rows] == ["pretrained", "from-scratch", *PROBES.values()]
    table = results.read_csv("plots/labels/labels.csv", "HEAD")
    for name, *shown in rows:
        errors = np.array([float(row["error"]) for row in table if row["configuration"] == name]).reshape(6, 5)
        assert [float(value) for value in shown] == pytest.approx(errors.mean(1), abs=0.0501)
    full = dict(zip((row[0] for row in rows), (float(row[-1]) for row in rows), strict=True))
    for name in ("pretrained", "from-scratch"):
        assert full[name] == pytest.approx(100 - accuracy("labels", name), abs=0.0501)


@pytest.fixture
def small_docs(tmp_path, monkeypatch) -> Path:
    """Return a folder with the results of `quick`, a README with its table, and docs without tables."""
    shutil.copytree(ROOT / "metrics/quick", tmp_path / "metrics/quick")
    shutil.copytree(ROOT / "plots/quick", tmp_path / "plots/quick")
    files.write_text(tmp_path / "docs/results.md", "No table.\n")
    files.write_text(tmp_path / "README.md", "Before.\n\n<!-- table: quick -->\nold\n<!-- end -->\n\nAfter.\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tables_are_rewritten_and_the_rest_stays(small_docs, capsys):
    with pytest.raises(UserError) as error:
        doc_tables.main("--check")
    assert str(error.value) == "tables are out of date: README.md: quick. Run `make docs`, and commit the changes."
    assert "old" in Path("README.md").read_text(encoding="utf-8")
    doc_tables.main()
    assert capsys.readouterr().out == "README.md: quick\n"
    table = doc_tables.build("quick", None)
    assert Path("README.md").read_text(encoding="utf-8") == (
        f"Before.\n\n<!-- table: quick -->\n{table}\n<!-- end -->\n\nAfter.\n"
    )
    assert Path("docs/results.md").read_text(encoding="utf-8") == "No table.\n"
    doc_tables.main("--check")
    assert capsys.readouterr().out == "All tables are up to date.\n"


UNPAIRED = "README.md: unpaired marker. A table begins with <!-- table: NAME --> and ends with <!-- end -->. Got"
UNKNOWN = f"README.md: unknown table. Choose one of {', '.join([*doc_tables.TABLES, *doc_tables.NETWORK_TABLES])}. Got"
NO_RESULTS = "the study labels has no results, or no record. Run `dvc repro` and `make record`."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: quick -->\n| a |\n", f"{UNPAIRED} <!-- table: quick -->."),
        ("<!-- table: quick -->\n<!-- table: quick -->\n<!-- end -->\n", f"{UNPAIRED} <!-- table: quick -->."),
        ("text\n<!-- end -->\n", f"{UNPAIRED} <!-- end -->."),
        ("<!-- table: quik -->\n<!-- end -->\n", f"{UNKNOWN} quik."),
        ("<!-- table: labels-errors -->\n<!-- end -->\n", NO_RESULTS),
    ],
)
def test_wrong_markers_and_missing_results_are_one_line_errors(small_docs, text, message):
    files.write_text("README.md", text)
    with pytest.raises(UserError) as error:
        doc_tables.main()
    assert str(error.value) == message
    assert Path("README.md").read_text(encoding="utf-8") == text


def test_check_fails_with_one_line_and_status_1(small_docs):
    with pytest.raises(SystemExit) as stopped:
        run_cli(doc_tables.main, "--check")
    message = "headstart: tables are out of date: README.md: quick. Run `make docs`, and commit the changes."
    assert stopped.value.code == message  # Python prints it and exits with status 1


def test_docs_show_the_committed_benchmark():
    benchmark = json.loads(Path("benchmarks/results/2-cpu-cores-quick.json").read_text(encoding="utf-8"))
    docs = Path("docs/performance.md").read_text(encoding="utf-8")
    assert [row["configuration"] for row in benchmark["configurations"]] == list(CONFIGURATIONS)
    for row in benchmark["configurations"]:
        assert line(row) in docs
        # Headstart's side is the same study as the committed one.
        assert 100 * row["headstart"]["test_accuracy"] == pytest.approx(
            accuracy("quick", row["configuration"]), abs=0.01
        )
    for ratios in (benchmark["times_as_fast_as"], benchmark["times_as_fast_in_processes"]):
        for ratio in ratios.values():
            assert re.search(rf"(?<![\d.]){ratio:.1f}(?![\d.]*\d)", docs)


def test_docs_show_the_simulated_coverage_and_width():
    docs = Path("docs/method.md").read_text(encoding="utf-8")
    for row in files.read_json("benchmarks/results/labels-saved.json")["rows"]:
        factor = float(row["factor"])
        assert (
            f"| {row['curves']} | {len(row['budgets'])} | {row['seeds']} | {row['needed']:,.0f} | "
            f"{100 * row['covered_needed']:.1f} | {'open' if factor == math.inf else f'{factor:.1f}'} | "
            f"{100 * row['covered_gain']:.1f} | {row['gain_points']:.1f} | {100 * row['covered_mean']:.1f} | "
            f"{row['mean_points']:.1f} |"
        ) in docs
        assert min(row["covered_needed"], row["covered_gain"], row["covered_mean"]) >= 0.93


def test_docs_show_the_time_of_reading_images():
    docs = Path("docs/performance.md").read_text(encoding="utf-8")
    for row in files.read_json("benchmarks/results/pictures-2-cpu-cores-quick.json")["stages"]:
        assert (
            f"| {row['pictures']:,} | {row['image_size']} | {row['seconds']:.1f} | "
            f"{row['pictures'] / row['seconds']:,.0f} | {row['peak_ram_mb']:,} | {row['images_mb']:,} |"
        ) in docs


@pytest.mark.parametrize("study", sorted(set(doc_tables.NETWORK_TABLES.values())))
def test_committed_comparisons_of_networks_follow_from_their_predictions(study):
    rows = {row["network"]: row for row in results.read_csv(f"metrics/{study}/networks.csv", "HEAD")}
    correct: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for row in results.read_csv(f"metrics/{study}/networks_correct.csv", "HEAD"):
        bits = evaluation.decode_bits(row["correct"], int(row["images"]))
        correct.setdefault((row["network"], row["training"], row["label_budget"]), []).append(bits)
    full = max((key[2] for key in correct), key=int)
    probes = {name: np.stack(correct[name, "probe", full]) for name in rows}
    best = max(probes, key=lambda name: probes[name].mean())
    for name, row in rows.items():
        accuracy = comparison.accuracy(probes[name])
        assert [row[key] for key in ("accuracy", "low", "high")] == [tables.percent(value, 2) for value in accuracy]
        if row["gap"]:
            assert float(row["gap"]) == pytest.approx(100 * (probes[best].mean() - probes[name].mean()), abs=0.006)
        if row["finetuned"]:
            finetuned = comparison.accuracy(np.stack(correct[name, "finetuned", full]))
            assert row["finetuned"] == tables.percent(finetuned.value, 2)
        for key in row.keys() & {f"accuracy_{n}" for _, _, n in correct}:
            values = np.stack(correct[name, "probe", key.removeprefix("accuracy_")])
            assert row[key] == tables.percent(values.mean(), 2)
