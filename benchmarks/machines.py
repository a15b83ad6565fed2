"""Overhead of the jobs of `make cluster`, measured, and of a thousand jobs on 64 machines, simulated.

    python -m benchmarks.machines

Jobs run one by one in a temporary copy of the repository that takes seconds. Their parts are timed with as many entries
in DVC's run cache as earlier stages would have left there. The remote is a folder; jobs run without and with a shared
cache. From these times 1,000 jobs on 64 machines are simulated. Prints both tables and writes
benchmarks/results/machines-<device>.json.
"""

import copy
import hashlib
import heapq
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks import settings as common
from cluster.driver import job_stages, upstream_lock
from cluster.job import LOCK, JobSpec, dvc, temporary_clone, write_partial_lock
from headstart import params
from headstart.console import run_cli
from headstart.training import compute
from pipeline.dvc_yaml import Stage, stages
from scripts import argument_parser
from tests.clones import tiny_clone

RUN_CACHE_ENTRIES = (0, 1_000, 4_000)
JOBS, MACHINES = 1_000, 64
STAGE_SECONDS = (60, 600, 3_600)
CONFIGURATIONS = (100, 400, 1_000)  # in a study whose dvc.yaml the driver reads
# Clients that a cluster's file server serves at once; the measurement has one client with the disk to itself.
SERVER_CAPACITY = 4


def main(*arguments: str) -> None:
    argument_parser(__doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        repository = _repository(Path(folder))
        plan = {stage.name: stage for stage in _stages(repository)}
        lock = yaml.safe_load((repository / LOCK).read_text(encoding="utf-8"))["stages"]
        trainings = iter([stage for name, stage in plan.items() if name.startswith("train@")][1:])
        parts = [
            {
                "shared cache": shared,
                "notes": n,
                **_time_job(repository, next(trainings), lock, shared=shared, entries=n),
            }
            for shared in (False, True)
            for n in RUN_CACHE_ENTRIES
        ]
        plan_seconds = {n: _time_plan(repository, n) for n in CONFIGURATIONS}
    simulated = [
        {"shared cache": shared, "seconds of a stage": seconds, **simulate(*_overhead(parts, shared), seconds)}
        for shared in (False, True)
        for seconds in STAGE_SECONDS
    ]
    results = {"parts": parts, "plan": plan_seconds, "simulated": simulated}
    common.write("machines-", params.read(), compute.configure(), results)
    for table in (parts, simulated):
        print("| " + " | ".join(table[0]) + " |\n|" + "---:|" * len(table[0]))
        for row in table:
            cells = (f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values())
            print("| " + " | ".join(cells) + " |")
    print("seconds to plan that many configurations:", plan_seconds)


def _repository(folder: Path) -> Path:
    """Create a repository in which all inputs of the trainings have been computed, and a DVC remote.

    One training has run as well, so that there is a run-cache entry to copy.
    """
    repository = tiny_clone(folder / "home", all_configurations=True)
    dvc(repository, "remote", "add", "--default", "shared", str(folder / "remote"))
    commit = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "remote"]
    subprocess.run(commit, cwd=repository, check=True)
    training = next(stage.name for stage in _stages(repository) if stage.name.startswith("train@"))
    dvc(repository, "repro", "features@pretrained", "features@random", training)
    return repository


def _stages(repository: Path) -> list[Stage]:
    document = params.read_yaml(repository / "params.yaml")
    return job_stages(list(stages(document, str(repository / "dvc.yaml"))))


def _time_job(repository: Path, stage: Stage, lock: dict[str, Any], *, shared: bool, entries: int) -> dict[str, float]:
    """Return the seconds of the steps of one job, as `cluster.job` runs them, for a stage that is not cached.

    Args:
        shared: use a shared cache.
        entries: number of additional entries in the run cache.
    """
    shutil.rmtree(repository.parent / "remote", ignore_errors=True)
    local_config = repository / ".dvc/config.local"
    cache = repository / ".dvc/cache"
    local_config.write_text(f"[cache]\n    dir = {cache}\n" if shared else "", encoding="utf-8")
    _set_run_cache_entries(cache / "runs", entries)
    dvc(repository, "push", "--run-cache")
    git = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(git, cwd=repository, capture_output=True, text=True, check=True).stdout.strip()
    spec = JobSpec(stage.name, commit, str(repository), upstream=upstream_lock(stage, lock))
    started = time.perf_counter()
    with temporary_clone(spec.origin, spec.commit) as clone:
        write_partial_lock(spec.upstream, clone)
        cloned = time.perf_counter()
        dvc(clone, "repro", "--pull", "--single-item", spec.stage)
        done = time.perf_counter()
        dvc(clone, "push", "--run-cache", spec.stage)
        pushed = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(clone / "src")}
        subprocess.run([sys.executable, "-m", stage.module, *stage.arguments], cwd=clone, env=environment, check=True)
        stage_seconds = time.perf_counter() - pushed
    return {
        "clone": cloned - started,
        "repro but the stage": done - cloned - stage_seconds,
        "push": pushed - done,
        "all but the stage": pushed - started - stage_seconds,
    }


def _set_run_cache_entries(runs: Path, count: int) -> None:
    """Add ``count`` copies of an entry under other names, instead of those added before: DVC reads and copies all."""
    for added in runs.glob("**/added-*"):
        shutil.rmtree(added)
    entry = next(path for path in runs.rglob("*") if path.is_file())
    for number in range(count):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        folder = runs / name[:2] / f"added-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(entry, folder / entry.name)


def _time_plan(repository: Path, n_configurations: int) -> float:
    """Return the seconds to read dvc.yaml for a study of ``n_configurations``."""
    document = params.read_yaml(repository / "params.yaml")
    configuration = next(iter(document["configurations"].values()))
    document["configurations"] = {
        f"configuration{number}": copy.deepcopy(configuration) for number in range(n_configurations)
    }
    started = time.perf_counter()
    job_stages(list(stages(document, str(repository / "dvc.yaml"))))
    return time.perf_counter() - started


def _overhead(parts: list[dict[str, Any]], shared: bool) -> tuple[float, float]:
    """Return the seconds of overhead of a job with an empty run cache, and the seconds that each entry adds."""
    smallest, *_, largest = (row for row in parts if row["shared cache"] == shared)
    fixed = smallest["all but the stage"]
    return fixed, max(0.0, largest["all but the stage"] - fixed) / largest["notes"]


def simulate(fixed_seconds: float, seconds_per_entry: float, stage_seconds: float) -> dict[str, float]:
    """Simulate JOBS jobs on MACHINES machines that share a file server, which serves SERVER_CAPACITY at once."""
    machines = [0.0] * MACHINES  # when each is free again
    server = [0.0] * SERVER_CAPACITY
    ends: list[float] = []
    total_wait = 0.0
    for _ in range(JOBS):
        start = heapq.heappop(machines)
        server_seconds = seconds_per_entry * sum(end <= start for end in ends)
        server_free = heapq.heappop(server)
        wait = max(0.0, server_free - start) if server_seconds else 0.0
        heapq.heappush(server, max(server_free, start) + server_seconds)
        end = start + wait + fixed_seconds + server_seconds + stage_seconds
        heapq.heappush(machines, end)
        ends.append(end)
        total_wait += wait
    hours_at_best = JOBS * stage_seconds / MACHINES / 3600
    return {"hours": max(ends) / 3600, "at best": hours_at_best, "waited for the server, s a unit": total_wait / JOBS}


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
