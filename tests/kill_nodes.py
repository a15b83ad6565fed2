"""Kill nodes and processes while a study runs on SLURM or on Ray, and compare the results with those of one machine.

    python -m tests.kill_nodes slurm|ray [KILLS] [SEED]

Works in temporary copies of the repository that take seconds, with three nodes on this machine. Every other kill hits a
node, with all of its jobs; the node comes back seconds later. The other kills hit single processes: a job, DVC or a
stage. All kills are SIGKILL at random times. Before that the driver is interrupted once and killed once. Prints the
kills by kind.
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

from cluster.driver import CACHED

from .clones import edit, results, tiny_clone
from .conftest import run
from .kill_resume import differing_files
from .ray_nodes import ray_nodes
from .slurm import slurm

KILL_INTERVAL_S = (3.0, 9.0)
DOWNTIME_S = (3.0, 6.0)  # of a killed node
CLEANUP_S = 30  # that interrupted jobs have to remove their clones
EPOCHS = 8  # so that some kills come between epochs
BACKENDS: dict[str, Callable[[Path], AbstractContextManager[Any]]] = {"slurm": slurm, "ray": ray_nodes}
INTERRUPTION = {"slurm": signal.SIGHUP, "ray": signal.SIGINT}


def configure(clone: Path, nodes: Any, scratch: Path) -> None:
    """Give ``clone`` a remote and a ``cluster.yaml``, and commit them."""
    path = clone / "cluster.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document |= {"max_attempts": 50, "scratch": str(scratch)} | nodes.settings
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(clone.parent / f"{clone.name}-remote"), cwd=clone)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "remote", cwd=clone)


def start_driver(clone: Path, backend: str, nodes: Any, log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m cluster` in ``clone``. Ctrl-C reaches it even if a shell has started this process with `&`."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster", backend],
            cwd=clone,
            env={**nodes.environment, "PYTHONPATH": str(clone / "src")},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def kill_process(scratch: Path, rng: random.Random) -> str:
    """Kill a job or one of its child processes; return its kind, or an empty string if none runs."""
    matches = [re.search(r"\+(\d+)\+\w+$", path.name) for path in scratch.glob("*")]
    jobs = {int(match[1]): "job" for match in matches if match}
    children = {
        process.pid: "stage" if "stages." in " ".join(process.info["cmdline"] or ()) else "DVC or git"
        for process in psutil.process_iter(["cmdline", "cwd"])
        if Path(process.info["cwd"] or "/").is_relative_to(scratch)
    }
    processes = sorted((jobs | children).items())
    if not processes:
        return ""
    pid, kind = rng.choice(processes)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return kind


def kill_at_random(
    driver: subprocess.Popen[bytes], nodes: Any, scratch: Path, kills: int, rng: random.Random
) -> Counter[str]:
    """Kill nodes and processes ``kills`` times or until the driver has ended; return the number of kills by kind."""
    killed: Counter[str] = Counter()
    down: dict[str, float] = {}  # when each killed node comes back
    next_kill = time.monotonic() + rng.uniform(*KILL_INTERVAL_S)
    while driver.poll() is None and (killed.total() < kills or down):
        time.sleep(0.1)
        for name, end in list(down.items()):
            if time.monotonic() > end:
                nodes.revive(name)
                del down[name]
        if time.monotonic() < next_kill or killed.total() >= kills:
            continue
        next_kill = time.monotonic() + rng.uniform(*KILL_INTERVAL_S)
        if killed.total() % 2:
            if kind := kill_process(scratch, rng):
                killed[kind] += 1
        elif not down:
            name = rng.choice(nodes.names)
            nodes.kill(name)
            down[name] = time.monotonic() + rng.uniform(*DOWNTIME_S)
            killed["node"] += 1
    for name in down:
        nodes.revive(name)
    return killed


def run_on_one_machine(folder: Path, *, all_configurations: bool) -> dict[str, str]:
    """Return the results of the study on one machine, with as many threads as a job has."""
    clone = _clone(folder, all_configurations=all_configurations)
    run("env", "OMP_NUM_THREADS=1", sys.executable, "-m", "stages", cwd=clone)
    return results(clone)


def _clone(folder: Path, *, all_configurations: bool) -> Path:
    clone = tiny_clone(folder, all_configurations=all_configurations)
    edit(clone, lambda settings: settings["studies"]["quick"].update(n_epochs=EPOCHS))
    return clone


def run_with_kills(
    folder: Path, backend: str, expected: dict[str, str], kills: int, seed: int, *, all_configurations: bool
) -> tuple[list[str], Counter[str]]:
    """Run the study on ``backend``: interrupt the driver, kill it, and run it again while nodes and processes die.

    Returns:
        The problems, such as files that differ from ``expected``, and the number of kills by kind.
    """
    clone = _clone(folder / "clone", all_configurations=all_configurations)
    scratch = folder / "scratch"
    scratch.mkdir()
    with BACKENDS[backend](folder / backend) as nodes:
        configure(clone, nodes, scratch)
        completed, problems = interrupt_driver(clone, backend, nodes, folder / "log0")
        deadline = time.monotonic() + CLEANUP_S
        while list(scratch.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)
        problems += [f"{path} was left by an interrupted job" for path in scratch.iterdir()]
        with watch_for_duplicates(scratch) as duplicates:
            completed |= kill_driver(clone, backend, nodes, scratch, folder / "log1")
            driver = start_driver(clone, backend, nodes, folder / "log")
            killed = kill_at_random(driver, nodes, scratch, kills, random.Random(seed))
            driver.wait()
        problems += [f"two jobs ran {command} at the same time" for command in duplicates]
    output = (folder / "log").read_text(encoding="utf-8")
    if driver.returncode:
        return [*problems, output], killed
    problems += [f"{stage} ran again after the interruption" for stage in completed & executed_by_jobs(output)]
    local_stages = ("evaluate", "compare")
    problems += [f"{stage} ran locally" for stage in executed_locally(output) if not stage.startswith(local_stages)]
    problems += repeated(output)
    problems += differing_files(expected, results(clone))
    problems += [f"{path} is left" for path in scratch.iterdir()]
    return problems, killed


def interrupt_driver(clone: Path, backend: str, nodes: Any, log: Path) -> tuple[set[str], list[str]]:
    """Start the study, and interrupt it as Ctrl-C or a closed terminal does when the first stage that computes is done.

    Returns:
        The stages that jobs have executed, and the problems.
    """
    driver = start_driver(clone, backend, nodes, log)
    while not re.search("^done +initialize", log.read_text(encoding="utf-8"), re.MULTILINE):
        if driver.poll() is not None:
            return set(), [log.read_text(encoding="utf-8")]
        time.sleep(0.1)
    os.killpg(driver.pid, INTERRUPTION[backend])
    driver.wait()
    output = log.read_text(encoding="utf-8")
    is_expected = driver.returncode == 1 and output.splitlines()[-1].startswith("headstart: interrupted")
    return executed_by_jobs(output), [] if is_expected else [output]


def kill_driver(clone: Path, backend: str, nodes: Any, scratch: Path, log: Path) -> set[str]:
    """Resume the study, and kill the driver when a training runs; return the stages that jobs have executed."""
    driver = start_driver(clone, backend, nodes, log)
    while driver.poll() is None and not running_trainings(scratch):  # all may be done already
        time.sleep(0.1)
    assert driver.returncode in (None, 0), log.read_text(encoding="utf-8")
    driver.kill()
    driver.wait()
    return executed_by_jobs(log.read_text(encoding="utf-8"))


def running_trainings(scratch: Path) -> list[tuple[str, Path]]:
    """Return the command and the clone of each process of the stage `train`."""
    processes = [
        (process.info["cmdline"] or [], Path(process.info["cwd"] or "/"))
        for process in psutil.process_iter(["cmdline", "cwd"])
    ]
    return [
        (" ".join(command), clone)
        for command, clone in processes
        if "stages.train" in command and clone.is_relative_to(scratch)
    ]


@contextmanager
def watch_for_duplicates(scratch: Path) -> Iterator[set[str]]:
    """Yield a set to which trainings are added that run in more than one clone at the same time."""
    duplicates: set[str] = set()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.2):
            counts = Counter(command for command, _ in set(running_trainings(scratch)))
            duplicates.update(command for command, count in counts.items() if count > 1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield duplicates
    finally:
        is_over.set()
        thread.join()


def executed_by_jobs(output: str) -> set[str]:
    """Return the stages that jobs have executed, from the output of `python -m cluster`."""
    lines = [line.split(maxsplit=2) for line in output.splitlines() if line.startswith("done")]
    return {stage for _, stage, detail in lines if detail != CACHED}


def executed_locally(output: str) -> list[str]:
    """Return the stages that the final `dvc repro --pull` has executed."""
    return re.findall(r"^Running stage '(.*)':", output, re.MULTILINE)


def repeated(output: str) -> list[str]:
    """Return a message for each line about a stage that was done already."""
    done: set[str] = set()
    problems = []
    for line in output.splitlines():
        status, stage, *_ = [*line.split(), "", ""]
        if status in ("waiting", "running", "done", "retry") and stage in done:
            problems.append(f"{stage} was complete: {line}")
        if status == "done":
            done.add(stage)
    return problems


def main(backend: str, kills: str = "20", seed: str = "0") -> None:
    started = time.perf_counter()
    killed: Counter[str] = Counter()
    problems: list[str] = []
    rounds = 0
    with tempfile.TemporaryDirectory() as folder:
        expected = run_on_one_machine(Path(folder, "expected"), all_configurations=True)
    while killed.total() < int(kills) and not problems:
        rounds += 1
        with tempfile.TemporaryDirectory() as folder:
            remaining = int(kills) - killed.total()
            problems, counts = run_with_kills(
                Path(folder), backend, expected, remaining, int(seed) + rounds, all_configurations=True
            )
        killed += counts
    for kind, count in sorted(killed.items()):
        print(f"{count:3} {kind}")
    print("\n".join(problems))
    print(
        f"{backend}: {killed.total()} kills in {rounds} studies of eight configurations, {len(problems)} problems, "
        f"{time.perf_counter() - started:.0f} s"
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(*sys.argv[1:])
