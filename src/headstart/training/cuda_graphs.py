"""A training step as a CUDA graph: recorded once, then replayed by one launch instead of hundreds."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from headstart.console import UserError
from headstart.training.compute import generator_states, restore_generators

Results = tuple[torch.Tensor, ...]
Step = Callable[[torch.Tensor, torch.Tensor], Results]

WARM_UP = 3  # steps before recording, as PyTorch's notes on CUDA graphs have it


class GraphedStep:
    """Does what ``step`` does with a batch; full batches on a GPU by replaying a graph of it.

    The results of a replay are overwritten by the next one: copy what is to stay.
    """

    def __init__(self, step: Step, batch_size: int, head: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Nothing is recorded before the first full batch on a GPU.

        Args:
            step: (inputs, labels) to tensors; it trains ``head`` with ``optimizer`` and never waits for the device.
        """
        self._step = step
        self._batch_size = batch_size
        self._trained = head, optimizer
        self._replay: Step | None = None

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> Results:
        if inputs.device.type != "cuda" or len(labels) != self._batch_size:
            return self._step(inputs, labels)
        if self._replay is None:
            self._replay = self._record(inputs, labels)
        return self._replay(inputs, labels)

    def _record(self, *batch: torch.Tensor) -> Step:
        places = [tensor.clone() for tensor in batch]  # where the graph finds its batch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), preserve_training_state(*self._trained), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*capturable")  # Adam: these steps are not recorded; right
            for _ in range(WARM_UP):
                self._step(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):  # records, and runs nothing
                results = self._step(*places)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation waits for the GPU, say
            raise UserError(f"the training step cannot be recorded as a CUDA graph ({error}): set "
                            "HEADSTART_GRAPHS=0 in the environment to train without") from error  # fmt: skip

        def replay(*batch: torch.Tensor) -> Results:
            for place, tensor in zip(places, batch, strict=True):
                place.copy_(tensor)
            graph.replay()
            return results

        return replay


@contextmanager
def preserve_training_state(head: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Take back, in place, what the block trains: parameters, buffers, the optimizer's state and the generators'.

    An optimizer that had no state yet is left with zeros, from which Adam and SGD continue as from no state: Adam's
    moments and its count of steps begin at zero, and zero times the momentum plus a gradient is SGD's first velocity.
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
