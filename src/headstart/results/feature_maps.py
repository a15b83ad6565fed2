"""What a network sees in an image: its feature maps."""

from functools import partial

import numpy as np
import torch

from headstart.network import splitting
from headstart.network.saved_model import SavedModel

MAPS = 10  # of a layer


def feature_maps(model: SavedModel, image: np.ndarray) -> dict[str, np.ndarray]:
    """The maps of the first and of the last layer that has any which vary most over ``image``.

    Args:
        image: uint8 [height, width] or [3, height, width].

    Returns:
        Float32 [maps, height, width], by what they are; nothing of a network without maps.
    """
    maps = _maps(model, torch.from_numpy(image[None]))
    chosen = {}
    for layer in dict.fromkeys([*list(maps)[:1], *list(maps)[-1:]]):
        found = maps[layer]
        strongest = found.flatten(1).std(1, correction=0).argsort(descending=True, stable=True)[:MAPS]
        chosen[f"{layer}: {found.shape[1]}×{found.shape[2]}"] = found[strongest].numpy()
    return chosen


def _maps(model: SavedModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What comes out of each layer, [channels, height, width], as far as it is more than one pixel."""
    network, found = model.build(), {}

    def keep(name: str, module: object, inputs: object, output: object) -> None:
        if not isinstance(output, torch.Tensor) or output.dim() != 4:
            return
        if output.shape[1] == output.shape[2] != output.shape[3]:
            output = output.permute(0, 3, 1, 2)  # some keep channels last in the shape as well
        if output.shape[2] == output.shape[3] > 1:
            found[name] = output[0].clone()  # what comes next may work in place

    for name in splitting.leaf_modules(network):
        network.get_submodule(name).register_forward_hook(partial(keep, name))
    with torch.inference_mode():
        network(model.preprocess(images))
    return found
