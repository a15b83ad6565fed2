"""`scripts.run_study` and `scripts.time_estimate`: progress, time left, and settings that fit the time."""

import json
import stat
from pathlib import Path

import numpy as np
import pytest

import scripts.pictures
from headstart import params
from headstart.console import UserError
from headstart.data.splits import Dataset, Partition
from pipeline.dvc_yaml import stages
from scripts import run_study, time_estimate
from scripts.run_study import Progress
from scripts.time_estimate import Counts

from .conftest import ROOT
from .test_make_pictures import SPEED

SETTINGS = params.read(ROOT / "params.yaml")


def test_every_stage_of_dvc_yaml_has_an_estimate():
    document = params.read_yaml(ROOT / "params.yaml")
    seconds = time_estimate.stage_seconds(
        document["studies"]["quick"], SETTINGS.configurations, Counts(700, 100, 200, 5), SPEED
    )
    assert set(seconds) == {stage.name for stage in stages(document, str(ROOT / "dvc.yaml"))}
    assert set(time_estimate.FIRST_STAGES) < set(seconds)


def photographs(n: int) -> Dataset:
    labels = np.arange(n) % 4
    return Dataset("pets", tuple("abcd"), Partition(labels, lambda chosen: labels[chosen]), None)


def test_more_time_gives_larger_images_and_more_seeds():
    choices = [
        scripts.pictures.fit_to_time(photographs(400), SETTINGS.configurations, SPEED, 60 * minutes)
        for minutes in (0.1, 3, 5, 20, 200)
    ]
    sizes = [size for size, _ in choices]
    assert sizes == sorted(sizes)
    assert choices[0] == (64, [0])
    assert choices[-1] == (224, [0, 1, 2])
    assert 64 < sizes[2] < 224


def test_more_images_take_more_time():
    seconds = [
        sum(scripts.pictures._estimate(dataset, scripts.pictures.suggest_settings(dataset, 96, [0]),
                                       SETTINGS.configurations, SPEED).values())
        for dataset in map(photographs, (400, 4_000, 40_000))
    ]  # fmt: skip
    assert seconds == sorted(seconds)
    assert seconds[2] > 5 * seconds[1]


def test_a_slow_machine_gets_smaller_images():
    slow = SPEED._replace(step=SPEED.step._replace(per_pixel=20 * SPEED.step.per_pixel))
    sizes = [
        scripts.pictures.fit_to_time(photographs(2_000), SETTINGS.configurations, speed, 900)[0]
        for speed in (slow, SPEED)
    ]
    assert sizes[0] < sizes[1]


def test_the_network_is_timed_on_this_machine():
    speed = time_estimate.measure(0.01)
    assert 0 < speed.features.seconds(64) <= speed.features.seconds(224) < 10
    assert 0 < speed.predict.seconds(224) < speed.step.seconds(224)


@pytest.mark.parametrize("minutes", ["0", "-3", "ten", "nan", "inf"])
def test_minutes_must_be_a_positive_number(minutes):
    with pytest.raises(UserError, match="MINUTES must be a positive number"):
        scripts.pictures.main(f"--minutes={minutes}", "folder")


def test_group_by_must_be_a_rule():
    with pytest.raises(UserError, match=r"GROUP_BY must be one of folder, prefix, near-duplicates, none\. Got 'video'"):
        scripts.pictures.main("--group-by=video", "folder")


def test_the_time_left_is_corrected_by_the_time_that_stages_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_study.time, "perf_counter", lambda: now[0])
    progress = Progress({"a": 60, "b": 60, "c": 120, "d": 600})
    assert progress.start("a", []) == ", about 14 min left"
    now[0] = 120.0  # too early for a correction
    assert progress.start("b", ["a"]) == ", about 13 min left"
    now[0] = 240.0  # twice as long as estimated
    assert progress.start("c", ["a", "b"]) == ", about 24 min left"
    assert progress.start("d", ["a", "b", "c", "d"]) == ""
    assert Progress({}).start("a", []) == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "10 s"), (44, "40 s"), (56, "1 min"), (150, "2 min"), (7_000, "117 min")]
)
def test_durations_in_words(seconds, words):
    assert time_estimate.in_words(seconds) == words


def test_stages_are_read_from_the_output_of_dvc(tmp_path, monkeypatch, capsys):
    lines = [
        "Stage 'download' didn't change, skipping", "Running stage 'prepare':", "> python -m stages.prepare",
        "a message", "Updating lock file 'dvc.lock'", "", "Running stage 'audit':", "> python -m stages.audit",
    ]  # fmt: skip
    write_dvc(tmp_path, lines, status=0)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    finished: set[str] = set()
    assert list(run_study.repro(["audit"], finished)) == ["prepare", "audit"]
    assert finished == {"download", "prepare", "audit"}
    assert capsys.readouterr().out == "a message\n"
    write_dvc(tmp_path, lines, status=1)
    with pytest.raises(UserError, match=r"`dvc repro` failed: see the message above\. Then run the same command again"):
        list(run_study.repro([], set()))


def write_dvc(folder: Path, lines: list[str], status: int) -> None:
    """Write a program that prints what DVC prints."""
    path = folder / "dvc"
    path.write_text(
        f"#!/usr/bin/env python3\nfor line in {json.dumps(lines)}: print(line)\nraise SystemExit({status})\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
