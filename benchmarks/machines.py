"""What a spec of `make cluster` costs besides its stage, and what a thousand of them on 64 machines would.

    python -m benchmarks.machines

Units run one by one in a temporary copy of the repository at a scale of seconds. Their parts are timed with as many
notes in DVC's run-cache as stages would have left there; the remote is a folder; without and with a cache that is
shared. From these times 1,000 specs on 64 machines are simulated. Prints both and writes
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
from cluster.driver import planned, upstream
from cluster.job import LOCK, JobSpec, dvc, temporary_clone, write_partial_lock
from headstart import params
from headstart.console import run_cli
from headstart.training import compute
from pipeline.dvc_yaml import Stage, stages
from tests.clones import tiny_clone

NOTES = (0, 1_000, 4_000)
UNITS, MACHINES = 1_000, 64
TRAINING = (60, 600, 3_600)  # seconds of a stage
CONFIGURATIONS = (100, 400)  # of which home makes a plan
# A cluster's file server does so much at once; what is measured here is one client with the disk to itself.
SERVER = 4


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = _home(Path(folder))
        plan = {stage.name: stage for stage in _stages(home)}
        lock = yaml.safe_load((home / LOCK).read_text(encoding="utf-8"))["stages"]
        left = iter([name for name in plan if name.startswith("train@")][1:])
        parts = [{"shared cache": shared, "notes": notes, **_unit(home, plan[next(left)], lock, shared, notes)}
                 for shared in (False, True) for notes in NOTES]  # fmt: skip
        planned = {n: _plan(home, n) for n in CONFIGURATIONS}
    simulated = [
        {"shared cache": shared, "seconds of a stage": seconds, **simulate(_costs(parts, shared), seconds)}
        for shared in (False, True)
        for seconds in TRAINING
    ]
    settings = params.read()
    common.write("machines-", settings, compute.configure(), {"parts": parts, "plan": planned, "simulated": simulated})
    for table in (parts, simulated):
        print("| " + " | ".join(table[0]) + " |\n|" + "---:|" * len(table[0]))
        for row in table:
            cells = (f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values())
            print("| " + " | ".join(cells) + " |")
    print("plan of so many configurations, seconds:", planned)


def _home(folder: Path) -> Path:
    """A repository with a remote that has all but the trainings, and one training more, which makes notes to copy."""
    home = tiny_clone(folder / "home", every=True)
    dvc(home, "remote", "add", "--default", "shared", str(folder / "remote"))
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "remote"], cwd=home,
                   check=True)  # fmt: skip
    first = next(stage.name for stage in _stages(home) if stage.name.startswith("train@"))
    dvc(home, "repro", "features@pretrained", "features@random", first)
    return home


def _stages(home: Path) -> list[Stage]:
    document = yaml.safe_load((home / "params.yaml").read_text(encoding="utf-8"))
    return planned(stages(document, str(home / "dvc.yaml")))


def _unit(home: Path, stage: Stage, lock: dict[str, Any], shared: bool, notes: int) -> dict[str, float]:
    """Seconds of the parts of one spec, as `cluster.job` does them; of a stage that nobody has done."""
    remote = home.parent / "remote"
    shutil.rmtree(remote, ignore_errors=True)
    local = home / ".dvc/config.local"
    local.write_text(f"[cache]\n    dir = {home / '.dvc/cache'}\n" if shared else "", encoding="utf-8")
    runs = home / ".dvc/cache/runs"
    for added in runs.glob("**/added-*"):
        shutil.rmtree(added)
    _add_notes(runs, notes)
    dvc(home, "push", "--run-cache")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, check=True).stdout
    spec = JobSpec(stage.name, commit.strip(), str(home), upstream=upstream(stage, lock))
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
        alone = time.perf_counter() - pushed
    return {"clone": cloned - started, "repro but the stage": done - cloned - alone, "push": pushed - done,
            "all but the stage": pushed - started - alone}  # fmt: skip


def _add_notes(runs: Path, count: int) -> None:
    """Copies of a note under other names: DVC reads and copies all of them."""
    note = next(path for path in runs.rglob("*") if path.is_file())
    for number in range(count):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        place = runs / name[:2] / f"added-{name}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(note, place / note.name)


def _plan(home: Path, configurations: int) -> float:
    """Seconds to read what dvc.yaml says of so many."""
    document = yaml.safe_load((home / "params.yaml").read_text(encoding="utf-8"))
    [one, *_] = document["configurations"].values()
    document["configurations"] = {f"configuration{number}": copy.deepcopy(one) for number in range(configurations)}
    started = time.perf_counter()
    planned(stages(document, str(home / "dvc.yaml")))
    return time.perf_counter() - started


def _costs(parts: list[dict[str, Any]], shared: bool) -> tuple[float, float]:
    """Seconds that a spec costs with no note in the run-cache, and what each note adds."""
    few, *_, many = (row for row in parts if row["shared cache"] == shared)
    fixed = few["all but the stage"]
    return fixed, max(0.0, many["all but the stage"] - fixed) / many["notes"]


def simulate(costs: tuple[float, float], stage: float) -> dict[str, float]:
    """1,000 specs on 64 machines, of which the server with notes and results has time for a few at once."""
    fixed, each = costs
    machines = [0.0] * MACHINES  # when each is free again
    server = [0.0] * SERVER
    ended: list[float] = []
    waited = 0.0
    for _ in range(UNITS):
        begins = heapq.heappop(machines)
        notes = sum(end <= begins for end in ended)
        work = each * notes
        free = heapq.heappop(server)
        waits = max(0.0, free - begins) if work else 0.0
        heapq.heappush(server, max(free, begins) + work)
        end = begins + waits + fixed + work + stage
        heapq.heappush(machines, end)
        ended.append(end)
        waited += waits
    at_best = UNITS * stage / MACHINES / 3600
    return {"hours": max(ended) / 3600, "at best": at_best, "waited for the server, s a unit": waited / UNITS}


if __name__ == "__main__":
    run_cli(main)
