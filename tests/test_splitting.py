"""`finetune_from` of a study and of a configuration: a layer, `auto` or `all`."""

import dataclasses

import pytest
import torch
import yaml

from headstart import files, params
from headstart.data.fashion_mnist import CLASSES
from headstart.network import initial_weights, models
from headstart.results import comparison
from headstart.training import compute
from headstart.training.inference import CachedInputs
from stages import features, inputs
from stages.collect import _normalize_layers

from .conftest import ROOT

SETTINGS = params.read(ROOT / "params.yaml")
NAME = "random-finetuned-adam"


def settings_with(studys: str, own: dict[str, str]) -> params.Params:
    """The study `quick`, fine-tuned from the layer ``studys``, with the layers ``own`` of some configurations."""
    study = dataclasses.replace(SETTINGS.selected_study, finetune_from=studys)
    changed = {
        name: dataclasses.replace(SETTINGS.configurations[name], finetune_from=layer) for name, layer in own.items()
    }
    return dataclasses.replace(
        SETTINGS, studies=SETTINGS.studies | {"quick": study}, configurations=SETTINGS.configurations | changed
    )


@pytest.mark.parametrize("study", SETTINGS.studies)
@pytest.mark.parametrize("layer", ["blocks.5", "layer4", "conv_stem", "auto", "all"])
def test_a_configuration_may_name_any_layer_whatever_the_study_is(study, layer):
    settings = settings_with("blocks.5", {NAME: layer})
    assert params.for_study(settings, study).configurations[NAME].finetune_from == layer


@pytest.fixture(scope="module")
def network():
    return models.build(models.LITE0_MODEL, len(CLASSES), 64)


@pytest.mark.parametrize(
    ("studys", "own", "expected", "is_scratch"),
    [
        ("blocks.5", None, None, False),
        ("blocks.5", "blocks.5", None, False),
        ("blocks.5", "blocks.5.0", None, False),  # the same layer
        ("blocks.5", "blocks.6", "blocks.6", False),
        ("blocks.5.2", "auto", None, False),
        ("auto", "blocks.5.2", None, False),
        ("auto", "blocks.5", "blocks.5", False),
        ("blocks.5", "auto", "auto", False),
        ("blocks.5", "all", "all", True),
        ("blocks.5", "conv_stem", "all", True),
        ("conv_stem", "all", None, True),
        ("all", "conv_stem", None, True),
        ("all", None, None, True),
        ("all", "auto", "auto", False),
    ],
)
def test_configurations_are_compared_by_the_layers_that_they_train(network, studys, own, expected, is_scratch):
    settings = settings_with(studys, {NAME: own} if own else {})
    configurations, scratch = _normalize_layers(settings, network)
    assert configurations[NAME].finetune_from == expected
    assert (NAME in scratch) == is_scratch
    assert not any(SETTINGS.configurations[name].pretrained or "frozen" in name for name in scratch)
    pair = ("pretrained-finetuned-adam", NAME)
    assert (pair in comparison.pairs(configurations, "pretrained")) == (expected is None)


def test_two_configurations_with_the_same_layers_by_different_names(network):
    settings = settings_with("blocks.5", {NAME: "conv_stem", "random-finetuned-sgd": "all"})
    configurations, scratch = _normalize_layers(settings, network)
    assert scratch == [NAME, "random-finetuned-sgd"]
    assert (NAME, "random-finetuned-sgd") in comparison.pairs(configurations, "optimizer")


@pytest.mark.parametrize(
    ("studys", "own", "is_stored"),
    [
        ("blocks.5", None, True),
        ("blocks.5", "blocks.5", True),
        ("blocks.5", "blocks.6", False),
        ("auto", "blocks.5.2", True),
        ("blocks.5.2", "auto", True),
        ("blocks.5", "auto", False),
        ("blocks.5", "all", False),
        ("all", None, False),
        ("all", "all", False),
        ("all", "blocks.5", False),
    ],
)
def test_what_the_stage_features_stores_is_used_and_nothing_else_is(
    training_set, monkeypatch, tmp_path, studys, own, is_stored
):
    """The head's inputs are the backbone's outputs, read or computed; with `all` nothing but features is stored."""
    monkeypatch.chdir(tmp_path)
    settings = settings_with(studys, {NAME: own} if own else {})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings)), encoding="utf-8")
    images, labels = (tensor[:20] for tensor in training_set)
    tensors = {f"{split}_{what}": tensor.clone() for split in ("training", "validation", "test")
               for what, tensor in (("images", images), ("labels", labels))}  # fmt: skip
    files.write_tensors("data/prepared/quick.safetensors", tensors, {"classes": CLASSES, "skipped_files": {}})
    start = initial_weights.build_initial_model(
        settings.selected_study, seed=0, images=images, classes=CLASSES, prepared_size=28
    )
    start.write("data/initial/quick/pretrained-false/seed-0.safetensors")
    features.main("false")
    stored = "data/features/quick/pretrained-false/seed-0.safetensors"
    kept = files.read_tensors(stored).tensors
    assert ("test_activations" in kept) == (studys != "all")
    configuration, device = settings.configurations[NAME], compute.configure()
    _, backbone, _, _ = inputs.trainable(configuration, settings, start)
    examples = inputs.examples("test", configuration, settings, start, backbone, device, seed=0, keep=False)
    assert isinstance(examples.inputs, CachedInputs) == is_stored
    found = torch.cat(list(examples.inputs.batches(torch.arange(20), 20)))
    with torch.inference_mode():
        expected = backbone(start.preprocess(images))
    torch.testing.assert_close(found, expected)
