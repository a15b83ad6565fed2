"""Feature maps of a network for one image."""

from functools import partial

import numpy as np
import torch

from headstart.network import splitting
from headstart.network.saved_model import SavedModel

MAX_MAPS = 10  # per layer


def feature_maps(model: SavedModel, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the maps with the largest standard deviation, of the first and of the last layer that has maps.

    Args:
        image: uint8 [height, width] or [3, height, width].

    Returns:
        Float32 [maps, height, width] by title; empty for a network without maps.
    """
    by_layer = _all_maps(model, torch.from_numpy(image[None]))
    chosen = {}
    for layer in dict.fromkeys([*list(by_layer)[:1], *list(by_layer)[-1:]]):
        maps = by_layer[layer]
        order = maps.flatten(1).std(1, correction=0).argsort(descending=True, stable=True)
        chosen[f"{layer}: {maps.shape[1]}×{maps.shape[2]}"] = maps[order[:MAX_MAPS]].numpy()
    return chosen


def _all_maps(model: SavedModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the output [channels, height, width] of each layer whose maps have more than one pixel."""
    network, maps = model.build(), {}

    def save_output(name: str, module: object, inputs: object, output: object) -> None:
        if not isinstance(output, torch.Tensor) or output.dim() != 4:
            return
        if output.shape[1] == output.shape[2] != output.shape[3]:
            output = output.permute(0, 3, 1, 2)  # some networks have channels last in the shape as well
        if output.shape[2] == output.shape[3] > 1:
            maps[name] = output[0].clone()  # the next layer may work in place

    for name in splitting.leaf_modules(network):
        network.get_submodule(name).register_forward_hook(partial(save_output, name))
    with torch.inference_mode():
        network(model.preprocess(images))
    return maps
