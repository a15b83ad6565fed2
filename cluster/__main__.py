"""Run the study that params.yaml names on many machines, and bring home what they make.

    python -m cluster slurm|ray

It is run as the last commit has it: each stage in a clone of its own, as soon as those that it needs are done;
`cluster.yaml` says how. At the end `dvc repro --pull` restores all of it here and runs
what is left, which takes seconds. After an interruption or a failure, run the same command to continue.
"""

import contextlib
import importlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from cluster import driver
from cluster import settings as cluster_settings
from cluster.backend import Backend
from cluster.job import (
    LOCK,
    ROOT,
    JobResult,
    JobSpec,
    cleanup_orphans,
    dvc,
    handle_sigterm,
    load_raw_params,
    temporary_clone,
    write_partial_lock,
)
from cluster.progress import ProgressDisplay
from cluster.settings import Settings
from headstart import files, params
from headstart.console import UserError, run_cli
from pipeline.dvc_yaml import Stage, stages
from stages.paths import PICTURES

BACKENDS = ("ray", "slurm")
STATE_DIR = Path(".cluster")  # logs of what failed; in git's ignored files
# What the pipeline itself makes, and what no stage reads: neither makes the commit another study.
IGNORED_PATHS = ("metrics", "plots", LOCK, cluster_settings.PATH)


def main(*arguments: str) -> None:
    name = arguments[0] if len(arguments) == 1 else ""
    if name not in BACKENDS:
        raise UserError(f"on which backend? Known are {', '.join(BACKENDS)}: make cluster BACKEND=ray")
    settings = cluster_settings.read()
    commit = _commit()
    STATE_DIR.mkdir(exist_ok=True)
    try:
        with FileLock(STATE_DIR / "lock", timeout=0):
            _run(name, settings, commit)
    except Timeout:
        raise UserError("another `make cluster` runs here: wait for it, or stop it") from None


def _run(name: str, settings: Settings, commit: str) -> None:
    _clean_up_when_told_to_end()
    _require_pictures()
    origin, scratch = settings.origin or str(ROOT), settings.scratch or ""
    with temporary_clone(origin, commit, scratch) as clone:  # as the machines will
        plan = driver.planned(stages(load_raw_params(clone), str(clone / "dvc.yaml")))
        told = {wants: driver.environment(settings.gpus, settings.cpus, wants) for wants in (False, True)}
        memory = Memory(STATE_DIR / "done.json", [commit, origin, [told[False], told[True]]])
        lock = _still_there(memory.read(), clone)

    def spec(stage: Stage) -> JobSpec:
        return JobSpec(stage.name, commit, origin, scratch, _checkpoints(settings), driver.upstream(stage, lock),
                    told[driver.needs_gpu(stage)])  # fmt: skip

    def collect(outcome: JobResult) -> None:
        for path, content in outcome.runs.items():
            files.write_json(path, content)
        lock.update(outcome.lock)
        memory.write(lock)

    try:
        with _engine(name, settings) as backend, ProgressDisplay() as board:
            _clean_up_when_told_to_end()  # Ray has put a handler of its own there
            dvc(ROOT, "push", "--run-cache")  # what has been done here is not done again
            for name in lock:
                board.end(name, "done", driver.CACHED)
            left = [stage for stage in plan if stage.name not in lock]
            driver.perform(backend, left, spec, collect, max_attempts=settings.max_attempts, max_jobs=settings.max_jobs, board=board,
                         logs=STATE_DIR / "logs")  # fmt: skip
    finally:
        cleanup_orphans(Path(scratch or tempfile.gettempdir()))  # what was interrupted here while it cleaned up
    _bring(lock)
    if subprocess.run([sys.executable, "-m", "dvc", "repro", "--pull"]).returncode:
        raise UserError("`dvc repro --pull` failed here: all that the machines did is in DVC's remote")


@dataclass(frozen=True)
class Memory:
    """What dvc.lock says of the stages that are done, in a file, for the same command after an interruption."""

    path: Path
    made_from: list[Any]  # all that it depends on, as JSON has it

    def read(self) -> dict[str, Any]:
        """Return the entries by stage; nothing if there are none, or of something else."""
        try:
            content = files.read_json(self.path)
        except (OSError, ValueError):
            return {}
        return content["lock"] if content.get("made_from") == self.made_from else {}

    def write(self, lock: Mapping[str, Any]) -> None:
        files.write_json(self.path, {"made_from": self.made_from, "lock": lock})


def _still_there(lock: dict[str, Any], clone: Path) -> dict[str, Any]:
    """Return ``lock`` if DVC's remote has all outputs of its stages, else nothing."""
    write_partial_lock(lock, clone)
    return {} if lock and "missing" in json.loads(dvc(clone, "status", "--cloud", "--json")).values() else lock


def _clean_up_when_told_to_end() -> None:
    """After `kill` and a closed terminal as after Ctrl-C; `nohup` keeps its word."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle_sigterm)


def _commit() -> str:
    """The last commit, which machines clone.

    Raises:
        UserError: this is no repository, or something is changed that a stage could read.
    """
    try:
        changed = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in IGNORED_PATHS))
        if changed:
            raise UserError("machines clone the last commit, and these are not in it; commit them first:",
                            changed.splitlines())  # fmt: skip
        return _git("rev-parse", "HEAD").strip()
    except subprocess.CalledProcessError as error:
        raise UserError(f"git says: {error.stderr.strip()}") from None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _require_pictures() -> None:
    """Raise UserError where the study is of pictures that only this machine has."""
    pictures = PICTURES / params.read().selected_study.dataset
    if pictures.is_dir() and not pictures.with_suffix(".dvc").is_file():
        raise UserError(f"no other machine has {pictures}: `dvc add {pictures}`, commit the file that it writes, and "
                        "`dvc push`")  # fmt: skip


def _engine(name: str, settings: Settings) -> AbstractContextManager[Backend]:
    try:
        module = importlib.import_module(f"cluster.{name}")
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs the package {error.name}: `make backends` installs it") from None
    return contextlib.closing(module.Backend(settings))


def _checkpoints(settings: Settings) -> str:
    return str(Path(settings.shared_folder, "checkpoints").resolve()) if settings.shared_folder else ""


def _bring(lock: Mapping[str, Any]) -> None:
    """Let dvc.lock say of the stages in ``lock`` what they are now: `dvc repro --pull` fetches them by it."""
    path = ROOT / LOCK
    before = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.is_file() else {}
    files.write_text(path, yaml.safe_dump({"schema": "2.0", "stages": {**before, **lock}}, sort_keys=False))


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
