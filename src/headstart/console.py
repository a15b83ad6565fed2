"""The terminal: one line for a mistake, a progress bar for a wait."""

import os
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

try:
    import resource
except ImportError:  # Windows has no such module
    resource = None  # type: ignore[assignment]


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do."""


def run(main: Callable[..., None], *arguments: str) -> None:
    """Run a stage; turn a mistake of the user's into one line on stderr and exit status 1.

    ``HEADSTART_TRACEBACK=1`` in the environment shows the traceback instead.
    """
    try:
        main(*arguments)
    except KeyboardInterrupt:
        sys.exit("headstart: interrupted; nothing half-written was left, the same command starts this stage again")
    except (UserError, OSError) as error:
        if os.environ.get("HEADSTART_TRACEBACK") == "1":
            raise
        sys.exit(f"headstart: {' '.join(str(error).split())}")


def progress(total: int, label: str, unit: str = "image") -> tqdm:
    """A bar that says what, how far and how long still; silent where stderr is not a terminal."""
    return tqdm(total=total, desc=label, unit=f" {unit}s", unit_scale=True, disable=None, leave=False, delay=1)


class Clock:
    """How long a stage has run and how much memory it took."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def describe(self) -> dict[str, float]:
        """Seconds since the clock was made, and the process's peak memory in MB where the system tells it."""
        seconds = {"seconds": round(time.perf_counter() - self._started, 3)}
        return seconds if resource is None else {**seconds, "peak_memory_mb": _peak_memory_mb()}


def _peak_memory_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on macOS bytes
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
