"""Run DVC commands at the same time on a shared cache, and check that the results do not change.

    python -m tests.shared_cache

In temporary copies of the repository that take seconds, two users share one DVC cache. One trains the eight
configurations in parallel while the other runs `dvc repro`. The results of both are compared with those of a run alone.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster.job import DVC_RUN_CACHE_RACE
from headstart import params

from .clones import results, tiny_clone
from .conftest import run

REPRO = ["dvc", "repro"]
# Waiting threads give up their core. By default they spin, and everything takes ten times as long.
PASSIVE_WAIT = {"OMP_WAIT_POLICY": "PASSIVE"}


def run_at_once(commands: list[tuple[Path, list[str]]]) -> list[str]:
    """Run all (folder, command) at the same time; return the outputs of those that failed.

    A command that lost the race for an entry of the run cache is run again, as docs/reliability.md says.
    """
    env = os.environ | PASSIVE_WAIT
    processes = [
        subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for folder, command in commands
    ]
    outputs = [process.communicate()[0] for process in processes]
    failures = []
    for (folder, command), output, process in zip(commands, outputs, processes, strict=True):
        if process.returncode and DVC_RUN_CACHE_RACE.search(output):
            print("two DVC processes wrote the same run-cache entry; running one of them again")
            run(*command, cwd=folder)
        elif process.returncode:
            failures.append(output)
    return failures


def run_two_users(folder: Path, *, all_configurations: bool) -> tuple[list[dict[str, str]], list[str]]:
    """Return the results of both users, and the problems: failed commands and damaged files in the cache.

    ``all_configurations``: with all eight configurations, not only three.
    """
    user1, user2 = (tiny_clone(folder / name, all_configurations=all_configurations) for name in ("user1", "user2"))
    cache = folder / "cache"
    for clone in (user1, user2):
        run("dvc", "cache", "dir", "--local", str(cache), cwd=clone)
        run("dvc", "config", "--local", "cache.shared", "group", cwd=clone)
    problems = run_at_once([(clone, [*REPRO, "features"]) for clone in (user1, user2)])
    train = ["dvc", "--wait-for-lock", "repro", "--single-item"]
    names = params.read(user1 / "params.yaml").configurations
    problems += run_at_once([(user2, REPRO), *((user1, [*train, f"train@{name}"]) for name in names)])
    run(*REPRO, cwd=user1)
    problems += [f"{path} is damaged" for path in (cache / "files/md5").glob("??/*") if not _is_intact(path)]
    return [results(clone) for clone in (user1, user2)], problems


def _is_intact(path: Path) -> bool:
    """Return whether a file of DVC's cache has the MD5 that its name states."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == path.parent.name + path.stem


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        clone = tiny_clone(Path(folder, "alone"), all_configurations=True)
        run(*REPRO, cwd=clone)
        expected = results(clone)
        shared, problems = run_two_users(Path(folder), all_configurations=True)
    for problem in problems:
        print(problem)
    n_different = sum(actual != expected for actual in shared)
    print(
        f"{len(expected)} files, {n_different} of 2 studies different from a run alone, {len(problems)} failures, "
        f"{time.perf_counter() - started:.0f} s"
    )
    sys.exit(bool(problems or n_different))


if __name__ == "__main__":
    main()
