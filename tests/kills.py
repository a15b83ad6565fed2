"""Kill `dvc repro` again and again, and see that the study ends as if nothing had happened.

    python -m tests.kills [KILLS] [SEED]

It works in a temporary copy of the repository at a scale of seconds: once without interruption, then with KILLS kills
(20) of the whole process tree by SIGKILL at random moments, each followed by the same command. Prints where they fell.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from .clones import edit, results, tiny_clone
from .conftest import run

LONGEST = 12.0  # seconds until a kill: a stage or two
EPOCHS = 12  # so that some kills fall between epochs


def killed(clone: Path, seconds: float) -> str | None:
    """Kill `dvc repro` after ``seconds``; return the stage that ran, or None if it had succeeded before."""
    log = clone.parent / "log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(["dvc", "repro"], cwd=clone, stdout=file, stderr=subprocess.STDOUT)
        try:
            failed = process.wait(seconds)
            assert not failed, log.read_text(encoding="utf-8")
            return None
        except subprocess.TimeoutExpired:
            for victim in [*psutil.Process(process.pid).children(recursive=True), process]:
                victim.kill()
            process.wait()
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("Running stage")]
    return lines[-1].split("'")[1] if lines else "before any stage"


def forget(clone: Path) -> None:
    """Remove all that a run has made, DVC's memory of it included."""
    for folder in (
        "checkpoints",
        "data",
        "models",
        "predictions",
        "metrics",
        "plots",
        "report",
        "runs",
        ".dvc/cache",
        ".dvc/tmp",
    ):
        shutil.rmtree(clone / folder, ignore_errors=True)
    (clone / "dvc.lock").unlink(missing_ok=True)


def study(clone: Path, kills: int, seed: int) -> tuple[dict[str, str], dict[str, str], Counter[str]]:
    """Return what an uninterrupted run leaves, what a killed one leaves, and where the kills fell."""
    edit(clone, lambda settings: settings["scales"]["quick"].update(n_epochs=EPOCHS))
    run("dvc", "repro", cwd=clone)
    expected = results(clone)
    forget(clone)
    fell: Counter[str] = Counter()
    moments = random.Random(seed)
    while fell.total() < kills:
        stage = killed(clone, moments.uniform(1, LONGEST))
        if stage is None:  # it got through: once more from the beginning
            assert results(clone) == expected
            forget(clone)
        else:
            fell[stage] += 1
    run("dvc", "repro", cwd=clone)
    return expected, results(clone), fell


def main(kills: str = "20", seed: str = "0") -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "clone").mkdir()
        expected, got, fell = study(tiny_clone(Path(folder, "clone")), int(kills), int(seed))
    for stage, count in sorted(fell.items()):
        print(f"{count:3} {stage}")
    different = [name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)]
    print(f"{fell.total()} kills, {len(expected)} files, {len(different)} different from an uninterrupted run "
          f"{different}, {time.perf_counter() - started:.0f} s")  # fmt: skip
    sys.exit(bool(different))


if __name__ == "__main__":
    main(*sys.argv[1:])
