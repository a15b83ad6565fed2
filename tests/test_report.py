import copy
import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from headstart import files
from headstart.params import Study
from headstart.results import comparison, evaluation, figures, page, tables
from headstart.results.content import (
    FEW_CLASSES,
    ReportData,
    is_comparable_with_published,
    learning_curves,
    mistakes_by_frequency,
    published_results,
)
from headstart.results.page import render_figures, render_html

from .conftest import ROOT
from .studies import SETTINGS, rows, study
from .test_comparison import CORRECT, PUBLISHED


@pytest.fixture(scope="module")
def content() -> ReportData:
    return study()


@pytest.fixture(scope="module")
def rendered(content) -> dict[str, str]:
    return render_figures(content)


def test_published_table_is_in_the_repository():
    assert {row.name: row.metrics["test_accuracy"] for row in rows()} == PUBLISHED


def text(html: str) -> str:
    """Return the visible text: no tags, single spaces."""
    body = re.sub(r"<(style|svg).*?</\1>", "", html[html.index("<body") :], flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_report_shows_the_results(content, rendered):
    shown = text(render_html(content, rendered))
    assert "+19.3 to +41.2 percentage points of test accuracy" in shown
    assert "11 of the 12 differences between configurations that differ in one factor are expected to hold on" in shown
    assert "Exceptions: random-finetuned-sgd vs. random-frozen-sgd." in shown
    assert shown.index("Simple effects") < shown.index("Main effects and interactions")
    assert "Pretrained weights: +30.1 points (95% CI" in shown
    assert "Adam vs. SGD: +0.4 points" in shown
    assert "Differs on other test images? Other differences" in shown
    assert "ignificant" not in shown
    assert "majority baseline (always T-shirt/top) 10.00 – – –" in shown
    assert shown.index("84.62") < shown.index("43.45")
    assert "seconds" not in shown  # a report with times would differ from run to run
    assert "7,008.95" not in shown  # the published study has another size
    assert "ublished" not in shown
    assert (
        "The last effect is not that of the optimizer alone: the optimizers also differ in hyperparameters "
        "(momentum, weight decay)."
    ) in shown
    assert "momentum none, not 0.9; weight decay none, not 0.1" in shown
    assert "each pair compares two trained networks" in shown
    assert "some &lt;weights&gt; (SHA-256 abc)" in shown
    assert "One seed was run" in shown
    assert "fine-tuned from blocks.5 (12,810 parameters)" in shown
    for heading in ("Learning curves", "Error analysis", "Examples", "Feature maps", "Calibration", "Provenance"):
        assert heading in shown


def test_published_results_are_shown_only_in_studies_of_their_size(content):
    published_size = dataclasses.replace(content, study=SETTINGS.studies["resnet50"])
    html = render_html(published_size, render_figures(published_size))
    assert html.count(">Published</th>") == 3
    assert "“Pretrained Models Experiment Learnings”, at 224 pixels" in text(html)
    comparable = [name for name, study in SETTINGS.studies.items() if is_comparable_with_published(study)]
    assert comparable == ["resnet50", "full"]


def test_report_is_self_contained(content, rendered):
    html = render_html(content, rendered)
    assert len(html) < 3_000_000
    assert "http://" not in html
    assert "https://" not in html
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', html):
        assert max(target) in ids
    assert html.count("<svg") == len(rendered) == 9
    assert html.count("<details>") == 5
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', html)) == 9


def test_figures_are_valid_and_deterministic_svg(content, rendered):
    for name, svg in rendered.items():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg", name
        assert len(svg) < 300_000
    assert render_figures(content) == rendered


def test_figures_show_the_numbers_and_names(rendered):
    for accuracy in PUBLISHED.values():
        assert f">{100 * accuracy:.1f}<" in rendered["accuracy"]
    assert ">+30.1<" in rendered["effects"]
    for name in PUBLISHED:
        assert f">{name}<" in rendered["learning_curves"]


def test_report_of_several_seeds(content):
    study: Study = dataclasses.replace(content.study, seeds=(0, 1))
    two_seeds = {name: np.concatenate([correct, correct]) for name, correct in CORRECT.items()}
    analysis = comparison.analyze(SETTINGS.configurations, two_seeds)
    several = dataclasses.replace(content, study=study, analysis=analysis)
    shown = text(render_html(several, render_figures(several)))
    assert "2 seeds, 10 classes, 10,000 test images" in shown
    assert "One seed" not in shown
    assert "Significant? Other differences" in shown
    assert "McNemar" not in shown
    assert "other test images" not in shown


def test_no_validation_curve_without_validation_images(content):
    study = dataclasses.replace(content.study, validation_images=0, probe_budgets=())
    assert learning_curves(dataclasses.replace(content, study=study)).keys() == {"training accuracy"}


def test_report_of_one_configuration(content):
    name = "pretrained-frozen-adam"
    single = dataclasses.replace(
        content,
        rows=[row for row in content.rows if row.name == name],
        analysis=comparison.analyze({name: SETTINGS.configurations[name]}, {name: CORRECT[name]}),
    )
    shown = text(render_html(single, render_figures(single)))
    assert "No two configurations differ in exactly one factor" in shown


def test_report_without_feature_maps(content, rendered):
    without = dataclasses.replace(content, feature_maps={})
    figures_without = render_figures(without)
    assert "feature_maps" not in figures_without
    assert "Feature maps" not in text(render_html(without, figures_without))
    assert "Feature maps" in text(render_html(content, rendered))


def test_per_image_correctness_survives_the_table(content):
    correct = np.random.default_rng(0).random((2, 9_999)) < 0.7
    study = dataclasses.replace(content.study, seeds=(0, 4))
    header, *table = tables.correct_table(dataclasses.replace(content, correct={"a": correct}, study=study))
    assert header == ["configuration", "seed", "images", "correct"]
    assert [row[:3] for row in table] == [["a", 0, 9_999], ["a", 4, 9_999]]
    assert len(table[0][3]) < 1_700
    for row, seed_correct in zip(table, correct, strict=True):
        assert (evaluation.decode_bits(row[3], 9_999) == seed_correct).all()
    # By hand: 1100 0001 is 0xC1, 1000 0000 is 0x80; base64 of the two bytes.
    assert evaluation.encode_bits(np.array([1, 1, 0, 0, 0, 0, 0, 1, 1], dtype=bool)) == "wYA="
    with pytest.raises(ValueError, match="16 bits for 8 images"):
        evaluation.decode_bits("wYA=", 8)


def test_formatted_hyperparameters():
    assert page.format_hyperparameters({"lr": (0.01, 0.001)}) == "lr 0.01, not 0.001"
    assert page.format_hyperparameters({}) == ""


def test_tables_for_dvc(content):
    plots = tables.plot_tables(content)
    assert plots["accuracy"][:2] == [
        ["configuration", "pretrained", "finetuning", "optimizer", "accuracy", "low", "high", "published"],
        ["pretrained-finetuned-adam", "true", "true", "Adam", "84.62", "83.900", "85.314", "84.62"],
    ]
    assert len(plots["accuracy"]) == 1 + 8
    assert len(plots["learning_curves"]) == 1 + 8 * 3 * 2
    assert ["pretrained-frozen-sgd", "validation accuracy", 2, "63.25"] in plots["learning_curves"]
    assert len(plots["confusion"]) == 1 + 2 * 100
    total = sum(row[3] for row in plots["confusion"][1:101])
    assert total == content.details["pretrained-finetuned-adam"].confusion.sum()


def test_numbers_of_figures_are_in_tables(content):
    numbers = tables.figure_tables(content)
    best = content.best.name
    assert numbers["learning_curves"][0][:3] == ["accuracy, %", "training, epoch 1", "training, epoch 2"]
    assert numbers["learning_curves"][1][:3] == [best, "74.6", "79.6"]
    assert numbers["confusion_best"][3][3] == content.details[best].confusion[2, 2]
    hardest = content.details[best].f1.argmin()
    assert numbers["f1"][1][:2] == [content.classes[hardest], f"{100 * content.details[best].f1[hardest]:.1f}"]
    assert [float(row[1]) for row in numbers["f1"][1:]] == sorted(float(row[1]) for row in numbers["f1"][1:])


def test_accuracy_figure_pairs_configurations_that_differ_in_initial_weights_only(content):
    name = "random-frozen-adam"
    configurations = content.configurations | {name: dataclasses.replace(content.configurations[name], lr=0.01)}
    svg = figures.as_svg(figures.accuracy, configurations, content.analysis.accuracy, {})
    labels = [label for label in (name, "frozen-adam", "pretrained-frozen-adam") if f">{label}<" in svg]
    assert labels == [name, "pretrained-frozen-adam"]


def test_report_of_other_optimizers(content):
    """A third optimizer must not stop the report after all trainings."""
    names = ("random-finetuned-sgd", "random-frozen-sgd")
    configurations = copy.deepcopy(SETTINGS.configurations)
    for name in names:
        object.__setattr__(configurations[name], "optimizer", "AdamW")  # which params.yaml does not take yet
    changed = dataclasses.replace(
        content,
        rows=[dataclasses.replace(row, configuration=configurations[row.name]) for row in content.rows],
        analysis=comparison.analyze(configurations, CORRECT),
    )
    shown = text(render_html(changed, render_figures(changed)))
    assert "Adam vs. AdamW or SGD: " in shown
    assert "squares SGD, diamonds other optimizers" in shown
    assert "diamonds" not in text(render_html(content, render_figures(content)))


def test_report_names_a_single_pair(content):
    names = ("pretrained-frozen-adam", "random-frozen-adam")
    configurations = {name: SETTINGS.configurations[name] for name in names}
    analysis = comparison.analyze(configurations, {name: CORRECT[name] for name in names})
    pair = dataclasses.replace(content, rows=[row for row in content.rows if row.name in names], analysis=analysis)
    shown = text(render_html(pair, render_figures(pair)))
    assert "+40.5 percentage points of test accuracy (95% CI +39.6 to +41.5): the gain of pretrained over" in shown
    assert "random initial weights (pretrained-frozen-adam vs. random-frozen-adam)." in shown


def test_published_results_are_matched_by_learning_rate():
    published = published_results(files.read_csv(ROOT / "docs/published.csv"))
    frozen = SETTINGS.configurations["pretrained-frozen-sgd"]
    assert published[frozen]["test_accuracy"] == 0.7325
    assert dataclasses.replace(frozen, lr=0.01) not in published


def test_mistakes_by_frequency_by_hand():
    counts = np.array([[9, 2, 0], [3, 5, 2], [0, 0, 4]])
    assert mistakes_by_frequency(counts, ["a", "b", "c"]) == [
        ("b", "a", 3, 0.3),
        ("a", "b", 2, 2 / 11),
        ("b", "c", 2, 0.2),
    ]
    assert mistakes_by_frequency(np.diag(counts.diagonal()), ["a", "b", "c"]) == []


def test_report_of_many_classes():
    many = study([f"class {number}" for number in range(100)])
    rendered = render_figures(many)
    assert all(len(svg) < 300_000 for svg in rendered.values())
    assert rendered["f1"].count("<!-- class ") + rendered["f1"].count(">class ") == FEW_CLASSES
    assert ">class " not in rendered["confusion_best"]  # the names do not fit
    numbers = tables.figure_tables(many)
    header, *mistakes = numbers["confusion_best"]
    assert header == ["actual", "predicted", "images", "of the class, %"]
    assert len(mistakes) == tables.MISTAKES
    assert mistakes[0][2] == 19 == max(row[2] for row in mistakes)
    assert len(numbers["f1"]) == 1 + 100
    counts = many.details[many.best.name].confusion
    table = [row[1:] for row in tables.plot_tables(many)["confusion"][1:] if row[0] == many.best.name]
    assert len(table) == np.count_nonzero(counts) < 10_000
    assert sum(row[2] for row in table) == counts.sum()
    shown = text(render_html(many, rendered))
    assert "100 classes" in shown
    assert "F1 of the hardest classes" in shown
    assert ", the 10 hardest classes." in shown


def test_confused_classes_are_next_to_each_other():
    """Three groups of classes in turn; later classes of a group are predicted as earlier ones of the same group."""
    group = np.arange(60) % 3
    share = 0.9 * np.eye(60) + 0.1 * np.tril(group[:, None] == group) / 20
    order = figures.by_similarity(share)
    assert sorted(order.tolist()) == list(range(60))
    assert np.count_nonzero(np.diff(group[order])) == 2


def test_report_of_imbalanced_classes(content, rendered):
    assert "Balanced" not in text(render_html(content, rendered))
    imbalanced = [dataclasses.replace(row, metrics={**row.metrics, "balanced_accuracy": 0.7123, "macro_f1": 0.6})
               for row in rows()]  # fmt: skip
    shown = text(render_html(dataclasses.replace(content, rows=imbalanced), rendered))
    assert "balanced accuracy and macro F1 give each class the same weight" in shown
    assert shown.count("71.23") == 8


def test_report_lists_skipped_files(content, rendered):
    skipped_files = {"cat/<b>.png": "is empty", "dog/1.png": "is the same picture as dog/0.png"}
    html = render_html(dataclasses.replace(content, skipped_files=skipped_files), rendered)
    assert "2 skipped files" in text(html)
    assert "<code>cat/&lt;b&gt;.png</code> is empty" in html
    first = dict([*skipped_files.items()][:1])
    assert ">1 skipped file</a>" in render_html(dataclasses.replace(content, skipped_files=first), rendered)
    assert "kipped file" not in text(render_html(content, rendered))


def test_class_names_are_escaped():
    names = ["$x^2$", "<b>", "Äpfel & Birnen", "猫", "a_b^c", "x" * 60, "100 %", "#", "\\frac", "a'b\"c"]
    content = study(names, color=True)
    rendered = render_figures(content)
    for svg in rendered.values():
        ElementTree.fromstring(svg)
    for name in ("$x^2$", "&lt;b&gt;", "Äpfel &amp; Birnen", "猫", "a_b^c", f"{'x' * 27}…"):
        assert f">{name}<" in rendered["confusion_best"], name
    html = render_html(content, rendered)
    assert "<b>" not in html
    assert "x" * 60 in html
