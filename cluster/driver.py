"""Driver: schedule the stages as jobs on a backend, show progress, collect results."""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.backend import Backend, JobHandle
from cluster.job import JobResult, JobSpec
from cluster.progress import ProgressDisplay
from headstart import files
from headstart.console import UserError
from pipeline.dvc_yaml import Stage, is_covered_by, upstream

POLL_INTERVAL_S = 0.5
MAX_LISTED = 20  # failures in the final error message
COMPUTING = {"src/headstart/training", "src/headstart/training/compute.py"}  # dependencies of stages that use PyTorch
CACHED = "cached"  # detail of a stage that did not have to run
FORWARDED_VARIABLES = ("HEADSTART_GRAPHS", "HEADSTART_MEMORY_GB")


def job_stages(stages: Sequence[Stage]) -> list[Stage]:
    """Return the stages to run as jobs, in order.

    A stage with outputs in git on which no other stage depends, such as `compare`, runs on the driver.
    """
    needed = set().union(*upstream(stages).values())
    return [stage for stage in stages if not stage.in_git or stage.name in needed]


def select_stages(stages: Sequence[Stage], targets: Sequence[str]) -> list[Stage]:
    """Return the stages that ``targets`` name, alone or as a group, and those that they depend on; all without targets.

    Raises:
        UserError: no stage has one of these names.
    """
    if not targets:
        return list(stages)
    groups = {stage.name: {stage.name, stage.name.partition("@")[0]} for stage in stages}
    if unknown := set(targets) - set().union(*groups.values()):
        choices = ", ".join(dict.fromkeys(name.partition("@")[0] for name in groups))
        raise UserError(f"unknown stage in TARGETS. Choose from {choices}. Got {', '.join(sorted(unknown))}.")
    needed, blocked_by = {name for name, names in groups.items() if names & set(targets)}, upstream(stages)
    for stage in reversed(stages):  # each stage comes after those that it depends on
        if stage.name in needed:
            needed |= blocked_by[stage.name]
    return [stage for stage in stages if stage.name in needed]


def needs_gpu(stage: Stage) -> bool:
    """Return True if ``stage`` computes with PyTorch, and so uses a GPU if one is configured."""
    return not COMPUTING.isdisjoint(stage.deps)


def upstream_lock(stage: Stage, lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``lock`` (dvc.lock's entries by stage) whose outputs ``stage`` depends on."""
    return {
        name: entry
        for name, entry in lock.items()
        if any(is_covered_by(out["path"], stage.deps) for out in entry["outs"])
    }


def worker_env(*, gpus: int, cpus: int, needs_gpu: bool, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables of a job, equal on all workers so that all results have the same bytes."""
    device = "cuda" if gpus and needs_gpu else "cpu"
    default_dtype = "bfloat16" if device == "cuda" else "float32"
    env = {
        "HEADSTART_DEVICE": device,
        "HEADSTART_DTYPE": environ.get("HEADSTART_DTYPE") or default_dtype,
        "OMP_NUM_THREADS": str(cpus),  # the bytes of a result depend on the number of threads
    }
    return env | {key: environ[key] for key in FORWARDED_VARIABLES if key in environ}


class _Schedule:
    """The unfinished stages: which of them are ready to submit, and how often each has been submitted."""

    def __init__(self, stages: Sequence[Stage], max_attempts: int) -> None:
        self.unfinished = {stage.name: stage for stage in stages}
        self._upstream = upstream(stages)
        self.failed_hosts: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)  # by stage
        self._queue = list(self.unfinished)
        self._attempts = Counter[str]()
        self._max_attempts = max_attempts

    def pop_ready(self, limit: int) -> list[str]:
        """Remove at most ``limit`` stages whose inputs are complete from the queue, count the attempt, return them."""
        ready = [name for name in self._queue if self._upstream[name].isdisjoint(self.unfinished)][:limit]
        self._queue = [name for name in self._queue if name not in set(ready)]
        self._attempts.update(ready)
        return ready

    def retry(self, name: str, failure: JobResult) -> bool:
        """Queue the stage ``name`` again; return False if no attempt is left or the failure is permanent."""
        if self._attempts[name] >= self._max_attempts or failure.permanent:
            return False
        self.failed_hosts[name] = tuple(sorted({*self.failed_hosts[name], failure.host}))
        self._queue.append(name)
        return True


def run_jobs(
    backend: Backend,
    stages: Sequence[Stage],
    make_spec: Callable[[Stage], JobSpec],
    collect: Callable[[JobResult], None],
    *,
    max_attempts: int,
    max_jobs: int,
    display: ProgressDisplay,
    log_dir: Path,
) -> None:
    """Run each of ``stages`` as a job on ``backend`` as soon as its inputs are complete.

    Args:
        make_spec: returns the job of a stage. The results of its upstream stages have been collected.
        collect: is called with the result of each stage that succeeds.
        max_attempts: how often a stage is tried before it counts as failed.
        max_jobs: the maximum number of jobs that are submitted at the same time.
        log_dir: the folder for the output of the last failed attempt at each stage.

    Raises:
        UserError: some stages failed. All stages that do not depend on them are done.
    """
    schedule = _Schedule(stages, max_attempts)
    jobs: list[JobHandle] = []
    failures: list[str] = []

    def submit_options(name: str) -> tuple[bool, tuple[str, ...]]:
        return needs_gpu(schedule.unfinished[name]), schedule.failed_hosts[name]

    while True:
        for (wants_gpu, avoid), names in _group_by(schedule.pop_ready(max_jobs - len(jobs)), submit_options):
            specs = [make_spec(schedule.unfinished[name]) for name in names]
            jobs += backend.submit(specs, needs_gpu=wants_gpu, avoid=avoid)
        if not jobs:
            break
        backend.poll()
        for job in list(jobs):
            state, name = job.state(), job.spec.stage
            result = state.result
            if result is None:
                display.update(name, state.status, state.detail)
                continue
            jobs.remove(job)
            log = log_dir / f"{name}.txt"
            if not result.problem:
                log.unlink(missing_ok=True)
                del schedule.unfinished[name]
                collect(result)
                display.finish(name, "done", f"{result.host}, {result.seconds:.0f} s" if result.executed else CACHED)
                continue
            files.write_text(log, result.output or result.problem)
            problem = f"on {result.host}: {result.problem}"
            if schedule.retry(name, result):
                display.finish(name, "retry", problem)
                continue
            display.finish(name, "failed", problem)
            failures.append(f"{name} {problem} ({log})")
        display.refresh()
        time.sleep(POLL_INTERVAL_S)
    if failures:
        rest = [f"and {len(failures) - MAX_LISTED} more"] if len(failures) > MAX_LISTED else []
        raise UserError(
            f"{len(failures)} of {len(stages)} stages failed; completed stages are cached. Fix the cause and run the "
            "same command again to resume:",
            [*failures[:MAX_LISTED], *rest],
        )


def _group_by(names: Sequence[str], key: Callable[[str], Any]) -> Iterator[tuple[Any, list[str]]]:
    """Yield each value of ``key``, in order, with the names that have it."""
    for value, group in groupby(sorted(names, key=key), key):
        yield value, list(group)
