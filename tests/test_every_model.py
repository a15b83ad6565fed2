"""Split networks of every kind and train them for one step; tests/every_model.py checks all of docs/models.md."""

import pytest

from headstart.console import UserError
from headstart.network import models, splitting

from . import every_model
from .conftest import ROOT

# The smallest of each of torchvision's families, and some of timm's with unusual structures.
NAMES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
    "timm/resnet18", "timm/legacy_seresnet18", "timm/ghostnet_050", "vit_tiny_patch16_224", "mixer_s16_224",
    "coat_tiny",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_compute_what_the_network_computes(name):
    model = every_model.check_model(name)
    assert model.layer in model.split_points


def test_a_network_with_two_classifiers_cannot_be_split_before_one():
    """A network that was trained by distillation: its output is the mean of the two."""
    model = models.build("levit_128s", 10)
    with pytest.raises(UserError, match=r"^cannot split the model at 'head_dist\.linear': 2 tensors cross this point"):
        splitting.split_backbone_head(model, models.classifier_name(model))


def test_a_network_that_torch_fx_cannot_trace_is_rejected():
    """Its code branches on the size of an image, which is unknown during tracing."""
    with pytest.raises(
        UserError, match=r"^torch\.fx cannot trace this model \(.* control flow\)\. Choose another model_name\.$"
    ):
        splitting.split_backbone_head(models.build("crossvit_9_240", 10), "blocks.1")


def test_a_network_without_a_linear_classifier_is_rejected():
    with pytest.raises(
        UserError, match=r"^unsupported model: it has no nn\.Linear classifier\. Choose another model_name\.$"
    ):
        models.build("squeezenet1_0", 10)


def test_docs_list_every_torchvision_model():
    docs = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in docs for name in models.list_torchvision_models())
