"""Headstart: what do pretrained weights buy you?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.network.saved_model import Classifier


def load(folder: str | Path, seed: int | None = None) -> Classifier:
    """Return the complete trained network of ``folder``, for example ``models/quick/pretrained-finetuned-adam``.

    The network is in eval mode. Its method ``predict`` classifies image files. Its method ``read`` reads image files as
    the training images were read. Call the network with the images that ``read`` returns, or with uint8 images of any
    size, gray [N, height, width] or color [N, 3, height, width]: it returns logits [N, classes]; ``probabilities``
    returns probabilities.

    Args:
        folder: the folder, or one of its model files.
        seed: the seed of the training; the default is the smallest of those in ``folder``.

    Raises:
        UserError: the folder has no such network.
    """
    from headstart.network.saved_model import Classifier, SavedModel  # imported here because PyTorch imports slowly

    return Classifier(SavedModel.read(find_model(folder, seed)))


def find_model(folder: str | Path, seed: int | None = None) -> Path:
    """Return the model file of ``folder``, as ``load`` reads it.

    Raises:
        UserError: the folder has no such network.
    """
    from headstart.console import UserError

    if Path(folder).is_file():
        if seed is not None:
            raise UserError(f"a seed for a single model file: {folder}. Give its folder, or no seed. Got {seed}.")
        return Path(folder)
    model_files = {
        int(match[1]): path
        for path in Path(folder).glob("model-*.safetensors")
        if (match := re.fullmatch(r"model-(\d+)", path.stem))
    }
    if not model_files or (seed is not None and seed not in model_files):
        missing = "no trained network" if seed is None else f"no network trained with seed {seed}"
        raise UserError(f"{missing}: {folder}. Run `dvc repro` to train it.")
    return model_files[min(model_files) if seed is None else seed]
