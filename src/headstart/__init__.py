"""Headstart: what do pretrained weights buy you?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.network.saved_model import Classifier


def load(folder: str | Path, seed: int | None = None) -> Classifier:
    """Return the complete trained network of ``folder``, for example ``models/quick/pretrained-finetuned-adam``.

    It is in eval mode. Its method ``read`` reads image files as the training images were read. Called with what that
    returns, or with uint8 images of any size, gray [N, height, width] or in color [N, 3, height, width], it returns
    logits [N, classes]; ``probabilities`` returns probabilities.

    Args:
        seed: the network trained with it; without one the only network, or that of the smallest seed.

    Raises:
        UserError: the folder holds no such network.
    """
    from headstart.console import UserError
    from headstart.network.saved_model import (  # PyTorch takes seconds to import, so only who loads pays
        Classifier,
        SavedModel,
    )

    there = {int(path.stem.removeprefix("model-")): path for path in Path(folder).glob("model-*.safetensors")}
    if not there or (seed is not None and seed not in there):
        which = "no trained network" if seed is None else f"no network trained with seed {seed}"
        raise UserError(f"{folder} has {which}: `dvc repro` makes them")
    return Classifier(SavedModel.read(there[min(there) if seed is None else seed]))
