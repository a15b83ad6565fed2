"""The committed results: what they promise, and that what is here now agrees with them."""

import json
import subprocess

import numpy as np
import pytest

from benchmarks.speed import line
from headstart import files, params
from headstart.results import comparison, content, label_efficiency, label_savings
from headstart.results.label_savings import LearningCurve
from headstart.results.tables import percent
from scripts import record, results

from .conftest import ROOT
from .studies import read_curves

SETTINGS = params.read(ROOT / "params.yaml")
EXPERIMENTS, STUDIES = SETTINGS.configurations, SETTINGS.studies


def committed(name: str) -> dict[str, float]:
    """A metrics file as git has it."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:metrics/quick/{name}.json"], cwd=ROOT, capture_output=True, check=True
    )
    return json.loads(shown.stdout)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_fresh_run_agrees_with_the_committed_one(name):
    """After `make study` in a fresh clone the files are new; before it they are the committed ones."""
    now = json.loads((ROOT / f"metrics/quick/{name}.json").read_text(encoding="utf-8"))
    tolerance = 0.03 if name.startswith("random") else 0.01
    assert now.keys() == committed(name).keys()
    assert now["test_accuracy"] == pytest.approx(committed(name)["test_accuracy"], abs=tolerance)


def test_pretrained_weights_are_worth_eight_points_and_reach_87_percent():
    accuracy = {name: committed(name)["test_accuracy"] for name in EXPERIMENTS}
    assert accuracy["pretrained-finetuned-adam"] >= 0.87
    for name in EXPERIMENTS:
        if name.startswith("pretrained"):
            assert accuracy[name] - accuracy[name.replace("pretrained", "random")] >= 0.08, name


def table(study: str) -> list[str]:
    """Format the results in git as the rows of a Markdown table, the best test accuracy first."""
    found = results.read(study, "HEAD")
    compared = content.is_published_size(STUDIES[study])
    published = content.published_results(files.read_csv(ROOT / "docs/published.csv")) if compared else {}
    ranked = sorted(EXPERIMENTS, key=lambda name: found.metrics[name]["test_accuracy"], reverse=True)
    return [_markdown_row(name, found, published) for name in ranked]


def _markdown_row(name: str, found: results.Results, published: dict) -> str:
    """Format accuracies in percent, with their confidence interval, and the published one if there are any."""
    configuration, metrics, accuracy = EXPERIMENTS[name], found.metrics[name], found.accuracy[name]
    override = f" ({configuration.finetune_from})" if configuration.finetune_from else ""
    cells = [
        str(configuration.pretrained).lower(),
        f"{str(configuration.finetuning).lower()}{override}",
        configuration.optimizer,
        f"{metrics['average_train_loss']:.4f}",
        f"{metrics['average_train_accuracy']:.4f}",
        f"{percent(accuracy.value, 2)} ({percent(accuracy.low)} to {percent(accuracy.high)})",
    ]
    if published:
        published_metrics = published.get(configuration)
        cells.append(percent(published_metrics["test_accuracy"], 2) if published_metrics else "–")
    return f"| {' | '.join(cells)} |"


def test_the_readme_shows_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(row in readme for row in table("resnet50"))
    summary = results.read("quick", "HEAD").summary
    assert all(f"{100 * value:+.1f}" in readme for effect, value in summary.items() if effect.startswith("effect_"))


def simple_effects(study: str) -> dict[str, comparison.Difference]:
    """The differences between configurations that differ in one factor, by factor and the other levels."""
    found = results.read(study, "HEAD")
    correct = {name: np.stack(list(seeds.values())) for name, seeds in found.right.items()}
    return {
        f"{difference.name} − {difference.baseline}": difference
        for difference in comparison.differences(EXPERIMENTS, correct)
    }


def test_the_readme_begins_with_the_accuracy_that_pretrained_weights_are_worth():
    opening = (ROOT / "README.md").read_text(encoding="utf-8").partition("![")[0]
    accuracy = results.read("resnet50", "HEAD").accuracy
    gain = simple_effects("resnet50")["pretrained-finetuned-adam − random-finetuned-adam"].gain
    numbers = [f"**{100 * gain.value:.1f} points", f"{100 * gain.low:.1f} to {100 * gain.high:.1f} points"]
    numbers += [
        f"{100 * accuracy[name].value:.1f} %" for name in ("pretrained-finetuned-adam", "random-finetuned-adam")
    ]
    numbers += [f"{files.read_json(record.path('resnet50'))['weights']['imagenet_top1_percent']} %"]
    for number in numbers:
        assert number in opening, number


@pytest.mark.parametrize("file", ["README.md", "docs/results.md"])
def test_readme_and_docs_have_the_simple_effects(file):
    text = (ROOT / file).read_text(encoding="utf-8")
    for name, effect in simple_effects("resnet50").items():
        if effect.factor != "optimizer" or file != "README.md":
            assert f"| +{100 * effect.gain.value:.1f} " in text, name


@pytest.mark.parametrize("study", ["quick", "quick-seeds", "resnet50", "labels"])
def test_the_docs_say_what_a_study_was_made_with(study):
    made = files.read_json(record.path(study))
    docs = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    part = docs.partition(f"\n## Study `{study}`\n")[2].partition("\n## ")[0]
    for fact in (made["weights"]["name"], f"{made['weights']['imagenet_top1_percent']} %", made["weights"]["sha256"],
                 *made["device"], *made["precision"], *made["torch"], made["finished_at"][:10]):  # fmt: skip
        assert fact in part, fact
    assert all(commit[:7] in part for commit in made["commit"])


@pytest.mark.parametrize("study", STUDIES)
def test_the_docs_show_the_committed_results(study):
    found = results.read(study, "HEAD")
    docs = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    part = docs.partition(f"\n## Study `{study}`\n")[2].partition("\n## ")[0]
    if found is None:
        assert "has not been run" in part
        return
    assert all(row in part for row in table(study))
    for effect, value in found.summary.items():
        if effect.startswith("effect_"):
            assert f"{100 * value:+.1f}" in part, effect


def test_the_docs_show_the_committed_errors_over_labels():
    docs = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    found: dict[str, dict[int, list[float]]] = {}
    for row in files.read_csv(ROOT / "plots/labels/labels.csv"):
        found.setdefault(row["configuration"], {}).setdefault(int(row["label_budget"]), []).append(float(row["error"]))
    assert len(found) == 10
    for name, by_count in found.items():
        errors = [f"{np.mean(errors) + 1e-6:.1f}" for errors in by_count.values()]  # a mean of 85.95 is shown as 86.0
        assert f"| {name} | {' | '.join(errors)} |" in docs


@pytest.mark.parametrize(
    "study", [study for study in STUDIES if (ROOT / f"metrics/{study}/correct_by_budget.csv").is_file()]
)  # older records do not have the file
def test_the_committed_correctness_gives_the_committed_errors_and_labels_needed(study):
    setting = STUDIES[study]
    rows, right = (files.read_csv(ROOT / f"metrics/{study}/{name}.csv") for name in ("correct_by_budget", "correct"))
    curves: dict[str, LearningCurve] = read_curves(rows, right, full_budget=setting.full_budget)
    found = label_efficiency.LabelEfficiency(
        curves=curves, stopped_early={}, pretraining_savings=None, feature_savings=None, power_laws={}
    )
    [_, *errors] = label_efficiency.curves_table(found, setting.seeds)
    assert [[str(cell) for cell in row] for row in errors] == files.read_rows(ROOT / f"plots/{study}/labels.csv")[1:]
    needed = files.read_csv(ROOT / f"plots/{study}/labels_saved.csv")
    assert needed
    for row in needed:
        curve = curves[row["configuration"]]
        again = label_savings.labels_needed(curves[row["reference"]], {"": curve})[""]
        assert f"{again[list(curve.budgets).index(int(row['label_budget']))].value:.1f}" == row["needed"]


def test_the_docs_show_the_committed_benchmark():
    found = json.loads((ROOT / "benchmarks/results/2-cpu-cores-quick.json").read_text(encoding="utf-8"))
    docs = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert [row["configuration"] for row in found["configurations"]] == list(EXPERIMENTS)
    for row in found["configurations"]:
        assert line(row) in docs
    for way, ratio in found["times_as_fast_as"].items():
        apart = found["times_as_fast_in_processes"][way]
        assert f"{ratio:.1f} times as fast as the {way} loop; with a process a stage {apart:.1f} times." in docs
    for row in found["configurations"]:  # Headstart's side is the same study as the committed one
        assert row["headstart"]["test_accuracy"] == pytest.approx(
            committed(row["configuration"])["test_accuracy"], abs=0.0001
        )


def test_the_docs_show_the_simulated_coverage_and_width():
    docs = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    rows = files.read_json(ROOT / "benchmarks/results/labels-saved.json")["coverage"]
    for study, plain in zip(rows[::2], rows[1::2], strict=True):
        cells = [f"{100 * row['covered']:.1f} | {width(row['factor'])}" for row in (study, plain)]
        assert f"| {study['seeds']} | {' | '.join(cells)} |" in docs


def width(factor: str) -> str:
    return "open" if factor == "inf" else f"{float(factor):.1f}"


def test_the_docs_show_what_reading_pictures_took():
    docs = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    for row in files.read_json(ROOT / "benchmarks/results/pictures-2-cpu-cores-quick.json")["stages"]:
        assert (
            f"| {row['pictures']:,} | {row['image_size']} | {row['seconds']:.1f} | "
            f"{row['pictures'] / row['seconds']:,.0f} | {row['peak_ram_mb']:,} | {row['images_mb']:,} |"
        ) in docs
