"""Headstart: what do pretrained weights buy you?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.network.saved_model import Classifier


def load(folder: str | Path, seed: int | None = None) -> Classifier:
    """Return the complete trained network of ``folder``, for example ``models/quick/pretrained-finetuned-adam``.

    The network is in eval mode. Its method ``read`` reads image files as the training images were read. Call the
    network with the images that ``read`` returns, or with uint8 images of any size, gray [N, height, width] or color
    [N, 3, height, width]: it returns logits [N, classes]; ``probabilities`` returns probabilities.

    Args:
        seed: the seed of the training; the default is the smallest of those in ``folder``.

    Raises:
        UserError: the folder has no such network.
    """
    from headstart.console import UserError
    from headstart.network.saved_model import (  # imported here because PyTorch takes seconds to import
        Classifier,
        SavedModel,
    )

    model_files = {int(path.stem.removeprefix("model-")): path for path in Path(folder).glob("model-*.safetensors")}
    if not model_files or (seed is not None and seed not in model_files):
        missing = "no trained network" if seed is None else f"no network trained with seed {seed}"
        raise UserError(f"{missing}: {folder}. Run `dvc repro` to train it.")
    return Classifier(SavedModel.read(model_files[min(model_files) if seed is None else seed]))
