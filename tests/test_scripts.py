"""What people run beside the pipeline; what it says of real commits is in test_pipeline.py."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats

from headstart.console import UserError
from headstart.results import comparison, tables
from headstart.results.comparison import Estimate
from scripts import change, results, studies, table

from .conftest import ROOT, run
from .test_browser import CHROMIUM, chromium
from .test_comparison import first_correct as right


def estimate(count: int, of: int = 10_000) -> Estimate:
    return comparison.accuracy(right(count, of))


# b is right on 300 images more; a gains 10 images and loses 6.
BEFORE = results.Results(
    accuracy={"a": estimate(8_846), "b": estimate(8_312), "c": estimate(2_001)},
    metrics={name: {"test_accuracy": 0.5, "macro_f1": 0.8} for name in "abc"},
    published={"a": 0.8462},
    summary={"best_accuracy": 0.8846, "effect_pretrained": 0.525},
    right={"a": {0: right(8_846)[0]}, "b": {0: right(8_312)[0]}, "c": {0: right(2_001)[0]}},
)
AFTER = dataclasses.replace(
    BEFORE,
    accuracy={"a": estimate(8_850), "b": estimate(8_612), "d": estimate(5_000)},
    metrics={name: {"test_accuracy": 0.5, "macro_f1": 0.81} for name in "abd"},
    right={
        "a": {0: np.roll(right(8_850)[0], 6)},
        "b": {0: right(8_612)[0]},
        "d": {0: right(5_000)[0]},
    },
)


def test_a_change_is_tested_on_the_same_images():
    found = results.changes(AFTER, BEFORE)
    assert found.keys() == {"a", "b"}
    # a: images 0 to 5 are lost, 8,846 to 8,855 gained; b: 8,312 to 8,611 gained.
    assert found["a"].p == pytest.approx(stats.binomtest(6, 16).pvalue)
    assert [gain.is_significant for gain in found.values()] == [False, True]
    assert found["b"].gain.value == pytest.approx(0.03)


def test_the_same_seeds_are_compared():
    one, other = right(60, 100)[0], right(40, 100)[0]
    before = dataclasses.replace(BEFORE, right={"a": {0: other, 1: other}, "b": {2: one}, "c": {0: one}})
    after = dataclasses.replace(BEFORE, right={"a": {1: one, 7: other}, "b": {0: other}, "c": {0: one, 1: other}})
    # a: seed 1; b has no seed in common, and c's common seed has the same images right.
    assert {name: gain.gain.value for name, gain in results.changes(after, before).items()} == {"a": 0.2}


def test_what_did_not_change_makes_no_test_stricter():
    earlier, later = np.zeros((2, 100), dtype=bool)
    earlier[:35], later[35:95] = True, True  # 60 gained and 35 lost
    same = {name: {0: earlier} for name in "bcdefgh"}
    found = results.changes(dataclasses.replace(BEFORE, right={"a": {0: later}, **same}),
                            dataclasses.replace(BEFORE, right={"a": {0: earlier}, **same}))  # fmt: skip
    assert found["a"].p == pytest.approx(stats.binomtest(35, 95).pvalue)
    assert found["a"].p < 0.05


def test_without_the_images_of_before_nothing_is_tested():
    without = dataclasses.replace(BEFORE, right={"b": {0: right(8_312, 9_999)[0]}})
    assert results.changes(AFTER, without) == {}
    assert "| a | 88.46 | 88.50 | +0.04 |  | not tested |" in change._accuracies(without, AFTER)


def printed(now: results.Results, before: results.Results | None) -> list[str]:
    console = Console(width=100, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(table.table(now, before, study="quick", revision="main"))
    return [" ".join(line.split()) for line in captured.get().splitlines()]


def test_the_table_marks_best_worst_and_what_changed():
    lines = printed(AFTER, BEFORE)
    assert "configuration accuracy 95 % F1 published since main" in lines
    assert "a ▲ best 88.50 87.9–89.1 81.0 84.6 +0.04 ?" in lines
    assert "? may be none on other test images" in lines
    assert "b 86.12 85.4–86.8 81.0 – +3.00" in lines
    assert "d ▼ worst 50.00 49.0–51.0 81.0 – new" in lines
    assert "Main effects (means over pairs) in points: pretrained +52.5" in lines


def test_the_table_ends_with_the_majority_baseline():
    assert "majority baseline 10.00" in printed(dataclasses.replace(AFTER, majority=0.1), BEFORE)
    assert not any("majority" in line for line in printed(AFTER, BEFORE))


def test_a_change_with_several_seeds_is_significant_or_not():
    generator = np.random.default_rng(0)
    earlier, same, better = (dict(enumerate(generator.random((5, 2_000)) < accuracy)) for accuracy in (0.8, 0.8, 0.9))
    before = dataclasses.replace(BEFORE, right={"a": earlier, "b": earlier})
    after = dataclasses.replace(AFTER, right={"a": same, "b": better})
    lines = change._accuracies(before, after).splitlines()
    assert lines[0].endswith("| 95 % interval | significant |")
    assert [line.rpartition(" | ")[2] for line in lines[2:4]] == ["no |", "**yes** |"]
    assert "over test images and seeds" in lines[-1]
    assert "? not significant" in printed(after, before)


@pytest.mark.parametrize(
    ("bound", "said"),
    [
        ({}, "about 1,000"),
        ({"labels_saved_bound": "at least"}, "at least 1,234"),
        ({"labels_saved_bound": "at most"}, "at most 1,234"),
    ],
)
def test_the_table_says_what_pretrained_weights_save(bound, said):
    lines = printed(dataclasses.replace(AFTER, summary={**AFTER.summary, "labels_saved": 1_234, **bound}), None)
    assert f"Pretrained weights save {said} labels" in lines


def test_the_table_of_a_study_that_was_not_published_has_no_such_column():
    lines = printed(dataclasses.replace(AFTER, published={}), None)
    assert "configuration accuracy 95 % F1" in lines
    assert "b 86.12 85.4–86.8 81.0" in lines


def test_the_table_without_changes_has_no_such_column():
    assert not any("main" in line for line in printed(BEFORE, BEFORE) + printed(BEFORE, None))


def test_the_report_of_a_change(monkeypatch):
    revisions = {"old": BEFORE, "new": AFTER}
    monkeypatch.setattr(results, "read", lambda study, revision: revisions[revision] if study == "quick" else None)
    monkeypatch.setattr(change, "_parameters", lambda base, head: "PARAMETERS")
    assert change.report("old", "new", "https://example.org/x") == (ROOT / "tests/change.md").read_text(
        encoding="utf-8"
    )
    assert "No test accuracy is changed." in change.report("old", "old")
    assert "plots/" not in change.report("old", "old")


def test_an_unknown_revision():
    with pytest.raises(UserError, match="git knows no revision 'nonsense' here: fetch it, or name another one"):
        results.read("quick", "nonsense")


def test_the_committed_results_can_be_read():
    for study, published in (("quick", 0), ("resnet50", 8)):
        found = results.read(study)
        assert len(found.accuracy) == len(found.metrics) == len(found.right) == 8
        assert len(found.published) == published
    assert results.read("no such study") is None


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_dvc_plots_works_without_a_network(tmp_path):
    """As `make setup` configures it: nothing is requested but files, and the four plots are drawn."""
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "plots", tmp_path / "plots")
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", "-f", cwd=tmp_path)
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots", dirs_exist_ok=True)
    run("dvc", "config", "--local", "plots.html_template", str(ROOT / ".venv/plots.html"), cwd=tmp_path)
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


def test_workflows_use_pinned_actions_of_github_alone():
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
        used = [step["uses"] for job in jobs.values() for step in job["steps"] if "uses" in step]
        for action in used:
            name, _, version = action.partition("@")
            assert name in ("actions/checkout", "actions/setup-python", "actions/upload-artifact")
            assert len(version) == 40


def test_zizmor_finds_nothing_in_the_workflows():
    done = run("zizmor", "--offline", "--persona", "pedantic", "--no-progress", str(ROOT / ".github"), cwd=ROOT)
    assert "No findings to report" in done.stdout + done.stderr


def test_a_table_without_results(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there are no results of the study quick yet: `dvc repro` makes them"):
        table.main("quick")


def test_make_clean_removes_every_output_that_git_does_not_have():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for out in stage.get("do", stage)["outs"]]
    parts = [out.split("/") for out in outs if isinstance(out, str)]
    folders = {"/".join(part[:2]) if part[0] == "data" else part[0] for part in parts}  # data/ has people's pictures
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\nclean:")[2].split()
    of_data = {f"data/{name}" for name in ("raw", "prepared", "initial", "features")}
    assert folders == of_data | {"models", "predictions", "probes", "report", "scores"}
    assert "runs" in recipe  # the provenance of what is removed
    assert folders | {"checkpoints", ".dvc/cache"} <= set(recipe)
    assert not {"data", "data/pictures", "."} & set(recipe)


def test_make_clean_keeps_the_cache_of_images_that_any_branch_versions(tmp_path):
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    cache = tmp_path / ".dvc/cache"

    def clean() -> bool:
        """Run `make clean`; return whether the cache is left."""
        cache.mkdir(parents=True, exist_ok=True)
        run("make", "clean", cwd=tmp_path)
        return cache.exists()

    def git(*arguments: str) -> None:
        run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments, cwd=tmp_path)

    assert not clean()  # no git either
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


def test_the_studies_side_by_side(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    studies.main()
    said = capsys.readouterr().out
    for study, network, images in (("quick", "tf_efficientnet_lite0", "8,000"), ("resnet50", "ResNet50", "60,000")):
        found = results.read(study)
        effect = tables.points(found.summary["effect_pretrained"])
        best = max(estimate.value for estimate in found.accuracy.values())
        row = rf"{study} +Fashion-MNIST +{network} +{images} +64 +{100 * best:.1f} +{re.escape(effect)} +\+\d.* to \+"
        assert re.search(row, said), said


def test_no_studies_side_by_side(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no study of params\.yaml has results yet: `dvc repro` makes them"):
        studies.main()
