"""Home: what is to be done, what is shown meanwhile, and what is brought back."""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.board import Board
from cluster.engine import Engine, Job
from cluster.unit import Outcome, Unit
from headstart import files
from headstart.console import UserError
from stages.pipeline import Stage, inside

POLL = 0.5  # seconds
LISTED = 20  # failures that are named at the end


def planned(stages: Iterable[Stage]) -> list[Stage]:
    """What units do, in order. Stages whose results are in git are left: DVC remembers no run of them."""
    return [stage for stage in stages if stage.in_cache]


def computes(stage: Stage) -> bool:
    """Whether ``stage`` computes with PyTorch, on a GPU where one is asked for."""
    return any(dep.startswith("src/headstart/training") for dep in stage.deps)


def upstream(stage: Stage, lock: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``lock``, which is what dvc.lock says of stages, whose outputs ``stage`` needs."""
    made = {name: [out["path"] for out in entry["outs"]] for name, entry in lock.items()}
    return {name: lock[name] for name, outs in made.items() if any(inside(out, stage.deps) for out in outs)}


def environment(gpus: int, cpus: int, computes: bool, ours: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What all machines are told, so that all of them compute alike, whatever each has and is set to."""
    device = "cuda" if gpus and computes else "cpu"
    told = {
        "HEADSTART_DEVICE": device,
        "HEADSTART_DTYPE": ours.get("HEADSTART_DTYPE") or ("bfloat16" if device == "cuda" else "float32"),
        "OMP_NUM_THREADS": str(cpus),  # the bytes of a result depend on the number of threads
    }
    return told | {key: ours[key] for key in ("HEADSTART_GRAPHS", "HEADSTART_MEMORY_GB") if key in ours}


def perform(
    engine: Engine,
    stages: Sequence[Stage],
    unit: Callable[[Stage], Unit],
    collect: Callable[[Outcome], None],
    *,
    attempts: int,
    at_once: int,
    board: Board,
    logs: Path,
) -> None:
    """Have ``engine`` do ``stages``, each as soon as what it needs is there, and as often as ``attempts`` allows.

    Args:
        unit: makes the unit of a stage when those before it have been collected.
        collect: is given what came of each that succeeded.
        at_once: so many units wait or run at most.
        logs: the folder for what the last attempt of each that failed has said.

    Raises:
        UserError: some have failed for good; all that need none of them have been done.
    """
    missing = {stage.name: stage for stage in stages}
    waiting, begun, failed_on = list(missing), Counter[str](), defaultdict[str, tuple[str, ...]](tuple)
    jobs: list[Job] = []
    failed: list[str] = []
    while True:
        ready = [name for name in waiting if not _waits(missing[name], missing)][: at_once - len(jobs)]
        waiting = [name for name in waiting if name not in ready]
        begun.update(ready)
        for (wants, avoid), names in _together(ready, lambda name: (computes(missing[name]), failed_on[name])):
            jobs += engine.submit([unit(missing[name]) for name in names], computes=wants, avoid=avoid)
        if not jobs:
            break
        engine.look()
        for job in list(jobs):
            state, stage = job.state(), job.unit.stage
            outcome = state.outcome
            if outcome is None:
                board.show(stage, state.kind, state.where)
                continue
            jobs.remove(job)
            log = logs / f"{stage}.txt"
            if not outcome.problem:
                log.unlink(missing_ok=True)
                del missing[stage]
                collect(outcome)
                said = f"{outcome.seconds:.0f} s" if outcome.ran else "had been done before"
                board.end(stage, "done", f"{outcome.host}, {said}")
                continue
            files.write_text(log, outcome.output or outcome.problem)
            problem = f"on {outcome.host}: {outcome.problem}"
            if begun[stage] < attempts and not outcome.lasting:
                failed_on[stage] = tuple(sorted({*failed_on[stage], outcome.host}))
                waiting.append(stage)
                board.end(stage, "again", problem)
                continue
            board.end(stage, "failed", problem)
            failed.append(f"{stage} {problem} ({log})")
        board.draw()
        time.sleep(POLL)
    if failed:
        more = [f"and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
        raise UserError(f"{len(failed)} of {len(stages)} stages failed; what is complete stays, and the same command "
                        "goes on:", [*failed[:LISTED], *more])  # fmt: skip


def _waits(stage: Stage, missing: Mapping[str, Stage]) -> bool:
    """Whether one of ``missing`` makes what ``stage`` needs."""
    return any(inside(out, stage.deps) for other in missing.values() for out in other.outs)


def _together(names: Sequence[str], key: Callable[[str], Any]) -> Iterator[tuple[Any, list[str]]]:
    for value, group in groupby(sorted(names, key=key), key):
        yield value, list(group)
