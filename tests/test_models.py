import pytest
import torch

from headstart.console import UserError
from headstart.network import models

# One of each family that is built by itself; the whole list is in test_every_model.py.
FAMILIES = {
    "resnet18": "layer4",
    "ResNet50": "layer4",
    "resnext50_32x4d": "layer4",
    "wide_resnet50_2": "layer4",
    "mobilenet_v2": "features.17",
    "densenet121": "features.denseblock4",
    "efficientnet_b0": "features.7",
    "efficientnet_v2_s": "features.6",
    "tf_efficientnet_lite0": "blocks.5",
}


@pytest.mark.parametrize(("name", "layer"), FAMILIES.items())
def test_head_after_trunk_is_the_whole_network_at_every_cut(name, layer):
    torch.manual_seed(0)
    model = models.build(name, 10)
    randomise_statistics(model)
    images = torch.randn(2, 3, 64, 64)
    places = models.places(model)
    assert layer in places
    with torch.inference_mode():
        whole = model(images)
        assert whole.shape == (2, 10)
        assert whole.std() > 0
        for place in places:
            trunk, head = models.cut(model, place)
            assert torch.equal(head(trunk(images)), whole), place


def randomise_statistics(model: torch.nn.Module) -> None:
    """Batch norm's initial statistics would make it nearly the identity, and a lost one pass unnoticed."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize(("name", "layer"), FAMILIES.items())
def test_the_cut_parts_hold_every_parameter_once(name, layer):
    model = models.build(name, 10)
    trunk, head = models.cut(model, layer)
    parts = [*trunk.parameters(), *head.parameters()]
    assert len(parts) == len({id(parameter) for parameter in parts})
    assert {id(parameter) for parameter in parts} == {id(parameter) for parameter in model.parameters()}


def test_an_unknown_model_gets_the_list():
    with pytest.raises(UserError) as error:
        models.build("vit_b_17", 10)
    known = f"it must be one of timm's models, or of torchvision's: {', '.join(models.names())}"
    assert str(error.value) == f"model_name 'vit_b_17' is unknown: {known}"


def test_where_several_tensors_pass():
    """Inside a residual block, between its two convolutions, the block's input passes as well."""
    model = models.build("resnet18", 10)
    with pytest.raises(UserError) as error:
        models.cut(model, "layer4.1.conv2")
    assert str(error.value) == (
        "finetune_from 'layer4.1.conv2' is where 2 tensors pass, and one must; this model can be cut at bn1, relu, "
        "maxpool, layer1, layer1.1, layer2, layer2.1, layer3, layer3.1, layer4, layer4.1, avgpool, fc"
    )
    trunk, head = models.cut(model, "layer4.1.conv1")
    images = torch.zeros(2, 3, 64, 64)
    assert torch.equal(head(trunk(images)), model(images))


def test_an_unknown_layer_gets_the_list():
    with pytest.raises(UserError) as error:
        models.cut(models.build("resnet18", 10), "layer5")
    assert str(error.value) == (
        "finetune_from 'layer5' is no layer of this model; it can be cut at "
        "bn1, relu, maxpool, layer1, layer1.1, layer2, layer2.1, layer3, layer3.1, layer4, layer4.1, avgpool, fc"
    )


def test_an_image_that_vanishes():
    with pytest.raises(UserError, match=r"image_size 16 does not fit this model .*: change it"):
        models.check_image_size(models.build("densenet121", 10), 16)
    models.check_image_size(models.build("densenet121", 10), 32)


def test_an_image_of_another_size_than_the_only_one():
    with pytest.raises(UserError, match=r"image_size 64 does not fit this model \(Wrong image height! .*: change it"):
        models.check_image_size(models.build("vit_b_16", 10), 64)
