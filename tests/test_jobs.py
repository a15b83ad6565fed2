"""Units that die, at once and together, with stages of seconds."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import __main__ as command
from cluster import spec
from headstart.console import UserError

from .conftest import ROOT
from .small_repository import processes_in, small_repository, specs, stages_in

pytestmark = pytest.mark.skipif(os.name != "posix", reason="specs need POSIX")
WAIT = 60  # seconds for what takes one or two


@pytest.fixture
def begin(tmp_path):
    """Begins the spec of stage "a", which takes some seconds, on a machine that is called as asked."""
    repository = small_repository(tmp_path, seconds=3)
    begun = []

    def begin(scratch: str, host: str = "") -> subprocess.Popen[str]:
        one = specs(repository, tmp_path / scratch, tmp_path / "shared")["a"]
        named = f"socket.gethostname = lambda: {host!r}" if host else ""
        code = f"""
import socket
{named}
from cluster import __main__ as command
from cluster import spec
from headstart.console import UserError
from headstart.console import run_cli
spec.LEASE, spec.BEAT = 4, 0.5
run(lambda: print(spec.perform(spec.{one})))
"""
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def works_in(scratch: Path) -> bool:
    return any("work" in stage.split() for stage in stages_in(scratch))


def wait_for(condition) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_a_unit_has_started_ends_with_it_however_it_ends(begin, tmp_path):
    process = begin("scratch")
    wait_for(lambda: works_in(tmp_path / "scratch"))
    process.kill()
    time.sleep(1)
    assert stages_in(tmp_path / "scratch") == []


def test_no_two_units_run_one_stage_at_once(begin, tmp_path):
    """One waits for the other, and takes over as soon as it is dead; what is complete is not run again."""
    scratches = [tmp_path / name for name in ("first", "second", "third")]
    first = begin("first")
    wait_for(lambda: works_in(scratches[0]))
    others = [begin("second"), begin("third")]
    time.sleep(1.5)
    assert not any(map(works_in, scratches[1:]))
    first.kill()
    most = 0
    while any(process.poll() is None for process in others):
        most = max(most, sum(map(works_in, scratches)))
        time.sleep(0.05)
    assert most == 1
    said = [process.communicate()[0] for process in others]
    assert sorted("ran=True" in each for each in said) == [False, True]


def test_a_unit_of_a_machine_that_is_dead_is_waited_for_until_its_time_is_over(begin, tmp_path):
    """A machine that only slept finds its spec replaced, which then ends."""
    first = begin("first", host="node1")
    wait_for(lambda: works_in(tmp_path / "first"))
    sleeping = [first.pid, *(process.pid for process in processes_in(tmp_path / "first"))]
    for pid in sleeping:
        os.kill(pid, signal.SIGSTOP)
    second = begin("second", host="node2")
    began = time.monotonic()
    wait_for(lambda: works_in(tmp_path / "second"))
    assert time.monotonic() - began > 3.5
    for pid in sleeping:
        os.kill(pid, signal.SIGCONT)
    assert first.wait(WAIT) == -signal.SIGKILL
    assert "ran=True" in second.communicate()[0]
    assert stages_in(tmp_path / "first") == []


def test_an_interruption_just_when_a_command_has_ended(tmp_path):
    """There is nothing left to kill, and the interruption is what comes through."""

    def interrupt(frame, event, result):
        if event == "return" and frame.f_code is subprocess.Popen.communicate.__code__ and result:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(interrupt)  # as a signal would, at no other moment
    try:
        with pytest.raises(KeyboardInterrupt):
            spec._run(["true"], tmp_path)
    finally:
        sys.setprofile(None)


def test_what_is_done_is_asked_for_again_only_where_the_remote_has_lost_it(tmp_path):
    repository = small_repository(tmp_path)
    done = spec.perform(specs(repository, tmp_path / "scratch", tmp_path / "shared")["a"])
    memory = command.Memory(tmp_path / "done.json", ["commit", {"OMP_NUM_THREADS": "1"}])
    memory.write(done.lock)
    assert memory.read() == done.lock
    assert command.Memory(memory.path, ["commit", {"OMP_NUM_THREADS": "2"}]).read() == {}
    for there in (done.lock, {}):
        with spec.temporary_clone(str(repository), "HEAD", str(tmp_path / "scratch")) as clone:
            assert command._still_there(memory.read(), clone) == there
        shutil.rmtree(tmp_path / "remote/files/md5", ignore_errors=True)
    memory.path.write_text("{cut o")
    assert memory.read() == {}


def test_a_clone_that_finds_no_room_does_not_say_that_there_is_no_commit(tmp_path):
    """The disk is full before the commit is checked out."""
    repository = small_repository(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(scratch)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    (repository / "large").write_bytes(random.Random(0).randbytes(120_000))
    subprocess.run("git add large && git -c user.name=t -c user.email=t@localhost commit -qm large", cwd=repository,
                   shell=True, check=True)  # fmt: skip
    try:
        with pytest.raises(UserError, match=r"cannot be cloned.*(No space left|unable to write)"):
            spec.perform(specs(repository, scratch, tmp_path / "shared")["a"])
    finally:
        subprocess.run(["umount", "--lazy", str(scratch)], check=True)
