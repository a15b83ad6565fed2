"""The pipeline as a user drives it: real DVC, in a copy of the repository, at a scale of seconds."""

import re
from pathlib import Path

import pytest

from headstart import files

from . import kills, together
from .clones import KEPT, edit, results, tiny_clone
from .conftest import run

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return tiny_clone(tmp_path_factory.mktemp("clone"))


def repro(clone: Path, *options: str) -> set[str]:
    """Run ``dvc repro``; return the stages that ran."""
    return set(re.findall(r"^Running stage '(.*)':", run("dvc", "repro", *options, cwd=clone).stdout, re.MULTILINE))


def test_the_life_of_a_study(clone):
    everything = {"download", "prepare", "compare"}
    everything |= {f"{stage}@{start}" for stage in ("start", "features") for start in ("pretrained", "scratch")}
    everything |= {f"{stage}@{name}" for stage in ("train", "evaluate") for name in KEPT}
    assert repro(clone) == everything
    first = results(clone)
    assert {f"metrics/quick/{name}.json" for name in (*KEPT, "study")} <= first.keys()
    assert sum(name.startswith("models/") for name in first) == 2 * len(KEPT)
    status = run("git", "status", "--porcelain", cwd=clone).stdout.split("\n")
    assert {line[3:] for line in status if line} == {"dvc.lock", "metrics/"}  # all else is ignored

    # Nothing to do.
    assert repro(clone) == set()

    # Everything again: the same to the last byte.
    assert repro(clone, "--force") == everything
    assert results(clone) == first

    # One configuration's lr.
    edit(clone, lambda settings: settings["experiments"][KEPT[1]].update(lr=0.002))
    assert repro(clone) == {f"train@{KEPT[1]}", f"evaluate@{KEPT[1]}", "compare"}
    changed = results(clone)
    different = {name for name in first if changed[name] != first[name]}
    assert different
    assert all(KEPT[1] in name or name == "metrics/quick/study.json" for name in different)
    edit(clone, lambda settings: settings["experiments"][KEPT[1]].update(lr=0.001))
    assert repro(clone) == set()  # that has been run before
    assert results(clone) == first

    # The other scale, and back.
    edit(clone, lambda settings: settings.update(scale="full"))
    assert repro(clone) == everything - {"download"}
    full = files.read_json(clone / f"metrics/full/{KEPT[0]}.json")
    assert 0 < full["test_accuracy"] < 1
    edit(clone, lambda settings: settings.update(scale="quick"))
    assert repro(clone) == set()
    assert {name: results(clone)[name] for name in first} == first

    # A configuration less: its files stay, the report forgets it.
    assert "scratch" in (clone / "params.yaml").read_text(encoding="utf-8")
    assert (clone / "report/quick/results.md").read_text(encoding="utf-8").count("| false | false |") == 1
    edit(clone, lambda settings: settings["experiments"].pop(KEPT[2]))
    assert repro(clone) == {"compare"}
    assert (clone / f"metrics/quick/{KEPT[2]}.json").exists()
    assert (clone / "report/quick/results.md").read_text(encoding="utf-8").count("| false | false |") == 0
    assert files.read_json(clone / "metrics/quick/study.json").keys() == {"best_accuracy"}


def test_stored_and_recomputed_activations_give_the_same(clone):
    shown = {}
    for stored in (True, False):
        edit(clone, lambda settings, stored=stored: settings["scales"]["quick"].update(store_activations=stored))
        repro(clone, "--single-item", "features@pretrained", f"train@{KEPT[0]}", f"evaluate@{KEPT[0]}")
        shown[stored] = files.read_tensors(clone / f"predictions/quick/{KEPT[0]}/logits.safetensors").tensors["logits"]
    assert shown[True].shape == (10_000, 10)
    assert shown[True].equal(shown[False])


def test_a_study_that_is_killed_ends_as_one_that_is_not(tmp_path):
    """The short form of `make kills`, which kills twenty times."""
    clone = tmp_path / "clone"
    clone.mkdir()
    expected, got, fell = kills.study(tiny_clone(clone), kills=3, seed=1)
    assert fell.total() == 3
    assert len(expected) == 28
    assert got == expected


def test_people_at_once_get_what_one_gets_alone(tmp_path, monkeypatch):
    """The short form of `make reliability`, which does it with eight configurations."""
    for name, value in together.ONE_THREAD.items():
        monkeypatch.setenv(name, value)
    (alone, *others), failed = together.study(tmp_path, every=False)
    assert failed == []
    assert len(alone) == 28
    assert others == [alone, alone]
