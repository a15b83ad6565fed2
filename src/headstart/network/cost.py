"""What a network costs: parameters, multiply-accumulate operations and memory, from its architecture alone."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from headstart.network import models


@dataclass(frozen=True)
class Cost:
    """The machine-independent cost of a network."""

    parameters: int  # without the classifier
    macs: int  # multiply-accumulate operations per image
    weight_bytes: int  # float32
    activation_bytes: int  # float32, per image: the most that a forward pass holds at the same time

    def memory(self, batch_size: int) -> int:
        """Return the bytes that inference needs with ``batch_size`` images."""
        return self.weight_bytes + batch_size * self.activation_bytes


class _PeakMemory(TorchDispatchMode):
    """Measure the largest total size of the tensors that exist at the same time."""

    def __init__(self, existing: list[torch.Tensor]) -> None:
        """Start to measure. The ``existing`` tensors, such as weights, do not count."""
        super().__init__()
        self.peak = 0
        self._allocated = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._track(tensor.untyped_storage())
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:  # a view, or an operation in place
            return
        self._seen.add(key)
        self._allocated += storage.nbytes()
        self.peak = max(self.peak, self._allocated)
        weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._allocated -= size


def measure(model_name: str, image_size: int) -> Cost:
    """Return the cost of ``model_name`` for images of this size.

    The network is built on the meta device: no memory is allocated for weights, and no values are computed.

    Raises:
        UserError: there is no such model, or it does not take images of this size.
    """
    with torch.device("meta"):
        model = models.build(model_name, models.IMAGENET_CLASSES, image_size)
        classifier = models.classifier_name(model)
        parent, _, attribute = classifier.rpartition(".")
        # Replace Headstart's own classifier, which cannot run on the meta device, by an equivalent linear layer.
        n_features = model.get_parameter(f"{classifier}.weight").shape[1]
        setattr(model.get_submodule(parent), attribute, nn.Linear(n_features, models.IMAGENET_CLASSES))
        models.check_image_size(model, image_size)
        image = torch.empty(1, 3, image_size, image_size)
        tensors = [*model.parameters(), *model.buffers()]
        with torch.inference_mode(), _PeakMemory(tensors) as memory, FlopCounterMode(display=False) as flops:
            model(image)
    return Cost(
        parameters=sum(
            parameter.numel() for name, parameter in model.named_parameters() if not name.startswith(f"{classifier}.")
        ),
        macs=flops.get_total_flops() // 2,
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        activation_bytes=memory.peak + image.nbytes,
    )
