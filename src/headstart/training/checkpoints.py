"""A training's state after an epoch, in a file: from it a training that was killed goes on as if it had not been."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.training.compute import generator_states, restore_generators
from headstart.training.loop import EpochMetrics

State = dict[str, torch.Tensor]  # tensors by name


def fingerprint(settings: Any, paths: list[Path]) -> str:
    """One SHA-256 of all that a training depends on: ``settings``, as JSON, and the files ``paths``."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in paths:
        digest.update(bytes.fromhex(files.cached_sha256(path)))
    return digest.hexdigest()


class TrainingResult(NamedTuple):
    """What is left of a training: its epochs, and what its network says of the test images."""

    epochs: list[EpochMetrics]
    logits: torch.Tensor  # float32 [N, classes]


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training."""

    path: Path
    fingerprint: str

    def save(self, head: nn.Module, optimizer: torch.optim.Optimizer, epochs: list[EpochMetrics], best: State) -> None:
        """Write all that the next epoch depends on, with the records of the epochs so far.

        Args:
            best: what ``head`` was after the best of them; empty where that does not matter.
        """
        tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": tensor for key, tensor in state.items()}
        tensors |= {f"generator.{kind}": state for kind, state in generator_states(_device(head)).items()}
        self._write(tensors, epochs)

    def restore(self, head: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[EpochMetrics], State]:
        """Put ``head``, ``optimizer`` and the generators into the state of the file; return epochs and ``best``.

        A file that is missing, damaged or of another training changes nothing and gives neither.
        """
        if (found := self._read()) is None:
            return [], {}
        tensors, epochs = found
        head.load_state_dict(_part(tensors, "head."))
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            number, key = name.split(".")
            states.setdefault(int(number), {})[key] = _laid_out_like(parameters[int(number)], tensor)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        restore_generators(_device(head), _part(tensors, "generator."))
        return epochs, {name: tensor.to(_device(head)) for name, tensor in _part(tensors, "best.").items()}

    def write_result(self, result: TrainingResult) -> None:
        """Write instead what is left of a training of which nothing else is wanted any more."""
        self._write({"logits": result.logits}, result.epochs)

    def read_result(self) -> TrainingResult | None:
        """What ``write_result`` has written, if it has."""
        found = self._read()
        return TrainingResult(found[1], found[0]["logits"]) if found is not None and "logits" in found[0] else None

    def _write(self, tensors: State, epochs: list[EpochMetrics]) -> None:
        description = {"fingerprint": self.fingerprint, "epochs": [asdict(epoch) for epoch in epochs]}
        files.write_tensors(self.path, tensors, description)

    def _read(self) -> tuple[State, list[EpochMetrics]] | None:
        try:
            tensors, description = files.read_tensors(self.path)
        except UserError:
            return None
        if description.get("fingerprint") != self.fingerprint:
            return None
        return tensors, [EpochMetrics(**epoch) for epoch in description["epochs"]]


def _device(head: nn.Module) -> torch.device:
    return next(head.parameters()).device


def _laid_out_like(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in memory as ``parameter`` is, which fused optimizers take for granted; files have one layout."""
    if tensor.shape != parameter.shape:  # a count of steps
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
