"""Three ways to train and test one configuration from the same initial weights: plain, tuned, and Headstart's."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import stages.evaluate
import stages.train
from headstart import files
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration, Params, Study
from headstart.training.compute import Compute
from headstart.training.inference import extract_features
from headstart.training.loop import image_order
from headstart.training.optimizers import make_optimizer


@dataclass(frozen=True)
class Task:
    """One configuration, with its images and its initial weights."""

    name: str
    settings: Params
    compute: Compute
    images: dict[str, torch.Tensor]  # outputs of the stage `prepare`
    initial: SavedModel

    @property
    def configuration(self) -> Configuration:
        return self.settings.configurations[self.name]

    @property
    def study(self) -> Study:
        return self.settings.selected_study

    def network(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Return (network, frozen backbone, trained head) on the device."""
        network = self.initial.build().to(self.compute.device)
        layer = self.study.finetune_from if self.configuration.finetuning else self.initial.classifier
        return network, *splitting.split_backbone_head(network, layer)


@dataclass(frozen=True)
class Result:
    """The result of a training."""

    train_loss: float  # mean over the images of the last epoch
    test_accuracy: float
    epoch_seconds: float = 0.0  # of the last epoch; scales up a training that is timed on fewer epochs


class PillowDataset(Dataset):
    """Images that Pillow prepares one by one, as in the examples of torchvision."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, initial: SavedModel) -> None:
        size = (initial.image_size, initial.image_size)
        steps = [transforms.Resize(size), transforms.Grayscale(3), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(initial.mean, initial.std)])
        self.images, self.labels = images.numpy(), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


@contextmanager
def pytorch_defaults(*, autotune: bool = False) -> Iterator[None]:
    """Restore PyTorch's defaults, which ``compute.configure`` makes deterministic and exact.

    Two settings of the whole process stay: cuBLAS's workspace, and the allocator, which helps because it keeps freed
    memory.

    Args:
        autotune: also set ``cudnn.benchmark``, which is not a default but widely known.
    """
    cudnn = torch.backends.cudnn
    convolutions: Any = cudnn.conv  # type: ignore[attr-defined]
    before = torch.get_deterministic_debug_mode(), convolutions.fp32_precision, cudnn.benchmark
    torch.set_deterministic_debug_mode("default")
    convolutions.fp32_precision, cudnn.benchmark = "tf32", autotune
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        convolutions.fp32_precision, cudnn.benchmark = before[1:]


@pytorch_defaults()
def plain(task: Task, epochs: int) -> Result:
    """Train as a newcomer would: a DataLoader, Pillow, the whole network in every epoch, PyTorch's defaults."""
    device = task.compute.device
    network, backbone, head = task.network()
    workers = (
        min(8, os.cpu_count() or 1) if device.type == "cuda" else 0
    )  # on a CPU, workers would compete with the training
    loader = partial(DataLoader, batch_size=task.study.batch_size, num_workers=workers,
                     pin_memory=device.type == "cuda")  # fmt: skip
    training, test = (
        PillowDataset(task.images[f"{split}_images"], task.images[f"{split}_labels"], task.initial)
        for split in ("training", "test")
    )
    torch.manual_seed(task.study.split_seed)
    if task.configuration.optimizer == "Adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(head.parameters(), lr=task.configuration.lr)
    else:
        configuration = task.configuration
        optimizer = torch.optim.SGD(head.parameters(), lr=configuration.lr, momentum=configuration.momentum or 0,
                                    weight_decay=configuration.weight_decay or 0)  # fmt: skip
    for parameter in backbone.parameters():
        parameter.requires_grad = False
    backbone.eval()
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        head.train()
        total = 0.0
        # In the same order as in the other loops, so that the accuracies can be compared.
        for inputs, labels in loader(training, sampler=image_order(task.study.seeds[0], epoch, len(training)).tolist()):
            inputs, labels = inputs.to(device), labels.to(device)
            loss = F.cross_entropy(network(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
    seconds = time.perf_counter() - started
    network.eval()
    n_correct = 0
    with torch.no_grad():
        for inputs, labels in loader(test):
            n_correct += int((network(inputs.to(device)).argmax(1) == labels.to(device)).sum())
    return Result(total / len(task.images["training_labels"]), n_correct / len(task.images["test_labels"]), seconds)


@pytorch_defaults(autotune=True)
def tuned(task: Task, epochs: int) -> Result:
    """Train with the common optimizations.

    These are data on the device, bfloat16 on a GPU, channels last, a fused optimizer, no synchronization, cuDNN's
    fastest convolutions, and no gradients in the backbone. The whole network still runs in every epoch. torch.compile
    is not used: it takes longer than it saves here.
    """
    compute = task.compute
    images = {name: tensor.to(compute.device) for name, tensor in task.images.items()}
    network, backbone, head = task.network()
    network.to(memory_format=torch.channels_last)
    for parameter in backbone.parameters():
        parameter.requires_grad = False
    optimizer = make_optimizer(task.configuration, head, compute)
    labels = images["training_labels"]
    backbone.eval()
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        head.train()
        total = torch.zeros((), device=compute.device)
        for batch in (
            image_order(task.study.seeds[0], epoch, len(labels)).to(compute.device).split(task.study.batch_size)
        ):
            with compute.autocast():
                with torch.no_grad():
                    activations = backbone(task.initial.preprocess(images["training_images"][batch]))
                logits = head(activations)
                loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
    train_loss = total.item() / len(labels)  # waits for the device
    seconds = time.perf_counter() - started
    [logits] = extract_features(images["test_images"], (network,), compute=compute, prepare=task.initial.preprocess)
    correct = logits.argmax(1) == task.images["test_labels"]
    return Result(train_loss, correct.double().mean().item(), seconds)


def headstart(task: Task, _: int) -> Result:
    """Run the stages `train` and `evaluate` on the outputs of the stages before them."""
    stages.train.main(task.name)
    stages.evaluate.main(task.name)
    epochs = files.read_csv(f"models/{task.settings.study}/{task.name}/epochs.csv")
    metrics = files.read_json(f"metrics/{task.settings.study}/{task.name}.json")
    return Result(float(epochs[-1]["train_loss"]), metrics["test_accuracy"])
