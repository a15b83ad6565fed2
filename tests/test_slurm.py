"""SLURM with jobs of seconds: killed drivers, broken nodes, time limits."""

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

from cluster import driver, settings
from cluster.job import JobResult
from cluster.progress import ProgressDisplay
from pipeline.dvc_yaml import stages

from . import slurm
from .conftest import ROOT
from .small_repository import job_specs, small_repository, stages_in, write_stages

pytestmark = [pytest.mark.pipeline, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]


@pytest.fixture
def repository(tmp_path) -> Path:
    return small_repository(tmp_path)


def slurm_settings(shared: Path, **changes: object) -> settings.Settings:
    options = settings.Slurm(partition=None, account=None, time_limit_minutes=5, memory_gb=1, options={})
    return replace(settings.read(), shared_folder=str(shared), **changes, slurm=options)


@contextmanager
def slurm_nodes(tmp_path: Path, monkeypatch, **setup: str) -> Iterator[slurm.Nodes]:
    with slurm.slurm(tmp_path / "slurm", setup=setup) as nodes:
        monkeypatch.setenv("SLURM_CONF", str(nodes.conf))
        yield nodes


def run_study(repository: Path, scratch: Path, shared: Path, max_attempts: int) -> list[JobResult]:
    """Run all stages of ``repository`` as SLURM jobs, and return the results."""
    from cluster.slurm import Backend

    document = yaml.safe_load((repository / "params.yaml").read_text())
    plan = driver.job_stages(list(stages(document, str(repository / "dvc.yaml"))))
    specs, collected = job_specs(repository, scratch, shared), []
    backend = Backend(slurm_settings(shared, max_attempts=max_attempts))
    try:
        with ProgressDisplay() as display:
            driver.run_jobs(
                backend,
                plan,
                lambda stage: specs[stage.name],
                collected.append,
                max_attempts=max_attempts,
                max_jobs=8,
                display=display,
                log_dir=shared / "logs",
            )
    finally:
        backend.close()
    return collected


@pytest.mark.slow
def test_stages_move_to_another_node_if_a_node_lacks_python_or_disk_space(repository, tmp_path, monkeypatch, capsys):
    """Node 1 has no Python and node 2 a full disk. Both errors are shown, and node 3 runs all stages."""
    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    scratch.mkdir()
    no_python = f"mount -t tmpfs none {Path(sys.executable).parent.parent}"
    full_disk = f"mount -t tmpfs -o size=4m none {scratch}"
    with slurm_nodes(tmp_path, monkeypatch, node1=no_python, node2=full_disk):
        results = run_study(repository, scratch, shared, max_attempts=3)
    assert {result.host for result in results} == {"node3"}
    assert [result.runs for result in results] == [
        {f"runs/small/{name}.json": {"seconds": 0.0}} for result in results for name in result.lock
    ]
    output = capsys.readouterr().out
    assert f"{sys.executable}: No such file or directory" in output
    assert "on node1: SLURM job " in output
    assert "on node2: `dvc repro --pull " in output
    assert f"{scratch}/headstart-job-" in output
    assert "No space left on device" in output
    assert not list(scratch.iterdir())
    assert not list((shared / "jobs").iterdir())


@pytest.mark.slow
def test_a_driver_cancels_the_jobs_of_a_killed_driver(repository, tmp_path, monkeypatch):
    """Kill drivers at random moments from before their first job on; the next driver waits until no job is left."""
    from cluster.slurm import Backend

    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    write_stages(repository, seconds=600)
    code = f"""
from cluster.slurm import Backend
from pathlib import Path
from tests.small_repository import job_specs
from tests.test_slurm import slurm_settings
import time
backend = Backend(slurm_settings(Path({str(shared)!r})))
print(flush=True)
specs = job_specs(Path({str(repository)!r}), Path({str(scratch)!r}), Path({str(shared)!r}))
backend.submit(list(specs.values()), needs_gpu=False)
time.sleep(600)
"""
    rng = random.Random(0)
    with slurm_nodes(tmp_path, monkeypatch) as nodes:
        n_with_jobs = 0
        for max_delay in (0.3, 0.3, 0.3, 1, 4):
            process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
            process.stdout.readline()
            time.sleep(rng.uniform(0, max_delay))
            process.kill()
            process.wait()
            n_with_jobs += bool(nodes.call("squeue", "--noheader"))
            Backend(slurm_settings(shared))
            assert nodes.call("squeue", "--noheader") == ""
            assert stages_in(scratch) == []
        assert n_with_jobs > 1


def test_a_stage_fails_when_all_of_its_jobs_reach_the_time_limit(repository, tmp_path, monkeypatch):
    scratch, shared = tmp_path / "scratch", tmp_path / "shared"
    write_stages(repository, seconds=600)
    code = f"""
from pathlib import Path
from headstart.console import run_cli
from tests.test_slurm import run_study
run_cli(lambda: run_study(Path({str(repository)!r}), Path({str(scratch)!r}), Path({str(shared)!r}), max_attempts=1))
"""
    with slurm_nodes(tmp_path, monkeypatch) as nodes:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while sum("work" in stage.split() for stage in stages_in(scratch)) < 3:
            assert process.poll() is None
            time.sleep(0.5)
        nodes.call("scancel", f"--user={os.getuid()}", "--signal=USR2")
        stderr = process.communicate()[1]
    assert stderr.startswith("headstart: 3 of 3 stages failed; ")
    message = (
        "the stage reached the time limit in all of its jobs. Increase slurm.time_limit_minutes or max_attempts in "
        "cluster.yaml."
    )
    assert stderr.count(message) == 3
