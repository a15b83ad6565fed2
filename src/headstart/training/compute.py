"""Device, precision and determinism: decided here and nowhere else."""

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
# Bytes for what is computed meanwhile: a chunk on its way, a training step.
RESERVED_BYTES = {"cuda": 4 << 30, "cpu": 1 << 30}
GIGABYTE = 10**9
# By the controller's name in /proc/self/cgroup, which is empty for version 2: the folder in /sys/fs/cgroup, the files
# of limit and usage, and the entry of memory.stat with the cached files that the kernel can drop.
CONTROL_GROUPS = {
    "": (".", "memory.max", "memory.selected_study", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True)
class Compute:
    """Where and how a stage computes."""

    device: torch.device
    dtype: torch.dtype  # of convolutions; weights, logits and losses stay float32
    memory: int | None = None  # bytes of the device's memory that may be used; None: all that is free
    graphs: bool = False  # whether training steps are recorded as CUDA graphs

    @property
    def inference_batch_size(self) -> int:
        """Images in one pass without gradients: small enough for a CPU's cache, large enough to fill a GPU."""
        return 256 if self.device.type == "cuda" else 64

    @property
    def matmul_convolutions(self) -> bool:
        """Whether convolutions on small maps are faster as matrix products than as PyTorch's own."""
        return self.device.type == "cpu"

    def autocast(self) -> torch.autocast:
        # No cache of converted weights: it must not outlive the capture of a CUDA graph, and each is used once anyway.
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False)

    def storage_for(self, size: int, workspace: int = 0) -> str:
        """Return where to keep ``size`` bytes that are read in every epoch, as things stand now: see ``choose_storage``.

        Args:
            workspace: bytes that a computation takes on the device, as measured; at least RESERVED_BYTES stays free.
        """
        host = 0 if self.device.type == "cpu" else free_ram() - RESERVED_BYTES["cpu"]
        workspace = max(workspace, RESERVED_BYTES[self.device.type])
        return choose_storage(size, device=self._free() - workspace, host=host)

    def measure(self, work: Callable[[], T]) -> tuple[T, int]:
        """Return what ``work`` returns, and the bytes that it took on a GPU for a time beyond what it left there."""
        if self.device.type == "cpu":
            return work(), 0
        peak = torch.cuda.max_memory_allocated(self.device)
        _peaks[self.device] = max(_peaks.get(self.device, 0), peak)  # which the reset forgets
        torch.cuda.reset_peak_memory_stats(self.device)
        result = work()
        highest = torch.cuda.max_memory_allocated(self.device)
        return result, highest - torch.cuda.memory_allocated(self.device)

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
            **({"cudnn": str(torch.backends.cudnn.version())} if cuda else {}),  # which chooses the algorithms
            **_versions("torchvision", "timm"),
        }

    def reproducible_on(self) -> dict[str, str]:
        """Return what of the machine can change a result's last bits: not how many cores it has besides the threads."""
        kind = {} if self.device.type == "cuda" else {"device": f"CPU, {torch.backends.cpu.get_cpu_capability()}"}
        return {**self.describe(), **kind}

    def peak_memory(self) -> dict[str, int]:
        """Return the most memory in MB that tensors have taken on a GPU since ``configure``; nothing on a CPU.

        What PyTorch holds besides, to use again, may be left from the stage before in the same process.
        """
        if self.device.type == "cpu":
            return {}
        peak = max(_peaks.get(self.device, 0), torch.cuda.max_memory_allocated(self.device))
        return {"peak_gpu_memory_mb": round(peak / 1e6)}


_peaks: dict[torch.device, int] = {}  # bytes by GPU, of the time before the last reset of PyTorch's own count


def choose_storage(size: int, *, device: int, host: int) -> str:
    """Choose among "device", "host" (the RAM beside a GPU) and "recompute" the first with room for ``size`` bytes.

    The numbers that are trained on are the same in each; the time is not.
    """
    return "device" if size <= device else "host" if size <= host else "recompute"


def configure(device: str | None = None, dtype: torch.dtype | None = None) -> Compute:
    """Choose what to compute on, and make PyTorch deterministic on it.

    The environment decides: ``HEADSTART_DEVICE`` is cpu, cuda or cuda:N (default: the GPU if there is one),
    ``HEADSTART_DTYPE`` is float32 or bfloat16 (default: bfloat16 on a GPU, float32 on a CPU, whichever CPU it is),
    ``HEADSTART_MEMORY_GB`` limits the memory used on the device (default: what is free), and ``HEADSTART_GRAPHS`` is 0
    or 1 (default: 1; whether training steps on a GPU are recorded as CUDA graphs).

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
    graphs = _graphs(os.environ.get("HEADSTART_GRAPHS")) and chosen.type == "cuda"
    _use_exact_float32()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # where streams and graphs are made
        torch.cuda.reset_peak_memory_stats(chosen)  # of a stage before, in the same process
        _peaks.pop(chosen, None)
        if memory is not None:
            total = torch.cuda.get_device_properties(chosen).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), chosen)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may add in another order
    # The same as torch.use_deterministic_algorithms(True), which imports the compiler: two seconds in every stage.
    torch.set_deterministic_debug_mode("error")
    # Every element is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()
    return Compute(chosen, dtype, memory, graphs)


def _use_exact_float32() -> None:
    """Have float32 mean float32 on a GPU, not TF32, which has 10 bits instead of 23.

    For cuDNN that is not the default. For cuBLAS it is, unless ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`` is set, as NVIDIA's
    images have it. PyTorch refuses matrix products where its old and its new setting for cuBLAS differ: only the old
    function changes both, with a warning in some versions.
    """
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    if torch.get_float32_matmul_precision() != "highest":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TF32")
            torch.set_float32_matmul_precision("highest")


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


def _graphs(asked: str | None) -> bool:
    if asked and asked not in ("0", "1"):
        raise UserError(f"HEADSTART_GRAPHS is {asked!r}: it must be 0 or 1")
    return asked != "0"


def free_ram(root: str | Path = "/") -> int:
    """Return the bytes of RAM that this process may still take.

    Containers, SLURM and systemd limit it by control groups, version 1 or 2. Groups are nested, and the limits of all
    of them hold, from the process's own up to the root of those that it can see. Cached files that the kernel can drop
    count as free, as they do in what the system says of itself.

    Args:
        root: the folder with ``proc`` and ``sys``.
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
                place = root / "sys/fs/cgroup" / folder / group.relative_to("/")
                with suppress(OSError, ValueError, KeyError):  # no limit: no such file, or it is "max"
                    limit, used = (int((place / name).read_text(encoding="ascii")) for name in names)
                    entries = (place / "memory.stat").read_text(encoding="ascii").splitlines()
                    yield limit - used + int(dict(entry.split() for entry in entries)[cached])


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
