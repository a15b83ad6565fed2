"""The training loop in its plainest form: the specification of `trainings` and `loop`, for readers and tests.

It runs the whole network on the images in every epoch. `loop.fit` caches the outputs of the frozen backbone, uses other
kernels and CUDA graphs, validates and checkpoints; a test checks that both compute the same losses and weights.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from headstart.training.loop import image_order


def train(
    network: nn.Module,
    backbone: nn.Module,
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    n_epochs: int,
    batch_size: int,
    seed: int,
    criterion: nn.Module | None = None,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    augment: Callable[[torch.Tensor, list[int], int], torch.Tensor] = lambda images, indices, number: images,
) -> Iterator[tuple[float, float]]:
    """Train the ``head`` of ``network`` in place; yield the mean training loss and accuracy of each epoch.

    Args:
        optimizer: of the parameters of ``head``.
        prepare: from uint8 images to the input of the network.
        criterion: PyTorch's cross-entropy by default.
        scheduler: of the learning rate, stepped after each optimizer step.
        augment: from uint8 images, their indices among all images and the epoch to augmented images.
    """
    criterion = criterion or nn.CrossEntropyLoss()
    for epoch in range(1, n_epochs + 1):
        backbone.eval()  # frozen: its batch-norm statistics do not change either
        head.train()
        total, n_correct = 0.0, 0
        for batch in image_order(seed, epoch, len(labels)).split(batch_size):
            logits = network(prepare(augment(images[batch], batch.tolist(), epoch)))
            loss = criterion(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if scheduler:
                scheduler.step()
            total += loss.item() * len(batch)
            n_correct += int((logits.argmax(1) == labels[batch]).sum())
        yield total / len(labels), n_correct / len(labels)
