"""`finetune_from` of a study and of a configuration: a layer name, `auto` or `all`."""

import dataclasses

import pytest
import torch
import yaml

from headstart import files, params
from headstart.data.fashion_mnist import CLASSES
from headstart.network import initial_weights, models
from headstart.results import comparison
from headstart.training import compute, loading
from headstart.training.inputs import CachedInputs
from stages import features, paths
from stages.collect import _normalize_layers

from .conftest import ROOT

SETTINGS = params.read(ROOT / "params.yaml")
NAME = "random-finetuned-adam"


def settings_with(study_layer: str, overrides: dict[str, str]) -> params.Params:
    """Return the study `quick` with ``study_layer`` as finetune_from; ``overrides`` maps configurations to theirs."""
    study = dataclasses.replace(SETTINGS.selected_study, finetune_from=study_layer)
    changed = {
        name: dataclasses.replace(SETTINGS.configurations[name], finetune_from=layer)
        for name, layer in overrides.items()
    }
    return dataclasses.replace(
        SETTINGS, studies=SETTINGS.studies | {"quick": study}, configurations=SETTINGS.configurations | changed
    )


@pytest.mark.parametrize("study", SETTINGS.studies)
@pytest.mark.parametrize("layer", ["blocks.5", "layer4", "conv_stem", "auto", "all"])
def test_finetune_from_of_a_configuration_is_independent_of_the_study(study, layer):
    settings = settings_with("blocks.5", {NAME: layer})
    assert params.for_study(settings, study).configurations[NAME].finetune_from == layer


@pytest.fixture(scope="module")
def network():
    return models.build(models.LITE0_MODEL, len(CLASSES), 64)


@pytest.mark.parametrize(
    ("study_layer", "layer", "expected", "is_scratch"),
    [
        ("blocks.5", None, None, False),
        ("blocks.5", "blocks.5", None, False),
        ("blocks.5", "blocks.5.0", None, False),  # another name of the same layer
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
def test_configurations_are_paired_by_the_layers_that_they_train(network, study_layer, layer, expected, is_scratch):
    settings = settings_with(study_layer, {NAME: layer} if layer else {})
    configurations, scratch = _normalize_layers(settings, network)
    assert configurations[NAME].finetune_from == expected
    assert (NAME in scratch) == is_scratch
    assert not any(SETTINGS.configurations[name].pretrained or "frozen" in name for name in scratch)
    pair = ("pretrained-finetuned-adam", NAME)
    assert (pair in comparison.pairs(configurations, "pretrained")) == (expected is None)


def test_configurations_with_different_names_of_the_same_layer_are_paired(network):
    settings = settings_with("blocks.5", {NAME: "conv_stem", "random-finetuned-sgd": "all"})
    configurations, scratch = _normalize_layers(settings, network)
    assert scratch == [NAME, "random-finetuned-sgd"]
    assert (NAME, "random-finetuned-sgd") in comparison.pairs(configurations, "optimizer")


@pytest.mark.parametrize(
    ("study_layer", "layer", "is_cached"),
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
def test_cached_activations_are_used_only_for_the_layer_of_the_study(
    training_set, monkeypatch, tmp_path, study_layer, layer, is_cached
):
    """The head's inputs are the backbone's outputs, cached or computed. With `all` only features are cached."""
    monkeypatch.chdir(tmp_path)
    settings = settings_with(study_layer, {NAME: layer} if layer else {})
    content = dataclasses.asdict(settings) | {"finetuning_recipe": settings.finetuning_recipe.settings}
    content["configurations"] = {name: value.settings for name, value in settings.configurations.items()}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    images, labels = (tensor[:20] for tensor in training_set)
    tensors = {f"{split}_{what}": tensor.clone() for split in ("training", "validation", "test")
               for what, tensor in (("images", images), ("labels", labels))}  # fmt: skip
    files.write_tensors("data/prepared/quick.safetensors", tensors, {"classes": CLASSES, "skipped_files": {}})
    initial = initial_weights.build_initial_model(
        settings.selected_study, seed=0, images=images, classes=CLASSES, prepared_size=28
    )
    initial.write("data/initial/quick/pretrained-false/seed-0.safetensors")
    features.main("false")
    cached = files.read_tensors("data/features/quick/pretrained-false/seed-0.safetensors").tensors
    assert ("test_activations" in cached) == (study_layer != "all")
    configuration, device = settings.configurations[NAME], compute.configure()
    _, backbone, _, _ = loading.split_for_training(configuration, settings.selected_study, initial)
    data = loading.TrainingData(configuration, settings.selected_study, initial, backbone, loading.InputFiles(
        paths.prepared_file(settings), paths.initial_file(settings, False, 0), paths.features_file(settings, False, 0)
    ), device)  # fmt: skip
    examples = data.test
    assert isinstance(examples.inputs, CachedInputs) == is_cached
    head_inputs = torch.cat(list(examples.inputs.batches(torch.arange(20), 20)))
    with torch.inference_mode():
        expected = backbone(initial.preprocess(images))
    torch.testing.assert_close(head_inputs, expected)
