"""What the page and the tables say of numbers of labels."""

import dataclasses
import math
import re

import numpy as np
import pytest

from headstart import files
from headstart.results import figures, label_efficiency, label_savings, report
from headstart.results.label_efficiency import PROBES, LabelEfficiency
from headstart.results.label_savings import LabelsNeeded, LearningCurve

from .studies import SETTINGS, study
from .test_report import text

LABELS = (125, 250, 500, 1000)
SCRATCH = {"random-finetuned-adam": (0.4, 0.5, 0.6, 0.7), "random-finetuned-sgd": (0.3, 0.4, 0.5, 0.6)}
PRETRAINED = (0.55, 0.65, 0.7, 0.8)
ALL_RIGHT = SETTINGS.configurations


def curve(accuracies, seeds: int = 3) -> LearningCurve:
    generator = np.random.default_rng(0)
    return LearningCurve(LABELS, generator.random((len(LABELS), seeds, 4_000)) < np.reshape(accuracies, (-1, 1, 1)))


def found(
    *, seeds: int = 3, scratch=tuple(SCRATCH), probes: bool = True, stopped_early: int | None = None
) -> LabelEfficiency:
    accuracies = {name: SCRATCH.get(name, PRETRAINED if "pretrained" in name else (0.2,) * 4) for name in ALL_RIGHT}
    validation = dict(accuracies)
    validation["pretrained-frozen-adam"] = (0.1, 0.9, 0.1, 0.1)  # the best on validation where it is spoken of
    made = label_efficiency.analyze(
        SETTINGS.configurations,
        curves={name: curve(each, seeds) for name, each in accuracies.items()},
        probes={True: curve(PRETRAINED, seeds), False: curve((0.5, 0.6, 0.7, 0.75), seeds)} if probes else {},
        validation=validation,
        stopped_early={} if stopped_early is None else {name: [stopped_early] * 4 for name in accuracies},
        scratch=scratch,
    )
    assert made is not None
    return made


def content(labels: LabelEfficiency, **changes) -> report.ReportData:
    setting = dataclasses.replace(SETTINGS.selected_study, **{"label_budgets": LABELS[:-1], **changes})
    return dataclasses.replace(study(), setting=setting, by_labels=labels, scratch=list(SCRATCH))


def page(made: report.ReportData) -> str:
    return text(report.render_html(made, report.render_figures(made)))


@pytest.fixture(scope="module")
def several() -> LabelEfficiency:
    return found()


def test_reference_and_configuration_are_chosen_by_validation(several):
    answer = several.saved
    assert answer.reference == "random-finetuned-adam"
    assert answer.headline == "pretrained-frozen-adam"
    assert LABELS[answer.headline_index] == 250
    assert answer.range == (125, 1_000)
    assert set(answer.needed) == {name for name in ALL_RIGHT if name.startswith("pretrained")} | {PROBES[True]}
    assert several.worth.reference == PROBES[False]


def test_the_answer_stands_at_the_top_after_the_gain_in_accuracy(several):
    said = page(content(several, seeds=(0, 1, 2)))
    match = re.search(
        r"With 250 labeled images, pretrained weights are worth (\S+) more of them \(95 % interval (\S+) to (\S+)\): "
        r"trained from scratch , the network needs (\S+) to do as well, a factor of (\S+)\.",
        said,
    )
    saved, low, high, needed, factor = (float(number.replace(",", "")) for number in match.groups())
    assert low < saved < high
    assert needed == 250 + saved
    assert needed == pytest.approx(500 * 2**0.5, rel=0.1)
    assert factor == float(f"{needed / 250:.2g}")
    assert said.index("percentage points of test accuracy") < match.start()
    assert "the whole network here" in said
    assert "power laws with a floor" in said


def test_one_seed_has_no_interval_and_says_so():
    made = found(seeds=1)
    said = page(content(made))
    assert "One seed, so there is no interval." in said
    assert "One seed was run, so there are no intervals." in said
    assert {tuple(row[4:]) for row in label_efficiency.saved_table(made)[1:]} == {("", "")}


def test_without_a_training_from_scratch_the_page_says_what_to_add():
    made = found(scratch=())
    said = page(dataclasses.replace(content(made, seeds=(0, 1, 2)), scratch=[]))
    assert made.saved is None
    assert "cannot be told here: no configuration trains the whole network from random weights." in said
    assert "Set finetune_from to all , in the study or in a configuration" in said
    assert "more of them" not in said
    assert label_efficiency.metrics(made) == {}


def test_without_pretrained_weights_the_page_says_so():
    random = {name: each for name, each in ALL_RIGHT.items() if not each.pretrained}
    curves = {name: curve(SCRATCH.get(name, (0.2,) * 4)) for name in random}
    made = label_efficiency.analyze(random, curves=curves, probes={}, validation=dict.fromkeys(random, (0.5,) * 4),
                           stopped_early={}, scratch=tuple(SCRATCH))  # fmt: skip
    said = page(content(made, seeds=(0, 1, 2)))
    assert "cannot be told here: no configuration begins from pretrained weights. Add one to configurations" in said


def test_pretrained_weights_that_save_nothing():
    worse = found()
    needed = {name: [LabelsNeeded(200.0, (150.0, 240.0))] * 4 for name in worse.saved.needed}
    said = page(
        content(dataclasses.replace(worse, saved=dataclasses.replace(worse.saved, needed=needed)), seeds=(0, 1))
    )
    assert "pretrained weights save none : trained from scratch , the network needs 200 to do as well (95 %" in said


def test_no_errors_at_all_have_a_place_on_a_logarithmic_axis():
    made = found()
    perfect = {name: LearningCurve(LABELS, np.ones((4, 3, 100), dtype=bool)) for name in made.curves}
    svg = figures.as_svg(figures.labels, SETTINGS.configurations, dataclasses.replace(made, curves=perfect))
    assert "<svg" in svg


def test_probes_alone_have_their_table_and_figure():
    made = label_efficiency.analyze({}, curves={}, probes={True: curve(PRETRAINED), False: curve(PRETRAINED)}, validation={},
                           stopped_early={}, scratch=())  # fmt: skip
    said = page(dataclasses.replace(content(made, seeds=(0, 1, 2), label_budgets=()), scratch=[]))
    assert "How many labels the features are worth" in said
    assert "cannot be told" not in said


def test_what_did_not_stop_early_is_marked():
    made = content(found(stopped_early=2), seeds=(0, 1, 2), patience=1, n_epochs=3)
    said = page(made)
    assert "Not all of these trainings stopped early." in said
    assert "How many of the 3 trainings stopped early 125 labels" in said
    assert "pretrained-finetuned-adam 2 2 2 2" in said
    all_have = page(content(found(stopped_early=3), seeds=(0, 1, 2), patience=1, n_epochs=3))
    assert "Not all of these trainings stopped early." not in all_have
    assert "with 125 labels †" in said
    assert "with 125 labels †" not in all_have
    assert "† Not all trainings stopped early: some had all 3 epochs" in said
    assert "pretrained-finetuned-adam †" in said
    assert "at most 3 epochs, until 1 have brought no lower validation loss" in said


@pytest.mark.parametrize(
    ("n", "exact", "needed", "saved", "factor"),
    [
        (500, (1_394.4, 898.6, 2_069.8), ("1,400", "900 to 2,100"), ("900", "400 to 1,600"), ("2.8", "1.8 to 4.2")),
        (125, (590.3, 214.9, 883.2), ("590", "210 to 880"), ("465", "85 to 755"), ("4.7", "1.7 to 7")),
        (250, (251.2, 0.0, math.inf), ("250", "fewer than 125 to more than 4,000"),
         ("0", "fewer than −125 to more than 3,750"), ("1", "fewer than 0.5 to more than 16")),
        (1_000, (2_136.4, 957.7, math.inf), ("2,100", "960 to more than 4,000"),
         ("1,100", "−40 to more than 3,000"), ("2.1", "0.96 to more than 4")),
        (1_250, (1_299.0, 1_180.0, 150_000.0), ("1,250", "1,200 to 150,000"), ("0", "−50 to 148,750"),
         ("1", "0.96 to 120")),
    ],
)  # fmt: skip
def test_needed_saved_and_factor_agree_and_have_two_digits(several, n, exact, needed, saved, factor):
    value, *ends = exact
    answer = dataclasses.replace(
        several.saved,
        curve=LearningCurve((125, 4_000), np.zeros((2, 3, 1), dtype=bool)),
        needed={"a": [LabelsNeeded(value, tuple(ends))]},
    )
    [row] = label_efficiency.saved_rows(
        dataclasses.replace(several, curves={"a": LearningCurve((n,), np.zeros((1, 3, 1), dtype=bool))}), answer, "a"
    )
    said = [(row[key], row[f"{key}_interval"]) for key in ("needed", "saved", "factor")]
    assert said == [needed, saved, factor]
    assert row["saves"] == (saved[0] != "0")


def test_the_committed_correctness_gives_the_errors_and_the_labels_needed_again(tmp_path, several):
    """Everything that an interval rests on can be computed from the committed files."""
    seeds, n_labels = (0, 1, 2), LABELS[-1]
    right = {name: several.curves[name].right[-1] for name in ALL_RIGHT}
    made = dataclasses.replace(content(several, seeds=seeds), right=right)
    tables = {"correct": label_efficiency.correct_table(several, seeds), "right": report.correct_table(made)}
    for name, (header, *rows) in tables.items():
        files.write_csv(tmp_path / f"{name}.csv", header, rows)
    assert len(tables["correct"]) == 1 + 8 * 3 * 3 + 2 * 4 * 3
    again = label_efficiency.read_curves(
        files.read_csv(tmp_path / "correct.csv"), files.read_csv(tmp_path / "correct.csv"), labels=n_labels
    )
    read = dataclasses.replace(several, curves=again)
    assert label_efficiency.curves_table(read, seeds) == label_efficiency.curves_table(several, seeds)
    for answer in (several.saved, several.worth):
        others = {name: again[name] for name in answer.needed}
        assert label_savings.labels_needed(again[answer.reference], others) == answer.needed
    assert label_efficiency.correct_table(None, (0,)) == [
        ["configuration", "label_budget", "seed", "images", "correct"]
    ]
    assert label_efficiency.read_curves([], files.read_csv(tmp_path / "correct.csv"), labels=n_labels) == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [(250 - 1e-12, "0"), (math.inf, "more than 750"), (0.0, "fewer than −125"), (700, "450"), (200, "−50")],
)
def test_numbers_beyond_the_data_are_said_to_be(value, said):
    assert label_efficiency.format_count(value, (125, 1_000), lambda needed: needed - 250) == said


def test_metrics_have_a_number_or_a_bound(several):
    assert label_efficiency.metrics(several)["labels_saved"] == pytest.approx(457, abs=60)
    for value, expected in ((math.inf, {"labels_saved_at_least": 750}), (0.0, {"labels_saved_at_most": -125})):
        needed = {name: [LabelsNeeded(value, None)] * 4 for name in several.saved.needed}
        beyond = dataclasses.replace(several, saved=dataclasses.replace(several.saved, needed=needed))
        assert label_efficiency.metrics(beyond) == expected
    assert label_efficiency.metrics(None) == {}


def test_tables_have_every_seed_and_the_ends_of_intervals(several):
    rows = label_efficiency.curves_table(several, (0, 1, 2))
    assert len(rows) == 1 + 10 * 4 * 3
    assert rows[1][:3] == [next(iter(ALL_RIGHT)), 125, 0]
    assert float(rows[1][3]) == pytest.approx(45, abs=3)
    saved = label_efficiency.saved_table(several)
    assert len(saved) == 1 + (5 + 1) * 4
    assert {row[1] for row in saved[1:]} == {"random-finetuned-adam", PROBES[False]}
    assert all(float(low) <= float(needed) <= float(high) for _, _, _, needed, low, high in saved[1:])
    assert label_efficiency.curves_table(None, (0,)) == [["configuration", "label_budget", "seed", "error"]]


def test_the_arrow_goes_from_the_one_number_of_labels_to_the_other(several):
    figure = figures.labels(SETTINGS.configurations, several)
    [axes] = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    arrow = next(each for each in axes.texts if each.arrow_patch is not None)
    answer = several.saved
    assert arrow.xyann[0] == 250
    assert arrow.xy[0] == pytest.approx(answer.needed[answer.headline][answer.headline_index].value)
    assert arrow.xy[1] == arrow.xyann[1] == pytest.approx(35, abs=1)
    dots = [line for line in axes.lines if line.get_marker() == "." and line.get_linestyle() == "None"]
    assert len(dots) == 10 * 3  # of every curve, for every seed
