"""Run one stage of the pipeline at one commit, in a clone of its own that is deleted afterwards.

    python -m cluster.job STAGE --commit COMMIT [--origin FOLDER_OR_ADDRESS] [--scratch FOLDER] [--checkpoints FOLDER]

What the stage needs comes out of DVC's run-cache, from the default remote or the cache that `.dvc/config.local` of the
origin names; what is not there yet is run as well. What it makes goes back there. It may be run twice and killed at any
moment; with `--checkpoints`, a folder that all machines see, a training resumes where another spec was killed, and no
two specs run the same stage at once.
`python -m cluster` does this for all stages on an backend.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import yaml
from filelock import SoftFileLease

from headstart import files
from headstart.console import USER_STATUS, MachineError, UserError, run_cli
from pipeline.dvc_yaml import stages
from stages.paths import PICTURES

ROOT = Path(__file__).parent.parent
PREFIX = "headstart-unit-"
LOCK = "dvc.lock"
LONGEST_OUTPUT = 100_000  # characters of what a command that failed has said
LONGEST_LINE = 300
PAUSES = (1, 5, None)  # seconds after a push that failed
STATUS = re.compile(r"exited with (-?\d+)$", re.MULTILINE)  # what DVC says of a stage that failed
OWN_ERROR = r"^ERROR: (?:failed to transfer '[^']*' - |unexpected error - )?(.*)"
# Two DVC that end the same stage at once write the same note into a shared cache: the second finds it moved away.
OWN_NOTE = re.compile(r"cache/runs/\S+\.tmp'\s*$")
# Runs "$@", and kills it and all that it has started when the pipe that is its standard input is closed.
GUARDED = 'exec 3<&0 </dev/null; (cat <&3; kill -KILL 0) >/dev/null 2>&1 & exec 3<&-; exec "$@"'
LEASE = 60  # seconds without a sign of life after which another machine's spec counts as dead
BEAT = 5  # seconds between two signs of life


@dataclass(frozen=True)
class JobSpec:
    """One stage at one commit."""

    stage: str
    commit: str
    origin: str = str(ROOT)  # a folder that the machine sees, or an address
    scratch: str = ""  # where the clone is put; the machine's folder for temporary files if empty
    checkpoints: str = ""  # a folder that all machines see, or empty
    # What dvc.lock says of the stages that this one needs, if that is known: then only their outputs are fetched.
    upstream: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobResult:
    """What came of a spec."""

    host: str
    seconds: float = 0
    ran: bool = False  # or it had been done before
    lock: Mapping[str, Any] = field(default_factory=dict)  # what dvc.lock says of the stages that are done
    runs: Mapping[str, Any] = field(default_factory=dict)  # the files in runs/, which DVC need not transport
    problem: str = ""  # why it failed, one line
    output: str = ""  # of what failed
    permanent: bool = False  # would fail again anywhere: a mistake in the settings, or a remote that takes nothing


class CommandError(UserError):
    """A command has failed. ``output``: all that it said. ``permanent``: it would again."""

    def __init__(self, message: str, output: str, permanent: bool) -> None:
        super().__init__(message)
        self.output, self.permanent = output, permanent


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--origin", default=str(ROOT))
    parser.add_argument("--scratch", default="")
    parser.add_argument("--checkpoints", default="")
    signal.signal(signal.SIGTERM, handle_sigterm)
    spec = JobSpec(**vars(parser.parse_args(arguments)))
    outcome = perform(spec)
    before = "" if outcome.ran else ", as it was before"
    print(f"{spec.stage} at {spec.commit[:12]}: done on {outcome.host} in {outcome.seconds:.1f} s{before}")


def host() -> str:
    """This machine's name, as SLURM has it if it is one of its nodes."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def handle_sigterm(number: int, frame: FrameType | None) -> None:
    """Handle what a scheduler sends before it takes the machine away: clean up as after Ctrl-C."""
    raise KeyboardInterrupt


def attempt(spec: JobSpec) -> JobResult:
    """Perform ``unit``; whatever goes wrong is in the outcome, and nothing is raised but an interruption."""
    try:
        return perform(spec)
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> JobResult:
    """Return the outcome of a spec that ``error`` ended."""
    problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    output, permanent = getattr(error, "output", ""), getattr(error, "permanent", False)
    return JobResult(host(), problem=problem, output=output, permanent=permanent)


def perform(spec: JobSpec) -> JobResult:
    """Run the stage of ``unit`` in a clone, push what it made, and delete the clone.

    Raises:
        UserError: the commit, the stage, DVC or its remote is missing; or the stage or DVC fails.
    """
    started = time.perf_counter()
    with temporary_clone(spec.origin, spec.commit, spec.scratch) as clone:
        _require_stage(spec.stage, clone)
        with _checkpoints(spec, clone):
            write_partial_lock(spec.upstream, clone)
            if "prepare" not in spec.upstream:
                _pull_pictures(clone, spec.environment)
            # What dvc.lock has of other stages is no matter then, and their outputs are not fetched.
            alone = ["--single-item"] if spec.upstream else []
            said = dvc(clone, "repro", "--pull", *alone, spec.stage, environment=spec.environment)
            _push(clone, *([] if spec.upstream else ["--with-deps"]), spec.stage)
        lock = yaml.safe_load((clone / LOCK).read_text(encoding="utf-8"))["stages"]
        runs = {path.relative_to(clone).as_posix(): files.read_json(path) for path in clone.glob("runs/*/*.json")}
    ran = f"Running stage '{spec.stage}'" in said
    return JobResult(host(), time.perf_counter() - started, ran, lock, runs)


@contextlib.contextmanager
def _checkpoints(spec: JobSpec, clone: Path) -> Iterator[None]:
    """Give ``clone`` the shared folder of checkpoints, and keep all other specs from running this stage of this study.

    The lock is a file that any shared file system can have, and it is renewed every few seconds. A spec that finds it
    waits until it is gone, until its process has ended on this machine, or until it has not been renewed for a minute:
    then its machine is dead. A spec that was only halted for so long ends at once when it wakes up.
    """
    if not spec.checkpoints:
        yield
        return
    shared = Path(spec.checkpoints).resolve()
    lock = shared / str(load_raw_params(clone)["study"]) / f"{spec.stage}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    (clone / "checkpoints").symlink_to(shared)
    with SoftFileLease(lock, lease_duration=LEASE, heartbeat_interval=BEAT, poll_interval=1, thread_local=False,
                       on_compromise=lambda loss: os.kill(os.getpid(), signal.SIGKILL)):  # fmt: skip
        yield


@contextlib.contextmanager
def temporary_clone(origin: str, commit: str, scratch: str = "") -> Iterator[Path]:
    """A clone of ``origin`` at ``commit``, with DVC's local settings if ``origin`` is a folder; deleted at the end.

    Raises:
        UserError: there is no such origin or commit, or DVC has no remote there.
    """
    folder = Path(scratch or tempfile.gettempdir())
    cleanup_orphans(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{socket.gethostname()}+{os.getpid()}+", dir=folder) as own:
        clone = Path(own, "clone")
        done = _run(["git", "clone", "--quiet", "--no-checkout", origin, str(clone)], Path(own))
        if done.returncode:
            raise UserError(f"{origin} cannot be cloned: {last_line(done.stderr)}")
        if _run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], clone).returncode:
            raise UserError(f"{origin} has no commit {commit}: push it there, or name another one")
        done = _run(["git", "checkout", "--quiet", "--detach", commit], clone)
        if done.returncode:
            raise MachineError(f"{origin} cannot be cloned to {own}: {last_line(done.stderr)}")
        local = Path(origin, ".dvc/config.local")
        if local.is_file():
            shutil.copy(local, clone / ".dvc/config.local")
        _require_remote(clone)
        yield clone


def cleanup_orphans(scratch: Path) -> None:
    """End and remove what specs on this machine left that were killed."""
    for left in scratch.glob(f"{PREFIX}{socket.gethostname()}+*"):
        pid = left.name.split("+")[1]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            for process in psutil.process_iter(["cwd"]):
                if Path(process.info["cwd"] or "/").is_relative_to(left.resolve()):
                    with contextlib.suppress(psutil.Error):  # another spec was faster
                        process.kill()
            shutil.rmtree(left, ignore_errors=True)


def _require_stage(stage: str, clone: Path) -> None:
    names = [one.name for one in stages(load_raw_params(clone), str(clone / "dvc.yaml"))]
    if stage not in names:
        raise UserError(f"there is no stage {stage!r} at this commit: known are {', '.join(names)}")


def load_raw_params(clone: Path) -> Any:
    """What params.yaml says there, unchecked: a stage says what is wrong with it."""
    return yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))


def _require_remote(clone: Path) -> None:
    values = dict(line.split("=", 1) for line in dvc(clone, "config", "--list").splitlines() if "=" in line)
    name = values.get("core.remote")
    if name is None:
        raise UserError("DVC has no default remote to bring results to: `dvc remote add --default NAME ADDRESS`, and "
                        "commit it")  # fmt: skip
    for key in (f"remote.{name}.url", "cache.dir"):
        if Path(values.get(key, "/")).is_relative_to(clone.parent):
            relative = os.path.relpath(values[key], clone)
            raise UserError(f"DVC's {key} is {relative}, which would be another folder for every machine: give it from "
                            "the root, such as /shared/results")  # fmt: skip


def write_partial_lock(upstream: Mapping[str, Any], clone: Path) -> None:
    """Let DVC know ``upstream`` and nothing else.

    What the commit says of a stage hides what the run-cache has: where nobody has pushed just that, it is run anew.
    """
    if upstream:
        (clone / LOCK).write_text(yaml.safe_dump({"schema": "2.0", "stages": dict(upstream)}), encoding="utf-8")
    else:
        (clone / LOCK).unlink(missing_ok=True)


def _pull_pictures(clone: Path, environment: Mapping[str, str]) -> None:
    """Fetch the study's own pictures: DVC does not by itself, because the folder that they are in is there."""
    settings = load_raw_params(clone)
    pointer = PICTURES / f"{settings['studies'][settings['study']]['dataset']}.dvc"
    if (clone / pointer).is_file():
        dvc(clone, "pull", str(pointer), environment=environment)


def _push(clone: Path, *what: str) -> None:
    """Push ``what``; a remote that will not have it is asked again, and then it is no use to compute it once more.

    Raises:
        CommandError: the remote is full, read-only or cannot be reached.
    """
    for pause in PAUSES:
        try:
            dvc(clone, "push", "--run-cache", *what)
            return
        except CommandError as error:
            if pause is None:
                raise CommandError(str(error), error.output, permanent=True) from None
        time.sleep(pause)


def dvc(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run DVC in ``folder`` with this Python and the code that is there; return what it says.

    Raises:
        UserError: it fails, or there is none.
    """
    for _ in range(2):
        done = _run(["dvc", *arguments], folder, environment)
        if not done.returncode:
            return done.stdout
        if not OWN_NOTE.search(done.stderr):
            break
    ours = re.findall(r"^headstart: (.*)", done.stderr, re.MULTILINE)
    statuses = STATUS.findall(done.stderr)
    theirs = re.findall(OWN_ERROR, done.stderr, re.MULTILINE)
    ended = f"it ended with status {done.returncode}"
    said = ours[-1] if ours else theirs[0] if theirs else last_line(done.stderr) or last_line(done.stdout) or ended
    raise CommandError(f"`dvc {' '.join(arguments)}` failed: {textwrap.shorten(said, LONGEST_LINE)}",
                       (done.stdout + done.stderr)[-LONGEST_OUTPUT:],
                       permanent=bool(ours) and statuses == [str(USER_STATUS)])  # fmt: skip


def _run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end; whatever ends this process ends it and all that it has started."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if shutil.which(command[0], path=path) is None:
        raise UserError(f"{host()} has no {command[0]} beside {sys.executable} nor on its PATH: install "
                        "there what `make setup` does")  # fmt: skip
    full = {**os.environ, **(environment or {}), "PATH": path,
            "PYTHONPATH": str(folder / "src")}  # fmt: skip  # an installed Headstart may be of another commit
    guarded, life = os.pipe()  # which this process alone holds: its death, however sudden, closes it
    try:
        process = subprocess.Popen(["sh", "-c", GUARDED, "sh", *command], cwd=folder, env=full, text=True,
                                   stdin=guarded, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)  # fmt: skip
        try:
            while True:
                try:
                    out, error = process.communicate(timeout=1)  # or Ray could not interrupt it: it sends no signal
                    return subprocess.CompletedProcess(command, process.returncode, out, error)
                except subprocess.TimeoutExpired:
                    pass
        except BaseException:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    finally:
        os.close(guarded)
        os.close(life)


def last_line(text: str) -> str:
    """The last line of ``text`` that has something."""
    return ([line for line in text.splitlines() if line.strip()] or [""])[-1].strip()


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
