"""A network as data: its complete state dict, with all that is needed to use it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.data import decoding
from headstart.data.preprocessing import Preprocess
from headstart.network import models


@dataclass(frozen=True)
class SavedModel:
    """The state of a network at one time: before training, a start; after it, a trained model."""

    state: dict[str, torch.Tensor]
    model_name: str
    prepared_size: int  # pixels: the side of the images as `prepare` stores them
    image_size: int  # pixels: the side of the network's input
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

    def build(self) -> nn.Module:
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

    def with_weights(self, changed: dict[str, torch.Tensor], precision: str) -> "SavedModel":
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
    def read(cls, path: str | Path) -> "SavedModel":
        """Read what ``write`` wrote.

        Raises:
            UserError: the file is missing or is not a saved.
        """
        tensors, description = files.read_tensors(path)
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in description.items()
        }
        if values.keys() | {"state"} != {field.name for field in dataclasses.fields(cls)}:
            raise UserError(f"{path} is not a network: delete it, and `dvc repro` makes it anew")
        return cls(state=tensors, **values)


class Classifier(nn.Module):
    """A saved's complete network, for images of any size: they are prepared as its training images were."""

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        self.network = saved.build()
        self.preprocess = saved.preprocess
        self.prepared_size = saved.prepared_size
        self.classes = saved.classes
        self.eval()

    def read(self, *sources: str | Path | Image.Image) -> torch.Tensor:
        """Return images as `prepare` stores them: uint8 [N, 3, prepared_size, prepared_size].

        Args:
            sources: image files, or images that Pillow has opened. Give the file of a JPEG rather than the image:
                only a file is decoded at a reduced size, as training images are.

        Raises:
            UserError: there is no usable image in one of them.
        """
        arrays = []
        for source in sources:
            try:
                arrays.append(decoding.prepare_image(source, self.prepared_size))
            except decoding.UnusableError as error:
                name = "the image" if isinstance(source, Image.Image) else source
                raise UserError(f"{name} {error}") from None
        return torch.from_numpy(np.stack(arrays))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to logits [N, classes].

        Args:
            images: uint8, gray [N, height, width] or [N, 1, height, width], or in color [N, 3, height, width]. The
                largest square in the center counts; it is resized to ``prepared_size`` as `prepare` resizes files.

        Raises:
            UserError: they are something else.
        """
        is_color = images.dim() == 4 and images.shape[1] in (1, 3)
        if images.dtype != torch.uint8 or not (images.dim() == 3 or is_color):
            raise UserError("images must be uint8 [N, height, width], [N, 1, height, width] or [N, 3, height, width], "
                            f"with values from 0 to 255, not {images.dtype} {list(images.shape)}")  # fmt: skip
        if images.shape[-2:] != (self.prepared_size, self.prepared_size):
            images = self._prepared(images)
        return self.network(self.preprocess(images))

    def _prepared(self, images: torch.Tensor) -> torch.Tensor:
        channels_last = images.unsqueeze(1) if images.dim() == 3 else images
        arrays = channels_last.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy()
        prepared = [decoding.resize_and_center_crop(Image.fromarray(array), self.prepared_size) for array in arrays]
        return torch.from_numpy(np.stack(prepared)).to(images.device)

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """The same as probabilities [N, classes], in the order of ``classes``."""
        return self(images).softmax(dim=1)
