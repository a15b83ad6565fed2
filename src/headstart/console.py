"""Terminal output: error messages of one line, and progress bars."""

import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
USER_STATUS = 1  # exit status after a UserError
MACHINE_STATUS = 75  # exit status after a MachineError: EX_TEMPFAIL of sysexits.h


class UserError(Exception):
    """An error that the user can fix. The message is one line: "<what is wrong>: <where>. <how to fix it>."

    ``details``: one more line per item if several items have the same error, such as damaged files.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.details = details


class MachineError(UserError):
    """A resource that this machine lacks, such as disk space; a retry may succeed later or on another machine."""


def run_cli(main: Callable[..., object], *arguments: str) -> None:
    """Run ``main``. After a UserError, print its message on stderr and exit with status 1.

    Exit with status 75 if the machine lacks a resource, such as memory or disk space. With ``HEADSTART_TRACEBACK=1``
    in the environment, show the traceback instead.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape characters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        main(*arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout as it exits
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("headstart: interrupted: no partial output was left. Run the same command again to resume.")
    except Exception as error:
        explanation = _explain(error)
        if explanation is None or os.environ.get("HEADSTART_TRACEBACK") == "1":
            raise
        lines = [explanation, *getattr(error, "details", ())]
        message = "headstart: " + "\n  ".join(" ".join(line.split()) for line in lines)
        if not _is_machine_error(error):
            sys.exit(message)
        print(message, file=sys.stderr)
        system_exit = SystemExit(message)
        system_exit.code = MACHINE_STATUS
        raise system_exit from None


def _is_machine_error(error: Exception) -> bool:
    """Return whether the machine lacks a resource. A path that does not exist is the user's error."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        return False
    return isinstance(error, (MachineError, MemoryError, OSError)) or _is_out_of_memory(error)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether PyTorch ran out of memory on a GPU or in RAM, without importing PyTorch."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _explain(error: Exception) -> str | None:
    """Return the message for an error of the user or the machine, or None for a bug of the program."""
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return ("out of GPU memory. Free memory that other processes hold, lower batch_size or image_size in "
                "params.yaml, or lower HEADSTART_MEMORY_GB, so that activations are cached in RAM.")  # fmt: skip
    if "does not have a deterministic implementation" in str(error):
        operation = str(error).split()[0]
        return (f"no deterministic implementation on this device: {operation}. Set finetune_from in params.yaml to a "
                "layer after it, or HEADSTART_DEVICE=cpu in the environment.")  # fmt: skip
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return "out of memory. Lower training_images or image_size in params.yaml, or close other programs."
    if isinstance(error, OSError):
        if error.errno in DISK_FULL and isinstance(error.filename, str):
            error.filename = str(Path(error.filename).resolve())  # a relative path does not tell which disk
        remedy = {
            errno.ENOSPC: "Free some space.",
            errno.EDQUOT: "Free some space, or ask for a larger quota.",
            errno.EROFS: "Make the folder writable.",
            errno.EACCES: "Make the file readable and its folder writable.",
        }.get(error.errno or 0)
        return str(error) if remedy is None else f"{error}. {remedy}"
    return None


def progress(total: int, label: str, done: int = 0, unit: str = " images") -> tqdm:
    """Return a progress bar with the remaining time, which stays silent if stderr is not a terminal."""
    return tqdm(total=total, initial=done, desc=label, unit=unit, unit_scale=True, disable=None, leave=False, delay=1)
