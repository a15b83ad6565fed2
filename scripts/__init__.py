"""Commands that people and CI run outside the pipeline."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from headstart.console import UserError


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints ``description``, a module's docstring, as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


@contextmanager
def params_lock() -> Iterator[None]:
    """Hold the lock of the commands that edit params.yaml while they run: `make pictures`, `networks` and `studies`.

    `make study` and DVC do not take it.

    Raises:
        UserError: another process holds the lock.
    """
    path = Path("runs/pictures.lock")
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            "another `make pictures`, `make networks` or `make studies` runs in this folder. Wait until it "
            "ends, or stop it."
        ) from None
    try:
        yield
    finally:
        lock.release()
