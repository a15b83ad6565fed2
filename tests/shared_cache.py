"""Run at once what people run at once, and see that nothing comes out otherwise.

    python -m tests.shared_cache

In temporary copies of the repository at a scale of seconds, two people share one DVC cache. One trains the eight
configurations side by side while the other runs `dvc repro`. What both end with is compared with a run that was alone.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from headstart import params

from .clones import results, tiny_clone
from .conftest import run

REPRO = ["dvc", "repro"]
OWN_NOTE = re.compile(r"cache/runs/\S+\.tmp'\s*$")
# A thread that waits for others gives its core away; by default it spins on it, and everything takes ten times as long.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}


def max_jobs(commands: list[tuple[Path, list[str]]]) -> list[str]:
    """Run all (folder, command) at the same time; return what those that failed printed.

    One that failed because two DVC wrote the same note into the cache is run again, as docs/reliability.md says.
    """
    processes = [
        subprocess.Popen(command, cwd=folder, env=os.environ | WAITING, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
        for folder, command in commands
    ]  # fmt: skip
    printed = [process.communicate()[0] for process in processes]
    failed = []
    for (folder, command), text, process in zip(commands, printed, processes, strict=True):
        if process.returncode and OWN_NOTE.search(text):
            print("two DVC wrote the same note into the cache at once; one is run again")
            run(*command, cwd=folder)
        elif process.returncode:
            failed.append(text)
    return failed


def study(folder: Path, *, every: bool) -> tuple[list[dict[str, str]], list[str]]:
    """Return the results of both people, and what failed or is damaged in the cache.

    ``every``: with all eight configurations, not with three.
    """
    one, other = (tiny_clone(folder / name, every=every) for name in ("one", "other"))
    cache = folder / "cache"
    for clone in (one, other):
        run("dvc", "cache", "dir", "--local", str(cache), cwd=clone)
        run("dvc", "config", "--local", "cache.shared", "group", cwd=clone)
    failed = max_jobs([(clone, [*REPRO, "features"]) for clone in (one, other)])
    train = ["dvc", "--wait-for-lock", "repro", "--single-item"]
    names = params.read(one / "params.yaml").configurations
    failed += max_jobs([(other, REPRO), *((one, [*train, f"train@{name}"]) for name in names)])
    run(*REPRO, cwd=one)
    failed += [f"{path} is damaged" for path in (cache / "files/md5").glob("??/*") if not _sound(path)]
    return [results(clone) for clone in (one, other)], failed


def _sound(path: Path) -> bool:
    """Whether a file of DVC's cache has the content that its name says."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == path.parent.name + path.stem


def main() -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        clone = tiny_clone(Path(folder, "alone"), every=True)
        run(*REPRO, cwd=clone)
        alone = results(clone)
        together, failed = study(Path(folder), every=True)
    for problem in failed:
        print(problem)
    different = [found != alone for found in together]
    print(f"{len(alone)} files, {sum(different)} of 2 studies different from one that ran alone, "
          f"{len(failed)} failures, {time.perf_counter() - started:.0f} s")  # fmt: skip
    sys.exit(bool(failed or any(different)))


if __name__ == "__main__":
    main()
