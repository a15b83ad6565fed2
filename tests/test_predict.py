"""`python -m headstart.predict` classifies files, folders, patterns and lists of paths."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import headstart
from headstart import files, predict
from headstart.console import UserError

from .test_pictures import save, smooth_image
from .test_use import FILES, SIZE, write_model


@pytest.fixture
def model(tmp_path) -> Path:
    write_model(tmp_path / "model", SIZE)
    return tmp_path / "model"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name, write in FILES.items():
        write(tmp_path / "images" / "deeper" / name)
    return tmp_path / "images"


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_every_format_has_the_probabilities_of_the_loaded_network(model, folder, tmp_path):
    predict.main(str(model), str(folder), "--csv", str(tmp_path / "out.csv"))
    predicted = rows((tmp_path / "out.csv").read_text(encoding="utf-8"))
    network = headstart.load(model)
    assert [Path(row["image"]).name for row in predicted] == sorted(FILES)
    for row in predicted:
        expected = network.probabilities(network.read(row["image"]))[0]
        order = expected.argsort(descending=True).tolist()
        suffixes = ("", "_2", "_3")
        assert [row[f"label{suffix}"] for suffix in suffixes] == [network.classes[index] for index in order]
        values = [float(row[f"probability{suffix}"]) for suffix in suffixes]
        assert values == pytest.approx([float(expected[index]) for index in order], abs=1e-4)


def test_files_folders_patterns_and_standard_input(model, folder, capsys, monkeypatch):
    path = folder / "deeper" / "square.png"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{path}\n\n{folder / 'deeper' / 'gray.png'}\n"))
    predict.main(str(model / "model-0.safetensors"), str(path), str(folder / "**" / "*.mpo"), "-", "--top", "1")
    predicted = rows(capsys.readouterr().out)
    assert [Path(row["image"]).name for row in predicted] == ["square.png", "large.mpo", "square.png", "gray.png"]
    assert predicted[0].keys() == {"image", "label", "probability"}


def test_unreadable_inputs_are_listed_and_the_others_are_predicted(model, folder, tmp_path, capsys):
    (folder / "text.jpg").write_text("no image", encoding="utf-8")
    (folder / "empty.png").touch()
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    (tmp_path / "nothing").mkdir()
    (folder / "notes.txt").write_text("ignored", encoding="utf-8")
    with pytest.raises(UserError) as error:
        predict.main(str(model), str(folder), str(tmp_path / "nothing"), "https://a.b/c.jpg", "missing.png")
    assert str(error.value) == f"6 of {len(FILES) + 6} inputs cannot be read. The others are predicted."
    reasons = dict(line.split(" ", 1) for line in error.value.details)
    assert reasons["https://a.b/c.jpg"] == "is a URL: download the image first"
    assert reasons["missing.png"] == "does not exist"
    assert reasons[str(tmp_path / "nothing")] == "has no images"
    assert reasons[str(folder / "empty.png")] == "is empty"
    assert reasons[str(folder / "pixel.png")] == "is too small with 1×1 pixels"
    assert reasons[str(folder / "text.jpg")].startswith("is not an image in a supported format")
    assert len(rows(capsys.readouterr().out)) == len(FILES)


def test_more_images_than_a_batch_keep_their_order(model, tmp_path):
    paths = [save(smooth_image(index, (40, 50)), tmp_path / f"{index:03}.png") for index in range(150)]
    paths[70].write_bytes(b"")
    network = headstart.load(model)
    predictions = list(network.predict(paths))
    assert [prediction.path for prediction in predictions] == paths
    assert [index for index, prediction in enumerate(predictions) if prediction.problem] == [70]
    for index in (0, 63, 64, 69, 71, 149):
        expected = network.probabilities(network.read(paths[index]))[0]
        values = torch.tensor([predictions[index].probabilities[name] for name in network.classes])
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "missing.png"], "1 of 1 inputs cannot be read:\n  missing.png does not exist"),
        (["{images}", "{image}"], "no trained network: {images}. Run `dvc repro` to train it."),
        (["{image}", "{image}"], "damaged file: {image} ("),
        (["{model}", "{image}", "--seed", "7"], "no network trained with seed 7: {model}."),
        (["{model}", "{image}", "--top", "0"], "--top must be at least 1. Got 0."),
        (
            ["{model}", "{image}", "--csv", "{images}"],
            "--csv is not a file. Give the path of a file, or no --csv for standard output. Got '{images}'.",
        ),
        (["{model}", "{image}", "--csv", ""], "--csv is not a file. Give"),
        (["{model}", "{image}", "--csv", "/dev/stdout"], "--csv is not a file. Give"),
        (["{model}", "{image}", "--csv", "{image}"], "--csv is one of the images: {image}. Give"),
        (["{model}/model-0.safetensors", "{image}", "--seed", "0"], "a seed for a single model file: {model}"),
        (["{model}", "-"], "no images: standard input is empty. Give at least one path."),
        (["{model}", "~nobody/a.jpg"], "1 of 1 inputs cannot be read:\n  ~nobody/a.jpg does not exist"),
        (["{model}", "{image}", "--csv", "{image}/out.csv"], "{image} is a file, not a folder. Choose another path."),
    ],
)
def test_wrong_arguments_are_one_message_and_leave_no_file(model, folder, arguments, message):
    names = {"model": model, "images": folder, "image": folder / "deeper" / "square.png"}
    before = sorted(folder.rglob("*"))
    command = [sys.executable, "-m", "headstart.predict", *(argument.format(**names) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, input="")
    assert result.returncode != 0
    assert result.stderr.startswith("headstart: ")
    assert message.format(**names) in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(folder.rglob("*")) == before


def test_without_a_prediction_an_existing_file_stays(model, tmp_path):
    (tmp_path / "labels.csv").write_text("kept", encoding="utf-8")
    (tmp_path / "photo.jpg").write_text("no image", encoding="utf-8")
    with pytest.raises(UserError, match="1 of 1 inputs cannot be read"):
        predict.main(str(model), str(tmp_path / "photo.jpg"), "--csv", str(tmp_path / "labels.csv"))
    assert (tmp_path / "labels.csv").read_text(encoding="utf-8") == "kept"


def test_a_link_is_written_through(model, folder, tmp_path):
    (tmp_path / "target.csv").touch()
    (tmp_path / "link.csv").symlink_to("target.csv")
    predict.main(str(model), str(folder / "deeper" / "square.png"), "--csv", str(tmp_path / "link.csv"))
    assert (tmp_path / "link.csv").is_symlink()
    assert len(rows((tmp_path / "target.csv").read_text(encoding="utf-8"))) == 1


@pytest.mark.parametrize("change", [
    {"classes": ["a"]}, {"model_name": "mobilenet_v2"}, {"mean": "abc"}, {"prepared_size": -5},
    {"interpolation": "cubic"},
])  # fmt: skip
def test_a_model_whose_metadata_do_not_fit_is_one_message(model, folder, change):
    tensors, metadata = files.read_tensors(model / "model-0.safetensors")
    files.write_tensors(model / "model-0.safetensors", tensors, {**metadata, **change})
    with pytest.raises(UserError, match=r"Run `dvc repro` to create it again\."):
        predict.main(str(model), str(folder / "deeper" / "square.png"))
