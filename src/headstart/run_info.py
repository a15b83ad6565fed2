"""What is worth knowing of one run of a stage: how long it took, when, with which code, and how much memory."""

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]


class RunInfo:
    """When a stage began, and what is to be said of its run."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._began = _now()
        self._commit = commit()  # of the code that was imported, whatever is committed meanwhile

    def describe(self) -> dict[str, float | str]:
        """Seconds since the clock was made, when that was and is, the commit, and the process's peak memory in MB.

        The last is missing where the system does not tell it.
        """
        found: dict[str, float | str] = {
            "seconds": round(time.perf_counter() - self._started, 3),
            "started_at": self._began,
            "finished_at": _now(),
            "commit": self._commit,
        }
        return found if resource is None else {**found, "peak_memory_mb": _peak_memory_mb()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def commit() -> str:
    """Return the commit of the code that runs, with a ``+`` where that was changed since.

    ``HEADSTART_COMMIT`` says it for a copy of the code without git; without both it is empty.
    """
    if told := os.environ.get("HEADSTART_COMMIT"):
        return told
    root = Path(__file__).parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ":/src", ":/stages", ":/dvc.yaml")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on macOS bytes
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
