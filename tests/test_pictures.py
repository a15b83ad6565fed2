"""Folders of pictures: every format and kind, and everything that can be wrong with them."""

import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from headstart.console import UserError
from headstart.data import pictures, splits


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
    assert (found.title, found.classes, found.test, found.left_out) == ("pets", ("cat", "dog"), None, {})
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
    "jpeg, grey": (encoded(Image.new("L", (32, 32), 90), "JPEG"), (90,) * 3),
    "jpeg, cmyk": (encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "png": (encoded(Image.new("RGB", (32, 32), RED), "PNG"), RED),
    "png, palette": (encoded(palette(), "PNG"), RED),
    "png, black and white": (encoded(Image.new("1", (32, 32), 1), "PNG"), (255,) * 3),
    "png, grey and alpha": (encoded(Image.new("LA", (32, 32), (90, 255)), "PNG"), (90,) * 3),
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
    content, colour = KINDS[kind]
    (folder / "cat/9").write_bytes(content)  # whatever it is called
    found = images(load(folder))[-1]
    assert abs(found.astype(int) - np.array(colour)[:, None, None]).max() <= (2 if "jpeg" in kind else 0)


@pytest.mark.parametrize("mode", ["RGBA", "PA"])
def test_transparency_is_white(folder, mode):
    save(half_transparent("RGBA").quantize(8) if mode == "PA" else half_transparent(mode), folder / "cat/9.png")
    found = images(load(folder))[-1]
    assert (found[:, :, :15] == 255).all()
    assert (found[:, :, 17:] == np.array(RED)[:, None, None]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_exif_says_of_the_orientation(folder, orientation):
    image, exif = picture(7, (48, 40)), Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    save(image, folder / "cat/9.png", exif=exif)
    with Image.open(folder / "cat/9.png") as stored:
        upright = ImageOps.exif_transpose(stored)
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
    (lambda folder: (folder / "cat/notes.txt").write_text("x"),
     ["cat/notes.txt is no picture in JPEG, PNG, WEBP, GIF, TIFF, BMP"]),
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
    (lambda folder: (folder / "cat/9.png").symlink_to("/etc/hostname"), ["cat/9.png is a link out of the folder"]),
    (lambda folder: (folder / "cat/9.png").symlink_to("nowhere"), ["cat/9.png is a link to nothing"]),
    (lambda folder: (folder / "cat/more").symlink_to("../dog"), ["cat/more is a link to a folder"]),
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
    assert [f"{name} {problem}" for name, problem in skipped.left_out.items()] == found
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
    (folder / "cat/a.txt").write_bytes(b"")
    damaged(folder)
    save(picture(1), folder / "dog/9.webp", lossless=True)
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value) == (
        f"{folder} has 3 files that cannot be used: mend or remove them, or have them left out: "
        "skip_unusable_images: true in params.yaml, or SKIP=1 after `make pictures`"
    )
    assert [line.partition(" is ")[0] for line in error.value.details] == ["cat/0.png", "cat/a.txt", "dog/9.webp"]


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


def train_and_val(folder: Path) -> None:
    only_train(folder)
    shutil.copytree(folder / "Train", folder / "val")


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
        (three_parts, "has cat, dog beside test, train: put its pictures into train and test, or remove it"),
        (only_train, "has Train: it must have train and test, or the classes alone"),
        (train_and_val, "has val beside Train: put its pictures into train and test, or remove it"),
        (become_a_file, "is no folder"),
        (become_a_link, "is a link, and DVC does not see what is behind it: put the folder itself there"),
    ],
)
def test_folders_that_are_no_data_set(folder, change, message):
    change(folder)
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value) == f"{folder} {message}"


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        load(tmp_path / "x")
    with pytest.raises(UserError, match="has no folders: give each class one, with its pictures in it"):
        load(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text(folder):
    (folder / "cat").rename(os.fsdecode(os.fsencode(folder) + b"/c\xe4t"))
    assert load(folder).classes == ("c�t", "dog")


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
    (folder / "a/5").write_bytes(data.draw(st.sampled_from([bytes_, bytes(changed), content[:at]])))
    found = load(folder, skip=True)
    assert len(found.training.labels) + len(found.left_out) == 5


def test_colour_is_dropped_where_there_is_none(tmp_path):
    labels = np.arange(40) % 2
    grey = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8).repeat(3, axis=1)
    coloured = grey.copy()
    coloured[39, 1, 7, 7] ^= 1
    for array, shape in ((grey, (8, 8)), (coloured, (3, 8, 8))):
        dataset = splits.Dataset("x", ("a", "b"), splits.Part(labels, array.__getitem__), None)
        splits.write(tmp_path / "x.safetensors", dataset, sizes={"training": 20, "validation": 4}, seed=0)
        sizes = {"training": 20, "validation": 4, "test": 8}
        for split, n in sizes.items():
            images, found, classes = splits.read_split(tmp_path / "x.safetensors", split)
            assert images.shape == (n, *shape)
            assert np.bincount(found).tolist() == [n // 2] * 2
            assert classes == ("a", "b")
