"""SLURM by itself, with jobs of seconds: drivers that are killed, nodes that lack something, time limits."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cluster import home, settings
from cluster.board import Board
from cluster.unit import Outcome
from stages.pipeline import stages

from . import slurm
from .conftest import ROOT
from .small import small_repository, stages_in, units, write_stages

pytestmark = [pytest.mark.pipeline, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]


@pytest.fixture
def small(tmp_path) -> Path:
    return small_repository(tmp_path)


def asked(shared: Path, **changes: object) -> settings.Settings:
    return replace(settings.read(), shared_folder=str(shared), **changes,
                   slurm=settings.Slurm(None, None, 5, 1, {}))  # fmt: skip


@contextmanager
def nodes(tmp_path: Path, monkeypatch, **prepared: str) -> Iterator[slurm.Nodes]:
    with slurm.slurm(tmp_path / "slurm", prepared=prepared) as running:
        monkeypatch.setenv("SLURM_CONF", str(running.conf))
        yield running


def perform(repository: Path, scratch: Path, shared: Path, attempts: int) -> list[Outcome]:
    from cluster.slurm import Engine

    plan = home.planned(stages(yaml.safe_load((repository / "params.yaml").read_text()), str(repository / "dvc.yaml")))
    by_name, collected = units(repository, scratch, shared), []
    engine = Engine(asked(shared, attempts=attempts))
    try:
        with Board() as board:
            home.perform(engine, plan, lambda stage: by_name[stage.name], collected.append, attempts=attempts,
                         at_once=8, board=board, logs=shared / "logs")  # fmt: skip
    finally:
        engine.close()
    return collected


def test_nodes_that_lack_the_environment_or_room(small, tmp_path, monkeypatch, capsys):
    """Node 1 has no Python and node 2 a full disk: each says so, and node 3 does all of it."""
    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    scratch.mkdir()
    without = f"mount -t tmpfs none {Path(sys.executable).parent.parent}"
    full = f"mount -t tmpfs -o size=4m none {scratch}"
    with nodes(tmp_path, monkeypatch, node1=without, node2=full):
        outcomes = perform(small, scratch, shared, attempts=3)
    assert {outcome.host for outcome in outcomes} == {"node3"}
    assert [outcome.runs for outcome in outcomes] == [
        {f"runs/small/{name}.json": {"seconds": 0.0}} for outcome in outcomes for name in outcome.lock
    ]
    said = capsys.readouterr().out
    assert f"{sys.executable}: No such file or directory" in said
    assert "on node1: its job " in said
    assert "on node2: `dvc repro --pull " in said
    assert f"failed: {scratch}/headstart-unit-" in said
    assert "No space left on device" in said
    assert not list(scratch.iterdir())
    assert not list((shared / "jobs").iterdir())


def test_a_driver_that_is_killed_leaves_no_jobs_to_the_next(small, tmp_path, monkeypatch):
    """Kill it at ten moments from before its first job on; the next one begins when nothing of it is left."""
    from cluster.slurm import Engine

    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    write_stages(small, seconds=600)
    driver = f"""
from cluster.slurm import Engine
from pathlib import Path
from tests.small import units
from tests.test_slurm import asked
import time
engine = Engine(asked(Path({str(shared)!r})))
print(flush=True)
engine.submit(list(units(Path({str(small)!r}), Path({str(scratch)!r}), Path({str(shared)!r})).values()), computes=False)
time.sleep(600)
"""
    moments = random.Random(0)
    with nodes(tmp_path, monkeypatch) as running:
        began = 0
        for longest in (0.3, 0.3, 0.3, 1, 4):
            process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT, stdout=subprocess.PIPE)
            process.stdout.readline()
            time.sleep(moments.uniform(0, longest))
            process.kill()
            process.wait()
            began += bool(running.call("squeue", "--noheader"))
            Engine(asked(shared))
            assert running.call("squeue", "--noheader") == ""
            assert stages_in(scratch) == []
        assert began > 1


def test_a_job_whose_time_is_over_begins_attempts_times(small, tmp_path, monkeypatch, capsys):
    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    write_stages(small, seconds=600)
    with nodes(tmp_path, monkeypatch) as running:
        process = subprocess.Popen(
            [sys.executable, "-c", f"""
from pathlib import Path
from headstart.console import run
from tests.test_slurm import perform
run(lambda: perform(Path({str(small)!r}), Path({str(scratch)!r}), Path({str(shared)!r}), attempts=1))
"""], cwd=ROOT, stderr=subprocess.PIPE, text=True)  # fmt: skip
        while sum("work" in stage.split() for stage in stages_in(scratch)) < 3:
            assert process.poll() is None
            time.sleep(0.5)
        running.call("scancel", f"--user={os.getuid()}", "--signal=USR2")
        said = process.communicate()[1]
    assert said.startswith("headstart: 3 of 3 stages failed; ")
    assert said.count("the time of all its jobs was not enough: raise slurm.minutes, or attempts, in cluster.yaml") == 3
