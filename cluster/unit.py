"""Run one stage of the pipeline at one commit, in a clone of its own that is deleted afterwards.

    python -m cluster.unit STAGE --commit COMMIT [--origin FOLDER_OR_ADDRESS] [--scratch FOLDER] [--checkpoints FOLDER]

What the stage needs comes out of DVC's run-cache, from the default remote or the cache that `.dvc/config.local` of the
origin names; what is not there yet is run as well. What it makes goes back there: afterwards `dvc repro --pull` at home
finds it and runs it no more. It may be run twice and killed at any moment; with `--checkpoints`, a folder that all
machines see, a training goes on where another unit was killed.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil
import yaml

from headstart.console import UserError, run
from stages.__main__ import stages

ROOT = Path(__file__).parent.parent
PREFIX = "headstart-unit-"
# Two DVC that end the same stage at once write the same note into a shared cache: the second finds it moved away.
OWN_NOTE = re.compile(r"cache/runs/\S+\.tmp'\s*$")


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--origin", default=str(ROOT))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--checkpoints", type=Path)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminated)
    with _clone(options.origin, options.commit, options.scratch) as clone:
        _require_stage(options.stage, clone)
        _require_remote(clone)
        if options.checkpoints is not None:
            options.checkpoints.mkdir(parents=True, exist_ok=True)
            (clone / "checkpoints").symlink_to(options.checkpoints.resolve())
        _dvc(clone, "fetch", "--quiet", "--run-cache", may_fail=True)  # of a remote that has none yet
        _dvc(clone, "repro", "--pull", "--allow-missing", options.stage)
        _dvc(clone, "push", "--quiet", "--run-cache")
    print(f"{options.stage} at {options.commit[:12]}: done on {socket.gethostname()}")


def _terminated(number: int, frame: FrameType | None) -> None:
    """What a scheduler sends before it takes the machine away: clean up as after Ctrl-C."""
    raise KeyboardInterrupt


@contextmanager
def _clone(origin: str, commit: str, scratch: Path) -> Iterator[Path]:
    """A clone of ``origin`` at ``commit``, with DVC's local settings if ``origin`` is a folder; deleted at the end."""
    _remove_dead(scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{socket.gethostname()}-{os.getpid()}-", dir=scratch) as folder:
        clone = Path(folder, "clone")
        done = _run(["git", "clone", "--quiet", "--no-checkout", origin, str(clone)], Path(folder))
        if done.returncode:
            raise UserError(f"{origin} cannot be cloned: {_last_line(done.stderr)}")
        if _run(["git", "checkout", "--quiet", "--detach", commit], clone).returncode:
            raise UserError(f"{origin} has no commit {commit}: push it there, or name another one")
        local = Path(origin, ".dvc/config.local")
        if local.is_file():
            shutil.copy(local, clone / ".dvc/config.local")
        yield clone


def _remove_dead(scratch: Path) -> None:
    """Remove what units on this machine left that were killed."""
    for left in scratch.glob(f"{PREFIX}{socket.gethostname()}-*"):
        pid = left.name.removeprefix(f"{PREFIX}{socket.gethostname()}-").partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _require_stage(stage: str, clone: Path) -> None:
    document = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    names = [one.name for one in stages(document, str(clone / "dvc.yaml"))]
    if stage not in names:
        raise UserError(f"there is no stage {stage!r} at this commit: known are {', '.join(names)}")


def _require_remote(clone: Path) -> None:
    if not _run(["dvc", "remote", "list"], clone).stdout.strip():
        raise UserError("DVC has no remote to bring results to: `dvc remote add --default NAME ADDRESS`, and commit it")


def _dvc(clone: Path, *arguments: str, may_fail: bool = False) -> None:
    """Run DVC in ``clone`` with this Python and the clone's code.

    Raises:
        UserError: it fails.
    """
    for _ in range(2):
        done = _run(["dvc", *arguments], clone)
        if not done.returncode or may_fail:
            return
        if not OWN_NOTE.search(done.stderr):
            break
    ours = re.findall(r"^headstart: (.*)", done.stderr, re.MULTILINE)
    said = ours[-1] if ours else _last_line(done.stderr) or _last_line(done.stdout)
    raise UserError(f"`dvc {' '.join(arguments)}` failed: {said}")


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end; whatever ends this process ends it and all that it has started."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(folder / "src"),  # an installed Headstart may be of another commit
    }
    process = subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    try:
        out, error = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


def _last_line(text: str) -> str:
    return ([line for line in text.splitlines() if line.strip()] or [""])[-1].strip()


if __name__ == "__main__":
    run(main, *sys.argv[1:])
