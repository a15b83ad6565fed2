"""Folders of images: all layouts and formats, and all problems that files can have."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from headstart.console import UserError
from headstart.data import decoding, pictures, scanning, splits


def smooth_image(seed: int, size=(40, 30), mode: str = "RGB") -> Image.Image:
    """Draw a smooth image, which survives JPEG."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes with three images each."""
    for number in range(6):
        save(smooth_image(number), tmp_path / "pets" / ["cat", "dog"][number % 2] / f"{number}.png")
    return tmp_path / "pets"


def load(folder: Path, image_size: int = 32, *, skip: bool = False) -> splits.Dataset:
    return pictures.load(folder, image_size=image_size, skip_unusable=skip)


def images(dataset: splits.Dataset) -> np.ndarray:
    return dataset.training.read(np.arange(len(dataset.training.labels)))


def problems(folder: Path) -> list[str]:
    with pytest.raises(UserError) as error:
        load(folder)
    return list(error.value.details)


def test_images_are_ordered_by_file_name(folder):
    dataset = load(folder)
    assert (dataset.title, dataset.classes, dataset.test, dataset.skipped_files) == ("pets", ("cat", "dog"), None, {})
    assert dataset.training.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert images(dataset).shape == (6, 3, 32, 32)
    expected = ImageOps.fit(smooth_image(2), (32, 32), Image.Resampling.BILINEAR)
    assert (dataset.training.read(np.array([2]))[0].transpose(1, 2, 0) == np.asarray(expected)).all()


def test_renaming_a_class_does_not_change_the_order(folder):
    for number in range(6):  # file names that occur in both classes
        save(smooth_image(10 + number), folder / ["cat", "dog"][number % 2] / f"{number // 2} again.png")
    before = load(folder)
    (folder / "cat").rename(folder / "zebra")
    after = load(folder)
    assert (images(after) == images(before)).all()
    assert after.classes == ("dog", "zebra")
    assert after.training.labels.tolist() == (1 - before.training.labels).tolist()
    held_out = [splits.hold_out(dataset.training.labels, seed=0)[1].tolist() for dataset in (before, after)]
    assert held_out[0] == held_out[1]


def test_a_class_can_have_the_name_train(folder):
    (folder / "cat").rename(folder / "train")
    assert load(folder).classes == ("dog", "train")


def test_train_and_test_folders_are_partitions(folder, tmp_path):
    for number in range(6, 10):
        save(smooth_image(number), tmp_path / "both/Test" / ["cat", "dog"][number % 2] / f"{number}.png")
    folder.rename(tmp_path / "both/Train")
    dataset = load(tmp_path / "both")
    assert dataset.test is not None
    assert (dataset.training.labels.tolist(), dataset.test.labels.tolist()) == ([0, 1] * 3, [0, 1] * 2)
    expected = ImageOps.fit(smooth_image(7), (32, 32), Image.Resampling.BILINEAR)
    assert (dataset.test.read(np.array([1]))[0].transpose(1, 2, 0) == np.asarray(expected)).all()


def test_small_squares_are_not_resized(tmp_path):
    for number in range(4):
        save(smooth_image(number, (20, 20)), tmp_path / "x" / "ab"[number % 2] / f"{number}.png")
    assert (images(load(tmp_path / "x"))[3].transpose(1, 2, 0) == np.asarray(smooth_image(3, (20, 20)))).all()
    save(smooth_image(9, (20, 21)), tmp_path / "x/a/9.png")
    assert images(load(tmp_path / "x")).shape == (5, 3, 32, 32)


RED = (200, 30, 40)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def palette() -> Image.Image:
    return Image.new("RGB", (32, 32), RED).convert("P", palette=Image.Palette.ADAPTIVE)


def half_transparent(mode: str) -> Image.Image:
    image = Image.new("RGBA", (32, 32), (*RED, 255))
    image.paste((0, 0, 0, 0), (0, 0, 16, 32))
    return image if mode == "RGBA" else image.convert(mode)


KINDS = {
    "jpeg": (encode(Image.new("RGB", (32, 32), RED), "JPEG", quality=100, subsampling=0), RED),
    "jpeg, gray": (encode(Image.new("L", (32, 32), 90), "JPEG"), (90,) * 3),
    "jpeg, cmyk": (encode(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "png": (encode(Image.new("RGB", (32, 32), RED), "PNG"), RED),
    "png, palette": (encode(palette(), "PNG"), RED),
    "png, black and white": (encode(Image.new("1", (32, 32), 1), "PNG"), (255,) * 3),
    "png, gray and alpha": (encode(Image.new("LA", (32, 32), (90, 255)), "PNG"), (90,) * 3),
    "png, 16 bit": (encode(Image.fromarray(np.full((32, 32), 257 * 90 + 128, np.uint16)), "PNG"), (90,) * 3),
    "png, 16 bit, up": (encode(Image.fromarray(np.full((32, 32), 257 * 90 + 129, np.uint16)), "PNG"), (91,) * 3),
    "tiff, 16 bit": (encode(Image.fromarray(np.full((32, 32), 65_535, np.uint16)), "TIFF"), (255,) * 3),
    "tiff, lzw": (encode(Image.new("RGB", (32, 32), RED), "TIFF", compression="tiff_lzw"), RED),
    "gif": (encode(Image.new("RGB", (32, 32), RED), "GIF"), RED),
    "gif, animated": (
        encode(Image.new("RGB", (32, 32), RED), "GIF", save_all=True,
                append_images=[Image.new("RGB", (32, 32), "blue")]), RED),
    "webp": (encode(Image.new("RGB", (32, 32), RED), "WEBP", lossless=True), RED),
    "bmp": (encode(Image.new("RGB", (32, 32), RED), "BMP"), RED),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_color_modes_of_all_formats_are_read(folder, kind):
    content, color = KINDS[kind]
    (folder / "cat/9").write_bytes(content)  # without a suffix
    image = images(load(folder))[-1]
    assert abs(image.astype(int) - np.array(color)[:, None, None]).max() <= (2 if "jpeg" in kind else 0)


@pytest.mark.parametrize("mode", ["RGBA", "PA"])
def test_transparency_becomes_white(folder, mode):
    save(half_transparent("RGBA").quantize(8) if mode == "PA" else half_transparent(mode), folder / "cat/9.png")
    image = images(load(folder))[-1]
    assert (image[:, :, :15] == 255).all()
    assert (image[:, :, 17:] == np.array(RED)[:, None, None]).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(folder, orientation, suffix):
    image, exif = smooth_image(7, (48, 40)), Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    save(image, folder / f"cat/9.{suffix}", exif=exif, **options)
    upright = image if orientation == 1 else image.transpose(decoding.EXIF_TRANSPOSE[orientation])
    assert (upright.size == image.size) == (orientation < 5)
    expected = ImageOps.fit(upright, (32, 32), Image.Resampling.BILINEAR)
    assert (images(load(folder))[-1].transpose(1, 2, 0) == np.asarray(expected)).all()


def test_decoding_a_jpeg_at_a_reduced_size_is_not_visible(folder):
    large = smooth_image(5, (1_600, 1_200))
    save(large, folder / "cat/9.jpg", quality=95)
    expected = np.asarray(ImageOps.fit(large, (32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert abs(images(load(folder))[-1].astype(int) - expected).max() <= 3


NAMES = [
    "a b",
    "tab\tand\x07bell",
    "Äpfel & Birnen",
    "<script>",
    "$x^2$",
    "猫",
    "actual",
    "a'b\"c",
    "100%",
    "#1;=,",
    "x" * 200,
]


def test_class_names_can_have_any_characters(tmp_path):
    for number, name in enumerate(NAMES * 2):
        save(smooth_image(number), tmp_path / "x" / name / f"{number}.png")
    display_names = {"tab\tand\x07bell": "tab�and�bell"}
    assert load(tmp_path / "x").classes == tuple(display_names.get(name, name) for name in sorted(NAMES))


def test_hidden_files_and_system_files_are_ignored(folder):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / "cat" / name).write_bytes(b"x")
    for hidden in (".cache", "cat/.cache"):
        save(smooth_image(9), folder / hidden / "9.png")
        save(smooth_image(9), folder / hidden / "deeper/9.png")
    (folder / "README.md").write_text("A dataset", encoding="utf-8")
    assert len(load(folder).training.labels) == 6


def test_images_in_nested_folders_belong_to_the_class(folder):
    save(smooth_image(7), folder / "cat/2024/may/9.png")
    assert load(folder).training.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


def truncate_image(folder: Path) -> None:
    content = (folder / "cat/0.png").read_bytes()
    (folder / "cat/0.png").write_bytes(content[:-40])


UNUSABLE = [
    (lambda folder: (folder / "cat/0.png").write_bytes(b""), ["cat/0.png is empty"]),
    (lambda folder: (folder / "cat/notes.PNG").write_text("x"),
     ["cat/notes.PNG is not an image in a supported format: convert it to one of JPEG, PNG, WEBP, GIF, TIFF, BMP, PPM, "
      "AVIF, JPEG2000"]),
    (lambda folder: (folder / "cat/9.JPG").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
     ["cat/9.JPG is HEIC, which Pillow cannot read: convert it to JPEG"]),
    (lambda folder: (folder / "cat/9.svg").write_text("<svg/>"),
     ["cat/9.svg is not an image in a supported format: convert it to one of JPEG, PNG"]),
    (lambda folder: (folder / "cat/9.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
     ["cat/9.eps is not an image in a supported format: convert it to one of JPEG, PNG"]),  # it would run Ghostscript
    (lambda folder: (folder / "cat/9.jpg.crdownload").write_bytes(encode(smooth_image(9, (400, 300)), "JPEG")[:2_000]),
     ["cat/9.jpg.crdownload is damaged (image file is truncated"]),
    (truncate_image, ["cat/0.png is damaged (image file is truncated"]),
    (lambda folder: save(smooth_image(1, (1, 1)), folder / "cat/9.png"), ["cat/9.png is too small with 1×1 pixels"]),
    (lambda folder: save(smooth_image(1, (7, 900)), folder / "cat/9.png"),
     ["cat/9.png is too small with 7×900 pixels"]),
    (lambda folder: save(Image.new("1", (10_000, 10_000)), folder / "cat/9.png"),
     ["cat/9.png has more than 89,478,485 pixels: reduce it"]),
    (lambda folder: save(Image.new("1", (20_000, 20_000)), folder / "cat/9.png"),
     ["cat/9.png has more than 89,478,485 pixels: reduce it"]),
    (lambda folder: save(Image.fromarray(np.ones((32, 32), np.float32)), folder / "cat/9.tiff"),
     ["cat/9.tiff has floating-point values: save it with 8 or 16 bits per channel"]),
    (lambda folder: save(Image.fromarray(np.full((32, 32), 70_000, np.int32)), folder / "cat/9.tiff"),
     ["cat/9.tiff has values of more than 16 bits: save it with 8 or 16 bits"]),
    (lambda folder: save(Image.fromarray(np.full((32, 32), 4_095, np.uint16)), folder / "cat/9.png"),
     ["cat/9.png has 16-bit values of at most 4,095 (of 65,535): rescale them"]),
    (lambda folder: save(smooth_image(0), folder / "cat/9.bmp"), ["cat/9.bmp is the same image as cat/0.png"]),
    (lambda folder: save(smooth_image(0), folder / "dog/9.png"),
     ["cat/0.png is the same image as dog/9.png", "dog/9.png is the same image as cat/0.png"]),
    (lambda folder: (folder / "cat/9.png").symlink_to("nowhere"), ["cat/9.png is a broken link"]),
    (lambda folder: (folder / "cat/more").symlink_to("../dog"),
     ["cat/more is a link to a folder, which DVC does not follow: "]),
    (lambda folder: save(smooth_image(9), folder / "9.png"), ["9.png is not in a class folder"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), UNUSABLE, ids=[expected[0][:40] for _, expected in UNUSABLE])
def test_unusable_files_are_reported_or_skipped(folder, change, expected):
    change(folder)
    lines = problems(folder)
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)
    skipped = load(folder, skip=True)
    assert [f"{name} {problem}" for name, problem in skipped.skipped_files.items()] == lines
    assert 4 <= len(skipped.training.labels) <= 6
    assert (images(skipped).reshape(len(skipped.training.labels), -1).std(axis=1) > 0).all()  # none is blank


@pytest.mark.parametrize("image_size", [32, 224, 512])
def test_duplicates_in_another_format_are_found(folder, image_size):
    """A large JPEG is decoded at a reduced size, except if that could hide a duplicate."""
    large = smooth_image(5, (1_600, 1_200))
    save(large, folder / "cat/9.jpg", quality=90)
    with Image.open(folder / "cat/9.jpg") as jpeg:
        save(jpeg, folder / "dog/9.png")
    with pytest.raises(UserError) as error:
        load(folder, image_size)
    assert error.value.details == [
        "cat/9.jpg is the same image as dog/9.png", "dog/9.png is the same image as cat/9.jpg",
    ]  # fmt: skip


def test_one_error_lists_all_unusable_files(folder):
    (folder / "cat/a.jpeg").write_bytes(b"")
    truncate_image(folder)
    save(smooth_image(1), folder / "dog/9.webp", lossless=True)
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value) == (
        f"3 files cannot be used: {folder}. Repair or remove them, or skip them: set skip_unusable_images: true in "
        "params.yaml, or add SKIP=1 to `make pictures`."
    )
    assert [line.partition(" is ")[0] for line in error.value.details] == ["cat/0.png", "cat/a.jpeg", "dog/9.webp"]


def test_a_training_image_that_is_also_a_test_image_is_skipped(folder, tmp_path):
    folder.rename(tmp_path / "both" if (tmp_path / "both").mkdir() else tmp_path / "both/train")
    for number in range(6, 10):
        save(smooth_image(number), tmp_path / "both/test" / ["cat", "dog"][number % 2] / f"{number}.png")
    save(smooth_image(2), tmp_path / "both/test/cat/9.bmp")
    assert problems(tmp_path / "both") == ["train/cat/2.png is the same image as test/cat/9.bmp"]
    skipped = load(tmp_path / "both", skip=True)
    assert skipped.test is not None
    assert (len(skipped.training.labels), len(skipped.test.labels)) == (5, 5)


def no_images(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "dog")


def one_empty_class(folder: Path) -> None:
    for path in (folder / "dog").iterdir():
        path.unlink()


def single_image(folder: Path) -> None:
    for name in "02":
        (folder / f"cat/{name}.png").unlink()


def no_test(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split).mkdir()
    (folder / "cat").rename(folder / "train/cat")
    (folder / "dog").rename(folder / "test/dog")


def classes_next_to_splits(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split / "cat").mkdir(parents=True)


def only_train(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.mkdir()
    folder.with_name("copy").rename(folder / "Train")


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def draw(folder: Path, numbers: range, *classes: str) -> None:
    """Draw distinct images in folders of ``classes``."""
    for number in numbers:
        save(smooth_image(number), folder / classes[number % len(classes)] / f"{number}.png")


def two_training_folders(folder: Path) -> None:
    empty_folder(folder)
    for i, name in enumerate(("train", "training_set", "test")):
        draw(folder / name, range(4 * i, 4 * i + 4), "cat", "dog")


def no_train(folder: Path) -> None:
    empty_folder(folder)
    draw(folder / "val", range(4), "cat", "dog")
    draw(folder / "test", range(4, 8), "cat", "dog")


def flat_train_and_test(folder: Path) -> None:
    empty_folder(folder)
    draw(folder, range(6), "train", "test")


def flat_test(folder: Path) -> None:
    empty_folder(folder)
    draw(folder / "train", range(6), "cat", "dog")
    draw(folder, range(6, 9), "test_images")


def flat_train_test_and_a_class(folder: Path) -> None:
    empty_folder(folder)
    draw(folder, range(9), "train", "test", "car")


def images_and_a_table(folder: Path) -> None:
    empty_folder(folder)
    draw(folder, range(6), "images")
    (folder / "labels.csv").write_text("0.png,cat")


def flat_and_a_table(folder: Path) -> None:
    empty_folder(folder)
    draw(folder, range(6), ".")
    (folder / "labels.csv").write_text("0.png,cat")


def nested_in_one_folder(folder: Path) -> None:
    empty_folder(folder)
    draw(folder / "flowers", range(6), "rose", "tulip")


def replaced_by_a_file(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()
    for name in ("cat", "dog"):
        (folder / name).rmdir()
    folder.rmdir()
    folder.write_bytes(b"x")


def replaced_by_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("others"))
    folder.symlink_to("others")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_images, "no usable image: {folder}. Create at least two class folders with images."),
        (
            one_class,
            "only one class: {folder} has only the class cat. Create at least two class folders with images.",
        ),
        (
            one_empty_class,
            "class without usable images: {folder} has no usable image in dog. Add images, or remove the folder.",
        ),
        (
            single_image,
            "class with a single image: {folder} has one image in cat. Add another: a class needs one for training and "
            "one for testing.",
        ),
        (no_test, "empty class: {folder} has no image in test/cat. Add an image, or remove the class."),
        (
            classes_next_to_splits,
            "split folders next to other folders: {folder} has test, train next to cat, dog. Move the images of cat, "
            "dog into the split folders, or remove them.",
        ),
        (
            only_train,
            "only one split: {folder} has Train. Run `make pictures FOLDER={folder}/Train`, which holds out a fifth of "
            "each class for testing.",
        ),
        (replaced_by_a_file, "not a folder: {folder}. Give the path of a folder."),
        (
            two_training_folders,
            "several folders for the same split: {folder} has train, training_set. Merge or rename them.",
        ),
        (no_train, "no training split: {folder} has test, val. Rename the folder to train with to train."),
        (
            flat_train_and_test,
            "split without class folders: {folder} has no class folders in test, train. Create one folder per class, "
            "such as {folder}/test/cat.",
        ),
        (
            flat_test,
            "split without class folders: {folder} has no class folders in test_images. Create one folder per class, "
            "such as {folder}/test_images/cat, or use only train: make pictures FOLDER={folder}/train.",
        ),
        (
            flat_train_test_and_a_class,
            "split folders next to other folders: {folder} has test, train next to car. Move the images of car into "
            "the split folders, or remove them. If test, train are classes, rename them.",
        ),
        (
            images_and_a_table,
            "only one class: {folder} has only the class images. Create at least two class folders with images.",
        ),
        (
            flat_and_a_table,
            "no class folders: {folder}. Create one folder per class and put its images there (for labels in "
            "labels.csv, data/pictures/README.md has a script).",
        ),
        (
            nested_in_one_folder,
            "only one class: {folder} has only the class flowers. Create at least two class folders with images. If "
            "the folders in it are the classes, use FOLDER={folder}/flowers.",
        ),
        (
            replaced_by_a_link,
            "link to a folder: {folder}. DVC does not follow links. Replace the link with the folder.",
        ),
    ],
)
def test_unknown_layouts_are_errors(folder, change, message):
    change(folder)
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value) == message.format(folder=folder)


def test_missing_folders_empty_folders_and_archives_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"^no such folder: "):
        load(tmp_path / "x")
    with pytest.raises(UserError, match=r"^no class folders: "):
        load(tmp_path)
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"^not a folder: .*pets\.zip\. Unpack it first\.$"):
        load(tmp_path / "pets.zip")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_class_names_can_be_invalid_utf8(folder):
    (folder / "cat").rename(os.fsdecode(os.fsencode(folder) + b"/c\xe4t"))
    assert load(folder).classes == ("c�t", "dog")


TRAIN = ("train", "Training", "TRAIN_SET", "training-set", "trainset", "train_images", "Training Data", "train2017")
VALIDATION = ("val", "Valid", "validation", "validate", "dev", "val_set", "Validation Data", "val2017")
TEST = ("test", "Testing", "test_set", "testset", "eval", "holdout", "test-images", "Test Data")


def partition_sizes(dataset: splits.Dataset) -> tuple[int, int]:
    assert dataset.test is not None
    return len(dataset.training.labels), len(dataset.test.labels)


@pytest.mark.parametrize(("train", "validation", "test"), list(zip(TRAIN, VALIDATION, TEST, strict=True)))
def test_usual_names_of_split_folders_are_recognized(tmp_path, train, validation, test):
    """With train and val, val is the test set; with all three, validation images are drawn from train and val."""
    folder = tmp_path / "pets"
    draw(folder / train, range(6), "cat", "dog")
    draw(folder / validation, range(6, 10), "cat", "dog")
    dataset = load(folder)
    assert (dataset.classes, partition_sizes(dataset)) == (("cat", "dog"), (6, 4))
    draw(folder / test, range(10, 13), "cat", "dog")
    dataset = load(folder)
    assert (dataset.classes, partition_sizes(dataset)) == (("cat", "dog"), (10, 3))
    assert f"{train} and {validation} are merged" in " ".join(scanning.scan(folder, follow_links=False).notes)
    shutil.rmtree(folder / validation)
    dataset = load(folder)
    assert (dataset.classes, partition_sizes(dataset)) == (("cat", "dog"), (6, 3))


def test_split_folders_with_a_common_prefix_and_nested_folders_are_recognized(tmp_path):
    draw(tmp_path / "x/seg_train/seg_train", range(6), "sea", "street")
    draw(tmp_path / "x/seg_test/seg_test", range(6, 10), "sea", "street")
    dataset = load(tmp_path / "x")
    assert (dataset.classes, partition_sizes(dataset)) == (("sea", "street"), (6, 4))
    draw(tmp_path / "x/seg_pred", range(10, 14), "seg_pred")
    with pytest.raises(UserError, match=r"has seg_test, seg_train next to seg_pred\. Move the images of seg_pred into"):
        load(tmp_path / "x")


def test_folders_without_images_next_to_splits_are_ignored(tmp_path):
    draw(tmp_path / "x/train", range(6), "cat", "dog")
    draw(tmp_path / "x/valid", range(6, 10), "cat", "dog")
    (tmp_path / "x/annotations").mkdir()
    (tmp_path / "x/annotations/0.xml").write_text("<annotation/>")
    (tmp_path / "x/README.roboflow.txt").write_text("exported")
    (tmp_path / "x/train/_annotations.csv").write_text("0.png,cat")
    assert partition_sizes(load(tmp_path / "x")) == (6, 4)


@pytest.mark.parametrize("names", [("fold0", "fold1", "fold2"), ("fold_1", "fold_2"), ("Split1", "Split2"),
                                   ("cv1", "cv2"), ("1-fold", "2-fold"), ("fold1", "fold2", "test")])  # fmt: skip
@pytest.mark.parametrize("is_flat", [False, True])
def test_cross_validation_folds_are_errors(tmp_path, names, is_flat):
    for i, name in enumerate(names):
        numbers = range(10 * i, 10 * i + 6)
        draw(tmp_path / "x" / name, numbers, *(["."] if is_flat else ["cat", "dog"]))
    expected = r"^folders that look like cross-validation folds: .* has .*, but a study has a single split\. Rename one"
    with pytest.raises(UserError, match=expected):
        load(tmp_path / "x")


def test_numbered_parts_are_folds_only_if_they_have_the_same_classes(tmp_path):
    for i, name in enumerate(("part 1", "part 2")):
        draw(tmp_path / "x" / name, range(10 * i, 10 * i + 6), "cat", "dog")
        draw(tmp_path / "y" / name, range(10 * i, 10 * i + 6), ".")
    with pytest.raises(UserError, match=r"^folders that look like cross-validation folds: .* has part 1, part 2, but"):
        load(tmp_path / "x")
    assert load(tmp_path / "y").classes == ("part 1", "part 2")


def test_notes_explain_how_the_layout_is_interpreted(tmp_path):
    draw(tmp_path / "a", range(9), "car", "test", "train station")
    assert load(tmp_path / "a").classes == ("car", "test", "train station")
    notes = scanning.scan(tmp_path / "a", follow_links=False).notes
    assert notes == ["test is used as a class, because it has no class folders"]
    draw(tmp_path / "b", range(8), "cat/train", "dog/train", "cat/test", "dog/test")
    assert load(tmp_path / "b").classes == ("cat", "dog")
    notes = scanning.scan(tmp_path / "b", follow_links=False).notes
    assert notes == ["test, train inside the classes are merged: a fifth of each class is held out for testing"]


JUNK = [
    "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "@eaDir/cat/SYNOPHOTO_THUMB_M.jpg", "cat/.DS_Store", "cat/._0.png",
    "__MACOSX/cat/._0.png", "__MACOSX/cat/0.png", "cat/Thumbs.db", "cat/ehthumbs.db", "cat/Desktop.ini",
    "cat/.ipynb_checkpoints/0.png", ".ipynb_checkpoints/0.png", "cat/0.png:Zone.Identifier", "#recycle/cat/old.png",
    "@Recycle/old.png", ".Trashes/501/old.png", "lost+found/old.png", "$RECYCLE.BIN/old.png", "cat/0.json",
    "cat/0.xml", "cat/0.txt", "cat/labels.csv", "cat/README", "README.md", "cat/LICENSE.md", "cat/0.jpg.part",
    "cat/.picasa.ini", "cat/index.html", "cat/classes.npy", "cat/a.zip", ".thumbnails/0.png", "cat/0.png.icloud",
    "dog/.git/x.png", "__pycache__/x.png", ".nomedia", "cat/.nomedia", "cat/checksums.sha1",
]  # fmt: skip


@pytest.mark.parametrize("name", [*JUNK, "System Volume Information/old.png", "cat/Icon\r", "cat/notes to self"])
def test_files_of_systems_and_tools_are_ignored(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith((".png", ".jpg")) and "._" not in name:
        save(smooth_image(9), folder / name)
    else:
        (folder / name).write_bytes(b"PK or [ZoneTransfer] or {} or nothing that is an image")
    dataset = load(folder)
    assert (dataset.classes, len(dataset.training.labels), dataset.skipped_files) == (("cat", "dog"), 6, {})


def test_pipes_are_ignored(folder):
    os.mkfifo(folder / "cat/9.png")  # opening it would block
    assert len(load(folder).training.labels) == 6


FORMATS = [("ppm", "PPM"), ("pgm", "PPM"), ("pbm", "PPM"), ("jp2", "JPEG2000"), ("avif", "AVIF"), ("mpo", "MPO"),
           ("jpe", "JPEG"), ("JPEG", "JPEG"), ("tif", "TIFF"), ("webp", "WEBP"), ("bmp", "BMP")]  # fmt: skip


@pytest.mark.parametrize(("suffix", "format"), FORMATS)
def test_all_formats_are_read(folder, suffix, format):
    mode = {"pgm": "L", "pbm": "1"}.get(suffix, "RGB")
    image = Image.new(mode, (32, 32), {"L": 90, "1": 1}.get(mode, RED))
    options = {"save_all": True, "append_images": [smooth_image(0)]} if format == "MPO" else {}
    save(image, folder / f"cat/9.{suffix}", format=format, **options)
    pixels = images(load(folder))[-1].transpose(1, 2, 0)
    assert abs(pixels.astype(int) - np.asarray(image.convert("RGB"))).max() <= 4


def test_a_16_bit_pgm_is_read(folder):
    (folder / "cat/9.pgm").write_bytes(b"P5 32 32 65535\n" + np.full((32, 32), 257 * 90, ">u2").tobytes())
    assert (images(load(folder))[-1] == 90).all()


def test_an_mpo_is_decoded_at_a_reduced_size(folder):
    large = smooth_image(5, (1_600, 1_200))
    path = save(large, folder / "cat/9.jpg", format="MPO", save_all=True, append_images=[smooth_image(0)], quality=95)
    assert decoding.decode_image(path, 32).size == (200, 150)
    expected = np.asarray(ImageOps.fit(large, (32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert abs(images(load(folder))[-1].astype(int) - expected).max() <= 3


def white_drawing(number: int) -> Image.Image:
    image = Image.new("RGBA", (48, 48), (255, 255, 255, 0))
    image.paste((250, 252, 255, 255), (4 + number, 4, 40, 30 + number))
    return image


def test_white_drawings_on_transparency_are_blank_and_not_duplicates(folder):
    """Transparent images are composited on white, so these would be blank."""
    for number in range(4):
        save(white_drawing(number), folder / f"cat/white {number}.png")
    lines = problems(folder)
    expected = "is transparent, and blank on a white background: give it a background of another color"
    assert lines == [f"cat/white {number}.png {expected}" for number in range(4)]
    assert len(load(folder, skip=True).training.labels) == 6
    for number in range(4):  # drawings that are visible on white are usable
        drawing = white_drawing(number)
        drawing.paste((200, 0, 0, 255), (20, 20, 24, 24 + number))
        save(drawing, folder / f"cat/white {number}.png")
    save(Image.new("RGBA", (20, 20), (9, 9, 9, 0)), folder / "dog/nothing.png")  # completely transparent: white
    assert len(load(folder).training.labels) == 11


def test_links_to_files_are_read(folder, tmp_path):
    """DVC makes such links with `cache.type symlink`, and detects changes of their targets."""
    for path in folder.rglob("*.png"):
        (tmp_path / "cache").mkdir(exist_ok=True)
        path.rename(tmp_path / "cache" / path.name)
        path.symlink_to(tmp_path / "cache" / path.name)
    assert len(load(folder).training.labels) == 6


def test_links_to_folders_are_followed_if_the_images_are_copied(folder, tmp_path):
    (folder / "cat").rename(tmp_path / "cats")
    (folder / "cat").symlink_to("../cats")
    draw(tmp_path / "more", range(6, 8), ".")
    (folder / "dog/more").symlink_to(tmp_path / "more")
    (folder / "dog/loop").symlink_to("..")
    (folder / "dog/itself").symlink_to(".")
    (tmp_path / "more/up").symlink_to(tmp_path)
    (folder / "other").symlink_to("other")
    (tmp_path / "linked").symlink_to(folder)
    for top in (folder, tmp_path / "linked"):
        scan = scanning.scan(top, follow_links=True)
        assert (len(scan.image_files), scan.problems) == (8, {})
        dataset = pictures.read(scan, image_size=32, skip_unusable=False)
        assert (dataset.classes, len(dataset.training.labels)) == (("cat", "dog"), 8)
    assert [line.partition(" is a link to a folder,")[0] for line in problems(folder)] == [
        "cat", "dog/itself", "dog/loop", "dog/more",
    ]  # fmt: skip


UNREADABLE = """
import os, sys
from pathlib import Path
from headstart.console import UserError
from headstart.data import pictures
from PIL import Image
Image.init()  # its modules may be unreadable for another user
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    pictures.load(Path(sys.argv[1]), image_size=32, skip_unusable=False)
except UserError as error:
    print(error, *error.details, sep="\\n")
"""


def test_all_files_without_read_permission_are_reported(tmp_path):
    """They are neither ignored nor reported as damaged."""
    with tempfile.TemporaryDirectory() as shared:  # pytest's own folders are closed to other users
        folder = Path(shared, "pets")
        draw(folder, range(8), "cat", "dog")
        draw(folder / "cat/more", range(8, 10), ".")
        draw(folder, range(10, 12), "owl")
        save(smooth_image(12), folder / "dog/listed/12.png")
        for path in (Path(shared), folder, *folder.rglob("*")):
            path.chmod(0o755)
        (folder / "cat/0.png").chmod(0o000)
        (folder / "dog/listed").chmod(0o744)  # its names can be listed, but its files cannot be read
        for name in ("cat/more", "owl"):
            (folder / name).chmod(0o000)
        result = subprocess.run([sys.executable, "-c", UNREADABLE, folder], capture_output=True, text=True, check=True)
        for name in ("cat/more", "owl"):
            (folder / name).chmod(0o755)
    assert result.stdout.splitlines()[1:] == [
        f"{name} cannot be read (Permission denied): change its permissions"
        for name in ("cat/0.png", "cat/more", "dog/listed/12.png", "owl")
    ]


def test_duplicates_do_not_depend_on_the_image_size(folder):
    """Two photographs differ only in fine detail, which the smallest decoding size does not show."""
    detail = np.asarray(smooth_image(5, (1_600, 1_200), "L")).clip(20, 235)
    first = save(Image.fromarray(detail), folder / "cat/8.jpg", quality=95)
    detail[::8, ::8] += 20  # with the next line, the mean of each block of 8 × 8 stays the same
    detail[1::8, ::8] -= 20
    second = save(Image.fromarray(detail), folder / "cat/9.jpg", quality=95)
    for path in (first, second):
        shutil.copyfile(path, folder / "dog" / path.name)
    for image_size in (32, 512):
        with pytest.raises(UserError) as error:
            load(folder, image_size)
        assert error.value.details == [
            f"{class_name}/{name}.jpg is the same image as {other_class}/{name}.jpg"
            for class_name, other_class in (("cat", "dog"), ("dog", "cat")) for name in (8, 9)
        ]  # fmt: skip


def test_the_order_does_not_depend_on_the_image_size(tmp_path):
    for number in range(20):
        save(smooth_image(number, (400, 300)), tmp_path / "x" / "ab"[number % 2] / f"{number // 2}.jpg", quality=95)
    orders = [load(tmp_path / "x", size).training.labels.tolist() for size in (32, 64, 128)]
    assert orders[0] == orders[1] == orders[2]


@given(st.binary(max_size=300), st.sampled_from([kind for kind, _ in KINDS.values()]), st.integers(0, 2_000), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_image_or_a_problem(tmp_path, random_bytes, content, length, data):
    folder = tmp_path / "x"
    for number in range(4):
        path = folder / "ab"[number % 2] / f"{number}.png"
        if not path.exists():
            save(smooth_image(number), path)
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 5))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a/5.png").write_bytes(data.draw(st.sampled_from([random_bytes, bytes(changed), content[:length]])))
    dataset = load(folder, skip=True)
    assert len(dataset.training.labels) + len(dataset.skipped_files) == 5


def test_gray_images_are_stored_with_one_channel(tmp_path):
    labels = np.arange(40) % 2
    gray = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8).repeat(3, axis=1)
    colored = gray.copy()
    colored[39, 1, 7, 7] ^= 1
    for array, shape in ((gray, (8, 8)), (colored, (3, 8, 8))):
        dataset = splits.Dataset("x", ("a", "b"), splits.Partition(labels, array.__getitem__), None)
        splits.write_splits(tmp_path / "x.safetensors", dataset, training_images=20, validation_images=4, seed=0)
        sizes = {"training": 20, "validation": 4, "test": 8}
        for split, n in sizes.items():
            images, split_labels, classes = splits.read_split(tmp_path / "x.safetensors", split)
            assert images.shape == (n, *shape)
            assert np.bincount(split_labels).tolist() == [n // 2] * 2
            assert classes == ("a", "b")
