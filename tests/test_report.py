import copy
import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from headstart import files
from headstart.params import Study
from headstart.results import comparison, evaluation, figures, report

from .conftest import ROOT
from .studies import SETTINGS, rows, study
from .test_comparison import CORRECT, PUBLISHED


@pytest.fixture(scope="module")
def made() -> report.ReportData:
    return study()


@pytest.fixture(scope="module")
def drawn(made) -> dict[str, str]:
    return report.render_figures(made)


def test_the_published_table_is_in_the_repository():
    assert {row.name: row.metrics["test_accuracy"] for row in rows()} == PUBLISHED


def test_the_markdown_table_is_sorted():
    lines = report.markdown_table(rows()).splitlines()
    assert lines[2] == "| true | true | Adam | 0.4892 | 0.8401 | 84.62 (83.9 to 85.3) | 84.62 |"
    assert [line.split("|")[6].split()[0] for line in lines[2:]] == [
        f"{100 * accuracy:.2f}" for accuracy in sorted(PUBLISHED.values(), reverse=True)
    ]


def text(html: str) -> str:
    """What a reader reads: no tags, single spaces."""
    body = re.sub(r"<(style|svg).*?</\1>", "", html[html.index("<body") :], flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_the_page_says_what_was_found(made, drawn):
    page = report.render_html(made, drawn)
    said = text(page)
    assert "+19.3 to +41.2 percentage points of test accuracy" in said
    assert "11 of the 12 differences between configurations that differ in one factor are expected to hold on" in said
    assert "Not so: random-finetuned-sgd against random-frozen-sgd." in said
    assert said.index("Simple effects") < said.index("Main effects and interactions")
    assert "Pretrained weights: +30.1 points (95 % interval" in said
    assert "Adam rather than SGD: +0.4 points" in said
    assert "Differs on other test images? Differs too" in said
    assert "ignificant" not in said
    assert "majority baseline (always T-shirt/top) 10.00 – – –" in said
    assert said.index("84.62") < said.index("43.45")
    assert "seconds" not in said  # a page with times would differ from run to run
    assert "7,008.95" not in said  # the published study is of another size
    assert "ublished" not in said
    assert "The last is not the optimizer alone: the two have other settings too (momentum, weight decay)." in said
    assert "momentum none, not 0.9; weight decay none, not 0.1" in said
    assert "each pair compares two trained networks" in said
    assert "some &lt;weights&gt; (SHA-256 abc)" in said
    assert "One seed was run" in said
    assert "fine-tuned from blocks.5 (12,810 parameters)" in said
    for heading in ("Learning curves", "Where the models err", "Examples", "Feature maps", "Calibration",
                    "How it was run"):  # fmt: skip
        assert heading in said


def test_what_was_published_stands_beside_a_study_of_its_size_only(made):
    of_its_size = dataclasses.replace(made, setting=SETTINGS.studies["resnet50"])
    page = report.render_html(of_its_size, report.render_figures(of_its_size))
    assert page.count(">Published</th>") == 3
    assert "“Pretrained Models Experiment Learnings”, at 224 pixels" in text(page)
    assert [name for name, study in SETTINGS.studies.items() if report.is_published_size(study)] == ["resnet50", "full"]
    unpublished = [dataclasses.replace(row, published=None) for row in rows()]
    assert "published" not in report.markdown_table(unpublished)


def test_the_page_needs_nothing_else(made, drawn):
    page = report.render_html(made, drawn)
    assert len(page) < 3_000_000
    assert "http://" not in page
    assert "https://" not in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page):
        assert max(target) in ids
    assert page.count("<svg") == len(drawn) == 9
    assert page.count("<details>") == 5
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', page)) == 9


def test_a_figure_is_a_whole_svg_and_always_the_same(made, drawn):
    for name, svg in drawn.items():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg", name
        assert len(svg) < 300_000
    assert report.render_figures(made) == drawn


def test_figures_show_what_they_are_given(drawn):
    for accuracy in PUBLISHED.values():
        assert f">{100 * accuracy:.1f}<" in drawn["accuracy"]
    assert ">+30.1<" in drawn["effects"]
    for name in PUBLISHED:
        assert f">{name}<" in drawn["learning_curves"]


def test_several_seeds_are_said(made):
    setting: Study = dataclasses.replace(made.setting, seeds=(0, 1))
    twice = {name: np.concatenate([right, right]) for name, right in CORRECT.items()}
    several = dataclasses.replace(made, setting=setting, findings=comparison.analyze(SETTINGS.configurations, twice))
    said = text(report.render_html(several, report.render_figures(several)))
    assert "2 seeds, 10 classes, 10,000 test images" in said
    assert "One seed" not in said
    assert "Significant? Differs too" in said
    assert "McNemar" not in said
    assert "other test images" not in said


def test_without_validation_images_there_is_no_such_curve(made):
    setting = dataclasses.replace(made.setting, validation_images=0, probe_budgets=())
    none = dataclasses.replace(made, setting=setting)
    assert report.learning_curves(none).keys() == {"training accuracy"}


def test_one_configuration_alone_has_a_page(made):
    name = "pretrained-frozen-adam"
    one = {name: SETTINGS.configurations[name]}
    alone = dataclasses.replace(
        made,
        rows=[row for row in made.rows if row.name == name],
        findings=comparison.analyze(one, {name: CORRECT[name]}),
    )
    said = text(report.render_html(alone, report.render_figures(alone)))
    assert "No two of the configurations differ in one factor alone" in said


def test_a_network_without_maps_has_a_page_without_them(made):
    without = dataclasses.replace(made, feature_maps={})
    drawn = report.render_figures(without)
    assert "feature_maps" not in drawn
    assert "Feature maps" not in text(report.render_html(without, drawn))
    assert "Feature maps" in text(report.render_html(made, report.render_figures(made)))


def test_which_images_are_right_is_kept_to_the_bit(made):
    right = np.random.default_rng(0).random((2, 9_999)) < 0.7
    two = dataclasses.replace(made, right={"a": right}, setting=dataclasses.replace(made.setting, seeds=(0, 4)))
    header, *table = report.correct_table(two)
    assert header == ["configuration", "seed", "images", "correct"]
    assert [row[:3] for row in table] == [["a", 0, 9_999], ["a", 4, 9_999]]
    assert len(table[0][3]) < 1_700
    assert all((evaluation.decode_bits(row[3], 9_999) == found).all() for row, found in zip(table, right, strict=True))
    # By hand: 1100 0001 is 0xC1, 1000 0000 is 0x80; base64 of the two bytes.
    assert evaluation.encode_bits(np.array([1, 1, 0, 0, 0, 0, 0, 1, 1], dtype=bool)) == "wYA="
    with pytest.raises(ValueError, match="16 bits for 8 images"):
        evaluation.decode_bits("wYA=", 8)


def test_settings_in_words():
    assert report.settings_in_words({"lr": (0.01, 0.001)}) == "lr 0.01, not 0.001"
    assert report.settings_in_words({}) == ""


def test_tables_for_dvc(made):
    tables = report.tables(made)
    assert tables["accuracy"][:2] == [
        ["configuration", "pretrained", "finetuning", "optimizer", "accuracy", "low", "high", "published"],
        ["pretrained-finetuned-adam", "true", "true", "Adam", "84.62", "83.900", "85.314", "84.62"],
    ]
    assert len(tables["accuracy"]) == 1 + 8
    assert len(tables["learning_curves"]) == 1 + 8 * 3 * 2
    assert ["pretrained-frozen-sgd", "validation accuracy", 2, "63.25"] in tables["learning_curves"]
    assert len(tables["confusion"]) == 1 + 2 * 100
    assert (
        sum(row[3] for row in tables["confusion"][1:101]) == made.details["pretrained-finetuned-adam"].confusion.sum()
    )


def test_what_figures_show_is_in_tables_too(made):
    numbers = report.figure_tables(made)
    first = made.best.name
    assert numbers["learning_curves"][0][:3] == ["accuracy, %", "training, epoch 1", "training, epoch 2"]
    assert numbers["learning_curves"][1][:3] == [first, "74.6", "79.6"]
    assert numbers["confusion_best"][3][3] == made.details[first].confusion[2, 2]
    hardest = made.details[first].f1.argmin()
    assert numbers["f1"][1][:2] == [made.classes[hardest], f"{100 * made.details[first].f1[hardest]:.1f}"]
    assert [float(row[1]) for row in numbers["f1"][1:]] == sorted(float(row[1]) for row in numbers["f1"][1:])


def test_configurations_that_differ_in_more_than_their_start_stand_on_lines_of_their_own(made):
    name = "random-frozen-adam"
    configurations = made.configurations | {name: dataclasses.replace(made.configurations[name], lr=0.01)}
    svg = figures.as_svg(figures.accuracy, configurations, made.findings.accuracy, {})
    labels = [label for label in (name, "frozen-adam", "pretrained-frozen-adam") if f">{label}<" in svg]
    assert labels == [name, "pretrained-frozen-adam"]


def test_every_optimizer_has_a_marker_and_is_named(made):
    """A third one must not stop the report after all trainings."""
    names = ("random-finetuned-sgd", "random-frozen-sgd")
    configurations = copy.deepcopy(SETTINGS.configurations)
    for name in names:
        object.__setattr__(configurations[name], "optimizer", "AdamW")  # which params.yaml does not take yet
    rows_ = [dataclasses.replace(row, configuration=configurations[row.name]) for row in made.rows]
    content = dataclasses.replace(made, rows=rows_, findings=comparison.analyze(configurations, CORRECT))
    said = text(report.render_html(content, report.render_figures(content)))
    assert "Adam rather than AdamW or SGD: " in said
    assert "squares SGD, diamonds other optimizers" in said
    assert "diamonds" not in text(report.render_html(made, report.render_figures(made)))


def test_one_pair_is_named(made):
    names = ("pretrained-frozen-adam", "random-frozen-adam")
    configurations = {name: SETTINGS.configurations[name] for name in names}
    findings = comparison.analyze(configurations, {name: CORRECT[name] for name in names})
    two = dataclasses.replace(made, rows=[row for row in made.rows if row.name in names], findings=findings)
    said = text(report.render_html(two, report.render_figures(two)))
    assert "+40.5 percentage points of test accuracy (95 % interval +39.6 to +41.5 ): what" in said.replace("5)", "5 )")
    assert "over random ones in pretrained-frozen-adam." in said


def test_what_was_published_belongs_to_its_learning_rate():
    published = report.published_results(files.read_csv(ROOT / "docs/published.csv"))
    frozen = SETTINGS.configurations["pretrained-frozen-sgd"]
    assert published[frozen]["test_accuracy"] == 0.7325
    assert dataclasses.replace(frozen, lr=0.01) not in published


def test_the_worst_mistakes():
    counts = np.array([[9, 2, 0], [3, 5, 2], [0, 0, 4]])
    assert report.worst_mistakes(counts, ["a", "b", "c"]) == [
        ("b", "a", 3, 0.3),
        ("a", "b", 2, 2 / 11),
        ("b", "c", 2, 0.2),
    ]
    assert report.worst_mistakes(np.diag(counts.diagonal()), ["a", "b", "c"]) == []


def test_many_classes_are_shown_so_that_they_can_be_read():
    many = study([f"class {number}" for number in range(100)])
    drawn = report.render_figures(many)
    assert all(len(svg) < 300_000 for svg in drawn.values())
    assert drawn["f1"].count("<!-- class ") + drawn["f1"].count(">class ") == figures.FEW_CLASSES
    assert ">class " not in drawn["confusion_best"]  # their names would not fit
    numbers = report.figure_tables(many)
    header, *mistakes = numbers["confusion_best"]
    assert header == ["actual", "taken for", "images", "of the class, %"]
    assert len(mistakes) == report.MISTAKES
    assert mistakes[0][2] == 19 == max(row[2] for row in mistakes)
    assert len(numbers["f1"]) == 1 + 100
    counts = many.details[many.best.name].confusion
    table = [row[1:] for row in report.tables(many)["confusion"][1:] if row[0] == many.best.name]
    assert len(table) == np.count_nonzero(counts) < 10_000
    assert sum(row[2] for row in table) == counts.sum()
    said = text(report.render_html(many, drawn))
    assert "100 classes" in said
    assert "F1 of the hardest classes" in said
    assert "of the 10 hardest classes" in said


def test_classes_that_are_taken_for_each_other_stand_together():
    """Three groups, listed so that no two of one stand together: in each, the later is taken for the earlier."""
    group = np.arange(60) % 3
    share = 0.9 * np.eye(60) + 0.1 * np.tril(group[:, None] == group) / 20
    order = figures.by_similarity(share)
    assert sorted(order.tolist()) == list(range(60))
    assert np.count_nonzero(np.diff(group[order])) == 2


def test_unequally_common_classes_have_their_metrics(made):
    assert "Balanced" not in text(report.render_html(made, report.render_figures(made)))
    unequal = [dataclasses.replace(row, metrics={**row.metrics, "balanced_accuracy": 0.7123, "macro_f1": 0.6})
               for row in rows()]  # fmt: skip
    said = text(report.render_html(dataclasses.replace(made, rows=unequal), report.render_figures(made)))
    assert "balanced accuracy and macro F1 count each of them the same" in said
    assert said.count("71.23") == 8


def test_what_was_left_out_is_said(made):
    skipped_files = {"cat/<b>.png": "is empty", "dog/1.png": "is the same picture as dog/0.png"}
    page = report.render_html(dataclasses.replace(made, skipped_files=skipped_files), report.render_figures(made))
    assert "2 files left out" in text(page)
    assert "<code>cat/&lt;b&gt;.png</code> is empty" in page
    assert "files left out" not in text(report.render_html(made, report.render_figures(made)))


def test_names_of_classes_are_shown_as_they_are():
    names = ["$x^2$", "<b>", "Äpfel & Birnen", "猫", "a_b^c", "x" * 60, "100 %", "#", "\\frac", "a'b\"c"]
    made = study(names, color=True)
    drawn = report.render_figures(made)
    for svg in drawn.values():
        ElementTree.fromstring(svg)
    for name in ("$x^2$", "&lt;b&gt;", "Äpfel &amp; Birnen", "猫", "a_b^c", f"{'x' * 27}…"):
        assert f">{name}<" in drawn["confusion_best"], name
    page = report.render_html(made, drawn)
    assert "<b>" not in page
    assert "x" * 60 in page
