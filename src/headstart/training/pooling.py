"""Adaptive average pooling as matrix products, because PyTorch's has no deterministic gradient on a GPU."""

import torch
import torch.nn.functional as F
from torch import nn


class MatmulAdaptiveAvgPool2d(nn.Module):
    """Equals ``nn.AdaptiveAvgPool2d``: [N, C, H, W] to [N, C, H', W'], with sums in float32."""

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        size = pool.output_size
        self.output_size = size if isinstance(size, tuple) else (size, size)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        height, width = (
            _weights(before, before if after is None else after, maps.device)
            for before, after in zip(maps.shape[-2:], self.output_size, strict=True)
        )
        with torch.autocast(maps.device.type, enabled=False):
            pooled = height @ maps.to(height.dtype) @ width.T
        return pooled.to(maps.dtype)


def _weights(before: int, after: int, device: torch.device) -> torch.Tensor:
    """Return the share of each of ``before`` pixels in each of ``after`` means, float32 [after, before]."""
    return F.adaptive_avg_pool1d(torch.eye(before, device=device)[None], after)[0].T


def use_deterministic(module: nn.Module) -> None:
    """Replace every adaptive average pooling inside ``module`` that has no deterministic gradient on a GPU.

    Pooling to a single pixel has one: it is a mean.
    """
    for name, child in module.named_children():
        if type(child) is nn.AdaptiveAvgPool2d and child.output_size not in (1, (1, 1)):
            setattr(module, name, MatmulAdaptiveAvgPool2d(child))
        else:
            use_deterministic(child)
