"""A saved classifier preprocesses new images exactly as its training images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import headstart
from headstart.console import UserError
from headstart.data import decoding, pictures
from headstart.network import models
from headstart.network.saved_model import Classifier, SavedModel

from .test_pictures import half_transparent, save, smooth_image

SIZE = 48


def write_model(folder: Path, prepared_size: int, *, interpolation: str = "bilinear") -> Classifier:
    torch.manual_seed(0)
    model = models.build("resnet18", 3)
    SavedModel(
        state=model.state_dict(), model_name="resnet18", prepared_size=prepared_size, image_size=SIZE,
        mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), interpolation=interpolation, classes=tuple("abc"), classifier="fc",
        weights="random", sha256="",
    ).write(folder / "model-0.safetensors")  # fmt: skip
    return headstart.load(folder)


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    return exif


def sixteen_bits() -> Image.Image:
    values = np.asarray(smooth_image(5, (80, 50), "L")).astype(np.uint16) * 257
    return Image.fromarray(values)


FILES = {
    "landscape.png": lambda path: save(smooth_image(1, (91, 60)), path),
    "portrait.png": lambda path: save(smooth_image(2, (60, 90)), path),
    "square.png": lambda path: save(smooth_image(3, (70, 70)), path),
    "turned.png": lambda path: save(smooth_image(4, (90, 61)), path, exif=exif_with(6)),
    "mirrored.tif": lambda path: save(smooth_image(4, (90, 60)), path, exif=exif_with(5)),
    "transparent.png": lambda path: save(half_transparent("RGBA").resize((64, 41)), path),
    "16 bits.png": lambda path: save(sixteen_bits(), path),
    "gray.png": lambda path: save(smooth_image(6, (90, 60), "L"), path),
    "palette.gif": lambda path: save(smooth_image(7, (90, 60)).quantize(16), path),
    "cmyk.jpg": lambda path: save(smooth_image(8, (90, 60), "CMYK"), path),
    "large.jpg": lambda path: save(smooth_image(9, (1_203, 900)), path, exif=exif_with(6)),
    "large.mpo": lambda path: save(
        smooth_image(10, (900, 1_200)), path, save_all=True, append_images=[smooth_image(0)]
    ),
    "tiny.bmp": lambda path: save(smooth_image(11, (9, 12)), path),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for index, (name, write) in enumerate(FILES.items()):
        write(tmp_path / "mixed" / "abc"[index % 3] / name)
    return tmp_path / "mixed"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_file_has_the_logits_of_the_same_file_in_the_training_set(folder, tmp_path, interpolation):
    classifier = write_model(tmp_path, SIZE, interpolation=interpolation)
    dataset = pictures.load(folder, image_size=SIZE, skip_unusable=False)
    prepared = torch.from_numpy(dataset.training.read(np.arange(len(FILES))))
    assert prepared.shape == (len(FILES), 3, SIZE, SIZE)
    paths = sorted(folder.glob("*/*"), key=lambda path: path.name)
    for path, expected in zip(paths, prepared, strict=True):
        assert torch.equal(classifier.read(path)[0], expected), path
        with torch.inference_mode():
            logits = classifier(expected[None])
            assert torch.equal(classifier(classifier.read(str(path))), logits)
            with Image.open(path) as image:  # decoded at its full size
                from_image = classifier.read(image)[0]
                pixels = torch.from_numpy(np.array(decoding.as_rgb(image)).transpose(2, 0, 1))
            assert (from_image.int() - expected.int()).abs().max() <= (5 if path.name.startswith("large") else 0)
            assert torch.equal(classifier(pixels[None]), classifier(from_image[None]))  # a tensor of any size


def test_gray_files_have_the_logits_of_one_channel(tmp_path):
    """`prepare` stores one channel if all images are gray."""
    classifier = write_model(tmp_path, SIZE)
    image = smooth_image(6, (90, 60), "L")
    path = save(image, tmp_path / "x.png")
    gray = classifier.read(path)
    pixels = torch.from_numpy(np.array(image))
    with torch.inference_mode():
        expected = classifier(gray[:, 0])
        assert torch.equal(classifier(gray), expected)
        assert torch.equal(classifier(pixels[None]), expected)
        assert torch.equal(classifier(pixels[None, None]), expected)


def test_new_images_are_resized_to_the_size_of_small_training_images(tmp_path):
    """A network trained on images of 20 pixels, enlarged to its input, must not get more detail than 20 pixels have."""
    for index in range(4):
        save(smooth_image(index, (20, 20)), tmp_path / "x" / "ab"[index % 2] / f"{index}.png")
    dataset = pictures.load(tmp_path / "x", image_size=SIZE, skip_unusable=False)
    small = torch.from_numpy(dataset.training.read(np.arange(4)))
    classifier = write_model(tmp_path, small.shape[-1])
    assert torch.equal(classifier.read(*sorted((tmp_path / "x").glob("*/*"), key=lambda path: path.name)), small)
    path = save(smooth_image(9, (100, 80)), tmp_path / "photo.png")
    assert classifier.read(path).shape == (1, 3, 20, 20)
    with torch.inference_mode(), Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1))
        assert torch.equal(classifier(pixels[None]), classifier(classifier.read(path)))
        assert torch.equal(classifier(small), classifier.network(classifier.preprocess(small)))  # not resized


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 28, 28), torch.zeros(1, 4, 9, 9, dtype=torch.uint8), torch.zeros(9, 9, dtype=torch.uint8),
               torch.zeros(1, 28, 28, dtype=torch.int16), torch.zeros(1, 9, 9, 3, dtype=torch.uint8)],
)  # fmt: skip
def test_tensors_that_are_not_images_are_rejected(tmp_path, images):
    with pytest.raises(UserError, match=r"^images must be uint8 .*\. Got torch\.\w+ \[.*\]\.$"):
        write_model(tmp_path, SIZE)(images)


def test_files_without_a_usable_image_are_rejected(tmp_path):
    classifier = write_model(tmp_path, SIZE)
    for name, content in (("x.png", b"no image"), ("y.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"^{tmp_path / name} is (not an image in|empty)"):
            classifier.read(tmp_path / name)
    with pytest.raises(UserError, match=r"nowhere.png cannot be read \(No such file or directory\)"):
        classifier.read(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"^the image is transparent, and blank"):
        classifier.read(white_on_transparent())


def white_on_transparent() -> Image.Image:
    image = Image.new("RGBA", (20, 20), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (5, 5, 15, 15))
    return image
