"""Trainings with some of the labels: what they make, and that an interrupted one ends as if it had not been."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import headstart
from headstart import files
from headstart.console import UserError
from headstart.data import splits
from headstart.training import early_stopping, loading, trainings
from headstart.training.checkpoints import Checkpoint
from headstart.training.inputs import CachedInputs, RecomputedInputs
from headstart.training.loop import EpochMetrics
from stages import train

from .clones import NAMES, edit, tiny_clone
from .conftest import run

pytestmark = pytest.mark.pipeline
NAME, FROZEN, _ = NAMES
COUNTS = [60, 100]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The data and starts of a study that trains the whole network, with patience, with some of the labels too."""
    clone = tiny_clone(tmp_path_factory.mktemp("clone"))
    changes = {"finetune_from": "conv_stem", "seeds": [0, 7], "label_budgets": COUNTS, "n_epochs": 3, "patience": 1}
    edit(clone, lambda settings: settings["studies"]["quick"].update(changes))
    for stage in (["download"], ["prepare"], ["initialize", "true"], ["features", "true"]):
        run("python", "-m", f"stages.{stage[0]}", *stage[1:], cwd=clone)
    return clone


class Killed(BaseException):
    """No error that anything would catch."""


def read_outputs(name: str) -> dict[str, bytes]:
    folders = (Path(f"models/quick/{name}"), Path(f"predictions/quick/{name}"))
    return {str(path): path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def uninterrupted(clone) -> dict[str, dict[str, bytes]]:
    """By configuration: the outputs of an uninterrupted run."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        for name in (NAME, FROZEN):
            train.main(name)
            assert not list(Path("checkpoints").rglob("*.safetensors"))
            made[name] = read_outputs(name)
    return made


@pytest.mark.usefixtures("uninterrupted")
def test_every_number_of_labels_and_seed_has_its_training(clone):
    arrays = files.read_arrays(clone / f"predictions/quick/{NAME}/logits.safetensors").arrays
    n_test = arrays["logits"].shape[1]
    assert arrays["logits"].shape == (2, n_test, 10)
    assert arrays["budget_logits"].shape == (2, 2, n_test, 10)
    flat = np.concatenate([arrays["budget_logits"].reshape(4, -1), arrays["logits"].reshape(2, -1)])
    assert len(np.unique(flat, axis=0)) == 6
    epochs = files.read_csv(clone / f"models/quick/{NAME}/budget_epochs.csv")
    by_training: dict[tuple[str, str], list[float]] = {}
    for epoch in epochs:
        by_training.setdefault((epoch["label_budget"], epoch["seed"]), []).append(float(epoch["validation_loss"]))
    assert list(by_training) == [("60", "0"), ("60", "7"), ("100", "0"), ("100", "7")]
    for losses in by_training.values():
        assert len(losses) == 3 or early_stopping.should_stop(losses, 1)
        assert not any(early_stopping.should_stop(losses[:end], 1) for end in range(len(losses)))


@pytest.mark.usefixtures("uninterrupted")
def test_the_kept_network_is_that_of_the_best_epoch(clone, monkeypatch):
    """What it says of the validation images is what was recorded after that epoch."""
    monkeypatch.chdir(clone)
    rows = [row for row in files.read_csv(f"models/quick/{NAME}/epochs.csv") if row["seed"] == "0"]
    kept = rows[early_stopping.best_epoch([float(row["validation_loss"]) for row in rows]) - 1]
    images, labels, _ = splits.read_split("data/prepared/quick.safetensors", "validation")
    with torch.inference_mode():
        logits = headstart.load(Path(f"models/quick/{NAME}"))(torch.from_numpy(images))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).item()
    assert loss == pytest.approx(float(kept["validation_loss"]), rel=1e-4)


@pytest.mark.parametrize("name", [NAME, FROZEN])
@pytest.mark.parametrize(
    ("method", "at"),
    [("save", 2), ("save", 7), ("write_result", 1), ("write_result", 3)],
    ids=["in the whole set", "with some labels", "when the first is done", "when the third is done"],
)
def test_killed_and_started_again(uninterrupted, clone, monkeypatch, method, at, name):
    monkeypatch.chdir(clone)
    for interval in ("CHECKPOINT_INTERVAL_S", "CHECKPOINT_COST_RATIO"):  # a checkpoint after each epoch
        monkeypatch.setattr(trainings, interval, -1)
    calls = []
    original = getattr(Checkpoint, method)

    def killed_after(self, *arguments) -> None:
        original(self, *arguments)
        calls.append(self.path.name)
        if len(calls) == at:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, method, killed_after)
        with pytest.raises(Killed):
            train.main(name)
    left = {path.name for path in Path("checkpoints").rglob("*.safetensors")}
    assert calls[-1] in left
    trained: list[str] = []
    write_result = Checkpoint.write_result
    with monkeypatch.context() as patch:
        patch.setattr(
            Checkpoint,
            "write_result",
            lambda self, *given: trained.append(self.path.name) or write_result(self, *given),
        )
        train.main(name)
    if method == "write_result":
        assert set(trained).isdisjoint(calls)
    assert read_outputs(name) == uninterrupted[name]


@pytest.mark.parametrize("written", [(), (1,)], ids=str)
def test_a_resumed_training_is_the_same_whichever_epochs_had_a_checkpoint(uninterrupted, clone, monkeypatch, written):
    """How often one is written depends on time, so a kill can come any number of epochs after the last."""
    monkeypatch.chdir(clone)
    monkeypatch.setattr(trainings, "CHECKPOINT_COST_RATIO", -1)
    save, calls = Checkpoint.save, []

    def killed_in_the_third_epoch(self, *arguments) -> None:
        calls.append(self.path.name)
        if len(calls) in written:
            save(self, *arguments)
        if len(calls) == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed_in_the_third_epoch)
        with pytest.raises(Killed):
            train.main(NAME)
    assert calls[:2] == ["0.safetensors"] * 2
    assert [path.name for path in Path("checkpoints").rglob("*.safetensors")] == ["0.safetensors"] * bool(written)
    train.main(NAME)
    assert read_outputs(NAME) == uninterrupted[NAME]


def test_checkpoints_take_a_tenth_of_a_training_at_most(uninterrupted, clone, monkeypatch):
    """By a clock on which an epoch takes 2 seconds and a checkpoint 0.5: so after epochs 1, 4, 7 and 10."""
    monkeypatch.chdir(clone)
    clock, written = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(trainings, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def fit(*arguments, epochs, **options) -> Iterator[EpochMetrics]:
        for number in epochs:
            clock.now += 2.0
            yield EpochMetrics(number, 1.0, 0.5, 1.0 / number, 0.5, 2.0)

    def save(self, head, optimizer, epochs, best) -> None:
        clock.now += 0.5
        written.append(len(epochs))

    monkeypatch.setattr(trainings, "fit", fit)
    monkeypatch.setattr(Checkpoint, "save", save)
    before = Path("params.yaml").read_text(encoding="utf-8")
    edit(clone, lambda settings: settings["studies"]["quick"].update(n_epochs=12, seeds=[0], label_budgets=[]))
    train.main(FROZEN)
    Path("params.yaml").write_text(before, encoding="utf-8")
    assert written == [1, 4, 7, 10]


@pytest.mark.slow
def test_the_next_configuration_of_the_same_initialization_uses_the_same_activations(uninterrupted, clone, monkeypatch):
    monkeypatch.chdir(clone)
    before = Path("params.yaml").read_text(encoding="utf-8")
    other = "another-learning-rate"
    edit(
        clone,
        lambda settings: settings["configurations"].update({other: settings["configurations"][NAME] | {"lr": 0.003}}),
    )
    computed, cache_or_recompute = [], loading.cache_or_recompute

    def counted(*given, **options) -> CachedInputs | RecomputedInputs:
        computed.append(options["label"])
        return cache_or_recompute(*given, **options)

    monkeypatch.setattr(loading, "cache_or_recompute", counted)
    loading.clear_cache()
    train.main(other)
    alone = read_outputs(other)
    assert len(computed) == 3  # training, validation and test images; both seeds share them
    train.main(NAME)
    train.main(other)
    assert len(computed) == 3
    assert read_outputs(NAME) == uninterrupted[NAME]
    assert read_outputs(other) == alone
    monkeypatch.setenv("HEADSTART_MEMORY_GB", "1")  # so there may be another place for them
    train.main(NAME)
    assert len(computed) == 6
    train.main(FROZEN)  # which needs the memory
    assert not loading._cache
    Path("params.yaml").write_text(before, encoding="utf-8")
    assert read_outputs(NAME) == uninterrupted[NAME]


@pytest.mark.parametrize("name", [NAME, FROZEN])
def test_a_seed_gives_the_same_bytes_alone_and_among_others(uninterrupted, clone, monkeypatch, name):
    """With some of the labels, too: no training depends on which others run."""
    monkeypatch.chdir(clone)
    for path, content in uninterrupted[name].items():  # another test may have trained this configuration since
        Path(path).write_bytes(content)
    predictions, epochs = f"predictions/quick/{name}/logits.safetensors", f"models/quick/{name}/budget_epochs.csv"
    expected, rows = files.read_arrays(predictions).arrays, files.read_csv(epochs)
    before = Path("params.yaml").read_text(encoding="utf-8")
    edit(clone, lambda settings: settings["studies"]["quick"].update(seeds=[7]))
    train.main(name)
    Path("params.yaml").write_text(before, encoding="utf-8")
    logits = files.read_arrays(predictions).arrays
    assert logits["logits"].tobytes() == expected["logits"][1:].tobytes()
    assert logits["budget_logits"].tobytes() == expected["budget_logits"][:, 1:].tobytes()
    assert files.read_csv(epochs) == [row for row in rows if row["seed"] == "7"]
    model = f"models/quick/{name}/model-7.safetensors"
    assert Path(model).read_bytes() == uninterrupted[name][model]


def test_a_class_without_an_image_is_named_before_anything_is_trained(clone, monkeypatch):
    monkeypatch.chdir(clone)
    before = Path("params.yaml").read_text(encoding="utf-8")
    edit(clone, lambda settings: settings["studies"]["quick"].update(label_budgets=[9, 100]))
    with pytest.raises(UserError) as error:
        train.main(NAME)
    Path("params.yaml").write_text(before, encoding="utf-8")
    assert str(error.value).startswith("label budget 9 (8 training images) is too small: ")
    assert str(error.value).endswith(
        " would have no training image. Increase the smallest of label_budgets and probe_budgets."
    )
    assert not list(Path("checkpoints").rglob("*.safetensors"))
