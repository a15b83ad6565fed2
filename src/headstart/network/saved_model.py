"""A saved network: its complete state dict and all metadata that is needed to use it."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.data import decoding
from headstart.data.preprocessing import Preprocess
from headstart.network import models

BATCH_SIZE = 64  # images of a prediction at once

Item = TypeVar("Item")


@dataclass(frozen=True)
class SavedModel:
    """Weights and metadata of a network: initial weights before training, a trained model after it."""

    state: dict[str, torch.Tensor]
    model_name: str
    prepared_size: int  # pixels: the side of the images as `prepare` stores them
    image_size: int  # pixels: the side of the network's input
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    classes: tuple[str, ...]
    classifier: str  # the attribute of the model that holds its classifier
    weights: str  # source of the initial weights, for the report
    sha256: str  # of the weights file; empty for a random initialization
    precision: str = ""  # of the training; empty before training

    @property
    def preprocess(self) -> Preprocess:
        """Return the transform from uint8 images to the network's input."""
        return Preprocess(self.image_size, self.mean, self.std, self.interpolation)

    def build(self) -> nn.Module:
        """Build the whole network in eval mode. It does not share memory with this object.

        Raises:
            UserError: the weights are not those of the network.
        """
        model = models.build(self.model_name, len(self.classes), self.image_size)
        try:
            model.load_state_dict(self.state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(
                f"damaged model: the weights do not fit {self.model_name} with {len(self.classes):,} classes. Run "
                f"`dvc repro` to create it again. Got {reason}"
            ) from None
        return model

    def linear_classifier(self) -> models.Float32Linear:
        """Build the classifier alone, which maps [N, features] to [N, classes]."""
        weight = self.state[f"{self.classifier}.weight"]
        layer = models.Float32Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": self.state[f"{self.classifier}.bias"]})
        return layer.eval()

    def with_weights(self, updated: dict[str, torch.Tensor], precision: str) -> "SavedModel":
        """Return a copy with copies of the ``updated`` tensors, after training in ``precision``."""
        if unknown := updated.keys() - self.state.keys():
            raise ValueError(f"tensors that this network does not have: {sorted(unknown)}")
        state = self.state | {name: tensor.clone() for name, tensor in updated.items()}
        return dataclasses.replace(self, state=state, precision=precision)

    def write(self, path: str | Path) -> None:
        """Write a safetensors file: the state dict, and all other fields as its metadata."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        files.write_tensors(path, fields.pop("state"), fields)

    @classmethod
    def read(cls, path: str | Path) -> "SavedModel":
        """Read a file that ``write`` has written.

        Raises:
            UserError: the file is missing or is not a saved model.
        """
        tensors, metadata = files.read_tensors(path)
        fields = metadata.items() if isinstance(metadata, dict) else ()
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields}
        if not _is_valid(values):
            raise UserError(f"{path} is not a model of this version of Headstart. Run `dvc repro` to create it again.")
        return cls(state=tensors, **values)


def _is_valid(values: dict[str, Any]) -> bool:
    """Return whether the metadata of a file has all fields of ``SavedModel``, with values that it can use."""
    sides = [values.get(name) for name in ("prepared_size", "image_size")]
    statistics: list[Any] = [values.get(name) for name in ("mean", "std")]
    return (
        values.keys() | {"state"} == {field.name for field in dataclasses.fields(SavedModel)}
        and all(isinstance(side, int) and side > 0 for side in sides)
        and all(isinstance(row, tuple) and len(row) == 3 for row in statistics)
        and all(isinstance(value, float | int) for row in statistics for value in row)
        and values["interpolation"] in ("bilinear", "bicubic")
        and isinstance(values["classes"], tuple)
        and all(isinstance(values[name], str) for name in ("model_name", "classifier"))
    )


class Prediction(NamedTuple):
    """The classes of one image file, or the reason why it cannot be read."""

    path: Path
    probabilities: dict[str, float]  # by class, the most probable first; empty if the file cannot be read
    problem: str  # empty if the file can be read


class Classifier(nn.Module):
    """A complete network that classifies images of any size; it preprocesses them as its training images were."""

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        self.network = saved.build().to(memory_format=torch.channels_last)
        self.preprocess = saved.preprocess
        self.prepared_size = saved.prepared_size
        self.classes = saved.classes
        self.eval()

    def read(self, *sources: str | Path | Image.Image) -> torch.Tensor:
        """Read images as `prepare` stores them: uint8 [N, 3, prepared_size, prepared_size].

        Args:
            sources: image files, or images opened by Pillow. For a JPEG, pass the file: only a file is decoded at a
                reduced size, as training images are.

        Raises:
            UserError: a source is not a usable image.
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
            images: uint8, gray [N, height, width] or [N, 1, height, width], or color [N, 3, height, width]. The
                largest center square is resized to ``prepared_size``, as `prepare` does with files.

        Raises:
            UserError: ``images`` has another type or shape.
        """
        has_channels = images.dim() == 4 and images.shape[1] in (1, 3)
        if images.dtype != torch.uint8 or not (images.dim() == 3 or has_channels):
            raise UserError("images must be uint8 [N, height, width], [N, 1, height, width] or [N, 3, height, width], "
                            f"with values from 0 to 255. Got {images.dtype} {list(images.shape)}.")  # fmt: skip
        if images.shape[-2:] != (self.prepared_size, self.prepared_size):
            images = self._resize(images)
        return self.network(self.preprocess(images))

    def _resize(self, images: torch.Tensor) -> torch.Tensor:
        with_channels = images.unsqueeze(1) if images.dim() == 3 else images
        arrays = with_channels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).cpu().numpy()
        resized = [decoding.resize_and_center_crop(Image.fromarray(array), self.prepared_size) for array in arrays]
        return torch.from_numpy(np.stack(resized)).to(images.device)

    @torch.inference_mode()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """Map images, as ``forward`` does, to probabilities [N, classes] in the order of ``classes``."""
        return self(images).softmax(dim=1)

    def predict(self, paths: Iterable[str | Path]) -> Iterator[Prediction]:
        """Yield the prediction for each image file, in order. Files are decoded ahead, in threads.

        Raises:
            TypeError: ``paths`` is a single path.
        """
        if isinstance(paths, (str, Path)):
            raise TypeError(f"paths must be a list of paths. Got {paths!r}.")
        device = next(self.network.parameters()).device
        paths, sources = tee(map(Path, paths))
        decoded = zip(paths, decoding.prepare_images(sources, self.prepared_size), strict=True)
        for batch in _batches(decoded):
            images = [image for _, image in batch if isinstance(image, np.ndarray)]
            rows = iter(self.probabilities(torch.from_numpy(np.stack(images)).to(device)).cpu() if images else ())
            for path, image in batch:
                if isinstance(image, decoding.UnusableError):
                    yield Prediction(path, {}, str(image))
                    continue
                values, order = next(rows).sort(descending=True, stable=True)
                names = [self.classes[index] for index in order.tolist()]
                yield Prediction(path, dict(zip(names, values.tolist(), strict=True)), "")


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield lists of ``BATCH_SIZE`` items, the last one shorter. (Python 3.12 has ``itertools.batched``.)"""
    iterator = iter(items)
    while batch := list(islice(iterator, BATCH_SIZE)):
        yield batch
