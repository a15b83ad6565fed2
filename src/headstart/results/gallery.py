"""What is worth looking at: test images that a network has right and wrong, and its feature maps of one of them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from headstart.network import models
from headstart.network.snapshot import Snapshot

MAPS = 10  # of a layer


class Example(NamedTuple):
    """A test image, uint8 [height, width], with what it is and what it was taken for."""

    image: np.ndarray
    actual: str
    predicted: str
    confidence: float


class Gallery(NamedTuple):
    """One of each class; None where there is none."""

    right: list[Example | None]
    wrong: list[Example | None]


def choose_examples(
    images: torch.Tensor, *, labels: torch.Tensor, logits: torch.Tensor, classes: Sequence[str]
) -> Gallery:
    """Of each class the first image that is classified rightly, and the mistake that the network is surest of.

    Args:
        images: uint8 [N, height, width].
        labels: integers [N].
        logits: [N, classes].
    """
    confidence, predicted = logits.softmax(1).max(1)
    chosen = Gallery([], [])
    for label, name in enumerate(classes):
        hits, misses = ((labels == label) & (right == (predicted == label)) for right in (True, False))
        surest = torch.where(misses, confidence, -1).argmax()
        for found, at, row in ((hits, hits.int().argmax(), chosen.right), (misses, surest, chosen.wrong)):
            example = Example(images[at].numpy(), name, classes[int(predicted[at])], confidence[at].item())
            row.append(example if found.any() else None)
    return chosen


def feature_maps(model: Snapshot, image: torch.Tensor) -> dict[str, np.ndarray]:
    """The maps of the first convolution and of the last stage that vary most over ``image``, uint8 [height, width].

    Returns:
        Float32 [maps, height, width], by what they are.
    """
    maps = _maps(models.chain(model.network()), model.preprocess(image.unsqueeze(0)))
    chosen = {}
    for name, layer in (("first convolution", maps[0]), ("last stage", maps[-1])):
        strongest = layer[0].flatten(1).std(1, correction=0).argsort(descending=True, stable=True)[:MAPS]
        chosen[f"{name}: {layer.shape[2]}×{layer.shape[3]}"] = layer[0, strongest].numpy()
    return chosen


def _maps(layers: Mapping[str, nn.Module], batch: torch.Tensor) -> list[torch.Tensor]:
    """What comes out of each of ``layers`` until the pooling, [N, channels, height, width]."""
    maps = []
    with torch.inference_mode():
        for name, layer in layers.items():
            if name == "avgpool":
                break
            batch = layer(batch)
            maps.append(batch)
    return maps
