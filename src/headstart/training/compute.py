"""Device, precision, memory and determinism: decided here and nowhere else."""

import ctypes
import math
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import TypeVar

import psutil
import torch

from headstart.console import UserError

T = TypeVar("T")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Bytes that stay free for computations: a batch of inference, a training step.
RESERVED_BYTES = {"cuda": 4 << 30, "cpu": 1 << 30}
GIGABYTE = 10**9
# For each controller name in /proc/self/cgroup, which is empty in version 2: the folder in /sys/fs/cgroup, the files
# of limit and usage, and the entry of memory.stat with the page cache that the kernel can reclaim.
CONTROL_GROUPS = {
    "": (".", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True)
class Compute:
    """The device, precision and memory limit of a stage."""

    device: torch.device
    dtype: torch.dtype  # of convolutions; weights, logits and losses stay float32
    memory: int | None = None  # limit for the device's memory in bytes; None: all free memory
    graphs: bool = False  # whether training steps are captured as CUDA graphs

    @property
    def inference_batch_size(self) -> int:
        """Return the batch size of inference: small on a CPU to fit its cache, large on a GPU."""
        return 256 if self.device.type == "cuda" else 64

    @property
    def matmul_convolutions(self) -> bool:
        """Return whether convolutions on small maps are faster as matrix products."""
        return self.device.type == "cpu"

    def autocast(self) -> torch.autocast:
        # No cache of cast weights: it must not outlive the capture of a CUDA graph, and each is used once anyway.
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def storage_for(self, size: int, workspace: int = 0) -> str:
        """Return where to store ``size`` bytes that are read in every epoch: see ``choose_storage``.

        Args:
            workspace: measured bytes that a computation needs on the device. At least RESERVED_BYTES stay free.
        """
        device = self.free_memory() - max(workspace, RESERVED_BYTES[self.device.type])
        host = 0 if self.device.type == "cpu" else free_ram() - RESERVED_BYTES["cpu"]
        return choose_storage(size, device=device, host=host)

    def measure(self, work: Callable[[], T]) -> tuple[T, int]:
        """Return the result of ``work`` and the peak of its temporary GPU memory in bytes."""
        if self.device.type == "cpu":
            return work(), 0
        peak = torch.cuda.max_memory_allocated(self.device)
        _peaks[self.device] = max(_peaks.get(self.device, 0), peak)  # the reset would lose it
        torch.cuda.reset_peak_memory_stats(self.device)
        result = work()
        peak = torch.cuda.max_memory_allocated(self.device)
        return result, peak - torch.cuda.memory_allocated(self.device)

    def free_memory(self) -> int:
        """Return the bytes that the device has left."""
        _return_freed_memory()  # which `free_ram` does not count
        if self.device.type == "cpu":
            free, used = free_ram(), 0
        else:
            used = torch.cuda.memory_allocated(self.device)
            free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - used
        return free if self.memory is None else min(free, self.memory - used)

    @property
    def precision(self) -> str:
        """Return ``float32`` or ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

    def describe(self) -> dict[str, str]:
        """Return device, threads, precision and versions, for the provenance."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else f"{os.cpu_count()} CPU cores",
            "threads": str(torch.get_num_threads()),
            "precision": self.precision,
            "python": platform.python_version(),
            "torch": torch.__version__,  # includes the CUDA version
            **({"cudnn": str(torch.backends.cudnn.version())} if cuda else {}),  # cuDNN chooses the algorithms
            **_versions("torchvision", "timm"),
        }

    def reproducible_on(self) -> dict[str, str]:
        """Return the properties that can change the last bits of a result. The number of cores cannot."""
        kind = {} if self.device.type == "cuda" else {"device": f"CPU, {torch.backends.cpu.get_cpu_capability()}"}
        return {**self.describe(), **kind}

    def peak_memory(self) -> dict[str, int]:
        """Return the peak memory of tensors on a GPU since ``configure`` in MB; nothing on a CPU.

        PyTorch's reserved memory is not included: it may come from an earlier stage in the same process.
        """
        if self.device.type == "cpu":
            return {}
        peak = max(_peaks.get(self.device, 0), torch.cuda.max_memory_allocated(self.device))
        return {"peak_gpu_memory_mb": round(peak / 1e6)}


_peaks: dict[torch.device, int] = {}  # bytes per GPU before the last reset of PyTorch's peak


def choose_storage(size: int, *, device: int, host: int) -> str:
    """Return "device" if ``size`` bytes fit in its memory, else "host" if they fit in RAM, else "recompute".

    The choice changes the time of a training, not its numbers.
    """
    return "device" if size <= device else "host" if size <= host else "recompute"


def configure(device: str | None = None, dtype: torch.dtype | None = None) -> Compute:
    """Select the device and make PyTorch deterministic on it.

    Environment variables: ``HEADSTART_DEVICE`` is cpu, cuda or cuda:N (default: the GPU if there is one),
    ``HEADSTART_DTYPE`` is float32 or bfloat16 (default: bfloat16 on a GPU, float32 on every CPU),
    ``HEADSTART_MEMORY_GB`` limits the memory used on the device (default: all free memory), and ``HEADSTART_GRAPHS`` is
    0 or 1 (default: 1; whether training steps on a GPU are captured as CUDA graphs).

    Args:
        device: overrides ``HEADSTART_DEVICE``.
        dtype: overrides ``HEADSTART_DTYPE``.

    Raises:
        UserError: an environment variable has another value, or names a device that does not exist.
    """
    name = device or os.environ.get("HEADSTART_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = _device(name)
    dtype = dtype or _dtype(os.environ.get("HEADSTART_DTYPE"), chosen)
    memory = _memory(os.environ.get("HEADSTART_MEMORY_GB"))
    graphs = _graphs(os.environ.get("HEADSTART_GRAPHS")) and chosen.type == "cuda"
    _use_exact_float32()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # streams and graphs are created on it
        torch.cuda.reset_peak_memory_stats(chosen)  # of an earlier stage in the same process
        _peaks.pop(chosen, None)
        if memory is not None:
            total = torch.cuda.get_device_properties(chosen).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), chosen)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS may sum in another order
    # Equals torch.use_deterministic_algorithms(True), but does not import the compiler: two seconds per stage.
    torch.set_deterministic_debug_mode("error")
    # Every element is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()
    return Compute(chosen, dtype, memory, graphs)


def _use_exact_float32() -> None:
    """Disable TF32, which has 10 bits of precision instead of 23, for float32 on a GPU.

    cuDNN uses TF32 by default. cuBLAS uses it if ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`` is set, as in NVIDIA's images.
    PyTorch rejects matrix products if its old and its new setting for cuBLAS differ. Only the old function changes
    both, with a warning in some versions.
    """
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    if torch.get_float32_matmul_precision() != "highest":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TF32")
            torch.set_float32_matmul_precision("highest")


def _versions(*packages: str) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown HEADSTART_DEVICE. Choose cpu, cuda or cuda:N. Got {name!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        n_gpus = torch.cuda.device_count()
        raise UserError(
            f"HEADSTART_DEVICE does not exist: PyTorch finds {n_gpus} GPUs. Choose another device. Got {name!r}."
        )
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


def _dtype(name: str | None, device: torch.device) -> torch.dtype:
    if name and name not in DTYPES:
        raise UserError(f"unknown HEADSTART_DTYPE. Choose one of {', '.join(DTYPES)}. Got {name!r}.")
    default = "bfloat16" if device.type == "cuda" else "float32"
    return DTYPES[name or default]


def _memory(text: str | None) -> int | None:
    if not text:
        return None
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < math.inf:
        raise UserError(f"HEADSTART_MEMORY_GB must be a number greater than 0. Got {text!r}.")
    return int(gigabytes * GIGABYTE)


def _graphs(text: str | None) -> bool:
    if text and text not in ("0", "1"):
        raise UserError(f"HEADSTART_GRAPHS must be 0 or 1. Got {text!r}.")
    return text != "0"


def free_ram(root: str | Path = "/") -> int:
    """Return the bytes of RAM that this process may still allocate.

    Containers, SLURM and systemd limit RAM with control groups, version 1 or 2. Groups are nested, and the limits of
    all visible groups apply. Reclaimable page cache counts as free, as in MemAvailable.

    Args:
        root: the folder that contains ``proc`` and ``sys``.
    """
    return min([psutil.virtual_memory().available, *_free_in_groups(Path(root))])


def _free_in_groups(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        for controller in CONTROL_GROUPS.keys() & controllers.split(","):
            folder, *names, cached = CONTROL_GROUPS[controller]
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                group_folder = root / "sys/fs/cgroup" / folder / group.relative_to("/")
                with suppress(OSError, ValueError, KeyError):  # no limit: the file is missing or contains "max"
                    limit, used = (int((group_folder / name).read_text(encoding="ascii")) for name in names)
                    entries = (group_folder / "memory.stat").read_text(encoding="ascii").splitlines()
                    yield limit - used + int(dict(entry.split() for entry in entries)[cached])


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the random generators of the CPU and of ``device``."""
    states = {"cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else {**states, "device": torch.cuda.get_rng_state(device)}


def restore_generators(device: torch.device, states: Mapping[str, torch.Tensor]) -> None:
    """Restore the random generators, even if the index of the device differs."""
    torch.set_rng_state(states["cpu"])
    if "device" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system.

    By default, each intermediate result of 32 MiB or more gets new pages from the system. On a CPU, they can take half
    of the time of a forward pass at 224 pixels.
    """
    if glibc := _glibc():
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks of the main thread come from the heap too
        glibc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: the heap shrinks if more than 1 GiB is free at its end


def _return_freed_memory() -> None:
    """Return freed memory to the system, also from within the heap."""
    if glibc := _glibc():
        glibc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc."""
    return ctypes.CDLL(None) if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None
