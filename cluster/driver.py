"""Home: what is to be done, what is shown meanwhile, and what is brought back."""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.backend import Backend, SubmittedJob
from cluster.job import JobResult, JobSpec
from cluster.progress import ProgressDisplay
from headstart import files
from headstart.console import UserError
from pipeline.dvc_yaml import Stage, is_covered_by

POLL = 0.5  # seconds
LISTED = 20  # failures that are named at the end
CACHED = "had been done before"


def planned(stages: Iterable[Stage]) -> list[Stage]:
    """Return the stages to run on machines, in order: not those whose outputs are in git, which DVC does not cache."""
    return [stage for stage in stages if stage.in_cache]


def needs_gpu(stage: Stage) -> bool:
    """Whether ``stage`` computes with PyTorch, on a GPU where one is asked for."""
    return any(dep.startswith("src/headstart/training") for dep in stage.deps)


def upstream(stage: Stage, lock: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``lock``, which is what dvc.lock says of stages, whose outputs ``stage`` needs."""
    made = {name: [out["path"] for out in entry["outs"]] for name, entry in lock.items()}
    return {name: lock[name] for name, outs in made.items() if any(is_covered_by(out, stage.deps) for out in outs)}


def environment(gpus: int, cpus: int, needs_gpu: bool, ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What all machines are told, so that all of them compute alike, whatever each has and is set to."""
    device = "cuda" if gpus and needs_gpu else "cpu"
    told = {
        "HEADSTART_DEVICE": device,
        "HEADSTART_DTYPE": ours.get("HEADSTART_DTYPE") or ("bfloat16" if device == "cuda" else "float32"),
        "OMP_NUM_THREADS": str(cpus),  # the bytes of a result depend on the number of threads
    }
    return told | {key: ours[key] for key in ("HEADSTART_GRAPHS", "HEADSTART_MEMORY_GB") if key in ours}


class _Work:
    """The stages that are not done yet: which can be submitted, and how often each has been."""

    def __init__(self, stages: Sequence[Stage], max_attempts: int) -> None:
        self.missing = {stage.name: stage for stage in stages}
        self.failed_on: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)  # hosts, by stage
        self._waiting = list(self.missing)
        self._submitted = Counter[str]()
        self._attempts = max_attempts

    def begin(self, limit: int) -> list[str]:
        """Return the names of at most ``limit`` stages whose inputs are there, and count them as submitted."""
        ready = [name for name in self._waiting if not _waits(self.missing[name], self.missing)][:limit]
        self._waiting = [name for name in self._waiting if name not in ready]
        self._submitted.update(ready)
        return ready

    def retry(self, name: str, failure: JobResult) -> bool:
        """Have the stage ``name`` wait for another attempt; return False if none is left, or if it fails anywhere."""
        if self._submitted[name] >= self._attempts or failure.permanent:
            return False
        self.failed_on[name] = tuple(sorted({*self.failed_on[name], failure.host}))
        self._waiting.append(name)
        return True


def perform(
    backend: Backend,
    stages: Sequence[Stage],
    spec: Callable[[Stage], JobSpec],
    collect: Callable[[JobResult], None],
    *,
    max_attempts: int,
    max_jobs: int,
    board: ProgressDisplay,
    logs: Path,
) -> None:
    """Run ``stages`` on ``backend``, each as soon as its inputs are there, with at most ``max_attempts`` max_attempts.

    Args:
        spec: makes the spec of a stage. The stages that it needs have been collected.
        collect: is called with the outcome of each stage that succeeds.
        max_jobs: the largest number of specs that the backend has at a time.
        logs: the folder for the output of a failed stage's last attempt.

    Raises:
        UserError: some stages failed in all max_attempts. All stages that need none of them are done.
    """
    work = _Work(stages, max_attempts)
    jobs: list[SubmittedJob] = []
    failed: list[str] = []
    while True:
        ready = work.begin(max_jobs - len(jobs))
        for (wants, avoid), names in _together(
            ready, lambda name: (needs_gpu(work.missing[name]), work.failed_on[name])
        ):
            jobs += backend.submit([spec(work.missing[name]) for name in names], needs_gpu=wants, avoid=avoid)
        if not jobs:
            break
        backend.look()
        for job in list(jobs):
            state, name = job.state(), job.spec.stage
            outcome = state.outcome
            if outcome is None:
                board.show(name, state.kind, state.where)
                continue
            jobs.remove(job)
            log = logs / f"{name}.txt"
            if not outcome.problem:
                log.unlink(missing_ok=True)
                del work.missing[name]
                collect(outcome)
                board.end(name, "done", f"{outcome.host}, {outcome.seconds:.0f} s" if outcome.ran else CACHED)
                continue
            files.write_text(log, outcome.output or outcome.problem)
            problem = f"on {outcome.host}: {outcome.problem}"
            if work.retry(name, outcome):
                board.end(name, "again", problem)
                continue
            board.end(name, "failed", problem)
            failed.append(f"{name} {problem} ({log})")
        board.draw()
        time.sleep(POLL)
    if failed:
        more = [f"and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
        raise UserError(f"{len(failed)} of {len(stages)} stages failed; what is complete stays: fix the cause, and run "
                        "the same command to continue", [*failed[:LISTED], *more])  # fmt: skip


def _waits(stage: Stage, missing: Mapping[str, Stage]) -> bool:
    """Return whether one of ``missing`` makes what ``stage`` needs."""
    return any(is_covered_by(out, stage.deps) for other in missing.values() for out in other.outs)


def _together(names: Sequence[str], key: Callable[[str], Any]) -> Iterator[tuple[Any, list[str]]]:
    for value, group in groupby(sorted(names, key=key), key):
        yield value, list(group)
