"""Which networks work: each is cut, compared with the whole, and trained for a step.

    python -m tests.every_model [NAME ...]

Without names all of torchvision's classification models, and one of each of timm's families. Writes docs/models.md, a
table of what works and of what does not and why; some minutes on two cores.
"""

import copy
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from headstart import files
from headstart.console import UserError
from headstart.network import models, splitting
from headstart.training.checkpoints import Checkpoint
from headstart.training.convolutions import use_matmul

SIZES = 64, 224, 256  # the first that a network takes is its smallest here
CLASSES = 10
LARGEST = 60e6  # parameters of a network of timm's that stands for its family
PAGE = """# Networks

Set `model_name` to one of these networks. Set `finetune_from` to `auto` (at least the later half of the parameters), to
`all` (the whole network), or to the name of the first fine-tuned layer. An unknown layer name produces an error that
lists the valid split points. Any module in these with a single input tensor is valid too.

`python -m tests.every_model` generated these tables with PyTorch {torch}, torchvision {torchvision} and timm {timm}. It
splits each network into backbone and head, before a layer three quarters of the way in and before its classifier. It
checks that both parts together compute exactly what the network computes, in evaluation and training mode, and the same
within rounding with convolutions as matrix products; that a training step changes the head and not the backbone; and
that a training that resumes from a checkpoint takes the same next step. The image size is the smallest of {sizes} that
the network accepts.

## {works} networks that work

All classification models of torchvision, and one small model of each timm family.

| network | image size | parameters, M | classifier | split points | example |
|---|---:|---:|---|---:|---|
{rows}

## {fails} networks that do not work

| network | why |
|---|---|
{failures}
"""


@dataclass(frozen=True)
class Found:
    """What is worth knowing of a network that works."""

    image_size: int  # pixels
    parameters: int
    classifier: str
    places: list[str]
    layer: str


def examine(name: str) -> Found:
    """Cut, compare and train ``name``.

    Raises:
        UserError: it cannot be cut, as the user would be told.
        AssertionError: it can, and does something else then.
    """
    torch.manual_seed(0)
    model = models.build(name, CLASSES)
    randomise_statistics(model)
    size = image_size(name, model)
    classifier, places = models.classifier_name(model), splitting.valid_split_points(model)
    layers = places[: places.index(classifier)] if classifier in places else places
    layer = layers[len(layers) * 3 // 4]
    images = torch.randn(2, 3, size, size)
    parts = splitting.split_model(model, [layer, classifier])
    for training in (False, True):
        outputs = []
        for network in (model, nn.Sequential(*parts)):
            torch.manual_seed(1)  # for dropout and stochastic depth
            with torch.no_grad():
                outputs.append(network.train(training)(images))
        assert outputs[0].shape == (2, CLASSES)
        assert outputs[0].std() > 0
        assert torch.equal(*outputs), f"{name} needs_gpu something else in parts, training {training}"
    _require_equal_with_matmul(name, model, images)
    backbone, head = splitting.split_backbone_head(model, layer)
    _train_a_step(name, backbone.eval(), head.train(), images)
    _go_on(name, layer, images)
    return Found(size, sum(parameter.numel() for parameter in model.parameters()), classifier, places, layer)


def image_size(name: str, model: nn.Module) -> int:
    """The smallest of ``SIZES`` that ``model`` takes, or the one that it is made for."""
    config = None if name in models.torchvision_names() else timm.get_pretrained_cfg(models.timm_name(name))
    if config is not None and config.fixed_input_size:  # some keep what they make of the first image
        return config.input_size[-1]
    for size in SIZES[:-1]:
        try:
            models.check_image_size(model, size)
        except UserError:
            continue
        return size
    models.check_image_size(model, SIZES[-1])
    return SIZES[-1]


def randomise_statistics(model: nn.Module) -> None:
    """Batch norm's initial statistics would make it nearly the identity, and a lost one pass unnoticed."""
    for module in model.modules():
        if isinstance(module, models.BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def _require_equal_with_matmul(name: str, model: nn.Module, images: torch.Tensor) -> None:
    replaced = copy.deepcopy(model)
    use_matmul(replaced)
    for training in (False, True):
        outputs = []
        for network in (model, replaced):
            torch.manual_seed(1)
            with torch.no_grad():
                outputs.append(copy.deepcopy(network).train(training)(images))
        difference = (outputs[0] - outputs[1]).abs().max() / outputs[0].std()
        assert difference < 1e-2, f"{name} needs_gpu something else with use_matmul, training {training}"


def _train_a_step(name: str, backbone: nn.Module, head: nn.Module, images: torch.Tensor) -> None:
    ours = {id(tensor) for tensor in head.parameters()}
    frozen = [tensor for tensor in (*backbone.parameters(), *backbone.buffers()) if id(tensor) not in ours]
    before = [tensor._version for tensor in frozen]
    with torch.no_grad():
        inputs = backbone(images)
    F.cross_entropy(head(inputs), torch.arange(len(images))).backward()
    trained = [parameter for parameter in head.parameters() if parameter.grad is not None]
    moved = [parameter._version for parameter in trained]
    torch.optim.SGD(head.parameters(), lr=0.1).step()
    assert [tensor._version for tensor in frozen] == before, f"{name}: the backbone moved"
    now = [parameter._version for parameter in trained]
    assert trained
    assert all(version > was for version, was in zip(now, moved, strict=True)), f"{name}: the head did not move"


def _go_on(name: str, layer: str, images: torch.Tensor) -> None:
    """Check that a training that resumes from its checkpoint takes the step that it would have taken."""
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder, "checkpoint.safetensors"), "")
        for interrupted in (False, True):
            torch.manual_seed(2)
            backbone, head = splitting.split_backbone_head(models.build(name, CLASSES), layer)
            optimizer = torch.optim.SGD(head.train().parameters(), lr=0.01, momentum=0.9)
            with torch.no_grad():
                inputs = backbone(images)
            if interrupted:
                checkpoint.restore(head, optimizer)
            else:
                _step(head, optimizer, inputs)
                checkpoint.save(head, optimizer, [], {})
            _step(head, optimizer, inputs)
            ends.append(head.state_dict())
    for tensor in ends[0]:
        assert torch.equal(ends[0][tensor], ends[1][tensor]), f"{name} does not resume from a checkpoint: {tensor}"


def _step(head: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(head(inputs.clone()), torch.arange(len(inputs))).backward()
    optimizer.step()


def families() -> Iterator[str]:
    """The first model of each of timm's families that is not too large: ``timm/`` stands before each."""
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            with torch.device("meta"):  # where parameters have a number and no memory
                try:
                    parameters = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
                except Exception:  # a few compute something when they are made
                    continue
            if parameters < LARGEST:
                yield f"timm/{name}"
                break


def main(*names: str) -> None:
    warnings.filterwarnings("ignore")
    rows, failed = [], []
    for name in names or chain(models.torchvision_names(), families()):
        try:
            found = examine(name)
        except UserError as error:
            failed.append(f"| {name} | {str(error).partition('; this model can')[0]} |")
        except Exception as error:  # whatever a network that was never meant to be cut raises
            failed.append(f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:120]} |")
        else:
            rows.append(f"| {name} | {found.image_size} | {found.parameters / 1e6:.1f} | `{found.classifier}` | "
                        f"{len(found.places)} | `{found.layer}` |")  # fmt: skip
        print(name, "fails" if failed and f"| {name} |" in failed[-1] else "works", flush=True)
    if not names:
        found_with = {package: version(package) for package in ("torch", "torchvision", "timm")}
        text = PAGE.format(works=len(rows), rows="\n".join(rows), fails=len(failed), failures="\n".join(failed),
                           sizes=", ".join(map(str, SIZES)), **found_with)  # fmt: skip
        files.write_text("docs/models.md", text)
    else:
        print("\n".join([*rows, *failed]))


if __name__ == "__main__":
    main(*sys.argv[1:])
