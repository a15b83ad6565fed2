"""Device, precision and determinism: decided here and nowhere else."""

import ctypes
import os
import platform
import sys
from dataclasses import dataclass

import torch

from headstart.console import UserError


@dataclass(frozen=True)
class Compute:
    """Where and how a stage computes."""

    device: torch.device
    dtype: torch.dtype  # of matrix products; weights and losses stay float32

    @property
    def chunk(self) -> int:
        """Images in one pass without gradients: small enough for a CPU's cache, large enough to fill a GPU."""
        return 512 if self.device.type == "cuda" else 64

    @property
    def matmul_convolutions(self) -> bool:
        """Whether convolutions on small maps are faster as matrix products than as PyTorch's own."""
        return self.device.type == "cpu"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def describe(self) -> dict[str, str]:
        """What a reader of a result wants to know of the machine."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else f"{os.cpu_count()} CPU cores",
            "precision": str(self.dtype).removeprefix("torch."),
            "python": platform.python_version(),
            "torch": torch.__version__,
        }


def choose(device: str | None = None) -> Compute:
    """Choose what to compute on, and make PyTorch deterministic on it.

    Args:
        device: "cpu", "cuda" or "cuda:1"; without it ``HEADSTART_DEVICE``, else the GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    asked = device or os.environ.get("HEADSTART_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(asked)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"HEADSTART_DEVICE is {asked!r}: it must be cpu, cuda or cuda:N")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UserError(f"HEADSTART_DEVICE is {asked!r}, and PyTorch sees {torch.cuda.device_count()} GPUs here")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may add in another order
    # The same as torch.use_deterministic_algorithms(True), which imports the compiler: two seconds in every stage.
    torch.set_deterministic_debug_mode("error")
    # Every element is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()
    return Compute(chosen, torch.bfloat16 if chosen.type == "cuda" else torch.float32)


def _keep_freed_memory() -> None:
    """Have glibc reuse freed memory up to 1 GiB instead of returning it to the system at once.

    A network's intermediate results are a few megabytes each; getting fresh pages for every one of them takes a
    third of the time of a forward pass on a CPU.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, its largest value: smaller blocks come from the heap
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD: the heap shrinks when more than this is free at its end
