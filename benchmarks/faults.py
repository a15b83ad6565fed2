"""What the three faults of the published script do, each measured alone, in the study that params.yaml names.

    python -m benchmarks.faults [CONFIGURATION] [EPOCHS]

It trains the whole network on prepared images, plainly, as the published script did, from the configuration's start
(that of pretrained-finetuned-adam if none is named); so run `dvc repro` first. It prints a Markdown table.
"""

import copy
import sys

import torch
import torch.nn.functional as F
from torch import nn

from headstart import files, params
from headstart.console import UserError, progress, run_cli
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from headstart.training import compute
from headstart.training.inference import extract_features
from headstart.training.loop import image_order
from stages.paths import initial_file, prepared_file

IMAGES = 3_000  # of the training images, so that it takes minutes
VARIANTS = {
    # name: (only the classifier is optimized, a new optimizer for each batch, batch norm in training mode everywhere)
    "none": (False, False, False),
    "1: only the classifier reaches the optimizer": (True, False, False),
    "2: a new optimizer for each batch": (False, True, False),
    "3: frozen batch norm in training mode": (False, False, True),
    "all three": (True, True, True),
}


def main(configuration_name: str = "pretrained-finetuned-adam", epochs: str = "2") -> None:
    if not epochs.isdecimal() or int(epochs) < 1:
        raise UserError(f"the number of epochs must be 1 or more, not {epochs!r}")
    settings, device = params.read(), compute.configure()
    configuration = settings.configuration(configuration_name)
    data = files.read_tensors(prepared_file(settings)).tensors
    start = SavedModel.read(initial_file(settings, configuration.pretrained, settings.selected_study.seeds[0]))
    layer = settings.selected_study.finetune_from if configuration.finetuning else start.classifier
    print("| fault | test accuracy % | weights moved in the fine-tuned layers % | frozen statistics moved % |")
    print("|---|---:|---:|---:|")
    for name, variant in VARIANTS.items():
        network = start.build()
        before = copy.deepcopy(network.state_dict())
        backbone, *head = splitting.split_model(network, [layer, start.classifier])
        _train(network, backbone, nn.Sequential(*head), start, data, settings.selected_study, configuration, variant, int(epochs),
               device, name)  # fmt: skip
        [logits] = extract_features(
            data["test_images"], (network,), compute=device, prepare=start.preprocess, label="testing"
        )
        accuracy = 100 * (logits.argmax(1) == data["test_labels"]).float().mean().item()
        tuned = head[0].state_dict(keep_vars=True)
        moved = _moved(tuned, network, before, parameters=True) if tuned else 0.0
        drifted = _moved(backbone.state_dict(keep_vars=True), network, before, parameters=False)
        print(f"| {name} | {accuracy:.2f} | {100 * moved:.0f} | {100 * drifted:.0f} |", flush=True)


def _train(
    network: nn.Module, backbone: nn.Module, head: nn.Sequential, start: SavedModel, data: dict[str, torch.Tensor],
    study: params.Study, configuration: params.Configuration, variant: tuple[bool, bool, bool], epochs: int,
    device: compute.Compute, name: str,
) -> None:  # fmt: skip
    classifier_only, renewed, training_mode = variant
    parameters = list((head[-1] if classifier_only else head).parameters())
    network.to(device.device)
    optimizer = _optimizer(configuration, parameters)
    head.train()
    backbone.train(training_mode)
    images, labels = data["training_images"][:IMAGES], data["training_labels"][:IMAGES]
    with progress(epochs * len(labels), name) as bar:
        for epoch in range(1, epochs + 1):
            for batch in image_order(study.seeds[0], epoch, len(labels)).split(study.batch_size):
                if renewed:
                    optimizer = _optimizer(configuration, parameters)
                with torch.set_grad_enabled(False):
                    activations = backbone(start.preprocess(images[batch].to(device.device)))
                loss = F.cross_entropy(head(activations), labels[batch].to(device.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update(len(batch))


def _optimizer(configuration: params.Configuration, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if configuration.optimizer == "Adam":
        return torch.optim.Adam(parameters, lr=configuration.lr)
    return torch.optim.SGD(parameters, lr=configuration.lr, momentum=configuration.momentum or 0,
                           weight_decay=configuration.weight_decay or 0)  # fmt: skip


def _moved(part: dict, network: nn.Module, before: dict[str, torch.Tensor], *, parameters: bool) -> float:
    """The fraction of the part's parameters, or of its batch-norm statistics, that are not what they were."""
    inside = {id(tensor) for tensor in part.values()}
    changed, total = 0, 0
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in inside and tensor.is_floating_point() and isinstance(tensor, nn.Parameter) == parameters:
            changed += int((tensor.detach().cpu() != before[name]).sum())
            total += tensor.numel()
    return changed / total


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
