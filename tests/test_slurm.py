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
from cluster.job import JobResult
from cluster.progress import ProgressDisplay
from pipeline.dvc_yaml import stages

from . import slurm
from .conftest import ROOT
from .small_repository import small_repository, specs, stages_in, write_stages

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


def perform(repository: Path, scratch: Path, shared: Path, max_attempts: int) -> list[JobResult]:
    from cluster.slurm import Backend

    plan = home.planned(stages(yaml.safe_load((repository / "params.yaml").read_text()), str(repository / "dvc.yaml")))
    by_name, collected = specs(repository, scratch, shared), []
    backend = Backend(asked(shared, max_attempts=max_attempts))
    try:
        with ProgressDisplay() as board:
            home.perform(backend, plan, lambda stage: by_name[stage.name], collected.append, max_attempts=max_attempts,
                         max_jobs=8, board=board, logs=shared / "logs")  # fmt: skip
    finally:
        backend.close()
    return collected


def test_nodes_that_lack_the_environment_or_room(small, tmp_path, monkeypatch, capsys):
    """Node 1 has no Python and node 2 a full disk: each says so, and node 3 does all of it."""
    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    scratch.mkdir()
    without = f"mount -t tmpfs none {Path(sys.executable).parent.parent}"
    full = f"mount -t tmpfs -o size=4m none {scratch}"
    with nodes(tmp_path, monkeypatch, node1=without, node2=full):
        outcomes = perform(small, scratch, shared, max_attempts=3)
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
    from cluster.slurm import Backend

    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    write_stages(small, seconds=600)
    driver = f"""
from cluster.slurm import Backend
from pathlib import Path
from tests.small import specs
from tests.test_slurm import asked
import time
backend = Backend(asked(Path({str(shared)!r})))
print(flush=True)
backend.submit(list(specs(Path({str(small)!r}), Path({str(scratch)!r}), Path({str(shared)!r})).values()), needs_gpu=False)
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
            Backend(asked(shared))
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
from headstart.console import run_cli
from tests.test_slurm import perform
run(lambda: perform(Path({str(small)!r}), Path({str(scratch)!r}), Path({str(shared)!r}), max_attempts=1))
"""], cwd=ROOT, stderr=subprocess.PIPE, text=True)  # fmt: skip
        while sum("work" in stage.split() for stage in stages_in(scratch)) < 3:
            assert process.poll() is None
            time.sleep(0.5)
        running.call("scancel", f"--user={os.getuid()}", "--signal=USR2")
        said = process.communicate()[1]
    assert said.startswith("headstart: 3 of 3 stages failed; ")
    assert (
        said.count(
            "the time of all its jobs was not enough: raise slurm.time_limit_minutes, or max_attempts, in cluster.yaml"
        )
        == 3
    )
