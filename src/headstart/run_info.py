"""Metadata of one run of a stage: duration, timestamps, commit, peak memory."""

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
    """Measure the run of a stage that starts when this object is created."""

    def __init__(self) -> None:
        self._start_time = time.perf_counter()
        self._started_at = _now()
        self._commit = commit()  # of the imported code, even if another commit follows during the run

    def describe(self) -> dict[str, float | str]:
        """Return the duration in seconds, start and finish time, commit, and the process's peak memory in MB.

        Systems without ``getrusage`` do not report peak memory.
        """
        info: dict[str, float | str] = {
            "seconds": round(time.perf_counter() - self._start_time, 3),
            "started_at": self._started_at,
            "finished_at": _now(),
            "commit": self._commit,
        }
        return info if resource is None else {**info, "peak_memory_mb": _peak_memory_mb()}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def commit() -> str:
    """Return the commit of the running code, with a ``+`` if the code has uncommitted changes.

    ``HEADSTART_COMMIT`` overrides it, for a copy of the code without git. Without either, return an empty string.
    """
    if override := os.environ.get("HEADSTART_COMMIT"):
        return override
    root = Path(__file__).parent
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", ":/src", ":/stages", ":/pipeline", ":/dvc.yaml")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, but bytes on macOS
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
