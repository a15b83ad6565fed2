import pytest
import torch

from headstart import files
from headstart.console import UserError
from headstart.network import models, splitting

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
    places = splitting.valid_split_points(model)
    assert layer in places
    with torch.inference_mode():
        whole = model(images)
        assert whole.shape == (2, 10)
        assert whole.std() > 0
        for place in places:
            backbone, head = splitting.split_backbone_head(model, place)
            assert torch.equal(head(backbone(images)), whole), place


def randomise_statistics(model: torch.nn.Module) -> None:
    """Batch norm's initial statistics would make it nearly the identity, and a lost one pass unnoticed."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


@pytest.mark.parametrize(("name", "layer"), FAMILIES.items())
def test_the_cut_parts_hold_every_parameter_once(name, layer):
    model = models.build(name, 10)
    backbone, head = splitting.split_backbone_head(model, layer)
    parts = [*backbone.parameters(), *head.parameters()]
    assert len(parts) == len({id(parameter) for parameter in parts})
    assert {id(parameter) for parameter in parts} == {id(parameter) for parameter in model.parameters()}


def test_an_unknown_model_gets_the_list():
    with pytest.raises(UserError) as error:
        models.build("vit_b_17", 10)
    known = f"it must be one of timm's models, or of torchvision's: {', '.join(models.torchvision_names())}"
    assert str(error.value) == f"model_name 'vit_b_17' is unknown: {known}"


def test_where_several_tensors_pass():
    """Inside a residual block, between its two convolutions, the block's input passes as well."""
    model = models.build("resnet18", 10)
    with pytest.raises(UserError) as error:
        splitting.split_backbone_head(model, "layer4.1.conv2")
    assert str(error.value) == (
        "finetune_from 'layer4.1.conv2' is where 2 tensors pass, and one must: layer4.1.conv1 is the nearest where it "
        "does; this model can be cut at bn1, relu, maxpool, layer1, layer1.1, layer2, layer2.1, layer3, layer3.1, "
        "layer4, layer4.1, avgpool, fc"
    )
    backbone, head = splitting.split_backbone_head(model, "layer4.1.conv1")
    images = torch.zeros(2, 3, 64, 64)
    assert torch.equal(head(backbone(images)), model(images))


def test_no_place_for_half_of_the_parameters():
    """Its stages pass several tensors on, so only its last norm and its classifier can be trained alone, or all."""
    model = models.build("mvitv2_tiny", 10)
    assert splitting.resolve_layer(model, splitting.AUTO) == splitting.ALL
    assert list(splitting.split_backbone_head(model, splitting.AUTO)[0].parameters()) == []


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "googlenet", "mvitv2_tiny", "timm/legacy_seresnet18"])
def test_all_is_the_whole_network(name):
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


def test_a_network_that_asks_for_its_mode_is_saved_once_and_loaded(tmp_path):
    """Its head has a part for each mode, and both have the same layers."""
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


def test_an_unknown_layer_gets_the_list():
    with pytest.raises(UserError) as error:
        splitting.split_backbone_head(models.build("resnet18", 10), "layer5")
    assert str(error.value) == (
        "finetune_from 'layer5' is no layer of this model; it can be cut at "
        "bn1, relu, maxpool, layer1, layer1.1, layer2, layer2.1, layer3, layer3.1, layer4, layer4.1, avgpool, fc; with "
        "all the whole network is trained"
    )


def test_an_image_that_vanishes():
    with pytest.raises(UserError, match=r"image_size 16 does not fit this model .*: it takes 224"):
        models.check_image_size(models.build("densenet121", 10), 16)
    models.check_image_size(models.build("densenet121", 10), 32)


def test_an_image_of_another_size_than_the_only_one():
    for name, message in (
        ("vit_b_16", r"image_size 64 does not fit this model \(Wrong image height! .*: it takes 224"),
        ("maxvit_t", r"image_size 64 does not fit this model \(.*\): it takes 224"),
        ("timm/inception_next_tiny", None),
        ("timm/coatnet_0_rw_224", r"image_size 64 does not fit this model \(.*\): it takes 224"),
    ):
        model = models.build(name, 10)
        if message is None:
            models.check_image_size(model, 64)
        else:
            with pytest.raises(UserError, match=message):
                models.check_image_size(model, 64)


def test_a_network_that_is_made_for_one_size_is_made_for_the_study_s():
    for name in ("vit_b_32", "vit_tiny_patch16_224", "mixer_s16_224"):
        models.check_image_size(models.build(name, 10, 64), 64)
    with pytest.raises(UserError, match=r"image_size 65 does not fit this model \(Input shape indivisible by patch"):
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
def test_the_later_half_of_the_parameters(name, layer):
    model = models.build(name, 10)
    backbone, head = splitting.split_backbone_head(model, splitting.AUTO)
    same = splitting.split_backbone_head(model, layer)
    assert [(each.code, len(list(each.parameters()))) for each in (backbone, head)] == [
        (each.code, len(list(each.parameters()))) for each in same
    ]
    classifier = models.classifier_name(model)
    of_classifier = sum(parameter.numel() for parameter in model.get_submodule(classifier).parameters())
    later = sum(parameter.numel() for parameter in head.parameters()) - of_classifier
    assert 2 * later >= sum(parameter.numel() for parameter in model.parameters()) - of_classifier
