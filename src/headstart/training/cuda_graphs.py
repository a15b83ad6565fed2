"""A training step as a CUDA graph: captured once, then replayed with one launch instead of hundreds."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from headstart.console import UserError
from headstart.training.compute import generator_states, restore_generators

Results = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, torch.Tensor], Results]

WARM_UP_STEPS = 3  # before the capture, as in PyTorch's notes on CUDA graphs


class GraphedStep:
    """Run ``step`` on a batch; on a GPU, replay a CUDA graph of it for full batches.

    The next replay overwrites the results: copy what you need.
    """

    def __init__(self, step: Step, batch_size: int, head: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Prepare the step. The graph is captured at the first full batch on a GPU.

        Args:
            step: from (inputs, labels) to tensors. It trains ``head`` with ``optimizer`` and never waits.
        """
        self._step = step
        self._batch_size = batch_size
        self._trained = head, optimizer
        self._replay: Step | None = None

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> Results:
        if inputs.device.type != "cuda" or len(labels) != self._batch_size:
            return self._step(inputs, labels)
        if self._replay is None:
            self._replay = self._capture(inputs, labels)
        return self._replay(inputs, labels)

    def _capture(self, *batch: torch.Tensor) -> Step:
        static_inputs = [tensor.clone() for tensor in batch]  # the graph reads its batch from here
        side_stream = _side_stream(batch[0].device)
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream), preserve_training_state(*self._trained), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable")  # Adam warns that these steps are not captured
            for _ in range(WARM_UP_STEPS):
                self._step(*static_inputs)
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):  # captures the step without running it
                results = self._step(*static_inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # for example, an operation waits for the GPU
            raise UserError(f"the training step cannot be captured as a CUDA graph ({error}). Set "
                            "HEADSTART_GRAPHS=0 to train without CUDA graphs.") from error  # fmt: skip

        def replay(*batch: torch.Tensor) -> Results:
            for static_input, tensor in zip(static_inputs, batch, strict=True):
                static_input.copy_(tensor)
            graph.replay()
            return results

        return replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of the warm-up, the same for all trainings: cuBLAS keeps a workspace of 68 MB per stream."""
    return torch.cuda.Stream(device)


@contextmanager
def preserve_training_state(head: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Restore parameters, buffers, optimizer state and random generators in place at the end of the block.

    If the optimizer had no state, its state is set to zero. Adam and SGD then continue as without state: Adam's moments
    and its step count start at zero, and SGD's first velocity is zero times the momentum plus the gradient.
    """
    before = copy.deepcopy(head.state_dict())
    states = {parameter: copy.deepcopy(state) for parameter, state in optimizer.state.items()}
    device = next(head.parameters()).device
    generators = generator_states(device)
    yield
    head.load_state_dict(before)
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                earlier = states.get(parameter, {}).get(key)
                value.zero_() if earlier is None else value.copy_(earlier)
    restore_generators(device, generators)
