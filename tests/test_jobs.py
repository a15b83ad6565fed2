"""Jobs that are killed or compete for a stage, with stages of seconds."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from cluster import __main__ as cluster_main
from cluster import job
from headstart.console import UserError

from .conftest import ROOT, run
from .small_repository import job_specs, processes_in, small_repository, stages_in

pytestmark = pytest.mark.skipif(os.name != "posix", reason="jobs need POSIX")
TIMEOUT_S = 60  # for events that take a second or two


@pytest.fixture
def start_job(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that starts the job of stage "a", which takes seconds, under the given host name."""
    repository = small_repository(tmp_path, seconds=3)
    processes = []

    def start_job(scratch: str, host: str = "") -> subprocess.Popen[str]:
        spec = job_specs(repository, tmp_path / scratch, tmp_path / "shared")["a"]
        set_host = f"socket.gethostname = lambda: {host!r}" if host else ""
        code = f"""
import socket
{set_host}
from cluster import job
from headstart.console import run_cli
job.LEASE_S, job.HEARTBEAT_S = 4, 0.5
run_cli(lambda: print(job.run_job(job.{spec})))
"""
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        return process

    yield start_job
    for process in processes:
        process.kill()
        process.wait()


def is_working_in(scratch: Path) -> bool:
    return any("work" in stage.split() for stage in stages_in(scratch))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_child_processes_end_with_a_killed_job(start_job, tmp_path):
    process = start_job("scratch")
    wait_for(lambda: is_working_in(tmp_path / "scratch"))
    process.kill()
    time.sleep(1)
    assert stages_in(tmp_path / "scratch") == []


def test_no_two_jobs_run_the_same_stage_at_the_same_time(start_job, tmp_path):
    """Two jobs wait; when the first is killed, one of them takes over, and the other finds the stage cached."""
    scratches = [tmp_path / name for name in ("first", "second", "third")]
    first = start_job("first")
    wait_for(lambda: is_working_in(scratches[0]))
    waiting = [start_job("second"), start_job("third")]
    time.sleep(1.5)
    assert not any(map(is_working_in, scratches[1:]))
    first.kill()
    max_working = 0
    while any(process.poll() is None for process in waiting):
        max_working = max(max_working, sum(map(is_working_in, scratches)))
        time.sleep(0.05)
    assert max_working == 1
    outputs = [process.communicate()[0] for process in waiting]
    assert sorted("executed=True" in output for output in outputs) == [False, True]


def test_a_job_of_a_dead_machine_is_replaced_when_its_lease_expires(start_job, tmp_path):
    """If the machine was only suspended, its job finds that it was replaced, and ends."""
    first = start_job("first", host="node1")
    wait_for(lambda: is_working_in(tmp_path / "first"))
    suspended = [first.pid, *(process.pid for process in processes_in(tmp_path / "first"))]
    for pid in suspended:
        os.kill(pid, signal.SIGSTOP)
    second = start_job("second", host="node2")
    started = time.monotonic()
    wait_for(lambda: is_working_in(tmp_path / "second"))
    assert time.monotonic() - started > 3.5
    for pid in suspended:
        os.kill(pid, signal.SIGCONT)
    assert first.wait(TIMEOUT_S) == -signal.SIGKILL
    assert "executed=True" in second.communicate()[0]
    assert stages_in(tmp_path / "first") == []


def test_an_interruption_is_raised_even_if_the_command_has_just_ended(tmp_path):
    """There is no process left to kill then."""

    def interrupt(frame, event, result):
        if event == "return" and frame.f_code is subprocess.Popen.communicate.__code__ and result:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)  # as a signal at exactly this moment would
    try:
        with pytest.raises(KeyboardInterrupt):
            job._run(["true"], tmp_path)
    finally:
        sys.setprofile(None)


def test_saved_entries_are_used_only_for_the_same_inputs_and_if_the_remote_has_the_outputs(tmp_path):
    repository = small_repository(tmp_path)
    lock = job.run_job(job_specs(repository, tmp_path / "scratch", tmp_path / "shared")["a"]).lock
    state = cluster_main.SavedLock(tmp_path / "done.json", ["commit", {"OMP_NUM_THREADS": "1"}])
    state.write(lock)
    assert state.read() == lock
    assert cluster_main.SavedLock(state.path, ["commit", {"OMP_NUM_THREADS": "2"}]).read() == {}
    for restorable in (lock, {}):
        with job.temporary_clone(str(repository), "HEAD", str(tmp_path / "scratch")) as clone:
            assert cluster_main._if_restorable(state.read(), clone) == restorable
        shutil.rmtree(tmp_path / "remote/files/md5", ignore_errors=True)
    state.path.write_text("{cut o")
    assert state.read() == {}


def test_a_full_disk_is_not_reported_as_a_missing_commit(tmp_path):
    """The disk is full before the commit is checked out."""
    repository = small_repository(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(scratch)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    (repository / "large").write_bytes(random.Random(0).randbytes(120_000))
    commit = "git add large && git -c user.name=t -c user.email=t@localhost commit -qm large"
    subprocess.run(commit, cwd=repository, shell=True, check=True)
    try:
        with pytest.raises(UserError, match=r"cannot clone.*(No space left|unable to write)"):
            job.run_job(job_specs(repository, scratch, tmp_path / "shared")["a"])
    finally:
        subprocess.run(["umount", "--lazy", str(scratch)], check=True)


def test_a_job_returns_the_outputs_that_dvc_does_not_cache(tmp_path):
    repository = small_repository(tmp_path)
    definition = {"cmd": "python -m work a 0 && echo 7 > metric.json", "outs": ["out/a.safetensors"],
                  "metrics": [{"metric.json": {"cache": False}}]}  # fmt: skip
    (repository / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"a": definition}}))
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "metric", cwd=repository)
    result = job.run_job(job_specs(repository, tmp_path / "scratch", tmp_path / "shared")["a"])
    assert result.in_git == {"metric.json": "7\n"}
