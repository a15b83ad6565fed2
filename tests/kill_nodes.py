"""Let machines and processes die while a study runs on SLURM or on Ray: it must end as on one that nothing happened to.

    python -m tests.kill_nodes slurm|ray [KILLS] [SEED]

It works in temporary copies of the repository at a scale of seconds, with three nodes on this machine. Every other kill
is a node, with all that runs there, and it comes back seconds later; the rest are processes: the unit, DVC or the
stage. All by SIGKILL, at random moments. Before that the driver is interrupted once and killed once. Prints where they
fell.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from .clones import edit, results, tiny_clone
from .conftest import run
from .kill_resume import different
from .ray_nodes import ray_nodes
from .slurm import slurm

BETWEEN = (3.0, 9.0)  # seconds
GRACE = 30  # that what is interrupted has to clean up
ABSENT = (3.0, 6.0)  # and so long a node stays away
EPOCHS = 8  # so that some kills fall between epochs
NODES: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {"slurm": slurm, "ray": ray_nodes}
INTERRUPTION = {"slurm": signal.SIGHUP, "ray": signal.SIGINT}
# One thread each: on two cores three would wait for each other, and the bytes of a result depend on their number.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def home(clone: Path, nodes: Any, scratch: Path, **settings: object) -> None:
    """Give ``clone`` a remote and a ``cluster.yaml``, and commit it."""
    path = clone / "cluster.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document |= {"max_attempts": 50, "scratch": str(scratch)} | nodes.settings | settings
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(clone.parent / f"{clone.name}-remote"), cwd=clone)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "remote", cwd=clone)


def command(clone: Path, backend: str, nodes: Any, log: Path) -> subprocess.Popen[bytes]:
    """Begin `python -m cluster` in ``clone``; Ctrl-C reaches it even where a shell has put this into the background."""
    environment = {**nodes.environment, "PYTHONPATH": str(clone / "src")}
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-m", "cluster", backend], cwd=clone, env=environment, stdout=file,
                                stderr=subprocess.STDOUT, start_new_session=True,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip


def kill_one(scratch: Path, moments: random.Random) -> str:
    """Kill a unit or a process of one; return what it was, or nothing if none runs."""
    units = {int(match[1]): "a unit" for path in scratch.glob("*") if (match := re.search(r"\+(\d+)\+\w+$", path.name))}
    parts = {process.pid: " ".join(process.info["cmdline"] or ())
             for process in psutil.process_iter(["cmdline", "cwd"])
             if Path(process.info["cwd"] or "/").is_relative_to(scratch)}  # fmt: skip
    found = sorted((units | parts).items())
    if not found:
        return ""
    pid, what = moments.choice(found)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return "a stage" if "stages." in what else "DVC or git" if what != "a unit" else what


def chaos(
    process: subprocess.Popen[bytes], nodes: Any, scratch: Path, kills: int, moments: random.Random
) -> Counter[str]:
    """Kill until there are ``kills`` or ``process`` has ended; return what was killed how often."""
    fell: Counter[str] = Counter()
    away: dict[str, float] = {}
    following = time.monotonic() + moments.uniform(*BETWEEN)
    while process.poll() is None and (fell.total() < kills or away):
        time.sleep(0.1)
        for name, back in list(away.items()):
            if time.monotonic() > back:
                nodes.revive(name)
                del away[name]
        if time.monotonic() < following or fell.total() >= kills:
            continue
        following = time.monotonic() + moments.uniform(*BETWEEN)
        if fell.total() % 2:
            if what := kill_one(scratch, moments):
                fell[what] += 1
        elif not away:
            name = moments.choice(nodes.names)
            nodes.kill(name)
            away[name] = time.monotonic() + moments.uniform(*ABSENT)
            fell["a node"] += 1
    for name in away:
        nodes.revive(name)
    return fell


def alone(folder: Path, *, every: bool) -> dict[str, str]:
    """What one machine makes of the study."""
    clone = _clone(folder, every=every)
    run("env", "OMP_NUM_THREADS=1", sys.executable, "-m", "stages", cwd=clone)
    return results(clone)


def _clone(folder: Path, *, every: bool) -> Path:
    clone = tiny_clone(folder, every=every)
    edit(clone, lambda settings: settings["studies"]["quick"].update(n_epochs=EPOCHS))
    return clone


def study(
    folder: Path, backend: str, expected: dict[str, str], kills: int, seed: int, *, every: bool
) -> tuple[list[str], Counter[str]]:
    """Run the study on ``backend``, interrupt it, kill its driver, and run it again while things die.

    Returns:
        What is other than ``expected`` or otherwise wrong, and what was killed.
    """
    clone = _clone(folder / "home", every=every)
    scratch = folder / "scratch"
    scratch.mkdir()
    with NODES[backend](folder / backend) as nodes:
        home(clone, nodes, scratch)
        before, wrong = interrupted(clone, backend, nodes, folder / "log0")
        deadline = time.monotonic() + GRACE
        while list(scratch.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)
        wrong += [f"{path} is left of what was interrupted" for path in scratch.iterdir()]
        with watched(scratch) as shared:
            before |= killed(clone, backend, nodes, scratch, folder / "log1")
            process = command(clone, backend, nodes, folder / "log")
            fell = chaos(process, nodes, scratch, kills, random.Random(seed))
            process.wait()
        wrong += [f"two units ran {stage} at once" for stage in shared]
    said = (folder / "log").read_text(encoding="utf-8")
    if process.returncode:
        return [*wrong, said], fell
    wrong += [f"{stage} was done before the interruption" for stage in before & done(said)]
    wrong += [f"{stage} ran at home" for stage in at_home(said) if not stage.startswith(("evaluate", "compare"))]
    wrong += again(said)
    wrong += different(expected, results(clone))
    wrong += [f"{path} is left" for path in scratch.iterdir()]
    return wrong, fell


def interrupted(clone: Path, backend: str, nodes: Any, log: Path) -> tuple[set[str], list[str]]:
    """Begin the study, and interrupt it as Ctrl-C or a closed terminal does when a stage that computes is done.

    Returns:
        What had been done, and what is wrong.
    """
    process = command(clone, backend, nodes, log)
    while not re.search("^done +start", log.read_text(encoding="utf-8"), re.MULTILINE):
        if process.poll() is not None:
            return set(), [log.read_text(encoding="utf-8")]
        time.sleep(0.1)
    os.killpg(process.pid, INTERRUPTION[backend])
    process.wait()
    said = log.read_text(encoding="utf-8")
    right = process.returncode == 1 and said.splitlines()[-1].startswith("headstart: interrupted: ")
    return done(said), [] if right else [said]


def killed(clone: Path, backend: str, nodes: Any, scratch: Path, log: Path) -> set[str]:
    """Go on with the study, and kill what does so when a training runs; return what it had seen done."""
    process = command(clone, backend, nodes, log)
    while process.poll() is None and not trainings(scratch):  # all may be done already
        time.sleep(0.1)
    assert process.returncode in (None, 0), log.read_text(encoding="utf-8")
    process.kill()
    process.wait()
    return done(log.read_text(encoding="utf-8"))


def trainings(scratch: Path) -> list[tuple[str, Path]]:
    """What runs of the stage `train`: its command, and the clone that it runs in."""
    running = [(process.info["cmdline"] or [], Path(process.info["cwd"] or "/"))
               for process in psutil.process_iter(["cmdline", "cwd"])]  # fmt: skip
    return [(" ".join(command), clone) for command, clone in running
            if "stages.train" in command and clone.is_relative_to(scratch)]  # fmt: skip


@contextmanager
def watched(scratch: Path) -> Iterator[set[str]]:
    """Watch what runs in ``scratch``; yields the trainings that more than one clone was seen to run at a time."""
    shared: set[str] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.2):
            seen = Counter(line for line, _ in set(trainings(scratch)))
            shared.update(line for line, count in seen.items() if count > 1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield shared
    finally:
        is_over.set()
        thread.join()


def done(said: str) -> set[str]:
    """What units have computed, as `python -m cluster` has ``said``."""
    return {line.split()[1] for line in said.splitlines() if line.startswith("done") and "done before" not in line}


def at_home(said: str) -> list[str]:
    """The stages that DVC ran at home."""
    return re.findall(r"^Running stage '(.*)':", said, re.MULTILINE)


def again(said: str) -> list[str]:
    """What was begun although it was complete."""
    done: set[str] = set()
    wrong = []
    for line in said.splitlines():
        how, stage, *_ = [*line.split(), "", ""]
        if how in ("waiting", "running", "done", "again") and stage in done:
            wrong.append(f"{stage} was complete: {line}")
        if how == "done":
            done.add(stage)
    return wrong


def main(backend: str, kills: str = "20", seed: str = "0") -> None:
    started = time.perf_counter()
    fell: Counter[str] = Counter()
    wrong: list[str] = []
    rounds = 0
    with tempfile.TemporaryDirectory() as folder:
        expected = alone(Path(folder, "alone"), every=True)
    while fell.total() < int(kills) and not wrong:
        rounds += 1
        with tempfile.TemporaryDirectory() as folder:
            left = int(kills) - fell.total()
            wrong, now = study(Path(folder), backend, expected, left, int(seed) + rounds, every=True)
        fell += now
    for what, count in sorted(fell.items()):
        print(f"{count:3} {what}")
    print("\n".join(wrong))
    print(f"{backend}: {fell.total()} kills in {rounds} studies of eight configurations, "
          f"{len(wrong)} things other than on one machine, {time.perf_counter() - started:.0f} s")  # fmt: skip
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
