"""Groups of images: how they are found, and that no group is in two splits."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import scripts.pictures
from headstart.console import UserError
from headstart.data import grouping, pictures, registry, splits
from headstart.data.splits import Dataset, Partition

from .test_pictures import save, smooth_image


@pytest.mark.parametrize(("name", "prefix"), [
    ("video3_frame0012.jpg", "video3_frame"), ("cat-7.png", "cat"), ("cat (2).jpg", "cat"), ("cat.jpg", "cat"),
    ("0012.jpg", "0012"), ("a.b.12.jpg", "a.b"), ("12 monkeys.jpg", "12 monkeys"),
])  # fmt: skip
def test_prefixes(name, prefix):
    assert grouping.prefix(Path(name)) == prefix


def test_groups_by_folder_and_prefix():
    paths = [Path(name) for name in ("one/a-1.png", "one/b-1.png", "two/a-2.png", "a-3.png")]
    images = np.zeros((4, 3, 32, 32), dtype=np.uint8)
    assert same_group(grouping.group_images(images, paths, "folder")) == [(0, 1)]
    assert same_group(grouping.group_images(images, paths, "prefix")) == [(0, 2), (0, 3), (2, 3)]


def same_group(groups: np.ndarray) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(groups)) for j in range(i + 1, len(groups)) if groups[i] == groups[j]]


def test_near_duplicates_of_near_duplicates_are_in_one_group():
    generator = np.random.default_rng(0)
    start, end, *others = generator.integers(0, 256, (30, 16, 16))
    frames = [start + (end - start) * step / 16 for step in range(17)]  # a slow video
    images = np.stack([np.kron(frame, np.ones((4, 4))) for frame in (*frames, *others)]).astype(np.uint8)
    groups = grouping.group_images(images, [Path(f"{number}.png") for number in range(45)], "near-duplicates")
    assert len(set(groups[:17].tolist())) == 1
    assert len(set(groups[17:].tolist()) - {groups[0]}) == 28


@given(
    labels=st.lists(st.integers(0, 3), min_size=12, max_size=80),
    n_groups=st.integers(3, 30),
    share=st.floats(0.05, 0.4),
    seed=st.integers(0, 5),
)
def test_held_out_groups_are_whole_and_have_every_class_that_can_be_split(labels, n_groups, share, seed):
    labels = np.array(labels)
    groups = np.random.default_rng(seed).integers(0, n_groups, len(labels))
    n = max(1, round(share * len(labels)))
    remaining, held_out = splits.hold_out_groups(labels, groups, n, seed=seed)
    assert sorted([*remaining, *held_out]) == list(range(len(labels)))
    assert not set(groups[remaining]) & set(groups[held_out])
    assert set(labels[remaining].tolist()) == set(labels.tolist())  # every class can be trained


def write_frames(folder: Path, *, split: bool) -> None:
    """Write six videos of each of two classes, with four frames each, to class folders."""
    for label in ("cat", "dog"):
        for video in range(6):
            image = smooth_image(100 * video + (label == "dog") * 7)
            for frame in range(4):
                is_test = video < 2 and frame == 0
                part = ("test/" if is_test else "train/") if split else ""
                pixels = np.clip(np.asarray(image).astype(int) + frame, 0, 255).astype(np.uint8)
                save(Image.fromarray(pixels), folder / f"{part}{label}/clip{video}_{frame}.png")


@pytest.mark.parametrize("group_by", ["prefix", "near-duplicates"])
@pytest.mark.parametrize("split", [False, True])
def test_no_video_is_in_two_splits(tmp_path, group_by, split):
    write_frames(tmp_path / "videos", split=split)
    dataset = pictures.load(tmp_path / "videos", image_size=32, skip_unusable=False, group_by=group_by)
    pool, _ = splits.pool_and_test(dataset, seed=0)
    training, _ = splits.split_pool(dataset, pool, training_images=None, validation_images=4, seed=0)
    splits.write_splits(
        tmp_path / "prepared.safetensors", dataset, training_images=len(training), validation_images=4, seed=0
    )
    names = splits.read_metadata(tmp_path / "prepared.safetensors").file_names
    videos = [
        {Path(name).stem.partition("_")[0] + Path(name).parts[-2] for name in names[part]} for part in splits.SPLITS
    ]
    assert sum(map(len, videos)) == len(set.union(*videos))
    assert len(names["validation"]) == 4


def grouped(labels: list[int], groups: list[int]) -> Dataset:
    array = np.array(labels)
    return Dataset("pets", ("cat", "dog"), Partition(array, lambda chosen: array[chosen], (), np.array(groups)), None)


def test_a_class_with_a_single_group_is_for_training():
    labels = [0] * 80 + [1] * 5
    pool, test = splits.pool_and_test(grouped(labels, [*range(80), *[80] * 5]), seed=0)
    assert set(test.tolist()) <= set(range(80))
    assert set(range(80, 85)) <= set(pool.tolist())


def test_groups_without_test_or_training_images_are_rejected():
    with pytest.raises(UserError, match="group_by leaves no test images: each class of pets is one group"):
        splits.pool_and_test(grouped([0, 0, 1, 1], [0, 0, 1, 1]), seed=0)
    dataset = grouped([0, 0, 1, 1], [0, 1, 2, 3])
    test = Partition(np.array([0, 1]), dataset.training.read, (), np.array([0, 3]))
    pool, _ = splits.pool_and_test(dataclasses.replace(dataset, test=test), seed=0)
    assert pool.tolist() == [1, 2]
    test = dataclasses.replace(test, groups=np.array([2, 3]))
    with pytest.raises(UserError, match="group_by leaves no training images of dog: they are in the groups of test"):
        splits.pool_and_test(dataclasses.replace(dataset, test=test), seed=0)


def test_a_study_of_few_groups_has_fewer_validation_images():
    labels, groups = [0, 0, 0, 1, 1, 1] * 6, [0, 0, 0, 1, 1, 1] * 3 + [2, 2, 2, 3, 3, 3] * 3
    settings = scripts.pictures.suggest_settings(grouped(labels, groups), 64, [0])
    assert settings["validation_images"] == 0
    assert settings["training_images"] == 18


def test_blank_images_are_in_no_group():
    generator = np.random.default_rng(0)
    images = np.kron(generator.integers(0, 256, (20, 3, 8, 8)), np.ones((4, 4))).astype(np.uint8)
    images[:6] = generator.integers(100, 102, (6, 3, 32, 32))
    groups = grouping.group_images(images, [Path(f"{number}.png") for number in range(20)], "near-duplicates")
    assert len(set(groups.tolist())) == 20


def test_class_folders_below_other_folders_have_the_same_groups(tmp_path):
    for path in ("train/images/cat/v1/1.png", "train/images/dog/v2/2.png", "train/images/dog/v3/3.png",
                 "test/cat/v1/4.png", "test/dog/v4/5.png", "train/images/cat/v5/6.png"):  # fmt: skip
        save(smooth_image(int(Path(path).stem)), tmp_path / "pets" / path)
    dataset = pictures.load(tmp_path / "pets", image_size=32, skip_unusable=False, group_by="folder")
    pool, _ = splits.pool_and_test(dataset, seed=0)
    assert sorted(dataset.training.file_names[index] for index in pool) == [
        "train/images/cat/v5/6.png", "train/images/dog/v2/2.png", "train/images/dog/v3/3.png",
    ]  # fmt: skip


def test_too_many_images_of_groups_are_rejected():
    labels = np.arange(20) % 2
    dataset = Dataset(
        "pets", ("cat", "dog"), Partition(labels, lambda chosen: labels[chosen], (), np.arange(20) // 4), None
    )
    with pytest.raises(
        UserError, match=r"with group_by, at most \d+ training images and \d+ validation images are available"
    ):
        splits.split_pool(dataset, np.arange(20), training_images=18, validation_images=2, seed=0)


@pytest.mark.parametrize(("group_by", "problem"), [
    ("folder", "all images in one group"),
    ("prefix", "each image in a group of its own"),
])  # fmt: skip
def test_rules_that_find_no_groups_are_rejected(tmp_path, group_by, problem):
    for label in ("cat", "dog"):
        for number in range(4):
            save(
                smooth_image(number + 10 * (label == "dog")),
                tmp_path / f"pets/{label}/{label * (number + 1)}.png",
            )
    with pytest.raises(UserError, match=f"group_by: {group_by} puts {problem}"):
        pictures.load(tmp_path / "pets", image_size=32, skip_unusable=False, group_by=group_by)


def test_built_in_datasets_have_no_groups(tmp_path):
    with pytest.raises(UserError, match=r"group_by works only with your own images"):
        registry.load("fashion-mnist", tmp_path, tmp_path, image_size=32, skip_unusable=False, group_by="prefix")
