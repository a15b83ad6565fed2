"""Three ways to train and test one configuration from the same start: plain, tuned, and Headstart's."""

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
from headstart.training.loop import image_order, make_optimizer


@dataclass(frozen=True)
class Task:
    """One configuration, and what it is trained on and tested with."""

    name: str
    settings: Params
    compute: Compute
    images: dict[str, torch.Tensor]  # what the stage `prepare` wrote
    start: SavedModel

    @property
    def configuration(self) -> Configuration:
        return self.settings.configurations[self.name]

    @property
    def study(self) -> Study:
        return self.settings.selected_study

    def network(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """(network, frozen backbone, trained head) on the device."""
        network = self.start.build().to(self.compute.device)
        layer = self.study.finetune_from if self.configuration.finetuning else self.start.classifier
        return network, *splitting.split_backbone_head(network, layer)


@dataclass(frozen=True)
class Result:
    """What came out of a training and its test."""

    train_loss: float  # mean over the images of the last epoch
    test_accuracy: float
    epoch_seconds: float = 0.0  # of the last epoch, by which a training that is timed on fewer epochs is scaled up


class Pictures(Dataset):
    """Images prepared one by one with PIL, as torchvision's examples do it."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, start: SavedModel) -> None:
        size = (start.image_size, start.image_size)
        steps = [transforms.Resize(size), transforms.Grayscale(3), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize(start.mean, start.std)])
        self.images, self.labels = images.numpy(), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


@contextmanager
def pytorch_defaults(*, autotune: bool = False) -> Iterator[None]:
    """Take back what ``compute.choose`` makes deterministic and exact: PyTorch as it is without being asked.

    What is set for the whole process stays, cuBLAS's workspace and the allocator that keeps freed memory, which helps.

    Args:
        autotune: also let cuDNN try which of its convolutions is the fastest, which is no default but widely known.
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
    """As a newcomer would write it: a DataLoader, PIL, the whole network in every epoch, PyTorch's own defaults."""
    device = task.compute.device
    network, backbone, head = task.network()
    workers = min(8, os.cpu_count() or 1) if device.type == "cuda" else 0  # on a CPU they take it from the training
    loader = partial(DataLoader, batch_size=task.study.batch_size, num_workers=workers,
                     pin_memory=device.type == "cuda")  # fmt: skip
    training, test = (
        Pictures(task.images[f"{split}_images"], task.images[f"{split}_labels"], task.start)
        for split in ("training", "test")
    )
    torch.manual_seed(task.study.split_seed)
    if task.configuration.optimizer == "Adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(head.parameters(), lr=task.configuration.lr)
    else:
        optimizer = torch.optim.SGD(head.parameters(), lr=task.configuration.lr, momentum=task.configuration.momentum or 0,
                                    weight_decay=task.configuration.weight_decay or 0)  # fmt: skip
    for parameter in backbone.parameters():
        parameter.requires_grad = False
    backbone.eval()
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        head.train()
        total = 0.0
        # In the same order as the other ways, so that what they reach can be compared.
        for inputs, labels in loader(training, sampler=image_order(task.study.seeds[0], epoch, len(training)).tolist()):
            inputs, labels = inputs.to(device), labels.to(device)
            loss = F.cross_entropy(network(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
    seconds = time.perf_counter() - began
    network.eval()
    right = 0
    with torch.no_grad():
        for inputs, labels in loader(test):
            right += int((network(inputs.to(device)).argmax(1) == labels.to(device)).sum())
    return Result(total / len(task.images["training_labels"]), right / len(task.images["test_labels"]), seconds)


@pytorch_defaults(autotune=True)
def tuned(task: Task, epochs: int) -> Result:
    """What is common knowledge: data on the device, bfloat16 on a GPU, channels last, a fused optimizer, no waiting,
    cuDNN's fastest convolutions, no gradients where nothing trains.

    The whole network still runs in every epoch. Nothing is compiled: torch.compile takes longer than it saves here.
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
        began = time.perf_counter()
        head.train()
        total = torch.zeros((), device=compute.device)
        for batch in (
            image_order(task.study.seeds[0], epoch, len(labels)).to(compute.device).split(task.study.batch_size)
        ):
            with compute.autocast():
                with torch.no_grad():
                    activations = backbone(task.start.preprocess(images["training_images"][batch]))
                logits = head(activations)
                loss = F.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
    train_loss = total.item() / len(labels)  # waits for the device
    seconds = time.perf_counter() - began
    [logits] = extract_features(images["test_images"], (network,), compute=compute, prepare=task.start.preprocess)
    right = logits.argmax(1) == task.images["test_labels"]
    return Result(train_loss, right.double().mean().item(), seconds)


def headstart(task: Task, _: int) -> Result:
    """The stages `train` and `evaluate`, from what the stages before them wrote."""
    stages.train.main(task.name)
    stages.evaluate.main(task.name)
    records = files.read_csv(f"models/{task.settings.study}/{task.name}/epochs.csv")
    metrics = files.read_json(f"metrics/{task.settings.study}/{task.name}.json")
    return Result(float(records[-1]["train_loss"]), metrics["test_accuracy"])
