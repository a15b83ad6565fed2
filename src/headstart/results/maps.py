"""What a network sees in an image: its feature maps."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from headstart.network import models
from headstart.network.snapshot import Snapshot

MAPS = 10  # of a layer


def feature_maps(model: Snapshot, image: np.ndarray) -> dict[str, np.ndarray]:
    """The maps of the first convolution and of the last stage that vary most over ``image``, uint8 [height, width].

    Returns:
        Float32 [maps, height, width], by what they are.
    """
    maps = _maps(models.chain(model.network()), model.preprocess(torch.from_numpy(image[None])))
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
