"""Label efficiency in the report and in the tables."""

import dataclasses
import math
import re

import numpy as np
import pytest

from headstart import files
from headstart.results import comparison, figures, label_efficiency, label_savings, tables
from headstart.results.content import ReportData
from headstart.results.label_efficiency import PROBES, LabelEfficiency
from headstart.results.label_savings import LabelsNeeded, LearningCurve
from headstart.results.page import render_figures, render_html
from scripts import results

from .studies import SETTINGS, study
from .test_report import text

BUDGETS = (125, 250, 500, 1000)
SCRATCH = {"random-finetuned-adam": (0.4, 0.5, 0.6, 0.7), "random-finetuned-sgd": (0.3, 0.4, 0.5, 0.6)}
PRETRAINED = (0.55, 0.65, 0.7, 0.8)
CONFIGURATIONS = SETTINGS.configurations


def simulated_curve(accuracies, n_seeds: int = 3) -> LearningCurve:
    generator = np.random.default_rng(0)
    return LearningCurve(BUDGETS, generator.random((len(BUDGETS), n_seeds, 4_000)) < np.reshape(accuracies, (-1, 1, 1)))


def simulated_efficiency(
    *, n_seeds: int = 3, from_scratch=tuple(SCRATCH), probes: bool = True, stopped_early: int | None = None
) -> LabelEfficiency:
    accuracies = {
        name: SCRATCH.get(name, PRETRAINED if "pretrained" in name else (0.2,) * 4) for name in CONFIGURATIONS
    }
    validation = dict(accuracies)
    validation["pretrained-frozen-adam"] = (0.1, 0.9, 0.1, 0.1)  # the best at the headline budget
    efficiency = label_efficiency.analyze(
        SETTINGS.configurations,
        curves={name: simulated_curve(values, n_seeds) for name, values in accuracies.items()},
        probes=(
            {
                "pretrained": simulated_curve(PRETRAINED, n_seeds),
                "random": simulated_curve((0.5, 0.6, 0.7, 0.75), n_seeds),
                "pixels": simulated_curve((0.99, 0.5, 0.6, 0.7), n_seeds),
            }
            if probes
            else {}
        ),
        validation=validation,
        stopped_early={} if stopped_early is None else {name: [stopped_early] * 4 for name in accuracies},
        from_scratch=from_scratch,
    )
    assert efficiency is not None
    return efficiency


def report_data(efficiency: LabelEfficiency, **changes) -> ReportData:
    settings = dataclasses.replace(SETTINGS.selected_study, **{"label_budgets": BUDGETS[:-1], **changes})
    return dataclasses.replace(study(), study=settings, label_efficiency=efficiency, from_scratch=list(SCRATCH))


def report_text(content: ReportData) -> str:
    return text(render_html(content, render_figures(content)))


@pytest.fixture(scope="module")
def efficiency() -> LabelEfficiency:
    return simulated_efficiency()


def test_reference_and_headline_are_chosen_by_validation_accuracy(efficiency):
    savings = efficiency.pretraining_savings
    assert savings.reference == "random-finetuned-adam"
    assert savings.headline == "pretrained-frozen-adam"
    assert BUDGETS[savings.headline_index] == 250
    assert savings.range == (125, 1_000)
    assert set(savings.needed) == {name for name in CONFIGURATIONS if name.startswith("pretrained")} | {
        PROBES["pretrained"]
    }
    assert efficiency.feature_savings.reference == PROBES["random"]


def test_report_begins_with_the_gain_in_accuracy_and_the_labels_saved(efficiency):
    shown = report_text(report_data(efficiency, seeds=(0, 1, 2)))
    match = re.search(
        r"Over 125 to 1,000 labeled images, pretrained weights gain (\S+) points \(95% CI (\S+) to (\S+)\) on average "
        r"over training from scratch \. "
        r"With 250 labeled images, pretrained weights save (\S+) labels \(95% CI (\S+) to (\S+)\): "
        r"trained from scratch , the network needs (\S+) labeled images to do as well, a factor of (\S+)\.",
        shown,
    )
    gains, numbers = match.groups()[:3], [float(number.replace(",", "")) for number in match.groups()[3:]]
    assert gains == tuple(map(tables.points, efficiency.gains[0].mean))
    saved, low, high, needed, factor = numbers
    assert low < saved < high
    assert needed == 250 + saved
    assert needed == pytest.approx(500 * 2**0.5, rel=0.1)
    assert factor == float(f"{needed / 250:.2g}")
    assert shown.index("percentage points of test accuracy") < match.start()
    assert "Fine-tuning trains the whole network in this study" in shown
    assert "power laws with a floor" in shown


def test_gain_by_budget_is_paired_and_its_mean_is_over_log_n(efficiency):
    gains = {(gain.name, gain.baseline): gain for gain in efficiency.gains}
    assert list(gains) == [
        ("pretrained-frozen-adam", "random-finetuned-adam"),
        (PROBES["pretrained"], PROBES["random"]),
        *((name, PROBES["pixels"]) for name in ("pretrained-frozen-adam", "random-finetuned-adam")),
        *((PROBES[key], PROBES["pixels"]) for key in ("pretrained", "random")),
    ]
    gain = gains["pretrained-frozen-adam", "random-finetuned-adam"]
    curves = [efficiency.curves[name].correct.astype(float) for name in (gain.name, gain.baseline)]
    for difference, n in zip(curves[0] - curves[1], BUDGETS, strict=True):
        assert gain.gains[n] == pytest.approx(comparison.bootstrap(difference), abs=1e-3)
    by_budget = [gain.gains[n].value for n in BUDGETS]  # budgets are equally far apart in log n
    assert gain.mean.value == pytest.approx((by_budget[0] / 2 + sum(by_budget[1:-1]) + by_budget[-1] / 2) / 3)
    assert gain.mean.low < gain.mean.value < gain.mean.high
    [header, first, *_] = label_efficiency.gain_rows(efficiency)
    assert header == ["gain of", "125 labels", "250 labels", "500 labels", "1,000 labels", "mean"]
    assert first == ["pretrained-frozen-adam over random-finetuned-adam", *gain.gains.values(), gain.mean]


def test_the_report_says_first_if_pixels_win(efficiency):
    """The simulated probe of pixels has an accuracy of 0.99 with 125 labels, and less than the others with more."""
    assert efficiency.pixels_win == [125]
    shown = report_text(report_data(efficiency, seeds=(0, 1, 2)))
    claim = "A linear model on pixels beats pretrained weights with 125 labels:"
    assert shown.index(claim) < shown.index("percentage points of test accuracy")
    assert claim not in report_text(report_data(simulated_efficiency(probes=False), seeds=(0, 1, 2)))


def test_no_intervals_with_one_seed():
    efficiency = simulated_efficiency(n_seeds=1)
    shown = report_text(report_data(efficiency))
    assert "One seed, so there is no confidence interval." in shown
    assert "One seed was run, so there are no confidence intervals." in shown
    assert {tuple(row[4:]) for row in label_efficiency.savings_table(efficiency)[1:]} == {("", "")}


def test_report_without_a_training_from_scratch():
    efficiency = simulated_efficiency(from_scratch=())
    shown = report_text(dataclasses.replace(report_data(efficiency, seeds=(0, 1, 2)), from_scratch=[]))
    assert efficiency.pretraining_savings is None
    assert "was not measured: no configuration is trained from scratch." in shown
    assert "Set finetune_from to all , in the study or in a configuration" in shown
    assert "the network needs" not in shown
    assert label_efficiency.metrics(efficiency) == {}


def test_report_without_pretrained_weights():
    random = {name: configuration for name, configuration in CONFIGURATIONS.items() if not configuration.pretrained}
    efficiency = label_efficiency.analyze(
        random,
        curves={name: simulated_curve(SCRATCH.get(name, (0.2,) * 4)) for name in random},
        probes={},
        validation=dict.fromkeys(random, (0.5,) * 4),
        stopped_early={},
        from_scratch=tuple(SCRATCH),
    )
    shown = report_text(report_data(efficiency, seeds=(0, 1, 2)))
    assert "was not measured: no configuration has pretrained weights. Add one to configurations" in shown


def with_needed(efficiency: LabelEfficiency, needed: LabelsNeeded) -> LabelEfficiency:
    """Return ``efficiency`` with the same labels needed for all configurations and budgets."""
    savings = efficiency.pretraining_savings
    savings = dataclasses.replace(savings, needed={name: [needed] * 4 for name in savings.needed})
    return dataclasses.replace(efficiency, pretraining_savings=savings)


def test_report_of_pretrained_weights_that_save_no_labels(efficiency):
    shown = report_text(report_data(with_needed(efficiency, LabelsNeeded(200.0, (150.0, 240.0))), seeds=(0, 1)))
    assert (
        "pretrained weights save no labels : trained from scratch , the network needs 200 labeled images to do as well "
        "(95% CI"
    ) in shown


def test_zero_errors_fit_on_a_logarithmic_axis(efficiency):
    perfect = {name: LearningCurve(BUDGETS, np.ones((4, 3, 100), dtype=bool)) for name in efficiency.curves}
    svg = figures.as_svg(figures.labels, SETTINGS.configurations, dataclasses.replace(efficiency, curves=perfect))
    assert "<svg" in svg


def test_report_of_probes_alone():
    efficiency = label_efficiency.analyze(
        {},
        curves={},
        probes={"pretrained": simulated_curve(PRETRAINED), "random": simulated_curve(PRETRAINED)},
        validation={},
        stopped_early={},
        from_scratch=(),
    )
    content = report_data(efficiency, seeds=(0, 1, 2), label_budgets=())
    shown = report_text(dataclasses.replace(content, from_scratch=[]))
    assert "Labels saved by pretrained features" in shown
    assert "not measured" not in shown


def test_report_marks_trainings_that_did_not_stop_early():
    changes = {"seeds": (0, 1, 2), "patience": 1, "n_epochs": 3}
    partial = report_text(report_data(simulated_efficiency(stopped_early=2), **changes))
    assert "Not all of these trainings stopped early." in partial
    assert "Number of trainings that stopped early, out of 3 stopped early 125 labels" in partial
    assert "pretrained-finetuned-adam 2 2 2 2" in partial
    complete = report_text(report_data(simulated_efficiency(stopped_early=3), **changes))
    assert "Not all of these trainings stopped early." not in complete
    assert "with 125 labels †" in partial
    assert "with 125 labels †" not in complete
    assert "† Not all trainings stopped early: some ran all 3 epochs" in partial
    assert "pretrained-finetuned-adam †" in partial
    assert "at most 3 epochs with early stopping (patience 1), batch size" in partial


@pytest.mark.parametrize(
    ("n", "exact", "needed", "saved", "factor"),
    [
        (500, (1_394.4, 707.0, 2_000.0), ("1,400", "707 to 2,000"), ("900", "207 to 1,500"), ("2.8", "1.4 to 4")),
        (125, (590.3, 250.0, 1_000.0), ("590", "250 to 1,000"), ("465", "125 to 875"), ("4.7", "2 to 8")),
        (250, (251.2, 0.0, math.inf), ("250", "fewer than 125 to more than 4,000"),
         ("0", "fewer than −125 to more than 3,750"), ("1", "fewer than 0.5 to more than 16")),
        (1_000, (2_136.4, 957.0, math.inf), ("2,100", "957 to more than 4,000"),
         ("1,100", "−43 to more than 3,000"), ("2.1", "0.96 to more than 4")),
        (1_250, (1_299.0, 1_180.0, 150_000.0), ("1,250", "1,180 to 150,000"), ("0", "−70 to 148,750"),
         ("1", "0.94 to 120")),
    ],
)  # fmt: skip
def test_needed_has_two_digits_and_saved_and_factor_agree_with_it(efficiency, n, exact, needed, saved, factor):
    value, *ends = exact
    savings = dataclasses.replace(
        efficiency.pretraining_savings,
        curve=LearningCurve((125, 4_000), np.zeros((2, 3, 1), dtype=bool)),
        needed={"a": [LabelsNeeded(value, tuple(ends))]},
    )
    single = dataclasses.replace(efficiency, curves={"a": LearningCurve((n,), np.zeros((1, 3, 1), dtype=bool))})
    [row] = label_efficiency.savings_rows(single, savings, "a")
    cells = [(row[key], row[f"{key}_interval"]) for key in ("needed", "saved", "factor")]
    assert cells == [needed, saved, factor]
    assert row["is_saving"] == (saved[0] != "0")


def test_errors_and_labels_needed_follow_from_the_committed_correctness(tmp_path, efficiency):
    """Everything that an interval depends on can be computed from the committed files."""
    seeds = (0, 1, 2)
    correct = {name: efficiency.curves[name].correct[-1] for name in CONFIGURATIONS}
    content = dataclasses.replace(report_data(efficiency, seeds=seeds), correct=correct)
    by_budget = label_efficiency.correct_table(efficiency, seeds)
    files.write_csv(tmp_path / "correct_by_budget.csv", by_budget[0], by_budget[1:])
    full = tables.correct_table(content)
    files.write_csv(tmp_path / "correct.csv", full[0], full[1:])
    assert len(by_budget) == 1 + 8 * 3 * 3 + 3 * 4 * 3
    subset_rows, full_rows = (files.read_csv(tmp_path / f"{name}.csv") for name in ("correct_by_budget", "correct"))
    curves = results.read_curves(subset_rows, full_rows, full_budget=BUDGETS[-1])
    from_files = dataclasses.replace(efficiency, curves=curves)
    assert label_efficiency.curves_table(from_files, seeds) == label_efficiency.curves_table(efficiency, seeds)
    for savings in (efficiency.pretraining_savings, efficiency.feature_savings):
        compared = {name: curves[name] for name in savings.needed}
        assert label_savings.labels_needed(curves[savings.reference], compared) == savings.needed
    assert label_efficiency.correct_table(None, (0,)) == [
        ["configuration", "label_budget", "seed", "images", "correct"]
    ]
    assert results.read_curves([], full_rows, full_budget=BUDGETS[-1]) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(250 - 1e-12, "0"), (math.inf, "more than 750"), (0.0, "fewer than −125"), (700, "450"), (200, "−50")],
)
def test_formatted_counts_beyond_the_budgets_are_bounds(value, expected):
    assert label_efficiency.format_count(value, (125, 1_000), lambda needed: needed - 250) == expected


@pytest.mark.parametrize(
    ("value", "saved", "bound"), [(500.4, 250, None), (math.inf, 750, "at least"), (0.0, -125, "at most")]
)
def test_labels_saved_is_always_a_metric(efficiency, value, saved, bound):
    expected = {"labels_saved": saved} | ({"labels_saved_bound": bound} if bound else {})
    assert label_efficiency.metrics(with_needed(efficiency, LabelsNeeded(value, None))) == expected


def test_metrics_of_the_simulated_study(efficiency):
    assert label_efficiency.metrics(efficiency) == {"labels_saved": pytest.approx(457, abs=60)}
    assert label_efficiency.metrics(None) == {}


def test_tables_have_every_seed_and_the_ends_of_intervals(efficiency):
    rows = label_efficiency.curves_table(efficiency, (0, 1, 2))
    assert len(rows) == 1 + 11 * 4 * 3
    assert rows[1][:3] == [next(iter(CONFIGURATIONS)), 125, 0]
    assert float(rows[1][3]) == pytest.approx(45, abs=3)
    saved = label_efficiency.savings_table(efficiency)
    assert len(saved) == 1 + (5 + 1) * 4
    assert {row[1] for row in saved[1:]} == {"random-finetuned-adam", PROBES["random"]}
    assert all(float(low) <= float(needed) <= float(high) for _, _, _, needed, low, high in saved[1:])
    assert label_efficiency.curves_table(None, (0,)) == [["configuration", "label_budget", "seed", "error"]]


def test_the_arrow_goes_from_the_budget_to_the_labels_needed(efficiency):
    figure = figures.labels(SETTINGS.configurations, efficiency)
    [axes] = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    arrow = next(annotation for annotation in axes.texts if annotation.arrow_patch is not None)
    savings = efficiency.pretraining_savings
    assert arrow.xyann[0] == 250
    assert arrow.xy[0] == pytest.approx(savings.needed[savings.headline][savings.headline_index].value)
    assert arrow.xy[1] == arrow.xyann[1] == pytest.approx(35, abs=1)
    dots = [line for line in axes.lines if line.get_marker() == "." and line.get_linestyle() == "None"]
    assert len(dots) == 11 * 3  # one line of dots per curve and seed
