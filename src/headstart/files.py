"""Atomic file I/O: write to a temporary path in the same folder, synchronize, rename."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from headstart.console import MachineError, UserError

if TYPE_CHECKING:  # PyTorch takes seconds to import, and arrays do not need it
    import torch


MANY_FILES = 100  # from this number on, one sync of all disks is faster than one per file
CLOCK_ERROR_S = 2  # between the clocks of processes and of files
HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())  # several machines may share a folder, but not process ids
Metadata = Mapping[str, Any] | None


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or a folder to; it becomes ``path`` if the block succeeds."""
    path = Path(path)
    if not_folder := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
        raise UserError(f"{not_folder} is a file, not a folder. Choose another path. Got {path}.")
    created_dirs = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale_dir in path.parent.glob(f".{glob.escape(path.name)}.*.{HOST}.*.writing"):  # of a killed process
        if not has_running_creator(stale_dir, int(stale_dir.name.split(".")[-2])):
            shutil.rmtree(stale_dir, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=f".{HOST}.{os.getpid()}.writing", dir=path.parent))
    try:
        tmp_path = scratch / path.name
        yield tmp_path
        written = [tmp_path, *tmp_path.rglob("*")]
        if sys.platform == "linux" and len(written) > MANY_FILES:
            os.sync()
        else:
            for file in written:
                _synchronize(file)
        if path.is_dir():
            if not tmp_path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            shutil.rmtree(path)
        tmp_path.replace(path)
        _synchronize(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a full disk does not name the file
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # not empty: the block succeeded, or another process writes there
            for parent in created_dirs:
                parent.rmdir()


def has_running_creator(folder: Path, pid: int) -> bool:
    """Return whether the process ``pid`` still runs and created ``folder``.

    A zombie does not run, and a process that started after ``folder`` was written has only the same id.
    """
    try:
        process = psutil.Process(pid)
        is_older = process.create_time() <= folder.stat().st_mtime + CLOCK_ERROR_S
        return is_older and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False
    except psutil.AccessDenied:
        return True


def _synchronize(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stat_signature(path: str | Path) -> tuple[int, int]:
    """Return the size and the modification time of a file, which change with its content."""
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns


def cached_sha256(path: str | Path) -> str:
    """Return the same as ``sha256``, and read the file again only if its size or modification time has changed."""
    return _sha256(Path(path), stat_signature(path))


@cache
def _sha256(path: Path, stat_signature: tuple[int, int]) -> str:
    return sha256(path)


def list_source_files(paths: Iterable[str | Path]) -> list[Path]:
    """List the files in ``paths`` and in the folders among them, without bytecode, in a fixed order."""
    source_files = []
    for path in map(Path, paths):
        candidates = path.rglob("*") if path.is_dir() else [path]
        source_files += sorted(file for file in candidates if file.is_file() and "__pycache__" not in file.parts)
    return source_files


def require_disk_space(path: str | Path, size: int, remedy: str) -> None:
    """Raise MachineError if the disk of ``path`` has fewer than ``size`` bytes left; ``remedy`` is a sentence."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise MachineError(f"not enough disk space: {Path(path).resolve()} needs {size:,} bytes, and {free:,} are "
                           f"free. {remedy}")  # fmt: skip


def write_text(path: str | Path, content: str) -> None:
    with atomic_write(path) as tmp_path:
        tmp_path.write_text(content, encoding="utf-8", newline="\n")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path) as tmp_path, tmp_path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Arrays(NamedTuple):
    """The arrays of a safetensors file, and its metadata."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


class Tensors(NamedTuple):
    """The same as PyTorch tensors."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Metadata = None) -> None:
    """Write named arrays and JSON metadata."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    _write_safetensors(path, safetensors.numpy.save_file, contiguous, metadata)


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Metadata = None) -> None:
    """Write named tensors, on any device and in any memory format, and JSON metadata."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write_safetensors(path, save_file, contiguous, metadata)


def _write_safetensors(
    path: str | Path, save_file: Callable[..., None], values: Mapping[str, Any], metadata: Metadata
) -> None:
    # A single key, because safetensors writes several keys in an order that changes from run to run.
    header = {"headstart": json.dumps(metadata or {})}
    with atomic_write(path) as tmp_path:
        try:
            save_file(values, tmp_path, header)
        except SafetensorError as error:
            raise MachineError(f"cannot write {Path(path).resolve()} ({error}). Free some disk space, or make the "
                               "folder writable.") from None  # fmt: skip


def read_arrays(path: str | Path, *names: str) -> Arrays:
    """Read the arrays ``names``, or all of them.

    Raises:
        UserError: the file is missing, was not written by Headstart, or lacks one of ``names``.
    """
    return Arrays(*_read_safetensors(path, names, "np"))


def read_tensors(path: str | Path, *names: str) -> Tensors:
    """Read the tensors ``names``, or all of them, to the CPU. See ``read_arrays`` for errors."""
    return Tensors(*_read_safetensors(path, names, "pt"))


def _read_safetensors(path: str | Path, names: tuple[str, ...], framework: str) -> tuple[dict[str, Any], Any]:
    try:
        with safe_open(path, framework=framework) as file:
            metadata = json.loads((file.metadata() or {})["headstart"])
            return {name: file.get_tensor(name) for name in names or file.keys()}, metadata
    except FileNotFoundError:
        raise UserError(f"missing file: {path}. Run `dvc repro` to create it.") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"damaged file: {path} ({error}). Delete it and run `dvc repro`.") from None
