"""A network as data: its complete state dict, with all that is needed to use it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.data.images import Preprocess
from headstart.network import models


@dataclass(frozen=True)
class Snapshot:
    """The state of a network at one time: before training, a start; after it, a trained model."""

    state: dict[str, torch.Tensor]
    model_name: str
    image_size: int  # pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    classes: tuple[str, ...]
    classifier: str  # the attribute of the model that holds its classifier
    weights: str  # where the weights came from, as a reader of a result wants to know it
    sha256: str  # of the weights' file; empty for a random start
    precision: str = ""  # that it was trained in; empty before training

    @property
    def preprocess(self) -> Preprocess:
        """What turns uint8 images to the network's input."""
        return Preprocess(self.image_size, self.mean, self.std, self.interpolation)

    def network(self) -> nn.Module:
        """The whole network, in eval mode, with its weights in memory of its own."""
        model = models.build(self.model_name, len(self.classes), self.image_size)
        model.load_state_dict(self.state)
        return model

    def linear_classifier(self) -> models.Float32Linear:
        """The classifier alone, [N, features] to [N, classes]: nothing of the rest is built."""
        weight = self.state[f"{self.classifier}.weight"]
        layer = models.Float32Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": self.state[f"{self.classifier}.bias"]})
        return layer.eval()

    def trained(self, changed: dict[str, torch.Tensor], precision: str) -> "Snapshot":
        """The same network after training in ``precision``: the tensors that it ``changed``, as they are now."""
        unknown = changed.keys() - self.state.keys()
        if unknown:
            raise ValueError(f"not in this network: {sorted(unknown)}")
        state = self.state | {name: tensor.clone() for name, tensor in changed.items()}
        return dataclasses.replace(self, state=state, precision=precision)

    def write(self, path: str | Path) -> None:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        files.write_tensors(path, fields.pop("state"), fields)

    @classmethod
    def read(cls, path: str | Path) -> "Snapshot":
        """Read what ``write`` wrote.

        Raises:
            UserError: the file is missing or is not a snapshot.
        """
        tensors, description = files.read_tensors(path)
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in description.items()
        }
        if values.keys() | {"state"} != {field.name for field in dataclasses.fields(cls)}:
            raise UserError(f"{path} is not a network: delete it, and `dvc repro` makes it anew")
        return cls(state=tensors, **values)


class Classifier(nn.Module):
    """A snapshot's complete network, ready for images as they are."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.network = snapshot.network()
        self.preprocess = snapshot.preprocess
        self.classes = snapshot.classes
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images, grey [N, height, width] or in colour [N, 3, height, width], to logits [N, classes]."""
        return self.network(self.preprocess(images))

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """The same as probabilities [N, classes], in the order of ``classes``."""
        return self(images).softmax(dim=1)
