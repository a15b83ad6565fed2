"""Run the study that params.yaml selects on many machines, and fetch the results.

    python -m cluster ray|slurm [STAGE …]

Workers run the stages of the last commit, each in its own clone, as soon as their inputs are complete; `cluster.yaml`
has the settings. At the end `dvc repro --pull` restores all results here and runs the remaining stages, which takes
seconds. After an interruption or a failure, run the same command again to resume.
"""

import argparse
import contextlib
import importlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
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
STATE_DIR = Path(".cluster")  # ignored by git
# Outputs of the pipeline, and a file that no stage reads: changes of them do not make the commit another study.
IGNORED_PATHS = ("metrics", "plots", LOCK, cluster_settings.PATH)


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backend", nargs="?", default="", metavar="|".join(BACKENDS), help="where the jobs run")
    parser.add_argument("targets", nargs="*", metavar="STAGE",
                        help="stages or groups of stages to run, such as probe_network; default: all")  # fmt: skip
    options = parser.parse_args(arguments)
    backend_name = options.backend
    if backend_name not in BACKENDS:
        raise UserError(
            f"unknown backend. Choose one of {', '.join(BACKENDS)}, for example `make cluster BACKEND=ray`. "
            f"Got {backend_name!r}."
        )
    settings = cluster_settings.read()
    commit = _require_clean_commit()
    STATE_DIR.mkdir(exist_ok=True)
    try:
        with FileLock(STATE_DIR / "lock", timeout=0):
            _run(backend_name, settings, commit, options.targets)
    except Timeout:
        raise UserError("another `make cluster` is running in this folder. Wait for it or stop it.") from None


def _run(backend_name: str, settings: Settings, commit: str, targets: Sequence[str]) -> None:
    _install_signal_handlers()
    _require_tracked_pictures()
    origin, scratch = settings.origin or str(ROOT), settings.scratch or ""
    env = {
        wants_gpu: driver.worker_env(gpus=settings.gpus, cpus=settings.cpus, needs_gpu=wants_gpu)
        for wants_gpu in (False, True)
    }
    state = SavedLock(STATE_DIR / "done.json", [commit, origin, [env[False], env[True]]])
    with temporary_clone(origin, commit, scratch) as clone:  # fails here if the workers could not clone
        all_stages = list(stages(load_raw_params(clone), str(clone / "dvc.yaml")))
        plan = driver.select_stages(driver.job_stages(all_stages), targets)
        lock = _if_restorable(state.read(), clone)

    def make_spec(stage: Stage) -> JobSpec:
        return JobSpec(
            stage.name,
            commit,
            origin,
            scratch,
            checkpoints=_checkpoints_dir(settings),
            upstream=driver.upstream_lock(stage, lock),
            environment=env[driver.needs_gpu(stage)],
        )

    def collect(result: JobResult) -> None:
        for path, content in result.runs.items():
            files.write_json(path, content)
        for path, text in result.in_git.items():
            files.write_text(path, text)
        lock.update(result.lock)
        state.write(lock)

    try:
        with _open_backend(backend_name, settings) as backend, ProgressDisplay() as display:
            _install_signal_handlers()  # again: Ray has replaced them
            dvc(ROOT, "push", "--run-cache")  # so that stages that have run here are not run again
            for name in lock:
                display.finish(name, "done", driver.CACHED)
            driver.run_jobs(
                backend,
                [stage for stage in plan if stage.name not in lock],
                make_spec,
                collect,
                max_attempts=settings.max_attempts,
                max_jobs=settings.max_jobs,
                display=display,
                log_dir=STATE_DIR / "logs",
            )
    finally:
        cleanup_orphans(Path(scratch or tempfile.gettempdir()))  # of jobs here that were killed while they cleaned up
    _merge_into_dvc_lock(lock)
    if subprocess.run([sys.executable, "-m", "dvc", "repro", "--pull", *targets]).returncode:
        raise UserError(
            "`dvc repro --pull` failed on this machine; the workers' results are safe in the DVC remote. Fix the cause "
            "and run the same command again."
        )


@dataclass(frozen=True)
class SavedLock:
    """File with dvc.lock's entries of the completed stages, from which the same command resumes."""

    path: Path
    inputs: list[Any]  # JSON values on which the entries depend

    def read(self) -> dict[str, Any]:
        """Return the entries by stage; none if the file is missing, damaged or was written for other inputs."""
        try:
            content = files.read_json(self.path)
        except (OSError, ValueError):
            return {}
        return content["lock"] if content.get("made_from") == self.inputs else {}

    def write(self, lock: Mapping[str, Any]) -> None:
        files.write_json(self.path, {"made_from": self.inputs, "lock": lock})


def _if_restorable(lock: dict[str, Any], clone: Path) -> dict[str, Any]:
    """Return ``lock`` if DVC's remote has all outputs of its stages, else no entries."""
    write_partial_lock(lock, clone)
    return {} if lock and "missing" in json.loads(dvc(clone, "status", "--cloud", "--json")).values() else lock


def _install_signal_handlers() -> None:
    """Clean up after `kill` and a closed terminal as after Ctrl-C, unless the signal is ignored, as under `nohup`."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle_sigterm)


def _require_clean_commit() -> str:
    """Return the last commit, which workers clone.

    Raises:
        UserError: this is not a git repository, or a file that a stage could read has uncommitted changes.
    """
    try:
        changes = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in IGNORED_PATHS))
        if changes:
            raise UserError(
                "uncommitted changes, which workers would not see. Commit these files:", changes.splitlines()
            )
        return _git("rev-parse", "HEAD").strip()
    except subprocess.CalledProcessError as error:
        raise UserError(f"git failed: {error.stderr.strip()}") from None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _require_tracked_pictures() -> None:
    """Raise UserError if the study uses images that exist only on this machine."""
    pictures = PICTURES / params.read().selected_study.dataset
    if pictures.is_dir() and not pictures.with_suffix(".dvc").is_file():
        raise UserError(
            f"images exist on this machine only: {pictures}. Run `dvc add {pictures}`, commit the file that it writes, "
            "and run `dvc push`."
        )


def _open_backend(name: str, settings: Settings) -> AbstractContextManager[Backend]:
    try:
        module = importlib.import_module(f"cluster.{name}")
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs the package {error.name}. Run `make backends` to install it.") from None
    return contextlib.closing(module.Backend(settings))


def _checkpoints_dir(settings: Settings) -> str:
    return str(Path(settings.shared_folder, "checkpoints").resolve()) if settings.shared_folder else ""


def _merge_into_dvc_lock(lock: Mapping[str, Any]) -> None:
    """Update dvc.lock with the entries in ``lock``, so that `dvc repro --pull` fetches their outputs."""
    path = ROOT / LOCK
    before = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"] if path.is_file() else {}
    files.write_text(path, yaml.safe_dump({"schema": "2.0", "stages": {**before, **lock}}, sort_keys=False))


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
