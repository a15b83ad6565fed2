"""A training's state after an epoch, in a file: from it a training that was killed goes on as if it had not been."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.training import Epoch


def fingerprint(settings: Any, paths: list[Path]) -> str:
    """One SHA-256 of all that a training depends on: ``settings``, as JSON, the files ``paths``, and this package."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in [*paths, *sorted(Path(__file__).parent.glob("*.py"))]:
        digest.update(bytes.fromhex(files.sha256(path)))
    return digest.hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """The file of one training."""

    path: Path
    fingerprint: str

    def save(self, head: nn.Module, optimizer: torch.optim.Optimizer, epochs: list[Epoch]) -> None:
        """Write all that the next epoch depends on, with the records of the epochs so far."""
        tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": tensor for key, tensor in state.items()}
        tensors["generator.cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            states = torch.cuda.get_rng_state_all()
            tensors |= {f"generator.cuda.{number}": state for number, state in enumerate(states)}
        description = {"fingerprint": self.fingerprint, "epochs": [asdict(epoch) for epoch in epochs]}
        files.write_tensors(self.path, tensors, description)

    def restore(self, head: nn.Module, optimizer: torch.optim.Optimizer) -> list[Epoch]:
        """Put ``head``, ``optimizer`` and the generators into the state of the file; return the epochs until then.

        A file that is missing, damaged or of another training changes nothing and gives no epochs.
        """
        try:
            tensors, description = files.read_tensors(self.path)
        except UserError:
            return []
        if description.get("fingerprint") != self.fingerprint:
            return []
        head.load_state_dict(_part(tensors, "head."))
        states: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in _part(tensors, "optimizer.").items():
            number, key = name.split(".")
            states.setdefault(int(number), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
        torch.set_rng_state(tensors["generator.cpu"])
        for number, state in _part(tensors, "generator.cuda.").items():
            torch.cuda.set_rng_state(state, int(number))
        return [Epoch(**epoch) for epoch in description["epochs"]]

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
