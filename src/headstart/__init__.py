"""Headstart: what do pretrained weights buy you?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstart.snapshot import Classifier


def load(folder: str | Path) -> Classifier:
    """Return the complete trained network of ``folder``, for example ``models/quick/pretrained-finetuned-adam``.

    It is in eval mode and maps uint8 images [N, height, width] of any size to logits [N, classes];
    ``probabilities`` maps them to probabilities.

    Raises:
        UserError: the folder holds no readable ``model.safetensors``.
    """
    from headstart.snapshot import Classifier, Snapshot  # PyTorch takes seconds to import, so only who loads pays

    return Classifier(Snapshot.read(Path(folder) / "model.safetensors"))
