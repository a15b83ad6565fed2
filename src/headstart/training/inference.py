"""Run modules over images in eval mode, without gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from headstart.console import progress
from headstart.training.compute import Compute

Transform = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class BatchedInference:
    """Run modules in sequence, in eval mode and without gradients, one batch at a time.

    The last batch is padded to the full size. The output for an image therefore does not depend on how many other
    images are computed with it, and cached outputs equal recomputed ones.
    """

    modules: tuple[nn.Module, ...]
    compute: Compute
    prepare: Transform | None = None  # applied to each batch first

    def __post_init__(self) -> None:
        for module in self.modules:
            module.to(self.compute.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @torch.no_grad()  # not inference mode, whose results cannot be trained on
    def __call__(self, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the output of each module for ``inputs``, on the device, in its precision.

        Use each output before you request the next: the next module may work in place.

        Args:
            inputs: at most ``compute.inference_batch_size``.
        """
        # A copy, because a module may work in place. From pinned memory it is copied while the GPU computes.
        batch = torch.empty(self.compute.inference_batch_size, *inputs.shape[1:], dtype=inputs.dtype,
                            device=inputs.device, pin_memory=inputs.device != self.compute.device)  # fmt: skip
        batch[: len(inputs)] = inputs
        batch[len(inputs) :] = inputs[-1:]
        batch = batch.to(self.compute.device, non_blocking=True)
        if self.prepare is not None:
            batch = self.prepare(batch)
        for module in self.modules:
            with self.compute.autocast():
                batch = module(batch)
            yield batch[: len(inputs)]

    def iter_batches(self, inputs: torch.Tensor, label: str) -> Iterator[tuple[slice, Iterator[torch.Tensor]]]:
        """Yield the slice of each batch of ``inputs`` and the outputs for it, and show a progress bar."""
        size = self.compute.inference_batch_size
        with progress(len(inputs), label) as bar:
            for start in range(0, len(inputs), size):
                batch_slice = slice(start, min(start + size, len(inputs)))
                yield batch_slice, self(inputs[batch_slice])
                bar.update(batch_slice.stop - start)


def extract_features(
    inputs: torch.Tensor,
    modules: tuple[nn.Module, ...],
    *,
    compute: Compute,
    prepare: Transform | None = None,
    label: str = "",
) -> list[torch.Tensor]:
    """Run ``modules`` in sequence over ``inputs`` [N, ...] in eval mode.

    Returns:
        The outputs of each module: [N, ...] on the CPU, in the order of ``inputs``, in the precision that they were
        computed in.
    """
    inference = BatchedInference(modules, compute, prepare)
    if len(inputs) == 0:
        return [output[:0].cpu() for output in inference(inputs.new_zeros(1, *inputs.shape[1:]))]
    results: list[torch.Tensor] = []
    for batch_slice, outputs in inference.iter_batches(inputs, label):
        for index, output in enumerate(outputs):
            if batch_slice.start == 0:
                results.append(torch.empty(len(inputs), *output.shape[1:], dtype=output.dtype))
            results[index][batch_slice] = output
    return results
