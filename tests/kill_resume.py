"""Kill `dvc repro` again and again, and see that the study ends as if nothing had happened.

    python -m tests.kill_resume [KILLS] [SEED]

It works in a temporary copy of the repository at a scale of seconds: once without interruption, then with KILLS kills
(20) of the whole process tree by SIGKILL, each followed by the same command. Every other one is aimed at a training, at
each in turn; the rest fall at random moments. Prints where they fell.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .clones import KEPT, edit, results, tiny_clone

LONGEST = 12.0  # seconds until a kill: a stage or two
IN_TRAINING = 4.0  # and after a training has begun: until it is nearly done
EPOCHS = 12  # so that some kills fall between epochs
OWN_FILES = {"Unable to read RWLock-file": ".dvc/tmp/rwlock", "dvc.lock' validation failed": "dvc.lock"}


def repro(clone: Path, seconds: float | None = None, stage: str = "") -> str | None:
    """Run `dvc repro` to its end and return None, or kill it after ``seconds`` and return what that fell into.

    With ``stage`` the seconds count from when the first such stage begins.
    Where a kill has left one of DVC's own files half-written, it is removed, as docs/reliability.md says.
    """
    log = clone.parent / "log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=clone, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        while stage and process.poll() is None and f"Running stage '{stage}" not in log.read_text(encoding="utf-8"):
            time.sleep(0.01)
        try:
            failed = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # all at once: none sees another one die
            process.wait()
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("Running stage")]
            return lines[-1].split("'")[1] if lines else "before any stage"
    said = log.read_text(encoding="utf-8")
    if not failed:
        return None
    for complaint, own_file in OWN_FILES.items():
        if complaint in said:
            print(f"DVC's own {own_file} was half-written and is removed")
            (clone / own_file).unlink()
            return repro(clone, seconds, stage)
    raise AssertionError(said)


def forget(clone: Path) -> None:
    """Remove all that a run has made, DVC's memory of it included."""
    for folder in (
        "checkpoints",
        *(f"data/{name}" for name in ("raw", "prepared", "initial", "features")),
        "models",
        "predictions",
        "probes",
        "scores",
        "metrics",
        "plots",
        "report",
        "runs",
        ".dvc/cache",
        ".dvc/tmp",
    ):
        shutil.rmtree(clone / folder, ignore_errors=True)
    (clone / "dvc.lock").unlink(missing_ok=True)


def different(expected: dict[str, str], got: dict[str, str]) -> list[str]:
    """The files of which the two runs left different bytes, or only one left any."""
    return sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))


def study(clone: Path, kills: int, seed: int) -> tuple[dict[str, str], dict[str, str], Counter[str]]:
    """Return what an uninterrupted run leaves, what a killed one leaves, and where the kills fell."""
    edit(clone, lambda settings: settings["studies"]["quick"].update(n_epochs=EPOCHS))
    repro(clone)
    expected = results(clone)
    forget(clone)
    fell: Counter[str] = Counter()
    moments = random.Random(seed)
    while fell.total() < kills:
        if fell.total() % 2:
            stage = repro(clone, moments.uniform(0, IN_TRAINING), f"train@{KEPT[fell.total() // 2 % len(KEPT)]}")
        else:
            stage = repro(clone, moments.uniform(1, LONGEST))
        if stage is None:  # it got through: once more from the beginning
            assert not different(expected, results(clone))
            forget(clone)
        else:
            fell[stage] += 1
    repro(clone)
    return expected, results(clone), fell


def main(kills: str = "20", seed: str = "0") -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "clone").mkdir()
        expected, got, fell = study(tiny_clone(Path(folder, "clone")), int(kills), int(seed))
    for stage, count in sorted(fell.items()):
        print(f"{count:3} {stage}")
    other = different(expected, got)
    print(f"{fell.total()} kills, {len(expected)} files, {len(other)} different from an uninterrupted run "
          f"{other}, {time.perf_counter() - started:.0f} s")  # fmt: skip
    sys.exit(bool(other))


if __name__ == "__main__":
    main(*sys.argv[1:])
