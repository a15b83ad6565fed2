"""Kill `dvc repro` again and again, and check that the study ends as if nothing had happened.

    python -m tests.kill_resume [KILLS] [SEED]

Works in a temporary copy of the repository that takes seconds. `python -m stages` gives the expected results. Then
`dvc repro` is killed KILLS times (20): the whole process tree by SIGKILL, each time followed by the same command. Every
other kill hits a training, each configuration in turn; the others come at random times. Prints the kills by stage.
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

from .clones import NAMES, edit, results, tiny_clone
from .conftest import run

MAX_DELAY_S = 12.0  # from the start to a kill: a stage or two
MAX_TRAINING_DELAY_S = 4.0  # from the start of a training to a kill: until it is nearly done
EPOCHS = 12  # so that some kills come between epochs
DVC_FILES = {"Unable to read RWLock-file": ".dvc/tmp/rwlock", "dvc.lock' validation failed": "dvc.lock"}
OUTPUTS = (
    "checkpoints",
    "data/raw",
    "data/prepared",
    "data/initial",
    "data/features",
    "models",
    "predictions",
    "probes",
    "audit",
    "scores",
    "metrics",
    "plots",
    "report",
    "runs",
    ".dvc/cache",
    ".dvc/tmp",
    "dvc.lock",
)


def repro(clone: Path, kill_after: float | None = None, stage: str = "") -> str | None:
    """Run `dvc repro` and return None, or kill it after ``kill_after`` seconds and return the stage that was running.

    With ``stage`` the seconds count from the start of that stage.
    If an earlier kill has left one of DVC's own files half-written, it is removed, as docs/reliability.md says.
    """
    log = clone.parent / "log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=clone, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        while stage and process.poll() is None and f"Running stage '{stage}" not in log.read_text(encoding="utf-8"):
            time.sleep(0.01)
        try:
            status = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # all at once: no process sees another one die
            process.wait()
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("Running stage")]
            return lines[-1].split("'")[1] if lines else "before any stage"
    if not status:
        return None
    output = log.read_text(encoding="utf-8")
    for error, dvc_file in DVC_FILES.items():
        if error in output:
            print(f"removing DVC's half-written {dvc_file}")
            (clone / dvc_file).unlink()
            return repro(clone, kill_after, stage)
    raise AssertionError(output)


def remove_outputs(clone: Path) -> None:
    """Remove all that a run has written, including DVC's cache."""
    for name in OUTPUTS:
        shutil.rmtree(clone / name, ignore_errors=True)
        (clone / name).unlink(missing_ok=True)


def differing_files(expected: dict[str, str], actual: dict[str, str]) -> list[str]:
    """Return the files that only one of two runs has, or that have different bytes."""
    return sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))


def run_with_kills(clone: Path, kills: int, seed: int) -> tuple[dict[str, str], dict[str, str], Counter[str]]:
    """Return the results of an uninterrupted run, those of a killed run, and how often each stage was killed."""
    edit(clone, lambda settings: settings["studies"]["quick"].update(n_epochs=EPOCHS))
    run(sys.executable, "-m", "stages", cwd=clone)
    expected = results(clone)
    remove_outputs(clone)
    killed: Counter[str] = Counter()
    rng = random.Random(seed)
    while killed.total() < kills:
        if killed.total() % 2:
            training = f"train@{NAMES[killed.total() // 2 % len(NAMES)]}"
            stage = repro(clone, rng.uniform(0, MAX_TRAINING_DELAY_S), training)
        else:
            stage = repro(clone, rng.uniform(1, MAX_DELAY_S))
        if stage is None:  # it finished before the kill: start again from nothing
            assert not differing_files(expected, results(clone))
            remove_outputs(clone)
        else:
            killed[stage] += 1
    repro(clone)
    return expected, results(clone), killed


def main(kills: str = "20", seed: str = "0") -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "clone").mkdir()
        expected, actual, killed = run_with_kills(tiny_clone(Path(folder, "clone")), int(kills), int(seed))
    for stage, count in sorted(killed.items()):
        print(f"{count:3} {stage}")
    differing = differing_files(expected, actual)
    print(
        f"{killed.total()} kills, {len(expected)} files, {len(differing)} different from an uninterrupted run "
        f"{differing}, {time.perf_counter() - started:.0f} s"
    )
    sys.exit(bool(differing))


if __name__ == "__main__":
    main(*sys.argv[1:])
