"""`python -m cluster.job` in a copy of the repository, with a folder or a server as DVC's remote."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from . import servers
from .clones import NAMES, repro, results, tiny_clone
from .conftest import ROOT, run

pytestmark = pytest.mark.pipeline


class Origin(NamedTuple):
    """A repository that jobs clone."""

    folder: Path
    commit: str


def commit_changes(clone: Path) -> str:
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "remote", cwd=clone)
    return run("git", "rev-parse", "HEAD", cwd=clone).stdout.strip()


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Origin:
    """A repository with a remote."""
    clone = tiny_clone(tmp_path_factory.mktemp("origin"))
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(clone.parent / f"{clone.name}-remote"), cwd=clone)
    return Origin(clone, commit_changes(clone))


def job_command(stage: str, origin: Origin, *options: object) -> list[str]:
    command = [sys.executable, "-m", "cluster.job", stage, "--commit", origin.commit, "--origin", str(origin.folder)]
    return command + [str(option) for option in options]


@pytest.mark.slow
def test_jobs_give_the_same_results_as_one_machine(origin, tmp_path):
    """A training that was killed resumes, finished stages are cached, and `dvc repro --pull` runs the rest."""
    scratch, checkpoints = tmp_path / "scratch", tmp_path / "checkpoints"
    options = ("--scratch", scratch, "--checkpoints", checkpoints)
    finetuned, random = (job_command(f"train@{name}", origin, *options) for name in (NAMES[0], NAMES[2]))
    _kill_in_training(finetuned, checkpoints)
    assert len(list(scratch.iterdir())) == 1  # the clone that the killed job could not delete
    assert run(*finetuned, cwd=ROOT).stdout.startswith(f"train@{NAMES[0]} at {origin.commit[:12]}: done on ")
    assert not list(checkpoints.rglob("*.safetensors"))
    run(*random, cwd=ROOT)
    assert run(*random, cwd=ROOT).stdout.endswith(" s (cached)\n")
    assert list(scratch.iterdir()) == []

    remaining = {f"train@{NAMES[1]}", "probe@pretrained", "probe@random", "probe_pixels", "audit", "compare"}
    assert repro(origin.folder, "--pull") == remaining | {f"evaluate@{name}" for name in NAMES}
    expected = tiny_clone(tmp_path / "expected")
    run(sys.executable, "-m", "stages", cwd=expected)
    assert results(origin.folder) == results(expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ssh", "s3"])
def test_results_go_through_a_server(tmp_path, kind):
    if why := servers.missing(kind):
        pytest.skip(why)
    clone = tiny_clone(tmp_path / "clone")
    with getattr(servers, kind)(tmp_path / "server") as (address, options):
        run("dvc", "remote", "add", "--quiet", "--default", "shared", address, cwd=clone)
        for key, value in options.items():
            run("dvc", "remote", "modify", "--local", "shared", key, value, cwd=clone)
        command = job_command("features@random", Origin(clone, commit_changes(clone)))
        assert not run(*command, cwd=ROOT).stdout.endswith("(cached)\n")
        assert run(*command, cwd=ROOT).stdout.endswith("(cached)\n")
        assert repro(clone, "--pull", "features@random") == set()


def _kill_in_training(command: list[str], checkpoints: Path) -> None:
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    while not list(checkpoints.rglob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_job_cleans_up_after_sigterm(origin, tmp_path):
    command = job_command(f"train@{NAMES[1]}", origin, "--scratch", tmp_path)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("*/clone/.dvc")):
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    [line] = process.communicate()[1].splitlines()
    assert line.startswith("headstart: interrupted")
    assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("train@nothing", {}, "unknown stage at this commit. Choose one of download, prepare, initialize@"),
        (
            "prepare",
            {"commit": "0" * 40},
            " does not have this commit. Push it there or choose another one. Got 000000",
        ),
        ("prepare", {"folder": Path("/nowhere")}, "cannot clone /nowhere: "),
    ],
)
def test_unknown_stages_commits_and_origins_are_rejected(origin, tmp_path, stage, change, message):
    command = job_command(stage, origin._replace(**change), "--scratch", tmp_path)
    result = run(*command, cwd=ROOT, check=False)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("headstart: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_relative_or_broken_remote_is_reported(tmp_path):
    clone = tiny_clone(tmp_path / "clone")

    def error(commit: str) -> str:
        result = run(*job_command("download", Origin(clone, commit)), cwd=ROOT, check=False)
        assert result.returncode == 1
        [line] = result.stderr.splitlines()
        return line

    head = run("git", "rev-parse", "HEAD", cwd=clone).stdout.strip()
    assert error(head).startswith("headstart: DVC has no default remote to push results to. Run `dvc remote add")
    run("dvc", "remote", "add", "--quiet", "--default", "sibling", "../remote", cwd=clone)
    relative = "headstart: remote.sibling.url in DVC's configuration is a relative path, which differs on every worker."
    assert error(commit_changes(clone)).startswith(relative)
    (tmp_path / "file").write_bytes(b"")
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(tmp_path / "file/remote"), cwd=clone)
    failure = "`dvc push --run-cache --with-deps download` failed: [Errno 20] Not a directory: "
    assert failure in error(commit_changes(clone))
