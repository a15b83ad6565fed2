"""Augmentation of training images with torchvision.

The random numbers of an image depend on (training seed, pass, image) alone. A resumed training therefore sees the same
images as one that was not interrupted, and an image is augmented in the same way whatever else is in its batch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torchvision.transforms import v2

# torchvision takes a second to import, so only trainings with augmentation import it.


def crop_flip(side: int) -> "v2.Transform":
    """Return a random crop, resized to ``side``, and a random horizontal flip."""
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()])


def trivial(side: int) -> "v2.Transform":
    """Return TrivialAugmentWide (Müller and Hutter 2021)."""
    from torchvision.transforms import v2

    return v2.TrivialAugmentWide()


# Each maps an image side in pixels to a transform of one image, uint8 [channels, side, side].
AUGMENTATIONS: dict[str, Callable[[int], "v2.Transform"]] = {"crop-flip": crop_flip, "trivial": trivial}


def augment(name: str, images: torch.Tensor, indices: Sequence[int], *, seed: int, number: int) -> torch.Tensor:
    """Return augmented ``images`` in their type and shape: uint8 [N, height, width] or [N, 3, height, width].

    Args:
        name: a key of ``AUGMENTATIONS``.
        indices: of the images among all training images, [N].
        seed: of the training.
        number: of the pass over the training images.
    """
    transform = AUGMENTATIONS[name](images.shape[-1])
    with_channels = images if images.dim() == 4 else images.unsqueeze(1)
    augmented = torch.empty_like(with_channels)
    with torch.random.fork_rng(devices=[]):  # torchvision uses the global generator, which dropout uses too
        for row, index in enumerate(indices):
            # Not torch.manual_seed: it would also seed the GPU's generator, and it is slow without a GPU.
            torch.default_generator.manual_seed(image_seed(seed, number, index))
            augmented[row] = transform(with_channels[row])
    return augmented.view(images.shape)


def image_seed(seed: int, number: int, index: int) -> int:
    """Return the seed of one image in one pass, hashed from all three."""
    return int(np.random.SeedSequence([seed, number, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
