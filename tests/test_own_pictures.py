"""Studies of people's own pictures, in a copy of the repository: what `make pictures` does, and what comes of it."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import headstart
import scripts.pictures
from headstart import files
from headstart.data import fashion_mnist, splits

from .clones import KEPT, TEST_IMAGES, TRAINING_IMAGES, edit, repro, results, tiny_clone
from .conftest import run

STAMPS = Path("/usr/share/tuxpaint/stamps")  # Debian's package tuxpaint-stamps-default

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return tiny_clone(tmp_path_factory.mktemp("clone"))


def export(images, labels, folder: Path) -> None:
    """Images as PNG files, whose names say their order, in folders of their classes."""
    for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
        path = folder / f"{label} {fashion_mnist.CLASSES[label]}".replace("/", " or ") / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


def test_fashion_mnist_as_pictures_has_the_same_metrics(clone, training_set, test_set):
    """The same images from their original files and from folders: all that differs is what the classes are called."""
    run(sys.executable, "-m", "stages", cwd=clone)
    folder = clone / "data/pictures/png"
    export(*(tensor[:TRAINING_IMAGES] for tensor in training_set), folder / "train")
    export(*(tensor[:TEST_IMAGES] for tensor in test_set), folder / "test")

    def add(settings) -> None:
        settings["study"] = "png"
        settings["studies"]["png"] = settings["studies"]["quick"] | {"dataset": "png"}

    edit(clone, add)
    run(sys.executable, "-m", "stages", cwd=clone)
    for split in splits.SPLITS:
        ours, theirs = (splits.read_split(clone / f"data/prepared/{name}.safetensors", split) for name in
                        ("png", "quick"))  # fmt: skip
        assert (ours.images == theirs.images).all()
        assert (ours.labels == theirs.labels).all()
    found = results(clone)
    compared = [name for name in found if re.match(r"(metrics|predictions)/png/|plots/png/(acc|learn).*csv", name)]
    assert len(compared) == len(KEPT) + 4 + len(KEPT) + 2
    assert {name: found[name] for name in compared} == {
        name: found[name.replace("/png/", "/quick/")] for name in compared
    }


@pytest.fixture(scope="module")
def stamps(tmp_path_factory) -> Path:
    """Drawings and photographs with transparency, of very different sizes, in classes of very different sizes."""
    if not STAMPS.is_dir():
        pytest.skip("Debian's tuxpaint-stamps-default is not installed")
    folder = tmp_path_factory.mktemp("own") / "Stamps & more"
    for path in STAMPS.rglob("*.png"):
        category, *rest = path.relative_to(STAMPS).parts
        target = folder / category / "-".join(rest)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


def pictures(clone: Path, *arguments: object, check: bool = True):
    return run(sys.executable, "-m", "scripts.pictures", *map(str, arguments), cwd=clone, check=check)


def test_a_folder_becomes_a_study(clone, stamps):
    before = (clone / "params.yaml").read_text(encoding="utf-8")
    refused = pictures(clone, stamps, check=False)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[0].startswith(f"headstart: {stamps} has ")
    # Of the transparent drawings only this one is white, and blank on white.
    assert [line.split()[0] for line in refused.stderr.splitlines() if "transparent" in line] == [
        "naturalforces/lightningbolt.png"
    ]
    assert not (clone / "data/pictures/stamps-more").exists()
    assert (clone / "params.yaml").read_text(encoding="utf-8") == before

    said = pictures(clone, stamps, "--skip-unusable").stdout
    n, classes, skipped_files = map(int, re.findall(r"(\d+) (?:pictures|classes|files left out)", said))
    assert n + skipped_files == sum(path.is_file() for path in stamps.rglob("*"))
    assert classes == 16
    settings = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))
    assert settings["study"] == settings["studies"]["stamps-more"]["dataset"] == "stamps-more"
    small = {"image_size": 48, "n_epochs": 2, "seeds": [0]}
    edit(clone, lambda settings: settings["studies"]["stamps-more"].update(small))
    run(sys.executable, "-m", "stages", cwd=clone)

    metrics = {name: files.read_json(clone / f"metrics/stamps-more/{name}.json") for name in KEPT}
    assert metrics[KEPT[0]]["test_accuracy"] > metrics[KEPT[2]]["test_accuracy"] + 0.2
    assert 0 < metrics[KEPT[0]]["balanced_accuracy"] < metrics[KEPT[0]]["test_accuracy"]
    page = (clone / "report/stamps-more/index.html").read_text(encoding="utf-8")
    assert f">{skipped_files} skipped files</a>" in page
    assert "Balanced<br>accuracy" in page
    images, _, names = splits.read_split(clone / "data/prepared/stamps-more.safetensors", "test")
    assert images.shape[1:] == (3, 48, 48)
    network = headstart.load(clone / f"models/stamps-more/{KEPT[0]}")
    assert network.classes == names == tuple(sorted(path.name for path in stamps.iterdir()))
    logits = files.read_arrays(clone / f"predictions/stamps-more/{KEPT[0]}/logits.safetensors").arrays["logits"]
    with torch.inference_mode():
        torch.testing.assert_close(network(torch.from_numpy(images)), torch.from_numpy(logits[0]), rtol=1e-4, atol=1e-4)


def noise(folder: Path, numbers: range) -> None:
    """Small squares in the classes a and b."""
    for number in numbers:
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)


def test_dvc_sees_the_pictures(tmp_path):
    clone = tiny_clone(tmp_path / "clone")
    folder = clone / "data/pictures/two"
    noise(folder, range(40))
    few = {"dataset": "two", "training_images": 20, "validation_images": 5, "probe_budgets": []}
    edit(clone, lambda settings: settings["studies"]["quick"].update(few))
    to_start = ("download", "prepare", "initialize@random")
    assert repro(clone, *to_start) == set(to_start)
    assert repro(clone, *to_start) == set()
    noise(clone / "data/pictures/other", range(4))  # another data set: the folder is looked at as a whole
    assert repro(clone, *to_start) == {"prepare"}
    noise(folder, range(40, 42))
    assert repro(clone, *to_start) == {"prepare", "initialize@random"}
    # Versioned with DVC, the pictures come back as they were.
    run("dvc", "add", "-q", "data/pictures/two", cwd=clone)
    assert run("git", "status", "-s", "-uall", "data", cwd=clone).stdout == "?? data/pictures/two.dvc\n"
    repro(clone, *to_start)
    shutil.rmtree(folder)
    run("dvc", "checkout", "-q", "data/pictures/two.dvc", cwd=clone)
    assert len(list(folder.rglob("*.png"))) == 42
    assert repro(clone, *to_start) == set()


def commit(clone: Path) -> None:
    run("git", "add", "-A", cwd=clone)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "pictures", cwd=clone)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_versioned_pictures_are_seen_by_dvc(tmp_path):
    """What `dvc add` has: status, push, gc, pull, a second `make pictures`, `exp run --temp` and a cluster's job."""
    clone = tiny_clone(tmp_path / "clone")
    noise(tmp_path / "two", range(40))
    pictures(clone, tmp_path / "two")
    there, expected = clone / "data/pictures/two", names(tmp_path / "two")
    run("dvc", "add", "-q", "data/pictures/two", cwd=clone)
    commit(clone)
    run("dvc", "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote"), cwd=clone)
    assert "two.dvc" not in run("dvc", "status", cwd=clone).stdout
    noise(tmp_path / "two", range(40, 42))
    pictures(clone, tmp_path / "two")  # adds to what DVC has linked into its cache
    assert names(there) == [*names(tmp_path / "two")]
    assert "data/pictures/two.dvc:" in run("dvc", "status", cwd=clone).stdout
    run("dvc", "add", "-q", "data/pictures/two", cwd=clone)
    commit(clone)
    expected = names(there)

    run("dvc", "gc", "-q", "--workspace", "--force", cwd=clone)
    shutil.rmtree(there)
    run("dvc", "checkout", "-q", "data/pictures/two.dvc", cwd=clone)
    assert names(there) == expected
    run("dvc", "push", "-q", cwd=clone)
    shutil.rmtree(there)
    shutil.rmtree(clone / ".dvc/cache")
    run("dvc", "pull", "-q", cwd=clone, check=False)  # the study's own outputs are not in this remote
    assert names(there) == expected

    run("dvc", "exp", "run", "--temp", "prepare", cwd=clone)
    job = ("cluster.job", "prepare", "--commit", run("git", "rev-parse", "HEAD", cwd=clone).stdout.strip())
    run(sys.executable, "-m", "cluster.job", "download", *job[2:], cwd=clone)
    run(sys.executable, "-m", *job, cwd=clone, check=False)
    assert names(there) == expected
    run("make", "clean", cwd=clone)
    assert names(there) == expected
    assert (clone / ".dvc/cache").is_dir()


def test_pictures_that_come_and_go(clone, tmp_path):
    """A second time, what is new in the folder is taken; nothing that was there is lost."""
    folder = tmp_path / "two"
    noise(folder, range(8))
    assert "8 pictures in 2 classes" in pictures(clone, folder).stdout
    assert sizes(clone, "two") == (6, 0)
    (clone / "data/pictures/two/.DS_Store").write_bytes(b"x")  # somebody has looked at it
    shutil.copyfile(folder / "a/0.png", tmp_path / "0.png")
    Image.new("RGB", (9, 9), "red").save(folder / "a/9.png")
    noise(folder, range(100, 160))
    assert "69 pictures in 2 classes" in pictures(clone, folder).stdout
    assert sizes(clone, "two") == (50, 5)
    edit(clone, lambda settings: settings["studies"]["two"].update(n_epochs=4))
    assert "the sizes of the study two stay as they are in params.yaml" in pictures(clone, folder).stdout
    assert sizes(clone, "two") == (50, 5)
    (folder / "a/0.png").unlink()
    refused = pictures(clone, folder, check=False)
    assert refused.stderr == (
        f"headstart: data/pictures/two has pictures that {folder} has not: give the study another name with NAME=…, or "
        "delete data/pictures/two\n"
    )
    assert (clone / "data/pictures/two/a/0.png").read_bytes() == (tmp_path / "0.png").read_bytes()
    # What a link leads to is copied; a link to nothing is left out.
    (tmp_path / "more").mkdir()
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "more/blue.png")
    (folder / "a/more").symlink_to("../../more")
    (folder / "b/0.png").symlink_to("nowhere")
    said = pictures(clone, folder, "--name", "fewer", "--skip-unusable").stdout
    assert "69 pictures in 2 classes, 1 files left out" in said
    there = clone / "data/pictures/fewer"
    assert {path.relative_to(there) for path in there.rglob("*.png")} == {
        path.relative_to(folder) for path in folder.rglob("*.png") if not path.is_symlink()
    } | {Path("a/more/blue.png")}
    assert sizes(clone, "fewer")[0] > 40


@pytest.mark.parametrize("seed", range(20))
def test_probes_with_few_pictures_still_have_every_class(seed):
    """Classes of any sizes: in the smallest number of labels that is chosen, whichever images are labeled first."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(8), generator.integers(5, 200, 8))
    training, validation = len(labels), len(labels) // 9
    counts = scripts.pictures._halves(training, validation, labels)
    assert counts == sorted(counts)
    assert len(counts) < 5 or counts[-1] == (training + validation) // 2
    for n in counts:
        of_training = n - round(n * validation / (training + validation))
        assert set(labels[splits.nested_subset(labels, of_training, seed=seed)]) == set(range(8))


def sizes(clone: Path, study: str) -> tuple[int, int]:
    settings = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))["studies"][study]
    return settings["training_images"], settings["validation_images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which folder? For example: make pictures FOLDER=~/flowers"),
        (("nowhere",), "there is no folder nowhere"),
        (("docs", "--name", "mnist"), "mnist is a data set already: give yours another name with NAME=…"),
        (("docs", "--name", "quick"), "params.yaml has a study quick of other images: give yours another name with "),
        (("docs", "--name", "../x"), "a study cannot be called '../x': give it a name with NAME=…, and use letters, "),
        (("docs",), "docs has no folders: give each class one, with its pictures in it"),
    ],
)  # fmt: skip
def test_what_is_no_folder_of_pictures(clone, arguments, message):
    before = (clone / "params.yaml").read_bytes()
    refused = pictures(clone, *arguments, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"headstart: {message}")
    assert len(refused.stderr.splitlines()) == 1
    assert (clone / "params.yaml").read_bytes() == before
