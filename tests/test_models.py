import pytest
import torch

from headstart import files
from headstart.console import UserError
from headstart.network import models, splitting

# One model per family of builders; test_every_model.py has more.
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
def test_head_of_backbone_equals_the_network_at_every_split_point(name, layer):
    torch.manual_seed(0)
    model = models.build(name, 10)
    randomize_statistics(model)
    images = torch.randn(2, 3, 64, 64)
    split_points = splitting.valid_split_points(model)
    assert layer in split_points
    with torch.inference_mode():
        logits = model(images)
        assert logits.shape == (2, 10)
        assert logits.std() > 0
        for split_point in split_points:
            backbone, head = splitting.split_backbone_head(model, split_point)
            assert torch.equal(head(backbone(images)), logits), split_point


def randomize_statistics(model: torch.nn.Module) -> None:
    """Randomize batch-norm statistics: with the initial ones a missing batch norm would go unnoticed."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize(("name", "layer"), FAMILIES.items())
def test_backbone_and_head_have_every_parameter_once(name, layer):
    model = models.build(name, 10)
    backbone, head = splitting.split_backbone_head(model, layer)
    parts = [*backbone.parameters(), *head.parameters()]
    assert len(parts) == len({id(parameter) for parameter in parts})
    assert {id(parameter) for parameter in parts} == {id(parameter) for parameter in model.parameters()}


def test_an_unknown_model_gets_the_choices():
    with pytest.raises(UserError) as error:
        models.build("vit_b_17", 10)
    choices = f"timm's models, or one of torchvision's: {', '.join(models.list_torchvision_models())}"
    assert str(error.value) == f"unknown model_name: 'vit_b_17'. Choose one of {choices}."


def test_a_point_that_several_tensors_cross_is_rejected():
    """Between the two convolutions of a residual block, the skip connection crosses too."""
    model = models.build("resnet18", 10)
    with pytest.raises(UserError) as error:
        splitting.split_backbone_head(model, "layer4.1.conv2")
    assert str(error.value) == (
        "cannot split the model at 'layer4.1.conv2': 2 tensors cross this point, but exactly one must. Nearest valid "
        "split point: 'layer4.1.conv1'. Choose one of bn1, relu, maxpool, layer1, layer1.1, layer2, layer2.1, layer3, "
        "layer3.1, layer4, layer4.1, avgpool, fc."
    )
    backbone, head = splitting.split_backbone_head(model, "layer4.1.conv1")
    images = torch.zeros(2, 3, 64, 64)
    assert torch.equal(head(backbone(images)), model(images))


def test_auto_is_all_if_no_split_point_leaves_half_of_the_parameters():
    """Several tensors cross between its stages, so the only split points are the last norm and the classifier."""
    model = models.build("mvitv2_tiny", 10)
    assert splitting.resolve_layer(model, splitting.AUTO) == splitting.ALL
    assert list(splitting.split_backbone_head(model, splitting.AUTO)[0].parameters()) == []


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "googlenet", "mvitv2_tiny", "timm/legacy_seresnet18"])
def test_all_makes_the_whole_network_the_head(name):
    torch.manual_seed(0)
    model = models.build(name, 10, 64 if name == "vit_b_32" else None)
    backbone, pooled, classifier = splitting.split_model(model, [splitting.ALL, models.classifier_name(model)])
    assert not splitting.has_parameters(backbone)
    size = 224 if name == "mvitv2_tiny" else 64
    images = torch.randn(2, 3, size, size)
    assert torch.equal(backbone(images), images)
    with torch.inference_mode():
        assert torch.equal(classifier(pooled(images)), model(images))
    _, head = splitting.split_backbone_head(model, splitting.ALL)
    trained = {id(parameter) for parameter in head.parameters()}
    used = {id(parameter) for name, parameter in model.named_parameters() if not name.startswith("aux")}
    assert trained == used


def test_a_network_that_branches_on_its_mode_is_saved_once_and_loaded(tmp_path):
    """Its head has one graph per mode, and both share their layers."""
    torch.manual_seed(0)
    heads = [splitting.split_backbone_head(models.build("timm/legacy_seresnet18", 10), "layer4")[1] for _ in range(2)]
    assert type(heads[0]).__name__ == "_TrainEvalModule"
    files.write_tensors(tmp_path / "head.safetensors", heads[0].state_dict())
    heads[1].load_state_dict(files.read_tensors(tmp_path / "head.safetensors").tensors)
    inputs = torch.randn(2, 256, 4, 4)
    for training in (False, True):
        with torch.inference_mode():
            torch.manual_seed(1)
            expected = heads[0].train(training)(inputs)
            torch.manual_seed(1)
            assert torch.equal(heads[1].train(training)(inputs), expected)


def test_an_unknown_layer_gets_the_choices():
    with pytest.raises(UserError) as error:
        splitting.split_backbone_head(models.build("resnet18", 10), "layer5")
    assert str(error.value) == (
        "unknown layer: 'layer5'. Choose one of bn1, relu, maxpool, layer1, layer1.1, layer2, layer2.1, layer3, "
        "layer3.1, layer4, layer4.1, avgpool, fc, or all to train the whole network."
    )


def test_an_image_size_at_which_feature_maps_vanish_is_rejected():
    with pytest.raises(UserError, match=r"^image_size 16 does not fit this model \(.*\)\. Set image_size to 224\.$"):
        models.check_image_size(models.build("densenet121", 10), 16)
    models.check_image_size(models.build("densenet121", 10), 32)


def test_another_image_size_than_the_fixed_one_is_rejected():
    for name, message in (
        ("vit_b_16", r"image_size 64 does not fit this model \(Wrong image height! .*\)\. Set image_size to 224\."),
        ("maxvit_t", r"image_size 64 does not fit this model \(.*\)\. Set image_size to 224\."),
        ("timm/inception_next_tiny", None),
        ("timm/coatnet_0_rw_224", r"image_size 64 does not fit this model \(.*\)\. Set image_size to 224\."),
    ):
        model = models.build(name, 10)
        if message is None:
            models.check_image_size(model, 64)
        else:
            with pytest.raises(UserError, match=message):
                models.check_image_size(model, 64)


def test_networks_with_a_fixed_image_size_are_built_for_the_configured_one():
    for name in ("vit_b_32", "vit_tiny_patch16_224", "mixer_s16_224"):
        models.check_image_size(models.build(name, 10, 64), 64)
    with pytest.raises(
        UserError, match=r"image_size 65 does not fit this model \(Input shape indivisible by patch.*\)\. Change"
    ):
        models.build("vit_b_32", 10, 65)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet50", "layer4.0"),
        ("tf_efficientnet_lite0", "blocks.5.2"),
        ("vit_b_32", "encoder.layers.encoder_layer_5"),
        ("convnext_tiny", "features.7.0"),
        ("vgg11", "classifier.0"),
        ("alexnet", "classifier.1"),
    ],
)
def test_auto_is_the_later_half_of_the_parameters(name, layer):
    model = models.build(name, 10)
    backbone, head = splitting.split_backbone_head(model, splitting.AUTO)
    expected = splitting.split_backbone_head(model, layer)
    assert [(part.code, len(list(part.parameters()))) for part in (backbone, head)] == [
        (part.code, len(list(part.parameters()))) for part in expected
    ]
    n_classifier = n_parameters(model.get_submodule(models.classifier_name(model)))
    assert 2 * (n_parameters(head) - n_classifier) >= n_parameters(model) - n_classifier


def n_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
