"""From uint8 images to the input of a network, a batch at a time, on the device that the batch is on."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Preprocess:
    """uint8 [N, height, width] to float32 [N, 3, image_size, image_size], channels last in memory.

    [0, 255] → [0, 1] → bilinear with antialias → three equal channels → minus ``mean``, over ``std`` (one a channel).
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        grey = images.unsqueeze(1).float() / 255
        grey = F.interpolate(grey, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        channels = [(grey - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
        return torch.cat(channels, dim=1).contiguous(memory_format=torch.channels_last)
