"""Run one stage of the pipeline at one commit, in a temporary clone.

    python -m cluster.job STAGE --commit COMMIT [--origin FOLDER_OR_ADDRESS] [--scratch FOLDER] [--checkpoints FOLDER]

Inputs come from DVC's run cache, through the default remote or the cache that `.dvc/config.local` of the origin names.
Upstream stages that are missing there are run too. Outputs are pushed back. A job can be run twice or
killed at any point. With `--checkpoints`, a folder that all machines can access, training resumes from the last
checkpoint of a killed job, and no two jobs run the same stage at the same time.
`python -m cluster` runs all stages as jobs on a backend.
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

from headstart import files, params
from headstart.console import USER_STATUS, MachineError, UserError, run_cli
from pipeline.dvc_yaml import Stage, stages
from stages.paths import PICTURES

ROOT = Path(__file__).parent.parent
PREFIX = "headstart-job-"  # of the folders with temporary clones
LOCK = "dvc.lock"
MAX_OUTPUT = 100_000  # characters of the output of a failed command
MAX_MESSAGE = 300  # characters
RETRY_DELAYS = (1, 5, None)  # seconds to wait after a failed push; None: give up
STAGE_STATUS = re.compile(r"exited with (-?\d+)$", re.MULTILINE)  # DVC's line about a failed stage
HEADSTART_ERROR = re.compile(r"^headstart: (.*)", re.MULTILINE)
DVC_ERROR = re.compile(r"^ERROR: (?:failed to transfer '[^']*' - |unexpected error - )?(.*)", re.MULTILINE)
# If two DVC processes finish the same stage at the same moment, both write the same entry of a shared run cache, and
# the second one finds its temporary file gone.
DVC_RUN_CACHE_RACE = re.compile(r"cache/runs/\S+\.tmp'\s*$")
# Runs "$@", and kills it and all of its child processes when the pipe on standard input is closed.
GUARD_SCRIPT = 'exec 3<&0 </dev/null; (cat <&3; kill -KILL 0) >/dev/null 2>&1 & exec 3<&-; exec "$@"'
LEASE_S = 60  # seconds without a heartbeat after which a job on another machine counts as dead
HEARTBEAT_S = 5


@dataclass(frozen=True)
class JobSpec:
    """One stage of one commit."""

    stage: str
    commit: str
    origin: str = str(ROOT)  # repository to clone: a folder that the worker sees, or an address
    scratch: str = ""  # folder for the clone; if empty, the worker's folder for temporary files
    checkpoints: str = ""  # a folder that all workers see, or empty
    # dvc.lock's entries of the upstream stages, if known: only their outputs are fetched then.
    upstream: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JobResult:
    """Result of a job that has ended."""

    host: str
    seconds: float = 0
    executed: bool = False  # False if the stage was cached
    lock: Mapping[str, Any] = field(default_factory=dict)  # dvc.lock's entries of the stages that are done
    runs: Mapping[str, Any] = field(default_factory=dict)  # the files in runs/, which DVC does not track
    in_git: Mapping[str, str] = field(default_factory=dict)  # the outputs that DVC does not cache: metrics
    problem: str = ""  # why the job failed, in one line; empty if it succeeded
    output: str = ""  # of the command that failed
    permanent: bool = False  # the failure would recur on any machine: wrong settings, or a remote that accepts nothing


class CommandError(UserError):
    """A command has failed. ``output``: its stdout and stderr. ``permanent``: a retry would fail too."""

    def __init__(self, message: str, output: str, permanent: bool) -> None:
        super().__init__(message)
        self.output, self.permanent = output, permanent


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.job", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", help="name of the stage, for example train@pretrained-finetuned-adam")
    parser.add_argument("--commit", required=True, help="commit to run, which the origin must have")
    parser.add_argument(
        "--origin", default=str(ROOT), help="repository to clone, a folder or an address (default: %(default)s)"
    )
    parser.add_argument("--scratch", default="", help="folder for the clone (default: the folder for temporary files)")
    parser.add_argument(
        "--checkpoints", default="", help="folder for checkpoints that all machines see (default: none)"
    )
    signal.signal(signal.SIGTERM, handle_sigterm)
    spec = JobSpec(**vars(parser.parse_args(arguments)))
    result = run_job(spec)
    suffix = "" if result.executed else " (cached)"
    print(f"{spec.stage} at {spec.commit[:12]}: done on {result.host} in {result.seconds:.1f} s{suffix}")


def host() -> str:
    """Return the name of this machine; on a SLURM node, SLURM's name for it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def handle_sigterm(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM, which schedulers send before they take the machine away: clean up as after Ctrl-C."""
    raise KeyboardInterrupt


def run_job_safely(spec: JobSpec) -> JobResult:
    """Run a job and return its result; an exception other than an interruption becomes a failed result."""
    try:
        return run_job(spec)
    except Exception as error:
        return failed_result(error)


def failed_result(error: Exception) -> JobResult:
    """Return the result of a job that ``error`` ended."""
    problem = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    output, permanent = getattr(error, "output", ""), getattr(error, "permanent", False)
    return JobResult(host(), problem=problem, output=output, permanent=permanent)


def run_job(spec: JobSpec) -> JobResult:
    """Run the stage in a temporary clone, and push its outputs.

    Raises:
        UserError: the commit, the stage, DVC or its remote is missing; or the stage or DVC fails.
    """
    started = time.perf_counter()
    with temporary_clone(spec.origin, spec.commit, spec.scratch) as clone:
        stage = _find_stage(spec.stage, clone)
        with _checkpoints(spec, clone):
            write_partial_lock(spec.upstream, clone)
            if "prepare" not in spec.upstream:
                _pull_pictures(clone, spec.environment)
            # With a complete partial lock, DVC need neither check nor fetch any other stage.
            single_item = ["--single-item"] if spec.upstream else []
            output = dvc(clone, "repro", "--pull", *single_item, spec.stage, environment=spec.environment)
            _push(clone, *([] if spec.upstream else ["--with-deps"]), spec.stage)
        lock = yaml.safe_load((clone / LOCK).read_text(encoding="utf-8"))["stages"]
        runs = {path.relative_to(clone).as_posix(): files.read_json(path) for path in clone.glob("runs/*/*.json")}
        in_git = {path: (clone / path).read_text(encoding="utf-8") for path in stage.in_git}
    executed = f"Running stage '{spec.stage}'" in output
    return JobResult(host(), time.perf_counter() - started, executed, lock, runs, in_git)


@contextlib.contextmanager
def _checkpoints(spec: JobSpec, clone: Path) -> Iterator[None]:
    """Link the shared folder of checkpoints into ``clone``, and lock this stage of this study against other jobs.

    The lock is a file, so it works on any shared file system; a heartbeat renews it every few seconds. A job that finds
    the lock taken waits until the lock is released, until its owner on this machine has ended, or until it has not been
    renewed for a minute, which means that its machine is dead. A suspended job that loses its lock kills itself when it
    wakes up.
    """
    if not spec.checkpoints:
        yield
        return
    shared = Path(spec.checkpoints).resolve()
    lock = shared / str(load_raw_params(clone)["study"]) / f"{spec.stage}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    (clone / "checkpoints").symlink_to(shared)
    with SoftFileLease(
        lock,
        lease_duration=LEASE_S,
        heartbeat_interval=HEARTBEAT_S,
        poll_interval=1,
        thread_local=False,
        on_compromise=lambda loss: os.kill(os.getpid(), signal.SIGKILL),
    ):
        yield


@contextlib.contextmanager
def temporary_clone(origin: str, commit: str, scratch: str = "") -> Iterator[Path]:
    """Clone ``origin`` at ``commit``, with DVC's local config if the origin is a folder; delete the clone at the end.

    Raises:
        UserError: the origin or the commit does not exist, or DVC has no remote there.
    """
    parent = Path(scratch or tempfile.gettempdir())
    cleanup_orphans(parent)
    parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{PREFIX}{socket.gethostname()}+{os.getpid()}+"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
        clone = Path(folder, "clone")
        result = _run(["git", "clone", "--quiet", "--no-checkout", origin, str(clone)], Path(folder))
        if result.returncode:
            raise UserError(f"cannot clone {origin}: {last_line(result.stderr)}")
        if _run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], clone).returncode:
            raise UserError(f"{origin} does not have this commit. Push it there or choose another one. Got {commit}.")
        result = _run(["git", "checkout", "--quiet", "--detach", commit], clone)
        if result.returncode:
            raise MachineError(f"cannot clone {origin} to {folder}: {last_line(result.stderr)}")
        local_config = Path(origin, ".dvc/config.local")
        if local_config.is_file():
            shutil.copy(local_config, clone / ".dvc/config.local")
        _require_remote(clone)
        yield clone


def cleanup_orphans(scratch: Path) -> None:
    """Kill the processes and remove the clones that killed jobs left on this machine."""
    for folder in scratch.glob(f"{PREFIX}{socket.gethostname()}+*"):
        pid = folder.name.split("+")[1]
        if pid.isdigit() and not files.has_running_creator(folder, int(pid)):
            for process in psutil.process_iter(["cwd"]):
                if Path(process.info["cwd"] or "/").is_relative_to(folder.resolve()):
                    with contextlib.suppress(psutil.Error):  # another job was faster
                        process.kill()
            shutil.rmtree(folder, ignore_errors=True)


def _find_stage(name: str, clone: Path) -> Stage:
    by_name = {stage.name: stage for stage in stages(load_raw_params(clone), str(clone / "dvc.yaml"))}
    if name not in by_name:
        raise UserError(f"unknown stage at this commit. Choose one of {', '.join(by_name)}. Got {name!r}.")
    return by_name[name]


def load_raw_params(clone: Path) -> Any:
    """Return the content of params.yaml without validation: the stages validate it."""
    return params.read_yaml(clone / "params.yaml")


def _require_remote(clone: Path) -> None:
    config = dict(line.split("=", 1) for line in dvc(clone, "config", "--list").splitlines() if "=" in line)
    remote = config.get("core.remote")
    if remote is None:
        raise UserError(
            "DVC has no default remote to push results to. Run `dvc remote add --default NAME ADDRESS` and commit "
            ".dvc/config."
        )
    for key in (f"remote.{remote}.url", "cache.dir"):
        if Path(config.get(key, "/")).is_relative_to(clone.parent):
            relative = os.path.relpath(config[key], clone)
            raise UserError(
                f"{key} in DVC's configuration is a relative path, which differs on every worker. Use an absolute "
                f"path, such as /shared/results. Got {relative}."
            )


def write_partial_lock(upstream: Mapping[str, Any], clone: Path) -> None:
    """Replace dvc.lock with the entries of the ``upstream`` stages.

    A committed dvc.lock entry takes precedence over the run cache: if its outputs were never pushed, DVC would run the
    stage again although the run cache has it.
    """
    if upstream:
        (clone / LOCK).write_text(yaml.safe_dump({"schema": "2.0", "stages": dict(upstream)}), encoding="utf-8")
    else:
        (clone / LOCK).unlink(missing_ok=True)


def _pull_pictures(clone: Path, environment: Mapping[str, str]) -> None:
    """Fetch the study's own images. `dvc repro --pull` does not, because their parent folder exists in the clone."""
    raw_params = load_raw_params(clone)
    dvc_file = PICTURES / f"{raw_params['studies'][raw_params['study']]['dataset']}.dvc"
    if (clone / dvc_file).is_file():
        dvc(clone, "pull", str(dvc_file), environment=environment)


def _push(clone: Path, *arguments: str) -> None:
    """Run `dvc push` with retries. A failure after the last retry is permanent: computing again would not help.

    Raises:
        CommandError: the remote is full, read-only or cannot be reached.
    """
    for delay in RETRY_DELAYS:
        try:
            dvc(clone, "push", "--run-cache", *arguments)
            return
        except CommandError as error:
            if delay is None:
                raise CommandError(str(error), error.output, permanent=True) from None
        time.sleep(delay)


def dvc(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run DVC in ``folder`` with this Python and the code of that folder; return its stdout.

    Raises:
        UserError: DVC fails or is not installed.
    """
    for _ in range(2):
        result = _run(["dvc", *arguments], folder, environment)
        if not result.returncode:
            return result.stdout
        if not DVC_RUN_CACHE_RACE.search(result.stderr):
            break
    headstart_errors = HEADSTART_ERROR.findall(result.stderr)
    dvc_errors = DVC_ERROR.findall(result.stderr)
    if headstart_errors:
        message = headstart_errors[-1]
    elif dvc_errors:
        message = dvc_errors[0]
    else:
        message = last_line(result.stderr) or last_line(result.stdout) or f"exit status {result.returncode}"
    raise CommandError(
        f"`dvc {' '.join(arguments)}` failed: {textwrap.shorten(message, MAX_MESSAGE)}",
        (result.stdout + result.stderr)[-MAX_OUTPUT:],
        permanent=bool(headstart_errors) and STAGE_STATUS.findall(result.stderr) == [str(USER_STATUS)],
    )


def _run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end. If this process dies, the command and all of its child processes die too."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if shutil.which(command[0], path=path) is None:
        raise UserError(
            f"{host()} has no {command[0]}, neither next to {sys.executable} nor on PATH. Run `make setup` on that "
            "machine."
        )
    env = {**os.environ, **(environment or {}), "PATH": path}
    env["PYTHONPATH"] = str(folder / "src")  # an installed Headstart may be of another commit
    read_end, write_end = os.pipe()  # only this process holds the write end: any death of this process closes it
    try:
        process = subprocess.Popen(
            ["sh", "-c", GUARD_SCRIPT, "sh", *command],
            cwd=folder,
            env=env,
            text=True,
            stdin=read_end,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            while True:
                try:  # with a timeout, because Ray cancels a task between two Python instructions, without a signal
                    stdout, stderr = process.communicate(timeout=1)
                    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
                except subprocess.TimeoutExpired:
                    pass
        except BaseException:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    finally:
        os.close(read_end)
        os.close(write_end)


def last_line(text: str) -> str:
    """Return the last line of ``text`` that is not blank."""
    return ([line for line in text.splitlines() if line.strip()] or [""])[-1].strip()


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
