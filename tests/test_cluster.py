"""One stage at one commit in a clone of its own: in a copy of the repository, with a folder as DVC's remote."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from . import servers
from .clones import KEPT, repro, results, tiny_clone
from .conftest import ROOT, run

pytestmark = pytest.mark.pipeline


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
    return [sys.executable, "-m", "cluster.job", stage, "--commit", commit, "--origin", str(home),
            *map(str, options)]  # fmt: skip


def test_units_do_what_one_machine_does(home, tmp_path):
    """Killed in its training, one goes on; what is done before is not done again; the rest is done at home."""
    home, commit = home
    scratch, checkpoints = tmp_path / "scratch", tmp_path / "checkpoints"
    options = ("--scratch", scratch, "--checkpoints", checkpoints)
    finetuned, random = (command(f"train@{name}", home, commit, *options) for name in (KEPT[0], KEPT[2]))
    _killed_in_training(finetuned, checkpoints)
    assert len(list(scratch.iterdir())) == 1  # the clone that it could not delete
    said = run(*finetuned, cwd=ROOT).stdout
    assert said.startswith(f"train@{KEPT[0]} at {commit[:12]}: done on ")
    assert not list(checkpoints.rglob("*.safetensors"))
    run(*random, cwd=ROOT)
    assert run(*random, cwd=ROOT).stdout.endswith("s, as it was before\n")
    assert list(scratch.iterdir()) == []

    at_home = {f"train@{KEPT[1]}", "probe@pretrained", "probe@random", "compare"}
    assert repro(home, "--pull") == at_home | {f"evaluate@{name}" for name in KEPT}
    alone = tiny_clone(tmp_path / "alone")
    run(sys.executable, "-m", "stages", cwd=alone)
    assert results(home) == results(alone)


@pytest.mark.parametrize("kind", ["ssh", "s3"])
def test_results_go_through_a_server(tmp_path, kind):
    if why := servers.missing(kind):
        pytest.skip(why)
    home = tiny_clone(tmp_path / "home")
    with getattr(servers, kind)(tmp_path / "server") as (address, options):
        run("dvc", "remote", "add", "--quiet", "--default", "shared", address, cwd=home)
        for key, value in options.items():
            run("dvc", "remote", "modify", "--local", "shared", key, value, cwd=home)
        unit = command("features@random", home, commit(home))
        assert not run(*unit, cwd=ROOT).stdout.endswith("as it was before\n")
        assert run(*unit, cwd=ROOT).stdout.endswith("as it was before\n")
        assert repro(home, "--pull", "features@random") == set()


def _killed_in_training(command: list[str], checkpoints: Path) -> None:
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    while not list(checkpoints.rglob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_unit_that_is_told_to_end_leaves_nothing(home, tmp_path):
    process = subprocess.Popen(command(f"train@{KEPT[1]}", *home, "--scratch", tmp_path), cwd=ROOT,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not list(tmp_path.glob("*/clone/.dvc")):
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1].startswith("headstart: interrupted: no partial output was left")
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
    assert refused.stderr.startswith("headstart: DVC has no default remote to bring results to: `dvc remote add")
    run("dvc", "remote", "add", "--quiet", "--default", "beside", "../remote", cwd=clone)
    refused = run(*command("download", clone, commit(clone)), cwd=ROOT, check=False)
    assert "DVC's remote.beside.url is ../remote, which would be another folder for every" in refused.stderr
    (tmp_path / "file").write_bytes(b"")
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(tmp_path / "file/remote"), cwd=clone)
    refused = run(*command("download", clone, commit(clone)), cwd=ROOT, check=False)
    assert refused.returncode == 1
    assert "`dvc push --run-cache --with-deps download` failed: [Errno 20] Not a directory: " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
