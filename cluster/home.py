"""Home: what is to be done, what is shown meanwhile, and what is brought back."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.board import Board
from cluster.engine import Engine
from cluster.unit import Outcome, Unit
from headstart import files
from headstart.console import UserError
from stages.pipeline import Stage, inside

POLL = 0.5  # seconds
LISTED = 20  # failures that are named at the end


@dataclass(frozen=True)
class Level:
    """Stages that need none of each other."""

    stages: tuple[Stage, ...]
    computes: bool  # with PyTorch, on a GPU where one is asked for


def levels(stages: Iterable[Stage]) -> Iterator[Level]:
    """What units do, in order. Stages whose results are in git are left: DVC remembers no run of them."""
    level: dict[str, int] = {}  # of what makes an output
    found: dict[tuple[int, bool], list[Stage]] = {}
    for stage in stages:
        if stage.in_cache:
            here = 1 + max((level[out] for out in level if inside(out, stage.deps)), default=0)
            level |= dict.fromkeys(stage.outs, here)
            found.setdefault((here, _computes(stage)), []).append(stage)
    for (_, computes), together in sorted(found.items(), key=lambda entry: entry[0]):
        yield Level(tuple(together), computes)


def _computes(stage: Stage) -> bool:
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
    engine: Engine, units: Sequence[Unit], computes: bool, attempts: int, board: Board, logs: Path
) -> list[Outcome]:
    """Have ``engine`` do ``units``, each as often as ``attempts`` allows.

    Returns:
        What came of each, in the order in which they ended.

    Raises:
        UserError: one of them failed for good; the others have been done.
    """
    begun = Counter(unit.stage for unit in units)
    jobs = list(engine.submit(units, computes=computes))
    done, failed = [], []
    while jobs:
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
                done.append(outcome)
                said = f"{outcome.seconds:.0f} s" if outcome.ran else "had been done before"
                board.end(stage, "done", f"{outcome.host}, {said}")
                continue
            files.write_text(log, outcome.output or outcome.problem)
            problem = f"on {outcome.host}: {outcome.problem}"
            if begun[stage] < attempts and not outcome.lasting:
                begun[stage] += 1
                board.end(stage, "again", problem)
                jobs += engine.submit([job.unit], computes=computes)
                continue
            board.end(stage, "failed", problem)
            failed.append(f"{stage} {problem} ({log})")
        board.draw()
        if jobs:
            time.sleep(POLL)
    if failed:
        more = [f"and {len(failed) - LISTED} more"] if len(failed) > LISTED else []
        raise UserError(f"{len(failed)} of {len(units)} stages failed; what is complete stays, and the same command "
                        "goes on:", [*failed[:LISTED], *more])  # fmt: skip
    return done
