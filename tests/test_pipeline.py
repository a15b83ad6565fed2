"""The pipeline as a user drives it: real DVC, in a copy of the repository, at a scale of seconds."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

import headstart
from headstart import files
from headstart.data import splits

from .clones import NAMES, TEST_IMAGES, edit, repro, results, tiny_clone
from .conftest import run

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return tiny_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def first(clone) -> tuple[set[str], dict[str, str]]:
    """The stages that the first `dvc repro` ran, and its results."""
    return repro(clone), results(clone)


def commit(clone: Path, message: str) -> None:
    run("git", "add", "-A", cwd=clone)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", message, cwd=clone)


EVERYTHING = {"download", "prepare", "probe_pixels", "audit", "compare"}
EVERYTHING |= {
    f"{stage}@{start}" for stage in ("initialize", "features", "probe") for start in ("pretrained", "random")
}
EVERYTHING |= {f"{stage}@{name}" for stage in ("train", "evaluate") for name in NAMES}


def test_a_study_from_nothing(clone, first):
    ran, first = first
    assert ran == EVERYTHING
    assert {f"metrics/quick/{name}.json" for name in (*NAMES, "study")} <= first.keys()
    assert sum(name.startswith("models/") for name in first) == 3 * len(NAMES)
    assert "metrics/quick/correct.csv" in first
    assert sum(name.startswith("predictions/") for name in first) == len(NAMES)
    assert sum(name.startswith("scores/") for name in first) == 3 * len(NAMES)
    assert sum(name.startswith("plots/") for name in first) == 9
    status = run("git", "status", "--porcelain", cwd=clone).stdout.split("\n")
    assert {line[3:] for line in status if line} == {"dvc.lock", "metrics/", "plots/"}  # all else is ignored
    assert repro(clone) == set()  # nothing is left to do


@pytest.mark.parametrize("name", NAMES)
def test_the_saved_network_says_what_was_predicted(clone, first, name):
    images, labels, _ = splits.read_split(clone / "data/prepared/quick.safetensors", "test")
    logits = files.read_arrays(clone / f"predictions/quick/{name}/logits.safetensors").arrays["logits"]
    with torch.inference_mode():
        ours = headstart.load(clone / f"models/quick/{name}")(torch.from_numpy(images))
    torch.testing.assert_close(ours, torch.from_numpy(logits[0]), rtol=1e-4, atol=1e-4)
    metrics = files.read_json(clone / f"metrics/quick/{name}.json")
    assert metrics["test_accuracy"] == round((logits[0].argmax(1) == labels).mean(), 4)


def test_what_cannot_change_a_number_retrains_nothing(clone, first):
    for name, again in (("console.py", set()), ("results/report.css", {"compare"})):
        file = clone / "src/headstart" / name
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert repro(clone) == again
        file.write_bytes(content)
        assert repro(clone) == again


@pytest.mark.slow
def test_another_branch_and_back_runs_nothing(clone, first, tmp_path):
    """As whoever has not run the study first: in another clone, with a cache of its own."""
    commit(clone, "the study")
    other = tmp_path / "other"
    run("git", "clone", "-q", str(clone), str(other), cwd=clone)
    run("git", "switch", "-q", "--create", "branch", cwd=other)
    edit(other, lambda settings: settings["configurations"][NAMES[1]].update(lr=0.002))
    train, evaluate = f"train@{NAMES[1]}", f"evaluate@{NAMES[1]}"  # alone with what they need, for the time it takes
    assert repro(other, evaluate) == {
        "download",
        "prepare",
        "initialize@pretrained",
        "features@pretrained",
        train,
        evaluate,
    }
    commit(other, "another lr")
    run("git", "switch", "-q", "-", cwd=other)
    assert repro(other, evaluate) == {train, evaluate}
    assert run("git", "status", "--porcelain", cwd=other).stdout == ""  # dvc.lock and metrics are the committed ones
    edit(other, lambda settings: settings.update(dataset_dir="elsewhere"))
    run("git", "stash", cwd=other)
    run("git", "switch", "-q", "branch", cwd=other)
    run("dvc", "checkout", evaluate, cwd=other)
    assert repro(other, evaluate) == set()
    run("git", "switch", "-q", "-", cwd=other)
    assert repro(other, evaluate) <= {evaluate}  # whose metrics are in git and not in DVC's cache
    assert run("git", "status", "--porcelain", cwd=other).stdout == ""


@pytest.mark.slow
def test_one_configuration_s_lr(clone, first, tmp_path):
    first = first[1]
    run(sys.executable, "-m", "scripts.record", cwd=clone)
    commit(clone, "first")
    edit(clone, lambda settings: settings["configurations"][NAMES[1]].update(lr=0.002))
    _gate_is_closed(clone, tmp_path / "fresh")
    assert repro(clone) == {f"train@{NAMES[1]}", f"evaluate@{NAMES[1]}", "compare"}
    commit(clone, "second")
    _change_is_reported(clone)
    changed = results(clone)
    different = {name for name in first if changed[name] != first[name]}
    assert different
    of_all = ("metrics/quick/study.json", "metrics/quick/correct.csv")
    assert all(NAMES[1] in name or name in of_all or name.startswith(("plots/", "report/")) for name in different)
    edit(clone, lambda settings: settings["configurations"][NAMES[1]].update(lr=0.001))
    assert repro(clone) == {"compare"}  # the others have been run before, and DVC restores them
    assert results(clone) == first


def _gate_is_closed(clone: Path, fresh: Path) -> None:
    """In a clone as CI has it, with neither data nor DVC's cache, and with the settings of ``clone``."""
    run("git", "clone", "-q", str(clone), str(fresh), cwd=clone)
    gate = (sys.executable, "-m", "scripts.lock_gate")
    message = "OK: dvc.lock is up to date, and params.yaml matches the records of quick.\n"
    assert run(*gate, cwd=fresh).stdout == message
    record = fresh / "metrics/quick/record.json"
    shutil.copy(clone / "params.yaml", fresh / "params.yaml")
    closed = run(*gate, cwd=fresh, check=False)
    assert closed.returncode == 1
    assert closed.stderr == (
        f"headstart: configurations.{NAMES[1]}.lr differs from the record of the study quick. Restore it in "
        "params.yaml, or set `study: quick` in params.yaml, run `dvc repro`, and run `make record`. Got 0.002 instead "
        "of 0.001.\n"
    )
    # A record that was forged to fit does not fit dvc.lock.
    forged = files.read_json(record)
    forged["configurations"][NAMES[1]]["lr"] = 0.002
    files.write_json(record, forged)
    assert run(*gate, cwd=fresh, check=False).stderr == (
        f"headstart: dvc.lock is out of date: `dvc repro` would run train@{NAMES[1]}. Run it, and commit the changes.\n"
    )


def _change_is_reported(clone: Path) -> None:
    report = run(sys.executable, "-m", "scripts.change", "HEAD~1", cwd=clone).stdout
    cells = [re.sub(r" +", " ", line) for line in report.splitlines()]
    assert f"| params.yaml | configurations.{NAMES[1]}.lr | 0.001 | 0.002 |" in cells
    assert f"| {NAMES[1]} |" in report  # its accuracy
    assert f"| metrics/quick/{NAMES[1]}.json " in report
    assert f"| metrics/quick/{NAMES[0]}.json " not in report
    run("dvc", "plots", "diff", "HEAD~1", "HEAD", "-o", "diff", cwd=clone)
    assert (clone / "diff/index.html").stat().st_size > 10_000
    shutil.rmtree(clone / "diff")


@pytest.mark.slow
def test_another_study_and_back(clone, first):
    edit(clone, lambda settings: settings.update(study="full"))
    assert repro(clone) == EVERYTHING
    full = files.read_json(clone / f"metrics/full/{NAMES[0]}.json")
    assert 0 < full["test_accuracy"] < 1
    for name in NAMES:  # two seeds
        logits = files.read_arrays(clone / f"predictions/full/{name}/logits.safetensors").arrays["logits"]
        assert logits.shape == (2, TEST_IMAGES, 10)
        assert (logits[0] != logits[1]).any()
        assert {path.name for path in (clone / f"models/full/{name}").iterdir()} == {
            "epochs.csv", "budget_epochs.csv", "model-0.safetensors", "model-7.safetensors", "training.json",
        }  # fmt: skip
        assert [epoch["seed"] for epoch in files.read_csv(clone / f"models/full/{name}/epochs.csv")] == ["0", "7"]
    both = files.read_arrays(clone / f"predictions/full/{NAMES[0]}/logits.safetensors").arrays["logits"]
    labels = splits.read_split(clone / "data/prepared/full.safetensors", "test").labels
    means = [(each.argmax(1) == labels).mean() for each in both]
    assert full["test_accuracy"] == round(sum(means) / 2, 4)
    edit(clone, lambda settings: settings.update(study="quick"))
    assert repro(clone) == {"compare"}
    assert {name: results(clone)[name] for name in first[1]} == first[1]


def test_a_configuration_less(clone, first):
    """Its files stay, and the report forgets it."""
    assert NAMES[2] in (clone / "params.yaml").read_text(encoding="utf-8")
    assert NAMES[2] in {row["configuration"] for row in files.read_csv(clone / "plots/quick/accuracy.csv")}
    edit(clone, lambda settings: settings["configurations"].pop(NAMES[2]))
    assert repro(clone) == {"compare"}
    assert (clone / f"metrics/quick/{NAMES[2]}.json").exists()
    assert NAMES[2] not in {row["configuration"] for row in files.read_csv(clone / "plots/quick/accuracy.csv")}
    # What is left differs in two factors at least.
    assert files.read_json(clone / "metrics/quick/study.json").keys() == {"best_validation_accuracy"}


def test_stored_and_recomputed_activations_give_the_same(clone):
    shown = {}
    for stored in (True, False):
        edit(clone, lambda settings, stored=stored: settings["studies"]["quick"].update(cache_activations=stored))
        repro(clone, "--single-item", "features@pretrained", f"train@{NAMES[0]}", f"evaluate@{NAMES[0]}")
        shown[stored] = files.read_arrays(clone / f"predictions/quick/{NAMES[0]}/logits.safetensors").arrays["logits"]
    assert shown[True].shape == (1, TEST_IMAGES, 10)
    assert (shown[True] == shown[False]).all()
