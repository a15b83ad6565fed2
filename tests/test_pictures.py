"""Folders of pictures: every format and kind, and everything that can be wrong with them."""

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


def picture(seed: int, size=(40, 30), mode: str = "RGB") -> Image.Image:
    """A smooth one, which survives JPEG."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC).convert(mode)


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes with three pictures each."""
    for number in range(6):
        save(picture(number), tmp_path / "pets" / ["cat", "dog"][number % 2] / f"{number}.png")
    return tmp_path / "pets"


def load(folder: Path, image_size: int = 32, *, skip: bool = False) -> splits.Dataset:
    return pictures.load(folder, image_size=image_size, skip_unusable=skip)


def images(dataset: splits.Dataset) -> np.ndarray:
    return dataset.training.read(np.arange(len(dataset.training.labels)))


def problems(folder: Path) -> list[str]:
    with pytest.raises(UserError) as error:
        load(folder)
    return list(error.value.details)


def test_classes_and_order(folder):
    found = load(folder)
    assert (found.title, found.classes, found.test, found.skipped_files) == ("pets", ("cat", "dog"), None, {})
    assert found.training.labels.tolist() == [0, 1, 0, 1, 0, 1]  # by file name
    assert images(found).shape == (6, 3, 32, 32)
    expected = ImageOps.fit(picture(2), (32, 32), Image.Resampling.BILINEAR)
    assert (found.training.read(np.array([2]))[0].transpose(1, 2, 0) == np.asarray(expected)).all()


def test_another_name_of_a_class_changes_no_order(folder):
    for number in range(6):  # names that are in both classes
        save(picture(10 + number), folder / ["cat", "dog"][number % 2] / f"{number // 2} too.png")
    before = load(folder)
    (folder / "cat").rename(folder / "zebra")
    after = load(folder)
    assert (images(after) == images(before)).all()
    assert after.classes == ("dog", "zebra")
    assert after.training.labels.tolist() == (1 - before.training.labels).tolist()
    held_out = [splits.hold_out(dataset.training.labels, seed=0)[1].tolist() for dataset in (before, after)]
    assert held_out[0] == held_out[1]


def test_a_class_may_be_called_train(folder):
    (folder / "cat").rename(folder / "train")
    assert load(folder).classes == ("dog", "train")


def test_train_and_test(folder, tmp_path):
    for number in range(6, 10):
        save(picture(number), tmp_path / "both/Test" / ["cat", "dog"][number % 2] / f"{number}.png")
    folder.rename(tmp_path / "both/Train")
    found = load(tmp_path / "both")
    assert found.test is not None
    assert (found.training.labels.tolist(), found.test.labels.tolist()) == ([0, 1] * 3, [0, 1] * 2)
    expected = ImageOps.fit(picture(7), (32, 32), Image.Resampling.BILINEAR)
    assert (found.test.read(np.array([1]))[0].transpose(1, 2, 0) == np.asarray(expected)).all()


def test_small_squares_stay_what_they_are(tmp_path):
    for number in range(4):
        save(picture(number, (20, 20)), tmp_path / "x" / "ab"[number % 2] / f"{number}.png")
    assert (images(load(tmp_path / "x"))[3].transpose(1, 2, 0) == np.asarray(picture(3, (20, 20)))).all()
    save(picture(9, (20, 21)), tmp_path / "x/a/9.png")
    assert images(load(tmp_path / "x")).shape == (5, 3, 32, 32)


RED = (200, 30, 40)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
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
    "jpeg": (encoded(Image.new("RGB", (32, 32), RED), "JPEG", quality=100, subsampling=0), RED),
    "jpeg, gray": (encoded(Image.new("L", (32, 32), 90), "JPEG"), (90,) * 3),
    "jpeg, cmyk": (encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "png": (encoded(Image.new("RGB", (32, 32), RED), "PNG"), RED),
    "png, palette": (encoded(palette(), "PNG"), RED),
    "png, black and white": (encoded(Image.new("1", (32, 32), 1), "PNG"), (255,) * 3),
    "png, gray and alpha": (encoded(Image.new("LA", (32, 32), (90, 255)), "PNG"), (90,) * 3),
    "png, 16 bit": (encoded(Image.fromarray(np.full((32, 32), 257 * 90 + 128, np.uint16)), "PNG"), (90,) * 3),
    "png, 16 bit, up": (encoded(Image.fromarray(np.full((32, 32), 257 * 90 + 129, np.uint16)), "PNG"), (91,) * 3),
    "tiff, 16 bit": (encoded(Image.fromarray(np.full((32, 32), 65_535, np.uint16)), "TIFF"), (255,) * 3),
    "tiff, lzw": (encoded(Image.new("RGB", (32, 32), RED), "TIFF", compression="tiff_lzw"), RED),
    "gif": (encoded(Image.new("RGB", (32, 32), RED), "GIF"), RED),
    "gif, animated": (
        encoded(Image.new("RGB", (32, 32), RED), "GIF", save_all=True,
                append_images=[Image.new("RGB", (32, 32), "blue")]), RED),
    "webp": (encoded(Image.new("RGB", (32, 32), RED), "WEBP", lossless=True), RED),
    "bmp": (encoded(Image.new("RGB", (32, 32), RED), "BMP"), RED),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture(folder, kind):
    content, color = KINDS[kind]
    (folder / "cat/9").write_bytes(content)  # whatever it is called
    found = images(load(folder))[-1]
    assert abs(found.astype(int) - np.array(color)[:, None, None]).max() <= (2 if "jpeg" in kind else 0)


@pytest.mark.parametrize("mode", ["RGBA", "PA"])
def test_transparency_is_white(folder, mode):
    save(half_transparent("RGBA").quantize(8) if mode == "PA" else half_transparent(mode), folder / "cat/9.png")
    found = images(load(folder))[-1]
    assert (found[:, :, :15] == 255).all()
    assert (found[:, :, 17:] == np.array(RED)[:, None, None]).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_exif_says_of_the_orientation(folder, orientation, suffix):
    image, exif = picture(7, (48, 40)), Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    save(image, folder / f"cat/9.{suffix}", exif=exif, **options)
    upright = image if orientation == 1 else image.transpose(decoding.EXIF_TRANSPOSE[orientation])
    assert (upright.size == image.size) == (orientation < 5)
    expected = ImageOps.fit(upright, (32, 32), Image.Resampling.BILINEAR)
    assert (images(load(folder))[-1].transpose(1, 2, 0) == np.asarray(expected)).all()


def test_a_large_jpeg_is_decoded_at_less_than_its_size(folder):
    """A photograph is reduced by the decoder first; that must not be seen."""
    large = picture(5, (1_600, 1_200))
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


def test_classes_of_any_name(tmp_path):
    for number, name in enumerate(NAMES * 2):
        save(picture(number), tmp_path / "x" / name / f"{number}.png")
    shown = {"tab\tand\x07bell": "tab�and�bell"}
    assert load(tmp_path / "x").classes == tuple(shown.get(name, name) for name in sorted(NAMES))


def test_hidden_files_and_what_systems_leave_behind_are_none(folder):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / "cat" / name).write_bytes(b"x")
    for hidden in (".cache", "cat/.cache"):
        save(picture(9), folder / hidden / "9.png")
        save(picture(9), folder / hidden / "deeper/9.png")
    (folder / "README.md").write_text("what this is", encoding="utf-8")
    assert len(load(folder).training.labels) == 6


def test_pictures_in_folders_of_a_class(folder):
    save(picture(7), folder / "cat/2024/may/9.png")
    assert load(folder).training.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


def damaged(folder: Path) -> None:
    content = (folder / "cat/0.png").read_bytes()
    (folder / "cat/0.png").write_bytes(content[:-40])


UNUSABLE = [
    (lambda folder: (folder / "cat/0.png").write_bytes(b""), ["cat/0.png is empty"]),
    (lambda folder: (folder / "cat/notes.PNG").write_text("x"),
     ["cat/notes.PNG is no image in JPEG, PNG, WEBP, GIF, TIFF, BMP, PPM, AVIF, JPEG2000: convert it to one of these"]),
    (lambda folder: (folder / "cat/9.JPG").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
     ["cat/9.JPG is HEIC, which Pillow does not read: convert it to JPEG"]),
    (lambda folder: (folder / "cat/9.svg").write_text("<svg/>"), ["cat/9.svg is no image in JPEG, PNG"]),
    (lambda folder: (folder / "cat/9.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
     ["cat/9.eps is no image in JPEG, PNG"]),  # Pillow would run Ghostscript
    (lambda folder: (folder / "cat/9.jpg.crdownload").write_bytes(encoded(picture(9, (400, 300)), "JPEG")[:2_000]),
     ["cat/9.jpg.crdownload is damaged (image file is truncated"]),
    (damaged, ["cat/0.png is damaged (image file is truncated"]),
    (lambda folder: save(picture(1, (1, 1)), folder / "cat/9.png"), ["cat/9.png is too small with 1×1 pixels"]),
    (lambda folder: save(picture(1, (7, 900)), folder / "cat/9.png"), ["cat/9.png is too small with 7×900 pixels"]),
    (lambda folder: save(Image.new("1", (10_000, 10_000)), folder / "cat/9.png"),
     ["cat/9.png has more than 89,478,485 pixels: reduce it"]),
    (lambda folder: save(Image.new("1", (20_000, 20_000)), folder / "cat/9.png"),
     ["cat/9.png has more than 89,478,485 pixels: reduce it"]),
    (lambda folder: save(Image.fromarray(np.ones((32, 32), np.float32)), folder / "cat/9.tiff"),
     ["cat/9.tiff has floating-point values: save it with 8 or 16 bits a channel"]),
    (lambda folder: save(Image.fromarray(np.full((32, 32), 70_000, np.int32)), folder / "cat/9.tiff"),
     ["cat/9.tiff has values of more than 16 bits: save it with 8 or 16"]),
    (lambda folder: save(Image.fromarray(np.full((32, 32), 4_095, np.uint16)), folder / "cat/9.png"),
     ["cat/9.png has 16 bits a pixel, and no value above 4,095 of 65,535: stretch them"]),
    (lambda folder: save(picture(0), folder / "cat/9.bmp"), ["cat/9.bmp is the same picture as cat/0.png"]),
    (lambda folder: save(picture(0), folder / "dog/9.png"),
     ["cat/0.png is the same picture as dog/9.png", "dog/9.png is the same picture as cat/0.png"]),
    (lambda folder: (folder / "cat/9.png").symlink_to("nowhere"), ["cat/9.png is a link to nothing"]),
    (lambda folder: (folder / "cat/more").symlink_to("../dog"), ["cat/more is a link to a folder, and DVC does"]),
    (lambda folder: save(picture(9), folder / "9.png"), ["9.png is in no class"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), UNUSABLE, ids=[expected[0][:40] for _, expected in UNUSABLE])
def test_files_that_cannot_be_used(folder, change, expected):
    change(folder)
    found = problems(folder)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)
    skipped = load(folder, skip=True)
    assert [f"{name} {problem}" for name, problem in skipped.skipped_files.items()] == found
    assert 4 <= len(skipped.training.labels) <= 6
    assert (images(skipped).reshape(len(skipped.training.labels), -1).std(axis=1) > 0).all()  # none is blank


@pytest.mark.parametrize("image_size", [32, 224, 512])
def test_a_photograph_and_a_copy_in_another_format(folder, image_size):
    """A large JPEG is decoded at less than its size, but not where that would hide a copy."""
    large = picture(5, (1_600, 1_200))
    save(large, folder / "cat/9.jpg", quality=90)
    with Image.open(folder / "cat/9.jpg") as jpeg:
        save(jpeg, folder / "dog/9.png")
    with pytest.raises(UserError) as error:
        load(folder, image_size)
    assert error.value.details == [
        "cat/9.jpg is the same picture as dog/9.png", "dog/9.png is the same picture as cat/9.jpg",
    ]  # fmt: skip


def test_all_of_them_in_one_complaint(folder):
    (folder / "cat/a.jpeg").write_bytes(b"")
    damaged(folder)
    save(picture(1), folder / "dog/9.webp", lossless=True)
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value) == (
        f"{folder} has 3 files that cannot be used: mend or remove them, or have them left out: "
        "skip_unusable_images: true in params.yaml, or SKIP=1 after `make pictures`"
    )
    assert [line.partition(" is ")[0] for line in error.value.details] == ["cat/0.png", "cat/a.jpeg", "dog/9.webp"]


def test_the_same_picture_in_train_and_test(folder, tmp_path):
    folder.rename(tmp_path / "both" if (tmp_path / "both").mkdir() else tmp_path / "both/train")
    for number in range(6, 10):
        save(picture(number), tmp_path / "both/test" / ["cat", "dog"][number % 2] / f"{number}.png")
    save(picture(2), tmp_path / "both/test/cat/9.bmp")
    assert problems(tmp_path / "both") == ["train/cat/2.png is the same picture as test/cat/9.bmp"]
    skipped = load(tmp_path / "both", skip=True)
    assert skipped.test is not None
    assert (len(skipped.training.labels), len(skipped.test.labels)) == (5, 5)


def nothing(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


def one_class(folder: Path) -> None:
    shutil.rmtree(folder / "dog")


def one_empty_class(folder: Path) -> None:
    for path in (folder / "dog").iterdir():
        path.unlink()


def one_picture(folder: Path) -> None:
    for name in "02":
        (folder / f"cat/{name}.png").unlink()


def no_test(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part).mkdir()
    (folder / "cat").rename(folder / "train/cat")
    (folder / "dog").rename(folder / "test/dog")


def three_parts(folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / "cat").mkdir(parents=True)


def only_train(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.mkdir()
    folder.with_name("copy").rename(folder / "Train")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def draw(folder: Path, numbers: range, *classes: str) -> None:
    """Distinct pictures in folders of ``classes``."""
    for number in numbers:
        save(picture(number), folder / classes[number % len(classes)] / f"{number}.png")


def two_for_training(folder: Path) -> None:
    empty(folder)
    for at, name in enumerate(("train", "training_set", "test")):
        draw(folder / name, range(4 * at, 4 * at + 4), "cat", "dog")


def no_train(folder: Path) -> None:
    empty(folder)
    draw(folder / "val", range(4), "cat", "dog")
    draw(folder / "test", range(4, 8), "cat", "dog")


def flat_train_and_test(folder: Path) -> None:
    empty(folder)
    draw(folder, range(6), "train", "test")


def flat_test(folder: Path) -> None:
    empty(folder)
    draw(folder / "train", range(6), "cat", "dog")
    draw(folder, range(6, 9), "test_images")


def flat_train_test_and_a_class(folder: Path) -> None:
    empty(folder)
    draw(folder, range(9), "train", "test", "car")


def images_and_a_table(folder: Path) -> None:
    empty(folder)
    draw(folder, range(6), "images")
    (folder / "labels.csv").write_text("0.png,cat")


def flat_and_a_table(folder: Path) -> None:
    empty(folder)
    draw(folder, range(6), ".")
    (folder / "labels.csv").write_text("0.png,cat")


def unpacked_to_itself(folder: Path) -> None:
    empty(folder)
    draw(folder / "flowers", range(6), "rose", "tulip")


def become_a_file(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()
    for name in ("cat", "dog"):
        (folder / name).rmdir()
    folder.rmdir()
    folder.write_bytes(b"x")


def become_a_link(folder: Path) -> None:
    folder.rename(folder.with_name("others"))
    folder.symlink_to("others")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nothing, "has no picture that can be used: a study needs two classes, each a folder with pictures"),
        (one_class, "has only the class cat: a study needs two classes, each a folder with pictures"),
        (one_empty_class, "has no picture that can be used in dog: put some there, or remove the folder"),
        (one_picture, "has one picture in cat: it needs two, to train with and to test with"),
        (no_test, "has no picture in test/cat: put one there, or remove the class"),
        (three_parts, "has cat, dog beside test, train: put its pictures into these, or remove it"),
        (
            only_train,
            "has Train and no other part: make pictures FOLDER={folder}/Train holds out a fifth of each class "
            "for testing",
        ),
        (become_a_file, "is no folder"),
        (two_for_training, "has train, training_set, which are the same part of a data set: join or rename them"),
        (no_train, "has test, val, and no folder train: rename the one to train with"),
        (
            flat_train_and_test,
            "has no folders of classes in test, train: give each class a folder in it, such as {folder}/test/cat",
        ),
        (
            flat_test,
            "has no folders of classes in test_images: give each class a folder in it, such as "
            "{folder}/test_images/cat; or use the other one only: make pictures FOLDER={folder}/train",
        ),
        (
            flat_train_test_and_a_class,
            "has car beside test, train: put its pictures into these, or remove it; or rename the class",
        ),
        (images_and_a_table, "has only the class images: a study needs two classes, each a folder with pictures"),
        (
            flat_and_a_table,
            "has no folders: give each class one, with its pictures in it (data/pictures/README.md has a "
            "script that reads the labels from labels.csv)",
        ),
        (
            unpacked_to_itself,
            "has only the class flowers: a study needs two classes, each a folder with pictures; if the "
            "folders in it are the classes, use FOLDER={folder}/flowers",
        ),
        (become_a_link, "is a link, and DVC does not see what is behind it: put the folder itself there"),
    ],
)
def test_folders_that_are_no_data_set(folder, change, message):
    change(folder)
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value) == f"{folder} {message.format(folder=folder)}"


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "x")
    with pytest.raises(UserError, match="has no folders: give each class one, with its pictures in it"):
        load(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text(folder):
    (folder / "cat").rename(os.fsdecode(os.fsencode(folder) + b"/c\xe4t"))
    assert load(folder).classes == ("c�t", "dog")


TRAIN = ("train", "Training", "TRAIN_SET", "training-set", "trainset", "train_images", "Training Data", "train2017")
VALIDATION = ("val", "Valid", "validation", "validate", "dev", "val_set", "Validation Data", "val2017")
TEST = ("test", "Testing", "test_set", "testset", "eval", "holdout", "test-images", "Test Data")


def of(dataset: splits.Dataset) -> tuple[int, int]:
    assert dataset.test is not None
    return len(dataset.training.labels), len(dataset.test.labels)


@pytest.mark.parametrize(("train", "validation", "test"), list(zip(TRAIN, VALIDATION, TEST, strict=True)))
def test_the_usual_names_of_splits(tmp_path, train, validation, test):
    """With train and val, val is the test set; with all three, validation images are drawn from train and val."""
    folder = tmp_path / "pets"
    draw(folder / train, range(6), "cat", "dog")
    draw(folder / validation, range(6, 10), "cat", "dog")
    found = load(folder)
    assert (found.classes, of(found)) == (("cat", "dog"), (6, 4))
    draw(folder / test, range(10, 13), "cat", "dog")
    found = load(folder)
    assert (found.classes, of(found)) == (("cat", "dog"), (10, 3))
    assert f"{train} and {validation} are joined" in " ".join(scanning.scan(folder, follow_links=False).notes)
    shutil.rmtree(folder / validation)
    found = load(folder)
    assert (found.classes, of(found)) == (("cat", "dog"), (6, 3))


def test_archives_that_unpack_to_folders_of_the_same_name(tmp_path):
    draw(tmp_path / "x/seg_train/seg_train", range(6), "sea", "street")
    draw(tmp_path / "x/seg_test/seg_test", range(6, 10), "sea", "street")
    found = load(tmp_path / "x")
    assert (found.classes, of(found)) == (("sea", "street"), (6, 4))
    draw(tmp_path / "x/seg_pred", range(10, 14), "seg_pred")
    with pytest.raises(UserError, match="has seg_pred beside seg_test, seg_train: put its pictures into these, or"):
        load(tmp_path / "x")


def test_what_has_no_images_beside_splits_is_ignored(tmp_path):
    draw(tmp_path / "x/train", range(6), "cat", "dog")
    draw(tmp_path / "x/valid", range(6, 10), "cat", "dog")
    (tmp_path / "x/annotations").mkdir()
    (tmp_path / "x/annotations/0.xml").write_text("<annotation/>")
    (tmp_path / "x/README.roboflow.txt").write_text("exported")
    (tmp_path / "x/train/_annotations.csv").write_text("0.png,cat")
    assert of(load(tmp_path / "x")) == (6, 4)


@pytest.mark.parametrize("names", [("fold0", "fold1", "fold2"), ("fold_1", "fold_2"), ("Split1", "Split2"),
                                   ("cv1", "cv2"), ("1-fold", "2-fold"), ("fold1", "fold2", "test")])  # fmt: skip
@pytest.mark.parametrize("is_flat", [False, True])
def test_folds_are_no_classes(tmp_path, names, is_flat):
    for at, name in enumerate(names):
        numbers = range(10 * at, 10 * at + 6)
        draw(tmp_path / "x" / name, numbers, *(["."] if is_flat else ["cat", "dog"]))
    with pytest.raises(UserError, match="which look like folds for cross-validation, and a study has one split: make"):
        load(tmp_path / "x")


def test_parts_are_folds_only_where_they_have_the_same_classes(tmp_path):
    for at, name in enumerate(("part 1", "part 2")):
        draw(tmp_path / "x" / name, range(10 * at, 10 * at + 6), "cat", "dog")
        draw(tmp_path / "y" / name, range(10 * at, 10 * at + 6), ".")
    with pytest.raises(UserError, match="has part 1, part 2, which look like folds"):
        load(tmp_path / "x")
    assert load(tmp_path / "y").classes == ("part 1", "part 2")


def test_notes_say_how_a_folder_was_understood(tmp_path):
    draw(tmp_path / "a", range(9), "car", "test", "train station")
    assert load(tmp_path / "a").classes == ("car", "test", "train station")
    notes = scanning.scan(tmp_path / "a", follow_links=False).notes
    assert notes == ["test is a class here, because it has no folders of classes"]
    draw(tmp_path / "b", range(8), "cat/train", "dog/train", "cat/test", "dog/test")
    assert load(tmp_path / "b").classes == ("cat", "dog")
    notes = scanning.scan(tmp_path / "b", follow_links=False).notes
    assert notes == ["test, train within the classes are joined: a fifth of each class is held out"]


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
def test_what_systems_and_tools_leave_behind_is_ignored(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith((".png", ".jpg")) and "._" not in name:
        save(picture(9), folder / name)
    else:
        (folder / name).write_bytes(b"PK or [ZoneTransfer] or {} or nothing that is an image")
    found = load(folder)
    assert (found.classes, len(found.training.labels), found.skipped_files) == (("cat", "dog"), 6, {})


def test_a_pipe_is_no_picture(folder):
    os.mkfifo(folder / "cat/9.png")  # to open it would wait for ever
    assert len(load(folder).training.labels) == 6


FORMATS = [("ppm", "PPM"), ("pgm", "PPM"), ("pbm", "PPM"), ("jp2", "JPEG2000"), ("avif", "AVIF"), ("mpo", "MPO"),
           ("jpe", "JPEG"), ("JPEG", "JPEG"), ("tif", "TIFF"), ("webp", "WEBP"), ("bmp", "BMP")]  # fmt: skip


@pytest.mark.parametrize(("suffix", "format"), FORMATS)
def test_every_format(folder, suffix, format):
    mode = {"pgm": "L", "pbm": "1"}.get(suffix, "RGB")
    image = Image.new(mode, (32, 32), {"L": 90, "1": 1}.get(mode, RED))
    options = {"save_all": True, "append_images": [picture(0)]} if format == "MPO" else {}
    save(image, folder / f"cat/9.{suffix}", format=format, **options)
    found = images(load(folder))[-1].transpose(1, 2, 0)
    assert abs(found.astype(int) - np.asarray(image.convert("RGB"))).max() <= 4


def test_a_pgm_of_16_bits(folder):
    (folder / "cat/9.pgm").write_bytes(b"P5 32 32 65535\n" + np.full((32, 32), 257 * 90, ">u2").tobytes())
    assert (images(load(folder))[-1] == 90).all()


def test_an_mpo_is_decoded_at_less_than_its_size(folder):
    large = picture(5, (1_600, 1_200))
    path = save(large, folder / "cat/9.jpg", format="MPO", save_all=True, append_images=[picture(0)], quality=95)
    assert decoding.decode_image(path, 32).size == (200, 150)
    expected = np.asarray(ImageOps.fit(large, (32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert abs(images(load(folder))[-1].astype(int) - expected).max() <= 3


def white_drawing(number: int) -> Image.Image:
    image = Image.new("RGBA", (48, 48), (255, 255, 255, 0))
    image.paste((250, 252, 255, 255), (4 + number, 4, 40, 30 + number))
    return image


def test_white_drawings_on_transparency_are_blank_and_no_copies(folder):
    """On white, which transparent images are put on, nothing of them would be left."""
    for number in range(4):
        save(white_drawing(number), folder / f"cat/white {number}.png")
    found = problems(folder)
    expected = "is transparent, and blank on a white background: give it a background of another color"
    assert found == [f"cat/white {number}.png {expected}" for number in range(4)]
    assert len(load(folder, skip=True).training.labels) == 6
    for number in range(4):  # what is seen on white is as it was
        drawing = white_drawing(number)
        drawing.paste((200, 0, 0, 255), (20, 20, 24, 24 + number))
        save(drawing, folder / f"cat/white {number}.png")
    save(Image.new("RGBA", (20, 20), (9, 9, 9, 0)), folder / "dog/nothing.png")  # wholly transparent: white
    assert len(load(folder).training.labels) == 11


def test_links_to_files_are_read(folder, tmp_path):
    """As DVC makes them with `cache.type symlink`; it sees where what is behind them changes."""
    for path in folder.rglob("*.png"):
        (tmp_path / "cache").mkdir(exist_ok=True)
        path.rename(tmp_path / "cache" / path.name)
        path.symlink_to(tmp_path / "cache" / path.name)
    assert len(load(folder).training.labels) == 6


def test_links_to_folders_are_read_where_what_is_behind_them_is_copied(folder, tmp_path):
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
        found = scanning.scan(top, follow_links=True)
        assert (len(found.pictures), found.problems) == (8, {})
        read = pictures.read(found, image_size=32, skip_unusable=False)
        assert (read.classes, len(read.training.labels)) == (("cat", "dog"), 8)
    assert [line.partition(" is a link to a folder,")[0] for line in problems(folder)] == [
        "cat", "dog/itself", "dog/loop", "dog/more",
    ]  # fmt: skip


UNREADABLE = """
import os, sys
from pathlib import Path
from headstart.console import UserError
from headstart.data import pictures
from PIL import Image
Image.init()  # its modules may be another user's too
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    pictures.load(Path(sys.argv[1]), image_size=32, skip_unusable=False)
except UserError as error:
    print(error, *error.details, sep="\\n")
"""


def test_what_cannot_be_read_is_named(tmp_path):
    """Another user's files, all at once: neither passed over nor called damaged."""
    with tempfile.TemporaryDirectory() as shared:  # pytest's own folders are closed to other users
        folder = Path(shared, "pets")
        draw(folder, range(8), "cat", "dog")
        draw(folder / "cat/more", range(8, 10), ".")
        draw(folder, range(10, 12), "owl")
        save(picture(12), folder / "dog/listed/12.png")
        for path in (Path(shared), folder, *folder.rglob("*")):
            path.chmod(0o755)
        (folder / "cat/0.png").chmod(0o000)
        (folder / "dog/listed").chmod(0o744)  # its names can be read, what is in it cannot
        for name in ("cat/more", "owl"):
            (folder / name).chmod(0o000)
        done = subprocess.run([sys.executable, "-c", UNREADABLE, folder], capture_output=True, text=True, check=True)
        for name in ("cat/more", "owl"):
            (folder / name).chmod(0o755)
    assert done.stdout.splitlines()[1:] == [
        f"{name} cannot be read (Permission denied): change its permissions"
        for name in ("cat/0.png", "cat/more", "dog/listed/12.png", "owl")
    ]


def test_copies_do_not_depend_on_the_size_that_images_are_reduced_to(folder):
    """Two photographs that differ in fine detail only, which is gone in a decoder's smallest size."""
    detail = np.asarray(picture(5, (1_600, 1_200), "L")).clip(20, 235)
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
            f"{one}/{name}.jpg is the same picture as {other}/{name}.jpg"
            for one, other in (("cat", "dog"), ("dog", "cat")) for name in (8, 9)
        ]  # fmt: skip


def test_the_order_does_not_depend_on_the_size_that_images_are_reduced_to(tmp_path):
    for number in range(20):
        save(picture(number, (400, 300)), tmp_path / "x" / "ab"[number % 2] / f"{number // 2}.jpg", quality=95)
    orders = [load(tmp_path / "x", size).training.labels.tolist() for size in (32, 64, 128)]
    assert orders[0] == orders[1] == orders[2]


@given(st.binary(max_size=300), st.sampled_from([kind for kind, _ in KINDS.values()]), st.integers(0, 2_000), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_picture_or_a_problem(tmp_path, bytes_, content, at, data):
    folder = tmp_path / "x"
    for number in range(4):
        path = folder / "ab"[number % 2] / f"{number}.png"
        if not path.exists():
            save(picture(number), path)
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 5))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a/5.png").write_bytes(data.draw(st.sampled_from([bytes_, bytes(changed), content[:at]])))
    found = load(folder, skip=True)
    assert len(found.training.labels) + len(found.skipped_files) == 5


def test_colour_is_dropped_where_there_is_none(tmp_path):
    labels = np.arange(40) % 2
    gray = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8).repeat(3, axis=1)
    colored = gray.copy()
    colored[39, 1, 7, 7] ^= 1
    for array, shape in ((gray, (8, 8)), (colored, (3, 8, 8))):
        dataset = splits.Dataset("x", ("a", "b"), splits.Partition(labels, array.__getitem__), None)
        splits.write_splits(tmp_path / "x.safetensors", dataset, sizes={"training": 20, "validation": 4}, seed=0)
        sizes = {"training": 20, "validation": 4, "test": 8}
        for split, n in sizes.items():
            images, found, classes = splits.read_split(tmp_path / "x.safetensors", split)
            assert images.shape == (n, *shape)
            assert np.bincount(found).tolist() == [n // 2] * 2
            assert classes == ("a", "b")
