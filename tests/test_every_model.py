"""Networks of every kind, cut and trained for a step; docs/models.md, by tests/every_model.py, has them all."""

import pytest

from headstart.console import UserError
from headstart.network import models, splitting

from . import every_model
from .conftest import ROOT

# The smallest of each of torchvision's families, and some of timm's that are built in ways of their own.
NAMES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "maxvit_t", "mnasnet0_5",
    "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
    "timm/resnet18", "timm/legacy_seresnet18", "timm/ghostnet_050", "vit_tiny_patch16_224", "mixer_s16_224",
    "coat_tiny",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_network_in_parts_is_the_whole(name):
    found = every_model.examine(name)
    assert found.layer in found.places


def test_a_network_with_two_classifiers():
    """Trained by distillation, it takes the mean of the two."""
    model = models.build("levit_128s", 10)
    with pytest.raises(UserError, match=r"finetune_from 'head_dist\.linear' is where 2 tensors pass, and one must: "):
        splitting.split_backbone_head(model, models.classifier_name(model))


def test_a_network_that_cannot_be_taken_apart():
    """Its code asks for the size of an image, which the graph does not know."""
    with pytest.raises(UserError, match=r"this model cannot be taken apart \(.* control flow\): name another one"):
        splitting.split_backbone_head(models.build("crossvit_9_240", 10), "blocks.1")


def test_a_network_without_a_linear_classifier():
    with pytest.raises(UserError, match="this model has no linear classifier that could be trained: name another one"):
        models.build("squeezenet1_0", 10)


def test_the_docs_have_every_model_of_torchvision():
    docs = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in docs for name in models.torchvision_names())
