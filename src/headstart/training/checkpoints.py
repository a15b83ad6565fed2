"""Checkpoints: a training that was killed resumes from its last one and ends with identical bytes."""

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

StateDict = dict[str, torch.Tensor]


def fingerprint(settings: Any, paths: list[Path]) -> str:
    """Return a SHA-256 of everything that a training depends on: ``settings`` as JSON, and the files ``paths``.

    Raises:
        UserError: a file is missing.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in paths:
        if not path.is_file():
            raise UserError(f"missing file: {path}. Run `dvc repro` to create it.")
        digest.update(bytes.fromhex(files.cached_sha256(path)))
    return digest.hexdigest()


class TrainingResult(NamedTuple):
    """The metrics of all epochs, and the predictions for the test images."""

    epochs: list[EpochMetrics]
    logits: torch.Tensor  # float32 [N, classes]


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of one training."""

    path: Path
    fingerprint: str

    def save(
        self, head: nn.Module, optimizer: torch.optim.Optimizer, epochs: list[EpochMetrics], best: StateDict
    ) -> None:
        """Write everything that the next epoch depends on, and the metrics of the epochs so far.

        Args:
            best: the weights of ``head`` after its best epoch; empty without patience.
        """
        tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": tensor for key, tensor in state.items() if tensor is not None}
        tensors |= {f"generator.{kind}": state for kind, state in generator_states(_device(head)).items()}
        self._write(tensors, epochs)

    def restore(self, head: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[EpochMetrics], StateDict]:
        """Restore ``head``, ``optimizer`` and the random generators; return the epochs so far and the best weights.

        If the file is missing, damaged or has another fingerprint, nothing changes and both are empty.
        """
        content = self._read()
        if content is None:
            return [], {}
        tensors, epochs = content
        head.load_state_dict(_with_prefix(tensors, "head."))
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _with_prefix(tensors, "optimizer.").items():
            number, key = name.split(".")
            states.setdefault(int(number), {})[key] = _in_layout_of(parameters[int(number)], tensor)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        restore_generators(_device(head), _with_prefix(tensors, "generator."))
        return epochs, {name: tensor.to(_device(head)) for name, tensor in _with_prefix(tensors, "best.").items()}

    def write_result(self, result: TrainingResult) -> None:
        """Replace the checkpoint with the result of the training."""
        self._write({"logits": result.logits}, result.epochs)

    def read_result(self) -> TrainingResult | None:
        """Return the result if ``write_result`` has written one, else None."""
        tensors, epochs = self._read() or ({}, [])
        return TrainingResult(epochs, tensors["logits"]) if "logits" in tensors else None

    def _write(self, tensors: StateDict, epochs: list[EpochMetrics]) -> None:
        description = {"fingerprint": self.fingerprint, "epochs": [asdict(epoch) for epoch in epochs]}
        files.write_tensors(self.path, tensors, description)

    def _read(self) -> tuple[StateDict, list[EpochMetrics]] | None:
        try:
            tensors, description = files.read_tensors(self.path)
        except UserError:
            return None
        if description.get("fingerprint") != self.fingerprint:
            return None
        return tensors, [EpochMetrics(**epoch) for epoch in description["epochs"]]


def _device(head: nn.Module) -> torch.device:
    return next(head.parameters()).device


def _in_layout_of(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return ``tensor`` in the memory layout of ``parameter``, which fused optimizers require."""
    if tensor.shape != parameter.shape:  # the step count
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
