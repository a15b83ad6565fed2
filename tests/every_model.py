"""Check which networks work: split each one, compare the parts with the network, and train the head for one step.

    python -m tests.every_model [NAME ...]

Without names, check all of torchvision's classification models and one model of each of timm's families, and write
docs/models.md, which lists the networks that work, and the others with the reason. Takes some minutes on two cores.
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

SIZES = 64, 224, 256  # pixels: tried in this order
CLASSES = 10
MAX_PARAMETERS = 60e6  # of the model that represents its family in timm
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
class CheckedModel:
    """Properties of a network that works."""

    image_size: int  # pixels
    parameters: int
    classifier: str
    split_points: list[str]
    layer: str  # at which the network was split


def check_model(name: str) -> CheckedModel:
    """Split, compare and train the network ``name``.

    Raises:
        UserError: the network cannot be split; the message is the one for users.
        AssertionError: the network can be split, but the parts compute something else.
    """
    torch.manual_seed(0)
    model = models.build(name, CLASSES)
    randomize_statistics(model)
    size = image_size(name, model)
    classifier, split_points = models.classifier_name(model), splitting.valid_split_points(model)
    layers = split_points[: split_points.index(classifier)] if classifier in split_points else split_points
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
        assert torch.equal(*outputs), f"{name}: the parts compute something else than the network, training {training}"
    _require_equal_with_matmul(name, model, images)
    backbone, head = splitting.split_backbone_head(model, layer)
    _train_a_step(name, backbone.eval(), head.train(), images)
    _require_equal_after_resume(name, layer, images)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    return CheckedModel(size, n_parameters, classifier, split_points, layer)


def image_size(name: str, model: nn.Module) -> int:
    """Return the smallest of ``SIZES`` that ``model`` takes, or its fixed image size."""
    config = None if name in models.list_torchvision_models() else timm.get_pretrained_cfg(models.timm_name(name))
    if config is not None and config.fixed_input_size:  # some cache a tensor of the first image's size
        return config.input_size[-1]
    for size in SIZES[:-1]:
        try:
            models.check_image_size(model, size)
        except UserError:
            continue
        return size
    models.check_image_size(model, SIZES[-1])
    return SIZES[-1]


def randomize_statistics(model: nn.Module) -> None:
    """Randomize batch-norm statistics: with the initial ones a missing batch norm would go unnoticed."""
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
        assert difference < 1e-2, f"{name}: use_matmul computes something else, training {training}"


def _train_a_step(name: str, backbone: nn.Module, head: nn.Module, images: torch.Tensor) -> None:
    head_ids = {id(tensor) for tensor in head.parameters()}
    frozen = [tensor for tensor in (*backbone.parameters(), *backbone.buffers()) if id(tensor) not in head_ids]
    frozen_versions = [tensor._version for tensor in frozen]
    with torch.no_grad():
        inputs = backbone(images)
    F.cross_entropy(head(inputs), torch.arange(len(images))).backward()
    trained = [parameter for parameter in head.parameters() if parameter.grad is not None]
    versions = [parameter._version for parameter in trained]
    torch.optim.SGD(head.parameters(), lr=0.1).step()
    assert [tensor._version for tensor in frozen] == frozen_versions, f"{name}: the backbone changed"
    assert trained
    for parameter, old_version in zip(trained, versions, strict=True):
        assert parameter._version > old_version, f"{name}: the head did not change"


def _require_equal_after_resume(name: str, layer: str, images: torch.Tensor) -> None:
    """Check that a training that resumes from its checkpoint takes the same next step."""
    final_states = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder, "checkpoint.safetensors"), "")
        for is_resumed in (False, True):
            torch.manual_seed(2)
            backbone, head = splitting.split_backbone_head(models.build(name, CLASSES), layer)
            optimizer = torch.optim.SGD(head.train().parameters(), lr=0.01, momentum=0.9)
            with torch.no_grad():
                inputs = backbone(images)
            if is_resumed:
                checkpoint.restore(head, optimizer)
            else:
                _step(head, optimizer, inputs)
                checkpoint.save(head, optimizer, [], {})
            _step(head, optimizer, inputs)
            final_states.append(head.state_dict())
    for tensor in final_states[0]:
        is_equal = torch.equal(final_states[0][tensor], final_states[1][tensor])
        assert is_equal, f"{name} does not resume from a checkpoint: {tensor}"


def _step(head: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(head(inputs.clone()), torch.arange(len(inputs))).backward()
    optimizer.step()


def families() -> Iterator[str]:
    """Yield the first model of each of timm's families that is not too large, with the prefix ``timm/``."""
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            with torch.device("meta"):  # parameters with a shape but without memory
                try:
                    parameters = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
                except Exception:  # a few compute something while they are built
                    continue
            if parameters < MAX_PARAMETERS:
                yield f"timm/{name}"
                break


def main(*names: str) -> None:
    warnings.filterwarnings("ignore")
    rows, failures = [], []
    for name in names or chain(models.list_torchvision_models(), families()):
        try:
            model = check_model(name)
        except UserError as error:
            failures.append(f"| {name} | {str(error).partition('. Choose ')[0]} |")
        except Exception as error:  # a network that was never meant to be split may raise anything
            failures.append(f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:120]} |")
        else:
            rows.append(f"| {name} | {model.image_size} | {model.parameters / 1e6:.1f} | `{model.classifier}` | "
                        f"{len(model.split_points)} | `{model.layer}` |")  # fmt: skip
        print(name, "fails" if failures and f"| {name} |" in failures[-1] else "works", flush=True)
    if not names:
        versions = {package: version(package) for package in ("torch", "torchvision", "timm")}
        text = PAGE.format(works=len(rows), rows="\n".join(rows), fails=len(failures), failures="\n".join(failures),
                           sizes=", ".join(map(str, SIZES)), **versions)  # fmt: skip
        files.write_text("docs/models.md", text)
    else:
        print("\n".join([*rows, *failures]))


if __name__ == "__main__":
    main(*sys.argv[1:])
