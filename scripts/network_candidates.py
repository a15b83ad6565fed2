"""Parse the network names of a command, and check which of these networks this machine can run."""

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from headstart.console import UserError
from headstart.network import cost, initial_weights, models, splitting
from headstart.params import Network
from headstart.training.compute import Compute
from scripts import time_estimate

DEFAULT_NETWORKS = (
    "mobilenetv3_large_100", "tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2", "resnet18",
    "resnet50", "regnety_016", "convnext_tiny", "swin_tiny_patch4_window7_224", "vit_small_patch16_224",
    "vit_small_patch14_dinov2", "vit_base_patch16_clip_224",
)  # fmt: skip
MAX_MATCHES = 30  # networks that a pattern may match without a maximum
TIMED_CLASSES = 10  # more classes hardly take more time


class Candidate(NamedTuple):
    """A network that this machine can run."""

    network: Network
    seconds: float  # per image
    n_features: int


def parse(names: str) -> list[Network]:
    """Return the networks of a text such as ``resnet50 convnext_tiny=weights.pth``.

    Raises:
        UserError: a network does not exist, or the text has unbalanced quotes.
    """
    try:
        words = shlex.split(names)
    except ValueError:
        raise UserError(f"unbalanced quotes in NETWORKS. Close the quotes. Got {names!r}.") from None
    networks = []
    for word in words:
        name, _, weights = word.partition("=")
        _require_known(name)
        weights = os.path.expanduser(weights)
        networks.append(Network(model_name=name, weights=weights or initial_weights.DEFAULT))
    return networks


def match_timm(pattern: str, maximum: int | None) -> list[Network]:
    """Return the pretrained networks of timm whose names match ``pattern``, at most ``maximum``, in timm's order.

    A pattern with a dot also matches the tag of the weights, such as ``vit_small*.augreg*``.

    Raises:
        UserError: no network matches, or more than 30 networks match and ``maximum`` is None.
    """
    import timm

    names = timm.list_models(pattern, pretrained=True, include_tags="." in pattern)
    if not names:
        raise UserError(f"no pretrained network of timm matches FROM_TIMM. Change the pattern. Got {pattern!r}.")
    if maximum is None and len(names) > MAX_MATCHES:
        raise UserError(f"FROM_TIMM matches {len(names):,} networks. Set MAX_NETWORKS=N to compare the first N, or "
                        f"change the pattern. Got {pattern!r}.")  # fmt: skip
    names = names[:maximum]
    torchvision = models.list_torchvision_models()
    return [
        Network(model_name=f"timm/{name}" if name.lower() in torchvision else name, weights=initial_weights.DEFAULT)
        for name in names
    ]


def _require_known(name: str) -> None:
    import timm

    if name.lower() in models.list_torchvision_models() or timm.is_model(models.timm_name(name)):
        return
    if any(character in name for character in "*?["):
        raise UserError(f"NETWORKS takes names, not patterns. Use FROM_TIMM='{name}' for a pattern. Got {name!r}.")
    known = [*models.list_torchvision_models(), *timm.list_models()]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"Use {' or '.join(close)}." if close else "Use a name of torchvision or timm."
    raise UserError(f"unknown network in NETWORKS. {hint} Got {name!r}.")


def name_networks(networks: Iterable[Network]) -> dict[str, Network]:
    """Return the unique networks by names that are valid in params.yaml."""
    named: dict[str, Network] = {}
    for network in dict.fromkeys(networks):
        name = _key(network.model_name)
        if name in named:
            name = f"{name}-{_key(Path(network.weights).stem)}"
        while name in named:
            name += "-2"
        named[name] = network
    return named


def _key(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-_") or "network"


def check(network: Network, image_size: int, device: Compute) -> Candidate:
    """Load a network with its weights, which may be downloaded, and time it.

    Raises:
        UserError: it needs more memory than there is, its weights cannot be loaded, or it does not accept this image
            size or has no features before its classifier.
    """
    require_memory(network, image_size, device)
    weights = initial_weights.resolve_weights(network.model_name, network.weights, image_size)
    model = models.build(network.model_name, TIMED_CLASSES, image_size)
    initial_weights.load_weights(model, weights)
    splitting.split_backbone_head(model, models.classifier_name(model))  # as the stage does
    n_features = model.get_parameter(f"{models.classifier_name(model)}.weight").shape[1]
    return Candidate(network, time_estimate.measure_inference(model, image_size), n_features)


def require_memory(network: Network, image_size: int, device: Compute) -> None:
    """Raise UserError if the network does not accept this image size, or needs more memory than the device has left."""
    network_cost, free = cost.measure(network.model_name, image_size), device.free_memory()
    # The file of the weights is loaded too.
    needed = network_cost.weight_bytes + network_cost.memory(device.inference_batch_size)
    if needed > free:
        raise UserError(f"not enough memory: {network.model_name} needs {needed / 1e9:.1f} GB. Use a smaller network, "
                        f"or free some memory. Got {free / 1e9:.1f} GB.")  # fmt: skip


def check_all(
    networks: Mapping[str, Network], image_size: int, device: Compute
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Check each network, and print a line about it; return the candidates, and why the others are left out.

    Raises:
        UserError: no network is left.
    """
    candidates: dict[str, Candidate] = {}
    left_out: dict[str, str] = {}
    for index, (name, network) in enumerate(networks.items(), 1):
        try:
            candidates[name] = check(network, image_size, device)
            fact = f"{name}: {1_000 * candidates[name].seconds:.3g} ms per image"
        except Exception as error:  # a network of timm may fail in any way; the others can still be compared
            hint = f"To use a file, write {network.model_name}=PATH in NETWORKS."
            reason = str(error).replace(initial_weights.WEIGHTS_HINT, hint)
            left_out[name] = " ".join(reason.split()) or type(error).__name__
            fact = f"{name} is left out: {left_out[name]}"
        print(f"[{index}/{len(networks)}] {fact}", flush=True)
    if not candidates:
        reasons = [f"{name}: {reason}" for name, reason in left_out.items()]
        raise UserError("none of the networks can be compared. Choose others with NETWORKS=….", reasons)
    return candidates, left_out
