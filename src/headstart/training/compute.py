"""Device, precision and determinism: decided here and nowhere else."""

import ctypes
import math
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from headstart.console import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Bytes for what is computed meanwhile: a chunk on its way, a training step.
WORKSPACE = {"cuda": 4 << 30, "cpu": 1 << 30}
GIGABYTE = 10**9


@dataclass(frozen=True)
class Compute:
    """Where and how a stage computes."""

    device: torch.device
    dtype: torch.dtype  # of convolutions; weights, logits and losses stay float32
    memory: int | None = None  # bytes of the device's memory that may be used; None: all that is free

    @property
    def chunk(self) -> int:
        """Images in one pass without gradients: small enough for a CPU's cache, large enough to fill a GPU."""
        return 256 if self.device.type == "cuda" else 64

    @property
    def matmul_convolutions(self) -> bool:
        """Whether convolutions on small maps are faster as matrix products than as PyTorch's own."""
        return self.device.type == "cpu"

    def autocast(self) -> torch.autocast:
        # No cache of converted weights: it must not outlive the capture of a CUDA graph, and each is used once anyway.
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def place(self, size: int) -> str:
        """Where to keep ``size`` bytes that are read in every epoch, as things stand now: see ``choose_place``."""
        host = 0 if self.device.type == "cpu" else free_ram() - WORKSPACE["cpu"]
        return choose_place(size, device=self._free() - WORKSPACE[self.device.type], host=host)

    def _free(self) -> int:
        if self.device.type == "cpu":
            free, used = free_ram(), 0
        else:
            used = torch.cuda.memory_allocated(self.device)
            free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - used
        return free if self.memory is None else min(free, self.memory - used)

    @property
    def precision(self) -> str:
        """``float32`` or ``bfloat16``."""
        return str(self.dtype).removeprefix("torch.")

    def describe(self) -> dict[str, str]:
        """What a reader of a result wants to know of the machine."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else f"{os.cpu_count()} CPU cores",
            "threads": str(torch.get_num_threads()),
            "precision": self.precision,
            "python": platform.python_version(),
            "torch": torch.__version__,  # with the CUDA that it was built for
            **_versions("torchvision", "timm"),
        }

    def peak_memory(self) -> dict[str, int]:
        """The most memory in MB that PyTorch has held on a GPU so far; nothing on a CPU."""
        if self.device.type == "cpu":
            return {}
        return {"peak_gpu_memory_mb": round(torch.cuda.max_memory_reserved(self.device) / 1e6)}


def choose_place(size: int, *, device: int, host: int) -> str:
    """Choose among "device", "host" (the RAM beside a GPU) and "recompute" the first with room for ``size`` bytes.

    The numbers that are trained on are the same in each; the time is not.
    """
    return "device" if size <= device else "host" if size <= host else "recompute"


def choose(device: str | None = None, dtype: torch.dtype | None = None) -> Compute:
    """Choose what to compute on, and make PyTorch deterministic on it.

    The environment decides: ``HEADSTART_DEVICE`` is cpu, cuda or cuda:N (default: the GPU if there is one),
    ``HEADSTART_DTYPE`` is float32 or bfloat16 (default: bfloat16 on a GPU, float32 on a CPU, whichever CPU it is),
    ``HEADSTART_MEMORY_GB`` limits the memory used on the device (default: what is free).

    Args:
        device: instead of ``HEADSTART_DEVICE``.
        dtype: instead of ``HEADSTART_DTYPE``.

    Raises:
        UserError: one of them is set to something else, or to a device that is not there.
    """
    asked = device or os.environ.get("HEADSTART_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = _device(asked)
    dtype = dtype or _dtype(os.environ.get("HEADSTART_DTYPE"), chosen)
    memory = _memory(os.environ.get("HEADSTART_MEMORY_GB"))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # where streams and graphs are made
        torch.cuda.reset_peak_memory_stats(chosen)  # of a stage before, in the same process
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32
        if memory is not None:
            total = torch.cuda.get_device_properties(chosen).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), chosen)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may add in another order
    # The same as torch.use_deterministic_algorithms(True), which imports the compiler: two seconds in every stage.
    torch.set_deterministic_debug_mode("error")
    # Every element is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()
    return Compute(chosen, dtype, memory)


def _versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _device(asked: str) -> torch.device:
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"HEADSTART_DEVICE is {asked!r}: it must be cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"HEADSTART_DEVICE is {asked!r}, and PyTorch sees {torch.cuda.device_count()} GPUs here")
    return device if device.type == "cpu" else torch.device("cuda", device.index or 0)


def _dtype(asked: str | None, device: torch.device) -> torch.dtype:
    if asked and asked not in DTYPES:
        raise UserError(f"HEADSTART_DTYPE is {asked!r}: it must be one of {', '.join(DTYPES)}")
    default = "bfloat16" if device.type == "cuda" else "float32"
    return DTYPES[asked or default]


def _memory(asked: str | None) -> int | None:
    if not asked:
        return None
    try:
        gigabytes = float(asked)
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < math.inf:
        raise UserError(f"HEADSTART_MEMORY_GB is {asked!r}: it must be a number of gigabytes greater than 0")
    return int(gigabytes * GIGABYTE)


def free_ram(group: str | Path = "/sys/fs/cgroup") -> int:
    """Bytes of RAM that this process may still take, in a container too, whose control ``group`` has a limit.

    Files that were read and may be forgotten count as free, as they do in what the system says of itself.
    """
    free = psutil.virtual_memory().available
    try:
        limit, used, stat = (
            Path(group, name).read_text(encoding="ascii") for name in ("memory.max", "memory.current", "memory.stat")
        )
        cached = dict(line.split() for line in stat.splitlines())["inactive_file"]
        return min(free, int(limit) - int(used) + int(cached))
    except (OSError, ValueError, KeyError):  # no such file, or the limit is "max"
        return free


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators that a computation on ``device`` uses: the CPU's, and the device's own."""
    states = {"cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else {**states, "device": torch.cuda.get_rng_state(device)}


def restore_generators(device: torch.device, states: Mapping[str, torch.Tensor]) -> None:
    """Put the generators into ``states``, whatever number the device had then."""
    torch.set_rng_state(states["cpu"])
    if "device" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)


def _keep_freed_memory() -> None:
    """Have glibc reuse freed memory up to 1 GiB instead of returning it to the system at once.

    A network's intermediate results are a few megabytes each; getting fresh pages for every one of them takes a
    third of the time of a forward pass on a CPU.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its largest value: smaller blocks come from the heap
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: the heap shrinks when more than this is free at its end
