"""What the page and the tables say of numbers of labels."""

import dataclasses
import math
import re

import numpy as np
import pytest

from headstart.results import by_labels, figures, report
from headstart.results.by_labels import PROBES, ByLabels
from headstart.results.labels_saved import Curve, Needed

from .studies import SETTINGS, study
from .test_report import text

LABELS = (125, 250, 500, 1000)
SCRATCH = {"random-finetuned-adam": (0.4, 0.5, 0.6, 0.7), "random-finetuned-sgd": (0.3, 0.4, 0.5, 0.6)}
PRETRAINED = (0.55, 0.65, 0.7, 0.8)
ALL_RIGHT = SETTINGS.experiments


def curve(accuracies, seeds: int = 3) -> Curve:
    generator = np.random.default_rng(0)
    return Curve(LABELS, generator.random((len(LABELS), seeds, 4_000)) < np.reshape(accuracies, (-1, 1, 1)))


def found(*, seeds: int = 3, scratch=tuple(SCRATCH), probes: bool = True, converged: int | None = None) -> ByLabels:
    accuracies = {name: SCRATCH.get(name, PRETRAINED if "pretrained" in name else (0.2,) * 4) for name in ALL_RIGHT}
    validation = dict(accuracies)
    validation["pretrained-frozen-adam"] = (0.1, 0.9, 0.1, 0.1)  # the best on validation where it is spoken of
    made = by_labels.study(
        SETTINGS.experiments,
        curves={name: curve(each, seeds) for name, each in accuracies.items()},
        probes={True: curve(PRETRAINED, seeds), False: curve((0.5, 0.6, 0.7, 0.75), seeds)} if probes else {},
        validation=validation,
        converged={} if converged is None else {name: [converged] * 4 for name in accuracies},
        scratch=scratch,
    )
    assert made is not None
    return made


def content(labels: ByLabels, **changes) -> report.Content:
    setting = dataclasses.replace(SETTINGS.current, **{"label_counts": LABELS[:-1], **changes})
    return dataclasses.replace(study(), setting=setting, by_labels=labels, scratch=list(SCRATCH))


def page(made: report.Content) -> str:
    return text(report.page(made, report.draw(made)))


@pytest.fixture(scope="module")
def several() -> ByLabels:
    return found()


def test_reference_and_configuration_are_chosen_by_validation(several):
    answer = several.saved
    assert answer.reference == "random-finetuned-adam"
    assert answer.chosen == "pretrained-frozen-adam"
    assert LABELS[answer.at] == 250
    assert answer.range == (125, 1_000)
    assert set(answer.needed) == {name for name in ALL_RIGHT if name.startswith("pretrained")} | {PROBES[True]}
    assert several.worth.reference == PROBES[False]


def test_the_answer_stands_at_the_top(several):
    said = page(content(several, seeds=(0, 1, 2)))
    match = re.search(
        r"With 250 labelled images, pretrained weights are worth (\S+) more of them \(95 % interval (\S+) to (\S+)\): "
        r"trained from scratch , the network needs (\S+) to do as well, a factor of (\S+)\.",
        said,
    )
    saved, low, high, needed, factor = (float(number.replace(",", "")) for number in match.groups())
    assert low < saved < high
    assert needed == pytest.approx(250 + saved, abs=2)
    assert needed == pytest.approx(500 * 2**0.5, rel=0.1)
    assert factor == pytest.approx(needed / 250, rel=0.01)
    assert "the whole network here" in said
    assert "power laws with a floor" in said


def test_one_seed_has_no_interval_and_says_so():
    made = found(seeds=1)
    said = page(content(made))
    assert "95 % interval" not in said.partition("percentage points")[0]
    assert "One seed, so there is no interval." in said
    assert "One seed was run, so there are no intervals." in said
    assert {tuple(row[4:]) for row in by_labels.saved_table(made)[1:]} == {("", "")}


def test_without_a_training_from_scratch_the_page_says_what_to_add():
    made = found(scratch=())
    said = page(dataclasses.replace(content(made, seeds=(0, 1, 2)), scratch=[]))
    assert made.saved is None
    assert "cannot be told here: no configuration trains the whole network from random weights." in said
    assert "Set finetune_from to all , in the study or in a configuration" in said
    assert "are worth" not in said.partition("percentage points")[0]
    assert by_labels.metrics(made) == {}


def test_without_pretrained_weights_the_page_says_so():
    random = {name: each for name, each in ALL_RIGHT.items() if not each.pretrained}
    curves = {name: curve(SCRATCH.get(name, (0.2,) * 4)) for name in random}
    made = by_labels.study(random, curves=curves, probes={}, validation=dict.fromkeys(random, (0.5,) * 4), converged={},
                           scratch=tuple(SCRATCH))  # fmt: skip
    said = page(content(made, seeds=(0, 1, 2)))
    assert "cannot be told here: no configuration begins from pretrained weights. Add one to experiments" in said


def test_pretrained_weights_that_save_nothing():
    worse = found()
    needed = {name: [Needed(200.0, (150.0, 240.0))] * 4 for name in worse.saved.needed}
    said = page(
        content(dataclasses.replace(worse, saved=dataclasses.replace(worse.saved, needed=needed)), seeds=(0, 1))
    )
    assert "pretrained weights save none : trained from scratch , the network needs 200 to do as well (95 %" in said


def test_no_errors_at_all_have_a_place_on_a_logarithmic_axis():
    made = found()
    perfect = {name: Curve(LABELS, np.ones((4, 3, 100), dtype=bool)) for name in made.curves}
    svg = figures.as_svg(figures.labels, SETTINGS.experiments, dataclasses.replace(made, curves=perfect))
    assert "<svg" in svg


def test_probes_alone_have_their_table_and_figure():
    made = by_labels.study({}, curves={}, probes={True: curve(PRETRAINED), False: curve(PRETRAINED)}, validation={},
                           converged={}, scratch=())  # fmt: skip
    said = page(dataclasses.replace(content(made, seeds=(0, 1, 2), label_counts=()), scratch=[]))
    assert "How many labels the features are worth" in said
    assert "cannot be told" not in said


def test_what_has_not_converged_is_marked():
    made = content(found(converged=2), seeds=(0, 1, 2), patience=1, n_epochs=3)
    said = page(made)
    assert "Not all of these trainings have converged." in said
    assert "How many of the 3 trainings converged 125 labels" in said
    assert "pretrained-finetuned-adam 2 2 2 2" in said
    all_have = page(content(found(converged=3), seeds=(0, 1, 2), patience=1, n_epochs=3))
    assert "Not all of these trainings have converged." not in all_have
    assert "with 125 labels †" in said
    assert "with 125 labels †" not in all_have
    assert "† Not all trainings have converged in 3 epochs" in said
    assert "pretrained-finetuned-adam †" in said
    assert "at most 3 epochs, until 1 have brought no lower validation loss" in said


@pytest.mark.parametrize(
    ("value", "said"),
    [(250 - 1e-12, "0"), (math.inf, "more than 750"), (0.0, "fewer than −125"), (700, "450"), (200, "−50")],
)
def test_numbers_beyond_the_data_are_said_to_be(value, said):
    assert by_labels.number(value, (125, 1_000), lambda needed: needed - 250) == said


def test_metrics_have_a_number_or_a_bound(several):
    assert by_labels.metrics(several)["labels_saved"] == pytest.approx(457, abs=60)
    for value, expected in ((math.inf, {"labels_saved_at_least": 750}), (0.0, {"labels_saved_at_most": -125})):
        needed = {name: [Needed(value, None)] * 4 for name in several.saved.needed}
        beyond = dataclasses.replace(several, saved=dataclasses.replace(several.saved, needed=needed))
        assert by_labels.metrics(beyond) == expected
    assert by_labels.metrics(None) == {}


def test_tables_have_every_seed_and_the_ends_of_intervals(several):
    rows = by_labels.curves_table(several, (0, 1, 2))
    assert len(rows) == 1 + 10 * 4 * 3
    assert rows[1][:3] == [next(iter(ALL_RIGHT)), 125, 0]
    assert float(rows[1][3]) == pytest.approx(45, abs=3)
    saved = by_labels.saved_table(several)
    assert len(saved) == 1 + (5 + 1) * 4
    assert {row[1] for row in saved[1:]} == {"random-finetuned-adam", PROBES[False]}
    assert all(float(low) <= float(needed) <= float(high) for _, _, _, needed, low, high in saved[1:])
    assert by_labels.curves_table(None, (0,)) == [["configuration", "labels", "seed", "error"]]


def test_the_arrow_goes_from_the_one_number_of_labels_to_the_other(several):
    figure = figures.labels(SETTINGS.experiments, several)
    [axes] = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    arrow = next(each for each in axes.texts if each.arrow_patch is not None)
    answer = several.saved
    assert arrow.xyann[0] == 250
    assert arrow.xy[0] == pytest.approx(answer.needed[answer.chosen][answer.at].value)
    assert arrow.xy[1] == arrow.xyann[1] == pytest.approx(35, abs=1)
    dots = [line for line in axes.lines if line.get_marker() == "." and line.get_linestyle() == "None"]
    assert len(dots) == 10 * 3  # of every curve, for every seed
