"""Preprocess a batch of uint8 images on its device to the input of a network."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Preprocess:
    """Convert uint8 [N, height, width] or [N, 3, height, width] to float32 [N, 3, image_size, image_size].

    [0, 255] → [0, 1] → resize (``interpolation``, with antialias) → repeat the channel of gray images → subtract
    ``mean`` and divide by ``std`` (one value per channel). Memory is channels last.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"  # or "bicubic"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = (images.unsqueeze(1) if images.dim() == 3 else images).float() / 255
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = F.interpolate(images, size=(self.image_size,) * 2, mode=self.interpolation, antialias=True)
            images = images.clamp(0, 1) if self.interpolation == "bicubic" else images  # bicubic overshoots at edges
        rgb = images.expand(-1, 3, -1, -1).split(1, dim=1)
        channels = [(channel - mean) / std for channel, mean, std in zip(rgb, self.mean, self.std, strict=True)]
        return torch.cat(channels, dim=1).contiguous(memory_format=torch.channels_last)
