"""A study with training recipes, label budgets and a pool of images, from the download to the report."""

import sys
from pathlib import Path

import numpy as np
import pytest

from headstart import files, params
from headstart.data import splits
from headstart.data.label_subsets import label_subsets

from .clones import edit, tiny_clone
from .conftest import run

pytestmark = pytest.mark.pipeline
RECIPE = {"optimizer": "AdamW", "lr": 0.001, "schedule": "cosine", "warmup_epochs": 1, "label_smoothing": 0.1}
CONFIGURATIONS = {
    "pretrained-frozen": {"pretrained": True, "finetuning": False, "augmentation": "trivial", **RECIPE},
    "pretrained-finetuned": {"pretrained": True, "finetuning": True, "augmentation": "crop-flip", **RECIPE},
    "random-finetuned": {"pretrained": False, "finetuning": True, "finetune_from": "all",
                         "augmentation": "crop-flip", "betas": [0.9, 0.95], **RECIPE},
    "random-balanced": {"pretrained": False, "finetuning": True, "optimizer": "RMSprop", "lr": 0.0001,
                        "schedule": "one-cycle", "class_weights": "balanced"},
}  # fmt: skip


def change(settings) -> None:
    settings["studies"]["quick"] |= {
        "cache_activations": False, "seeds": [0, 3], "label_budgets": [60], "probe_budgets": [60], "n_epochs": 2,
        "pool_images": 400,
    }  # fmt: skip
    settings["configurations"] = CONFIGURATIONS


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    clone = tiny_clone(tmp_path_factory.mktemp("recipes"))
    edit(clone, change)
    run(sys.executable, "-m", "stages", cwd=clone)
    return clone


def test_each_seed_draws_its_own_images_from_the_pool(clone, monkeypatch):
    monkeypatch.chdir(clone)
    study, prepared = params.read().selected_study, Path("data/prepared/quick.safetensors")
    assert [len(splits.read_labels(prepared, split)[0]) for split in ("training", "validation")] == [346, 54]
    subsets = label_subsets(prepared, study, (60, study.full_budget))
    for seed in study.seeds:
        large, small = subsets[seed, study.full_budget], subsets[seed, 60]
        assert (len(large.training), len(large.validation)) == (128, 20)
        assert set(small.training) < set(large.training)
    shared = set(subsets[0, study.full_budget].training) & set(subsets[3, study.full_budget].training)
    assert 0 < len(shared) < 128


def test_every_training_ends_with_other_weights(clone):
    for name in CONFIGURATIONS:
        models = [files.read_tensors(clone / f"models/quick/{name}/model-{seed}.safetensors")[0] for seed in (0, 3)]
        classifier = next(key for key in models[0] if key.endswith("classifier.weight"))
        assert not np.array_equal(models[0][classifier], models[1][classifier])
        arrays = files.read_arrays(clone / f"predictions/quick/{name}/logits.safetensors").arrays
        assert arrays["budget_logits"].shape == (1, *arrays["logits"].shape)
        assert len(files.read_csv(clone / f"models/quick/{name}/epochs.csv")) == 2 * 2


def test_the_report_shows_the_recipes(clone):
    page = (clone / "report/quick/index.html").read_text(encoding="utf-8")
    assert '<h2 id="recipes">Training recipes</h2>' in page
    assert "betas (0.9, 0.95)" in page
    for name in ("learning_rates", "augmentation_crop-flip", "augmentation_trivial"):
        assert (clone / f"report/quick/figures/{name}.svg").is_file()
    assert "probe of pixels" in page
