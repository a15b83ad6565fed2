"""The terminal: one line for a mistake, a progress bar for a wait."""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
USER_STATUS = 1  # of a process that a UserError has ended
MACHINE_STATUS = 75  # that a MachineError has ended: the EX_TEMPFAIL of sysexits.h


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do.

    ``details``: what it is wrong with, a line each, where that is many things.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = details


class MachineError(UserError):
    """Something that this machine lacks now, such as room on its disk: the same may work elsewhere or later."""


def run_cli(main: Callable[..., object], *arguments: str) -> None:
    """Run a stage; turn a mistake of the user's into one line on stderr and exit status 1.

    What the machine lacks, such as memory or room on its disk, ends with status 75.
    ``HEADSTART_TRACEBACK=1`` in the environment shows the traceback instead.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal's encoding lacks is escaped
            stream.reconfigure(errors="backslashreplace")
    try:
        main(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes as it exits
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("headstart: interrupted; no partial output was left: run the same command to continue")
    except Exception as error:
        line = _explain(error)
        if line is None or os.environ.get("HEADSTART_TRACEBACK") == "1":
            raise
        lines = [line, *getattr(error, "details", ())]
        message = "headstart: " + "\n  ".join(" ".join(each.split()) for each in lines)
        if not _is_the_machines(error):
            sys.exit(message)
        print(message, file=sys.stderr)
        ended = SystemExit(message)
        ended.code = MACHINE_STATUS
        raise ended from None


def _is_the_machines(error: Exception) -> bool:
    """Return whether ``error`` is a lack of the machine. A path that does not exist is a mistake of the user's."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return False
    return isinstance(error, (MachineError, MemoryError, OSError)) or _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether PyTorch, which is not imported for this, found no memory on a GPU or in RAM."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _explain(error: Exception) -> str | None:
    """What to tell the user of a mistake or of a machine's limit; None of a defect of the program's."""
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return ("the GPU's memory is full: free memory that other processes hold, lower batch_size or image_size in "
                "params.yaml, or set HEADSTART_MEMORY_GB lower, so that activations are kept in RAM")  # fmt: skip
    if "does not have a deterministic implementation" in str(error):
        operation = str(error).split()[0]
        return (f"{operation} has no deterministic implementation on this device: set finetune_from in params.yaml to "
                "a layer behind it, or HEADSTART_DEVICE=cpu in the environment")  # fmt: skip
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return "out of memory: lower training_images or image_size in params.yaml, or close other programs"
    if isinstance(error, OSError):
        if error.errno in DISK_FULL and isinstance(error.filename, str):
            error.filename = str(Path(error.filename).resolve())  # or nobody knew which disk
        remedy = {
            errno.ENOSPC: "free some space",
            errno.EDQUOT: "free some space, or ask for a larger quota",
            errno.EROFS: "make the folder writable",
            errno.EACCES: "make it readable, and its folder writable",
        }.get(error.errno or 0)
        return str(error) if remedy is None else f"{error}: {remedy}"
    return None


def progress(total: int, label: str, done: int = 0, unit: str = " images") -> tqdm:
    """A bar that says what, how far and how long still; silent where stderr is not a terminal."""
    return tqdm(total=total, initial=done, desc=label, unit=unit, unit_scale=True, disable=None, leave=False, delay=1)
