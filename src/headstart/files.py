"""Files that appear complete or not at all: written beside their place, synchronized, renamed."""

from __future__ import annotations

import csv
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

if TYPE_CHECKING:  # PyTorch takes seconds to import, and who reads and writes arrays does without it
    import torch


MANY = 100  # files
HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())  # a folder may be shared, and processes are a machine's


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a place beside ``path`` to write a file or a folder to; it becomes ``path`` if the block succeeds."""
    path = Path(path)
    new = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.{HOST}.*.writing"):  # by a process that was killed
        if not psutil.pid_exists(int(left.name.split(".")[-2])):
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=f".{HOST}.{os.getpid()}.writing", dir=path.parent))
    try:
        beside = scratch / path.name
        yield beside
        written = [beside, *beside.rglob("*")]
        if sys.platform == "linux" and len(written) > MANY:
            os.sync()  # waits for everything, and takes less time than a call for each of many files
        else:
            for file in written:
                _synchronize(file)
        if path.is_dir():
            shutil.rmtree(path)
        beside.replace(path)
        _synchronize(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file does not fit
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # not empty: the block has succeeded, or others write there too
            for parent in new:
                parent.rmdir()


def _synchronize(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stat_signature(path: str | Path) -> tuple[int, int]:
    """Size and time of a file, which change with its content."""
    found = Path(path).stat()
    return found.st_size, found.st_mtime_ns


def cached_sha256(path: str | Path) -> str:
    """The same as ``sha256``, read once as long as size and time of the file stay the same."""
    return _sha256(Path(path), stat_signature(path))


@cache
def _sha256(path: Path, stat_signature: tuple[int, int]) -> str:
    return sha256(path)


def list_source_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files of ``paths``, of folders all Python modules and other sources in them, in a fixed order."""
    found = []
    for path in map(Path, paths):
        inside = path.rglob("*") if path.is_dir() else [path]
        found += sorted(file for file in inside if file.is_file() and "__pycache__" not in file.parts)
    return found


def require_disk_space(path: str | Path, size: int, remedy: str) -> None:
    """Raise MachineError where ``size`` bytes more do not fit on the disk that ``path`` will be on."""
    folder = next(parent for parent in Path(path).absolute().parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise MachineError(f"{Path(path).resolve()} needs {size:,} bytes, and the disk has {free:,}: {remedy}")


def write_text(path: str | Path, content: str) -> None:
    with atomic_write(path) as beside:
        beside.write_text(content, encoding="utf-8", newline="\n")


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with atomic_write(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_rows(path: str | Path) -> list[list[str]]:
    """All rows of a CSV file, the names of the columns first, which need not differ."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


class Arrays(NamedTuple):
    """A safetensors file: its arrays, and what describes them."""

    arrays: dict[str, np.ndarray]
    description: dict[str, Any]


class Tensors(NamedTuple):
    """The same as PyTorch's tensors."""

    tensors: dict[str, torch.Tensor]
    description: dict[str, Any]


def write_arrays(
    path: str | Path, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any] | None = None
) -> None:
    """Write named arrays and a JSON description."""
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    _write_safetensors(path, safetensors.numpy.save_file, plain, description)


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors, whatever device and memory format they are in, and a JSON description."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _write_safetensors(path, save_file, plain, description)


def _write_safetensors(
    path: str | Path, save: Callable[..., None], plain: Mapping[str, Any], description: Mapping[str, Any] | None
) -> None:
    # One key only: safetensors writes several in an order that changes from run to run.
    metadata = {"headstart": json.dumps(description or {})}
    with atomic_write(path) as beside:
        try:
            save(plain, beside, metadata)
        except SafetensorError as error:
            where = Path(path).resolve()
            raise MachineError(f"{where} cannot be written ({error}): make room, or make the folder writable") from None


def read_arrays(path: str | Path, *names: str) -> Arrays:
    """Read the arrays ``names``, or all of them.

    Raises:
        UserError: the file is missing, is not one of ours, or lacks one of ``names``.
    """
    return Arrays(*_read_safetensors(path, names, "np"))


def read_tensors(path: str | Path, *names: str) -> Tensors:
    """Read the tensors ``names``, or all of them, to the CPU; ``read_arrays`` says what it raises."""
    return Tensors(*_read_safetensors(path, names, "pt"))


def _read_safetensors(path: str | Path, names: tuple[str, ...], framework: str) -> tuple[dict[str, Any], Any]:
    try:
        with safe_open(path, framework=framework) as file:
            description = json.loads((file.metadata() or {})["headstart"])
            return {name: file.get_tensor(name) for name in names or file.keys()}, description
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc repro` makes it") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and `dvc repro` makes it anew") from None
