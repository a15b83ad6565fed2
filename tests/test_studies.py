"""`make studies` and `make results`: several studies, the page over all of them, and VTAB's protocol."""

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from headstart import params
from headstart.console import UserError
from headstart.results import comparison, figures, overview, page
from headstart.results.comparison import Estimate
from headstart.results.overview import LabelFactor, StudyOverview
from scripts import run_studies, run_study, studies, table

from .clones import TINY, edit, tiny_clone
from .conftest import ROOT, run
from .test_comparison import CONFIGURATIONS, CORRECT, PUBLISHED


def study(name: str = "one", **changes) -> StudyOverview:
    values = {
        "name": name, "dataset": "Pets & more", "model_name": "resnet50", "n_images": 1_000, "image_size": 224,
        "best_accuracy": 0.9, "gains": {"fine-tuned": Estimate(0.05, 0.03, 0.07)}, "label_factor": None,
    } | changes  # fmt: skip
    return StudyOverview(**values)


def test_gains_are_separate_for_fine_tuned_and_frozen_networks():
    gains = overview.gains(CONFIGURATIONS, CORRECT)
    for name, trained in (("fine-tuned", "finetuned"), ("classifier only", "frozen")):
        expected = np.mean([
            PUBLISHED[f"pretrained-{trained}-{optimizer}"] - PUBLISHED[f"random-{trained}-{optimizer}"]
            for optimizer in ("adam", "sgd")
        ])  # fmt: skip
        assert gains[name].value == pytest.approx(expected)
        assert gains[name].low < gains[name].value < gains[name].high
    finetuned = {name: value for name, value in CONFIGURATIONS.items() if value.finetuning}
    assert list(overview.gains(finetuned, CORRECT)) == ["fine-tuned"]
    assert gains["fine-tuned"] == comparison.analyze(finetuned, CORRECT).effects["pretrained"]


def test_the_label_factor_is_that_of_the_median_label_budget():
    rows = [
        {"configuration": name, "label_budget": str(n), "needed": str(needed), "low": low, "high": high}
        for name, n, needed, low, high in [
            ("pretrained", 100, 250.0, "100.0", "300.0"), ("pretrained", 200, 800.0, "400.0", "inf"),
            ("pretrained", 400, math.inf, "inf", "inf"), ("probe of pretrained features", 200, 1.0, "", ""),
        ]
    ]  # fmt: skip
    assert overview.label_factor(rows) == LabelFactor(200, Estimate(4.0, 2.0, math.inf))
    assert overview.label_factor(rows[-1:]) is None
    [one_seed] = [overview.label_factor([{**rows[0], "low": "", "high": ""}])]
    assert one_seed.factor.value == 2.5
    assert math.isnan(one_seed.factor.low)


def test_the_page_has_every_study():
    rows = [
        study("first"),
        study("second", label_factor=LabelFactor(500, Estimate(3.3, 2.0, math.inf))),
        study("third", gains={}, label_factor=LabelFactor(500, Estimate(math.inf, math.nan, math.nan))),
    ]
    svg = figures.as_svg(figures.forest, rows)
    for text in ("first: Pets &amp; more", "+5.0", "3.3×", "factor in labels"):
        assert text in svg
    text = page.render_overview_html(rows, svg)
    for part in ('<a href="first/index.html">first</a>', "+5.0 (+3.0 to +7.0)", "3.3 (2.0 to more) with 500 labels"):
        assert part in text
    assert "more than all labels with 500 labels" in text
    assert "factor in labels" not in figures.as_svg(figures.forest, [study()])


def test_the_committed_studies_have_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    for folder in ("metrics", "plots"):
        shutil.copytree(ROOT / folder, folder)
    studies.main("labels", "full")
    text = Path("report/studies.html").read_text(encoding="utf-8")
    assert "labels/index.html" in text
    assert "quick/index.html" not in text
    assert "3.3 (2.0 to more) with 500 labels" in text
    assert Path("plots/studies.svg").read_text(encoding="utf-8").startswith("<svg")
    assert "The page with all studies is report/studies.html" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"unknown study\. Choose one of quick, .*\. Got nothing\."):
        studies.main("nothing")
    shutil.rmtree("plots/full")
    with pytest.raises(UserError, match="studies without results: full"):
        studies.main("labels", "full")


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> list[tuple[str, list[str]]]:
    """Return the studies that run, with their configurations; nothing is computed."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    shutil.copytree(ROOT / "metrics", "metrics")
    started: list[tuple[str, list[str]]] = []

    def run_selected_study() -> None:
        settings = params.read()
        started.append((settings.study, list(settings.configurations)))
        if settings.study == "full":
            raise UserError("no memory")

    monkeypatch.setattr(run_study, "run_selected_study", run_selected_study)
    monkeypatch.setattr(table, "main", lambda name: None)
    monkeypatch.setattr(studies, "main", lambda *names: started.append(("page", list(names))))
    return started


def test_studies_run_one_after_the_other_with_their_own_configurations(workspace):
    run_studies.main("labels", "vtab-dtd", "labels")
    eight = list(CONFIGURATIONS)
    [labels, vtab, compared] = workspace
    assert labels[0] == "labels"
    assert labels[1] != eight
    assert vtab == ("vtab-dtd", eight)
    assert compared == ("page", ["labels", "vtab-dtd"])
    assert list(params.read().configurations) == eight
    run_studies.main("vtab-dtd")
    assert workspace[-2] == ("vtab-dtd", eight)


def test_an_edit_while_studies_run_is_kept(workspace, monkeypatch):
    def edit_params() -> None:
        text = Path("params.yaml").read_text(encoding="utf-8")
        Path("params.yaml").write_text(text.replace("batch_size: 128", "batch_size: 64"), encoding="utf-8")

    monkeypatch.setattr(run_study, "run_selected_study", edit_params)
    with pytest.raises(UserError, match=r"params\.yaml changed while the studies ran"):
        run_studies.main("quick", "resnet50")
    assert params.read().studies["quick"].batch_size == 64


def test_a_study_that_fails_does_not_stop_the_others(workspace):
    with pytest.raises(UserError, match=r"^1 of 3 studies failed\. .* Got full\."):
        run_studies.main("quick", "full", "resnet50")
    assert workspace[-1] == ("page", ["quick", "resnet50"])


def test_the_vtab_protocol(workspace):
    before = Path("params.yaml").read_text(encoding="utf-8")
    run_studies.main("vtab-svhn")
    settings = params.read()
    assert settings.study == "quick"
    study = settings.studies["vtab-svhn"]
    assert (study.dataset, study.training_images, study.validation_images) == ("svhn", 800, 200)
    assert (study.test_images, study.image_size, study.pool_images) == (None, 224, None)
    added = set(Path("params.yaml").read_text(encoding="utf-8").splitlines()) - set(before.splitlines())
    assert "  vtab-svhn:" in added
    assert settings.configurations == CONFIGURATIONS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no studies given. Set NAMES, for example `make studies NAMES='quick labels'`."),
        (("quick", "nothing"), "unknown study. Choose one of quick, "),
        (("vtab-nothing",), "unknown dataset in NAMES. Choose one of fashion-mnist, mnist, "),
        (("vtab-dtd", "nothing"), "unknown study. Choose one of quick, "),
    ],
)
def test_wrong_names_are_errors_before_anything_runs(workspace, names, message):
    before = Path("params.yaml").read_text(encoding="utf-8")
    with pytest.raises(UserError) as error:
        run_studies.main(*names)
    assert str(error.value).startswith(message)
    assert workspace == []
    assert Path("params.yaml").read_text(encoding="utf-8") == before


@pytest.mark.slow
@pytest.mark.pipeline
def test_two_studies_in_one_command(tmp_path):
    clone = tiny_clone(tmp_path)
    tiny = {key: value for key, value in TINY.items() if key != "test_images"}
    edit(clone, lambda settings: settings["studies"].update(
        second=settings["studies"]["quick"] | tiny | {"training_images": 96, "test_images": 200}))  # fmt: skip
    output = run(sys.executable, "-m", "scripts.run_studies", "quick", "second", cwd=clone).stdout
    assert "Study 2 of 2: second" in output
    text = (clone / "report/studies.html").read_text(encoding="utf-8")
    assert all(f"{name}/index.html" in text for name in ("quick", "second"))
    before = (clone / "params.yaml").read_bytes()
    again = run(sys.executable, "-m", "scripts.run_studies", "quick", "second", cwd=clone).stdout
    # DVC restores what has run, except for the outputs in git.
    assert {line.split()[1] for line in again.splitlines() if line.startswith("[")} == {"compare"}
    assert (clone / "params.yaml").read_bytes() == before
