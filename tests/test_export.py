"""`python -m headstart.export` writes networks that other libraries read."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import PIL.ImageOps
import pytest
import timm
import torch
import torchvision
import yaml
from PIL import Image
from torch import nn

import headstart
from headstart import export, files, model_card
from headstart.console import MachineError, UserError
from headstart.network import models
from headstart.network.saved_model import SavedModel
from headstart.training.compute import configure

from .conftest import ROOT
from .test_use import FILES, SIZE, write_model

TIMM = "test_efficientnet"


@pytest.fixture
def model(tmp_path) -> Path:
    write_model(tmp_path / "models/stamps/adam", SIZE)
    return tmp_path / "models/stamps/adam"


@pytest.fixture
def timm_model(tmp_path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "models/stamps/timm"
    SavedModel(
        state=models.build(TIMM, 3).state_dict(), model_name=TIMM, prepared_size=28, image_size=SIZE,
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation="bicubic", classes=("a", "b", "c d"),
        classifier="classifier", weights="random", sha256="",
    ).write(folder / "model-0.safetensors")  # fmt: skip
    return folder


def images(side: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 3, side, side), dtype=np.uint8))


def test_onnx_has_the_logits_and_the_metadata(timm_model, tmp_path):
    configure("cpu")  # its settings must not disturb the exporter
    export.main(str(timm_model), "--format", "onnx", "--output", str(tmp_path / "out"))
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    metadata = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    assert metadata["classes"] == ["a", "b", "c d"]
    assert metadata["side"] == 28
    batch = images(28)
    network = headstart.load(timm_model)
    for n in (1, 5):  # any batch size
        logits = session.run(["logits"], {"images": batch[:n].numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(logits), network(batch[:n]).detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("prepared_size", [20, 48, 96])
def test_the_exported_network_resizes_as_the_trained_one(tmp_path, prepared_size, interpolation):
    write_model(tmp_path, prepared_size, interpolation=interpolation)
    saved = SavedModel.read(tmp_path / "model-0.safetensors")
    exported = export.ExportedNetwork(saved)
    exported.network = nn.Identity()
    batch = images(prepared_size)
    torch.testing.assert_close(exported(batch), saved.preprocess(batch), rtol=0, atol=1e-5)


def test_a_program_without_pytorch_classifies_files_as_predict_does(model, tmp_path):
    paths = []
    for name, write in FILES.items():
        if name != "16 bits.png":  # Pillow alone clips these
            paths.append(write(tmp_path / name))
    export.main(str(model), "--format", "onnx", "--output", str(tmp_path / "out"))
    (tmp_path / "bad.jpg").write_text("no image", encoding="utf-8")
    command = [sys.executable, ROOT / "docs/predict_onnx.py", tmp_path / "out/model.onnx", tmp_path / "bad.jpg", *paths]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"{tmp_path / 'bad.jpg'} cannot be read: ")
    network = headstart.load(model)
    header, *rows = csv.reader(result.stdout.splitlines())
    assert header == ["image", "label", "probability"]
    for (name, label, probability), path in zip(rows, paths, strict=True):
        [(expected, value), *_] = next(network.predict([path])).probabilities.items()
        assert (name, label) == (str(path), expected)
        assert float(probability) == pytest.approx(value, abs=2e-4)


def test_torchscript(model, tmp_path):
    export.main(str(model), "--format", "torchscript", "--output", str(tmp_path / "out"))
    extra = {"metadata.json": ""}
    loaded = torch.jit.load(str(tmp_path / "out/model.pt"), _extra_files=extra)
    assert json.loads(extra["metadata.json"])["classes"] == list("abc")
    torch.testing.assert_close(loaded(images(SIZE)), headstart.load(model)(images(SIZE)), rtol=0, atol=1e-4)


def test_timm_builds_the_network_with_its_transform(timm_model, tmp_path):
    export.main(str(timm_model), "--format", "timm", "--output", str(tmp_path / "out"))
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(loaded)
    assert (config["input_size"], [*config["mean"]], [*config["std"]]) == (
        (3, SIZE, SIZE),
        [0.5, 0.4, 0.3],
        [0.2, 0.3, 0.4],
    )
    assert (config["interpolation"], config["crop_pct"], config["crop_mode"]) == ("bicubic", 1.0, "center")
    assert loaded.pretrained_cfg["label_names"] == ["a", "b", "c d"]
    network = headstart.load(timm_model)
    torch.testing.assert_close(loaded(network.preprocess(images(28))), network(images(28)))


def test_the_code_in_the_card_of_timm_resizes_twice_as_the_training_did(timm_model, tmp_path, monkeypatch):
    export.main(str(timm_model), "--format", "timm", "--output", str(tmp_path / "out"))
    code = (
        (tmp_path / "out" / model_card.FILE).read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    )
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8))
    results: dict = {"PIL": PIL, "timm": timm, "image": image}
    exec(code, results)
    network = headstart.load(timm_model)
    expected = network.preprocess(network.read(image))[0]
    once, twice = (results["transform"](picture) for picture in (image, results["image"]))
    rounding = 0.5 / 255 / 0.2  # of the second resize, in units of the smallest standard deviation
    assert (twice - expected).abs().mean() < rounding < 10 * rounding < (once - expected).abs().mean()
    torch.testing.assert_close(results["logits"], results["network"](twice[None]))


def test_torchvision_loads_the_state_dict(model, tmp_path):
    export.main(str(model), "--format", "torchvision", "--output", str(tmp_path / "out"))
    loaded = torchvision.models.resnet18(num_classes=3).eval()
    loaded.load_state_dict(torch.load(tmp_path / "out/model.pth", weights_only=True))
    network = headstart.load(model)
    torch.testing.assert_close(loaded(network.preprocess(images(SIZE))), network(images(SIZE)))


def test_the_model_card_has_the_metrics_of_the_study(model, tmp_path, monkeypatch):
    files.write_json(tmp_path / "metrics/stamps/adam.json", {"test_accuracy": 0.75, "macro_f1": 0.7})
    files.write_csv(
        tmp_path / "plots/stamps/accuracy.csv", ["configuration", "accuracy", "low", "high"], [["adam", 75, 61.25, 85]]
    )
    monkeypatch.chdir(tmp_path)
    export.main("models/stamps/adam", "--format", "torchvision")
    text = (tmp_path / "exports/stamps-adam-torchvision" / model_card.FILE).read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    [entry] = yaml.safe_load(header)["model-index"]
    assert {row["type"]: row["value"] for row in entry["results"][0]["metrics"]} == {"accuracy": 0.75, "macro_f1": 0.7}
    assert "75.0 % (95 % confidence interval 61.2 to 85.0)" in body
    assert "torchvision.models.get_model('resnet18', weights=None, num_classes=3)" in body
    assert "0 different classes on 64 images of random pixels" in body
    export.main("models/stamps/adam", "--format", "torchvision")  # replaces an earlier export


def test_a_difference_is_an_error_and_leaves_nothing(model, tmp_path, monkeypatch):
    def wrong(saved, folder):
        network = saved.build()
        return export.Exported(lambda batch: network(saved.preprocess(batch)) + 0.01, "")

    monkeypatch.setitem(export.FORMATS, "onnx", wrong)
    with pytest.raises(UserError, match=r"the exported network differs .* on 64 images of random pixels: logits by up"):
        export.main(str(model), "--format", "onnx", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_operator_that_onnx_lacks_is_named(model, tmp_path, monkeypatch):
    class Spectrum(nn.Module):
        def forward(self, images):
            return torch.linalg.svdvals(images.float().mean((1, 2))[:, None])[:, :3]

    monkeypatch.setattr(export, "ExportedNetwork", lambda saved: Spectrum())
    with pytest.raises(UserError, match=r"ONNX cannot express this network: the operator aten.*svd.*Choose another"):
        export.main(str(model), "--format", "onnx", "--output", str(tmp_path / "out"))


def test_a_network_whose_output_is_not_a_number_differs(model, tmp_path, monkeypatch):
    monkeypatch.setitem(
        export.FORMATS,
        "onnx",
        lambda saved, folder: export.Exported(lambda batch: torch.full((len(batch), 3), torch.nan), ""),
    )
    with pytest.raises(UserError, match="the exported network differs"):
        export.main(str(model), "--format", "onnx", "--output", str(tmp_path / "out"))


def test_nothing_but_an_earlier_export_is_replaced(model, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / model_card.FILE).write_text("mine", encoding="utf-8")
    (tmp_path / "mine" / "photo.jpg").touch()
    for output in (tmp_path / "mine", tmp_path / "models"):
        with pytest.raises(UserError, match="exists, and is no exported network"):
            export.main(str(model), "--format", "torchvision", "--output", str(output))
    assert (tmp_path / "mine" / "photo.jpg").exists()
    monkeypatch.chdir(model)
    with pytest.raises(UserError, match="is in the folder of the model, which DVC tracks"):
        export.main(".", "--format", "torchvision")


def test_a_model_file_outside_a_repository_has_a_card_without_metrics(model, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (model / "model-0.safetensors").rename(tmp_path / "elsewhere" / "model-0.safetensors")
    monkeypatch.chdir(tmp_path)
    export.main("elsewhere/model-0.safetensors", "--format", "torchvision")
    text = (tmp_path / "exports/elsewhere-torchvision" / model_card.FILE).read_text(encoding="utf-8")
    assert "**Test accuracy:** not available" in text
    assert "resized bilinearly with antialias to 48 × 48 pixels. Values from 0 to 1" in text


def test_wrong_arguments(model, tmp_path):
    with pytest.raises(
        UserError, match=r"resnet18 is a network of torchvision, not of timm\. Use --format torchvision"
    ):
        export.main(str(model), "--format", "timm", "--output", str(tmp_path / "out"))


def test_a_damaged_model_is_not_blamed_on_the_format(model, tmp_path):
    saved = SavedModel.read(model / "model-0.safetensors")
    del saved.state[next(iter(saved.state))]
    saved.write(model / "model-0.safetensors")
    with pytest.raises(
        UserError, match=r"^damaged model: the weights do not fit .* Run `dvc repro` to create it again\."
    ):
        export.main(str(model), "--format", "onnx", "--output", str(tmp_path / "out"))


def test_without_disk_space_nothing_is_written(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 0))
    with pytest.raises(MachineError, match="not enough disk space"):
        export.main(str(model), "--format", "torchscript", "--output", str(tmp_path / "out"))
    assert not list(tmp_path.glob("*out*"))
