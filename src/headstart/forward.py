"""Run modules over all images once, without gradients: activations, features, logits."""

from collections.abc import Callable

import torch
from torch import nn

from headstart.compute import Compute
from headstart.console import progress


def outputs(
    inputs: torch.Tensor,
    *modules: nn.Module,
    compute: Compute,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    label: str = "",
) -> list[torch.Tensor]:
    """Run ``modules``, each on the output of the one before, over ``inputs`` in eval mode.

    Args:
        inputs: [N, ...], on any device; chunks of it travel to the device that computes.
        modules: moved to that device.
        prepare: applied to each chunk first, there.
        label: of the progress bar.

    Returns:
        For each module its outputs, float32 [N, ...] on the CPU, in the order of ``inputs``.
    """
    for module in modules:
        module.to(compute.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    results: list[torch.Tensor] = []
    with progress(len(inputs), label) as bar:
        for start in range(0, len(inputs), compute.chunk):
            chunk = inputs[start : start + compute.chunk].to(compute.device)
            for number, result in enumerate(_chain(chunk, modules, compute, prepare)):
                if start == 0:  # made outside inference mode, so that training may use it
                    results.append(torch.empty(len(inputs), *result.shape[1:]))
                results[number][start : start + len(chunk)] = result
            bar.update(len(chunk))
    return results


@torch.inference_mode()
def _chain(
    batch: torch.Tensor,
    modules: tuple[nn.Module, ...],
    compute: Compute,
    prepare: Callable[[torch.Tensor], torch.Tensor] | None,
) -> list[torch.Tensor]:
    if prepare is not None:
        batch = prepare(batch)
    results = []
    with compute.autocast():
        for module in modules:
            batch = module(batch)
            results.append(batch)
    return results
