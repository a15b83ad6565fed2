"""The commands in scripts/, the workflow and the Makefile; test_pipeline.py runs them on real commits."""

import argparse
import dataclasses
import importlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from headstart.console import UserError
from headstart.results import comparison
from headstart.results.comparison import Estimate
from scripts import change, plots_page, results, studies, table

from .conftest import ROOT, run
from .test_browser import CHROMIUM, chromium
from .test_comparison import first_correct as right


def estimate(n_correct: int) -> Estimate:
    return comparison.accuracy(right(n_correct, 10_000))


# b is correct on 300 more images; a gains 10 images and loses 6.
BEFORE = results.Results(
    accuracy={"a": estimate(8_846), "b": estimate(8_312), "c": estimate(2_001)},
    metrics={name: {"test_accuracy": 0.5, "macro_f1": 0.8} for name in "abc"},
    published={"a": 0.8462},
    summary={"best_accuracy": 0.8846, "effect_pretrained": 0.525},
    correct={"a": {0: right(8_846)[0]}, "b": {0: right(8_312)[0]}, "c": {0: right(2_001)[0]}},
)
AFTER = dataclasses.replace(
    BEFORE,
    accuracy={"a": estimate(8_850), "b": estimate(8_612), "d": estimate(5_000)},
    metrics={name: {"test_accuracy": 0.5, "macro_f1": 0.81} for name in "abd"},
    correct={"a": {0: np.roll(right(8_850)[0], 6)}, "b": {0: right(8_612)[0]}, "d": {0: right(5_000)[0]}},
)


def test_results_are_compared_on_the_same_images():
    comparisons = results.compare_results(AFTER, BEFORE)
    assert comparisons.keys() == {"a", "b"}
    # a: images 0 to 5 are lost, 8,846 to 8,855 gained; b: 8,312 to 8,611 gained.
    assert comparisons["a"].p == pytest.approx(stats.binomtest(6, 16).pvalue)
    assert [match.is_significant for match in comparisons.values()] == [False, True]
    assert comparisons["b"].gain.value == pytest.approx(0.03)


def test_results_are_compared_on_common_seeds():
    high, low = right(60, 100)[0], right(40, 100)[0]
    before = dataclasses.replace(BEFORE, correct={"a": {0: low, 1: low}, "b": {2: high}, "c": {0: high}})
    after = dataclasses.replace(BEFORE, correct={"a": {1: high, 7: low}, "b": {0: low}, "c": {0: high, 1: low}})
    # a: seed 1; b has no common seed, and the correctness of c's common seed did not change.
    assert {name: match.gain.value for name, match in results.compare_results(after, before).items()} == {"a": 0.2}


def test_unchanged_configurations_make_no_test_stricter():
    earlier, later = np.zeros((2, 100), dtype=bool)
    earlier[:35], later[35:95] = True, True  # 60 gained and 35 lost
    same = {name: {0: earlier} for name in "bcdefgh"}
    before, after = (dataclasses.replace(BEFORE, correct={"a": {0: correct}, **same}) for correct in (earlier, later))
    p = results.compare_results(after, before)["a"].p
    assert p == pytest.approx(stats.binomtest(35, 95).pvalue)
    assert p < 0.05


def test_results_on_different_images_are_not_tested():
    before = dataclasses.replace(BEFORE, correct={"b": {0: right(8_312, 9_999)[0]}})
    assert results.compare_results(AFTER, before) == {}
    assert "| a | 88.46 | 88.50 | +0.04 |  | not tested |" in change._accuracy_table(before, AFTER)


def printed(now: results.Results, before: results.Results | None) -> list[str]:
    console = Console(width=100, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(table.table(now, before, study="quick", revision="main"))
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def test_table_marks_best_worst_and_changes():
    lines = printed(AFTER, BEFORE)
    assert "configuration accuracy 95% CI F1 published since main" in lines
    assert "a ▲ best 88.50 87.9–89.1 81.0 84.6 +0.04 ?" in lines
    assert "? may not hold on other test images" in lines
    assert "b 86.12 85.4–86.8 81.0 – +3.00" in lines
    assert "d ▼ worst 50.00 49.0–51.0 81.0 – new" in lines
    assert "Main effects in points (means over pairs): pretrained +52.5" in lines
    assert "Single seed: differences may be seed noise" in lines


def test_table_states_the_direction_of_the_optimizer_effect():
    lines = printed(dataclasses.replace(AFTER, summary={"effect_optimizer": 0.12}), None)
    effect = "optimizer +12.0 (Adam vs. SGD, each with its own hyperparameters)"
    assert f"Main effects in points (means over pairs): {effect}" in " ".join(lines)


def test_table_ends_with_the_majority_baseline():
    assert "majority baseline 10.00" in printed(dataclasses.replace(AFTER, majority=0.1), BEFORE)
    assert not any("majority" in line for line in printed(AFTER, BEFORE))


def test_change_with_several_seeds_is_significant_or_not():
    generator = np.random.default_rng(0)
    earlier, same, better = (dict(enumerate(generator.random((5, 2_000)) < accuracy)) for accuracy in (0.8, 0.8, 0.9))
    before = dataclasses.replace(BEFORE, correct={"a": earlier, "b": earlier})
    after = dataclasses.replace(AFTER, correct={"a": same, "b": better})
    lines = change._accuracy_table(before, after).splitlines()
    assert lines[0].endswith("| 95% CI | significant |")
    assert [line.rpartition(" | ")[2] for line in lines[2:4]] == ["no |", "**yes** |"]
    assert "test images and seeds" in lines[-1]
    lines = printed(after, before)
    assert "? not significant" in lines
    assert not any(line.startswith("Single seed") for line in lines)


@pytest.mark.parametrize(
    ("bound", "amount"),
    [
        ({}, "about 1,000"),
        ({"labels_saved_bound": "at least"}, "at least 1,234"),
        ({"labels_saved_bound": "at most"}, "at most 1,234"),
    ],
)
def test_table_has_the_labels_that_pretrained_weights_save(bound, amount):
    lines = printed(dataclasses.replace(AFTER, summary={**AFTER.summary, "labels_saved": 1_234, **bound}), None)
    assert f"Pretrained weights save {amount} labels" in lines


def test_table_of_an_unpublished_study_has_no_published_column():
    lines = printed(dataclasses.replace(AFTER, published={}), None)
    assert "configuration accuracy 95% CI F1" in lines
    assert "b 86.12 85.4–86.8 81.0" in lines


def test_table_without_changes_has_no_column_of_changes():
    assert not any("main" in line for line in printed(BEFORE, BEFORE) + printed(BEFORE, None))


def test_report_of_a_change(monkeypatch):
    revisions = {"old": BEFORE, "new": AFTER}
    monkeypatch.setattr(results, "read", lambda study, revision: revisions[revision] if study == "quick" else None)
    monkeypatch.setattr(change, "_diff", lambda *arguments: f"DIFF {' '.join(arguments)}")
    expected = (ROOT / "tests/change.md").read_text(encoding="utf-8")
    assert change.report("old", "new", "https://example.org/x") == expected
    assert "No test accuracy changed." in change.report("old", "old")
    assert "plots/" not in change.report("old", "old")


@pytest.fixture(scope="module")
def revisions(tmp_path_factory) -> Path:
    """Return a repository with DVC and three commits; each of the tags before, after and text names one."""
    folder = tmp_path_factory.mktemp("revisions")

    def commit(tag: str, **contents: str) -> None:
        for name, content in contents.items():
            (folder / "metrics" / f"{name}.json").write_text(content, encoding="utf-8")
        run("git", "add", ".", cwd=folder)
        run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", tag, cwd=folder)
        run("git", "tag", tag, cwd=folder)

    run("git", "init", "-q", cwd=folder)
    run("dvc", "init", "-q", cwd=folder)
    (folder / "metrics").mkdir()
    (folder / "params.yaml").write_text("lr: 0.001", encoding="utf-8")
    commit("before", a='{"x": 0.25, "y": 1}', b='{"x": 0.5}')
    (folder / "params.yaml").write_text("lr: 0.002", encoding="utf-8")
    (folder / "metrics/b.json").unlink()
    commit("after", a='{"x": 0.123456, "y": 1}', c='{"x": 0.75}')
    (folder / "README.md").write_text("text", encoding="utf-8")
    commit("text")
    return folder


def diff(kind: str, base: str, head: str, *options: str) -> list[str]:
    return [re.sub(" +", " ", line) for line in change._diff(kind, base, head, *options).splitlines()]


def test_changed_parameters_and_metrics_are_folded_tables(revisions, monkeypatch):
    """A metrics file may be missing before or after; a file that is missing in both is ignored."""
    monkeypatch.chdir(revisions)
    assert diff("params", "before", "after") == [
        "<details><summary>Changed params: 1</summary>",
        "",
        "| Path | Param | before | after |",
        "|-------------|---------|----------|---------|",
        "| params.yaml | lr | 0.001 | 0.002 |",
        "",
        "</details>",
    ]
    targets = [f"metrics/{name}.json" for name in "abcd"]
    lines = diff("metrics", "before", "after", "--precision=4", "--targets", *targets)
    assert lines[0] == "<details><summary>Changed metrics: 3</summary>"
    assert lines[4:-2] == [
        "| metrics/a.json | x | 0.25 | 0.1235 | -0.1265 |",
        "| metrics/b.json | x | 0.5 | - | - |",
        "| metrics/c.json | x | - | 0.75 | - |",
    ]


def test_without_changes_there_are_no_tables(revisions, monkeypatch):
    monkeypatch.chdir(revisions)
    assert diff("params", "after", "text") == []
    assert diff("metrics", "after", "text", "--targets", "metrics/a.json") == []


def test_revision_that_dvc_does_not_know_is_one_line(revisions, monkeypatch):
    monkeypatch.chdir(revisions)
    with pytest.raises(UserError) as error:
        change._diff("params", "nonsense", "after")
    message = "`dvc params diff nonsense after` failed: ERROR: unknown Git revision 'nonsense'"
    assert " ".join(str(error.value).split()) == message


def test_unknown_revision_is_rejected():
    message = r"unknown git revision\. Fetch it, or choose another one\. Got 'nonsense'\."
    with pytest.raises(UserError, match=message):
        results.read("quick", "nonsense")


SCRIPTS = ("change", "doc_tables", "lock_gate", "plots_page", "record", "studies", "table")
BENCHMARKS = (
    "components", "faults", "fixed_costs", "growth", "optimizer_reset", "pictures", "speed", "weight_norms",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [*(f"scripts.{name}" for name in SCRIPTS), *(f"benchmarks.{name}" for name in BENCHMARKS)]
)
def test_help_describes_the_command_and_every_argument(name, monkeypatch):
    parsers: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, _) -> None:
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    module = importlib.import_module(name)
    with pytest.raises(SystemExit):
        module.main()
    [parser] = parsers
    assert parser.description.startswith(module.__doc__)
    assert all(action.help for action in parser._actions)


def test_committed_results_can_be_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    for study, n_published in (("quick", 0), ("resnet50", 8)):
        study_results = results.read(study)
        assert len(study_results.accuracy) == len(study_results.metrics) == len(study_results.correct) == 8
        assert len(study_results.published) == n_published
        assert results.configurations(results.read_record(study)).keys() == study_results.accuracy.keys()
    assert results.read("no such study") is None
    assert results.read_record("no such study") is None


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_dvc_plots_works_offline(tmp_path, monkeypatch):
    """With the template of `make setup`, the page requests files only, and draws the four plots."""
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "plots", tmp_path / "plots")
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", "-f", cwd=tmp_path)
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    plots_page.main("plots.html")
    run("dvc", "plots", "show", "-o", "out", cwd=tmp_path)
    with chromium() as browser:
        page = browser.new_page()
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "out/index.html").as_uri())
        page.wait_for_function("document.querySelectorAll('.vega-embed canvas, .vega-embed svg.marks').length == 4")
        assert all(url.startswith(("file:", "blob:", "data:")) for url in requests)
        assert errors == []


def test_workflows_use_only_pinned_actions_of_github():
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
        actions = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
        for action in actions:
            name, _, version = action.partition("@")
            assert name in ("actions/checkout", "actions/setup-python", "actions/upload-artifact")
            assert len(version) == 40


def test_zizmor_finds_nothing_in_the_workflows():
    result = run("zizmor", "--offline", "--persona", "pedantic", "--no-progress", str(ROOT / ".github"), cwd=ROOT)
    assert "No findings to report" in result.stdout + result.stderr


def test_table_without_results_is_one_line(tmp_path: Path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"the study quick has no results yet\. Run `dvc repro`"):
        table.main("quick")
    with pytest.raises(UserError, match=r"the study quik has no results yet\. Run `dvc repro`"):
        table.main("quik")


def test_make_clean_removes_every_output_that_is_not_in_git():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for out in stage.get("do", stage)["outs"]]
    paths = [out.split("/") for out in outs if isinstance(out, str)]
    folders = {"/".join(path[:2]) if path[0] == "data" else path[0] for path in paths}  # data/ has users' images
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nclean:")[2].split()
    data_folders = {f"data/{name}" for name in ("raw", "prepared", "initial", "features")}
    assert folders == data_folders | {"audit", "models", "networks", "predictions", "probes", "report", "scores"}
    assert "runs" in recipe  # the provenance of the outputs
    assert folders | {"checkpoints", ".dvc/cache"} <= set(recipe)
    assert not {"data", "data/pictures", "."} & set(recipe)


def test_make_clean_keeps_the_cache_of_images_that_any_branch_versions(tmp_path):
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    cache = tmp_path / ".dvc/cache"

    def clean() -> bool:
        """Run `make clean`; return whether the cache still exists."""
        cache.mkdir(parents=True, exist_ok=True)
        run("make", "clean", cwd=tmp_path)
        return cache.exists()

    def git(*arguments: str) -> None:
        run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments, cwd=tmp_path)

    assert not clean()  # without git
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "nothing")
    assert not clean()
    git("switch", "-q", "-c", "images")
    (tmp_path / "data/pictures").mkdir(parents=True)
    (tmp_path / "data/pictures/flowers.dvc").write_text("outs: []", encoding="utf-8")
    assert clean()  # before it is committed
    git("add", "data")
    git("commit", "-q", "-m", "flowers")
    git("switch", "-q", "-")
    assert not (tmp_path / "data/pictures/flowers.dvc").exists()
    assert clean()


def test_studies_are_printed_one_per_row(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    studies.main()
    shown = capsys.readouterr().out
    for study, network, images in (("quick", "tf_efficientnet_lite0", "8,000"), ("resnet50", "ResNet50", "60,000")):
        study_results = results.read(study)
        best = max(estimate.value for estimate in study_results.accuracy.values())
        row = rf"{study} +Fashion-MNIST +{network} +{images} +64 +{100 * best:.1f} +\+\d.* to \d"
        assert re.search(row, shown), shown


def test_studies_without_results_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no study in params\.yaml has results yet\. Run `dvc repro`"):
        studies.main()
