"""One stage at one commit in a clone of its own: in a copy of the repository, with a folder as DVC's remote."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .clones import KEPT, repro, results, tiny_clone
from .conftest import ROOT, run

pytestmark = pytest.mark.pipeline
# What follows a training has its results in git, and DVC remembers none of its runs: it takes a second at home.
STAGES = ["prepare", "start@pretrained", "start@random", "features@pretrained", "features@random",
          *(f"train@{name}" for name in KEPT)]  # fmt: skip


def commit(clone: Path) -> str:
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "remote", cwd=clone)
    return run("git", "rev-parse", "HEAD", cwd=clone).stdout.strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> tuple[Path, str]:
    """A repository with a remote, and its commit."""
    clone = tiny_clone(tmp_path_factory.mktemp("home"))
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(clone.parent / f"{clone.name}-remote"), cwd=clone)
    return clone, commit(clone)


def command(stage: str, home: Path, commit: str, *options: object) -> list[str]:
    return [sys.executable, "-m", "cluster.unit", stage, "--commit", commit, "--origin", str(home),
            *map(str, options)]  # fmt: skip


def test_units_do_what_one_machine_does(home, tmp_path):
    home, commit = home
    scratch, checkpoints = tmp_path / "scratch", tmp_path / "checkpoints"
    options = ("--scratch", scratch, "--checkpoints", checkpoints)
    for stage in STAGES:
        if stage == f"train@{KEPT[0]}":
            _killed_in_training(command(stage, home, commit, *options), checkpoints)
            assert len(list(scratch.iterdir())) == 1  # the clone that it could not delete
        said = run(*command(stage, home, commit, *options), cwd=ROOT).stdout
        assert said.startswith(f"{stage} at {commit[:12]}: done on ")
        assert list(scratch.iterdir()) == []
    assert not list(checkpoints.rglob("*.safetensors"))
    run(*command(STAGES[-1], home, commit, *options), cwd=ROOT)  # once more does nothing

    assert repro(home, "--pull") == {"compare", *(f"evaluate@{name}" for name in KEPT)}
    alone = tiny_clone(tmp_path / "alone")
    run(sys.executable, "-m", "stages", cwd=alone)
    assert results(home) == results(alone)


def _killed_in_training(command: list[str], checkpoints: Path) -> None:
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    while not list(checkpoints.rglob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_unit_that_is_told_to_end_leaves_nothing(home, tmp_path):
    process = subprocess.Popen(command("features@random", *home, "--scratch", tmp_path), cwd=ROOT,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not list(tmp_path.glob("*/clone/.dvc")):
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1].startswith("headstart: interrupted; nothing half-written was left")
    assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("train@nothing", {}, "there is no stage 'train@nothing' at this commit: known are download, prepare, start@"),
        ("prepare", {"commit": "0" * 40}, "has no commit 0000000"),
        ("prepare", {"home": Path("/nowhere")}, "/nowhere cannot be cloned: "),
    ],
)
def test_what_a_unit_cannot_do(home, tmp_path, stage, change, message):
    of = {"home": home[0], "commit": home[1]} | change
    done = run(*command(stage, of["home"], of["commit"], "--scratch", tmp_path), cwd=ROOT, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("headstart: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_without_a_remote_and_with_one_that_cannot_be_written(tmp_path):
    clone = tiny_clone(tmp_path / "clone")
    head = run("git", "rev-parse", "HEAD", cwd=clone).stdout.strip()
    refused = run(*command("download", clone, head), cwd=ROOT, check=False)
    assert refused.stderr.startswith("headstart: DVC has no remote to bring results to: `dvc remote add")
    (tmp_path / "file").write_bytes(b"")
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(tmp_path / "file/remote"), cwd=clone)
    refused = run(*command("download", clone, commit(clone)), cwd=ROOT, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("headstart: `dvc push --quiet --run-cache` failed: ")
    assert len(refused.stderr.splitlines()) == 1
