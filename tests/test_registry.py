"""Data sets by name: torchvision's as files of their formats made by hand, because a test cannot download them."""

import gzip
import hashlib
import inspect
import pickle
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import scipy.io
import torchvision.datasets
from PIL import Image

from headstart.console import UserError
from headstart.data import fashion_mnist, registry, torchvision_sets
from headstart.data.splits import Dataset

from .conftest import DOWNLOADS


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def md5(path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


IMAGES = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(20) % 10


def kmnist(folder, monkeypatch) -> None:
    resources = []
    for split, part in (("train", slice(0, 12)), ("t10k", slice(12, 20))):
        for what, array in (("images-idx3", IMAGES[part]), ("labels-idx1", LABELS[part])):
            path = folder / f"{split}-{what}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array)))
            resources.append((path.name, md5(path)))
    monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", ["http://127.0.0.1:9/"])


def cifar(folder, monkeypatch) -> None:
    source = folder / "cifar-10-batches-py"
    source.mkdir()
    lists = {"train": [], "test": []}
    for name, part, split in (("data_batch_1", slice(0, 12), "train"), ("test_batch", slice(12, 20), "test")):
        data = COLOUR[part].transpose(0, 3, 1, 2).reshape(-1, 3_072)
        (source / name).write_bytes(pickle.dumps({"data": data, "labels": LABELS[part].tolist()}))
        lists[split].append([name, md5(source / name)])
    (source / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    cls = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cls, "train_list", lists["train"])
    monkeypatch.setattr(cls, "test_list", lists["test"])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(source / "batches.meta")})
    monkeypatch.setattr(cls, "tgz_md5", md5(folder / "cifar-10-python.tar.gz"))
    monkeypatch.setattr(cls, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")


def svhn(folder, monkeypatch) -> None:
    lists = {}
    for split, part in (("train", slice(0, 12)), ("test", slice(12, 20))):
        path = folder / f"{split}_32x32.mat"
        labels = np.where(LABELS[part] == 0, 10, LABELS[part])  # as SVHN counts
        scipy.io.savemat(path, {"X": COLOUR[part].transpose(1, 2, 3, 0), "y": labels[:, None]})
        lists[split] = [f"http://127.0.0.1:9/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {**lists, "extra": lists["train"]})


def flowers(folder, monkeypatch) -> None:
    jpg = folder / "jpg"
    jpg.mkdir()
    for number, pixels in enumerate(COLOUR, 1):
        Image.fromarray(pixels).resize((60, 50)).save(jpg / f"image_{number:05d}.jpg")
    with tarfile.open(folder / "102flowers.tgz", "w:gz") as archive:
        archive.add(jpg, "jpg")
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": LABELS + 1})
    numbers = np.arange(1, 21)
    scipy.io.savemat(folder / "setid.mat", {"trnid": numbers[:6], "valid": numbers[6:12], "tstid": numbers[12:]})
    names = {"image": "102flowers.tgz", "label": "imagelabels.mat", "setid": "setid.mat"}
    cls = torchvision.datasets.Flowers102
    monkeypatch.setattr(cls, "_file_dict", {key: (name, md5(folder / name)) for key, name in names.items()})
    monkeypatch.setattr(cls, "_download_url_prefix", "http://127.0.0.1:9/")


MADE = {"kmnist": kmnist, "cifar-10": cifar, "svhn": svhn, "flowers-102": flowers}


def fetched(name, tmp_path, monkeypatch, **options) -> Dataset:
    folder = tmp_path / "sets" / name
    folder.mkdir(parents=True)
    MADE[name](folder, monkeypatch)
    registry.fetch(name, tmp_path / "sets", tmp_path / "none", downloads=tmp_path / "downloads", into=tmp_path / "raw")
    return registry.load(name, tmp_path / "raw", tmp_path / "none", image_size=32, skip_unusable=False, **options)


@pytest.mark.parametrize("name", MADE)
def test_torchvision_s_sets_by_name(name, tmp_path, monkeypatch):
    found = fetched(name, tmp_path, monkeypatch)
    assert found.title == registry.title(name)
    assert len(found.classes) >= 10
    assert found.test is not None
    assert found.training.labels.tolist() == LABELS[:12].tolist()
    assert found.test.labels.tolist() == LABELS[12:].tolist()
    training, test = found.training.read(np.array([0, 11, 7])), found.test.read(np.array([3]))
    if name == "kmnist":
        assert (training == IMAGES[[0, 11, 7], None]).all()
        assert (test == IMAGES[[15], None]).all()
    elif name == "flowers-102":  # JPEG, reduced
        assert training.shape == (3, 3, 32, 32)
        assert abs(training.mean((2, 3)) - COLOUR[[0, 11, 7]].mean((1, 2))).max() < 10
    else:
        assert (training == COLOUR[[0, 11, 7]].transpose(0, 3, 1, 2)).all()
        assert (test == COLOUR[[15]].transpose(0, 3, 1, 2)).all()
    kept = [path.name for path in (tmp_path / "raw").rglob("*") if path.suffix in (".gz", ".tgz")]
    assert not kept  # unpacked, they would only take room


@pytest.fixture
def server(tmp_path):
    """What has been asked of a server on this machine, and a folder that it shows."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    (tmp_path / "shown").mkdir()
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "shown")))
    thread = Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/", tmp_path / "shown", asked
    running.shutdown()
    thread.join()


def test_what_is_downloaded_is_downloaded_once(tmp_path, monkeypatch, server):
    address, shown, asked = server
    cifar(shown, monkeypatch)
    archive = "cifar-10-python.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{address}{archive}")
    for number in range(2):
        into = tmp_path / f"raw-{number}"
        registry.fetch("cifar-10", tmp_path / "sets", tmp_path, downloads=tmp_path / "downloads", dest=into)
        assert not (into / archive).exists()
    assert set(asked) == {f"/{archive}"}
    n = len(asked)  # torchvision asks for where the file is, then for the file
    assert (tmp_path / "downloads/cifar-10" / archive).read_bytes() == (shown / archive).read_bytes()
    (tmp_path / "downloads/cifar-10" / archive).unlink()
    registry.fetch("cifar-10", tmp_path / "sets", tmp_path, downloads=tmp_path / "downloads", into=tmp_path / "raw-2")
    assert len(asked) == 2 * n


def test_fashion_mnist_is_downloaded_once(tmp_path, monkeypatch, server, folder):
    address, shown, asked = server
    for name in fashion_mnist.SHA256:
        content = fashion_mnist.fetch(name, folder, DOWNLOADS)
        (shown / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1, mtime=0))
    resources = [(path.name, md5(path)) for path in sorted(shown.iterdir())]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/", address])
    downloads = tmp_path / "downloads"
    downloads.joinpath("fashion-mnist").mkdir(parents=True)
    (downloads / "fashion-mnist" / resources[0][0]).write_bytes(b"half of it")  # where a download was interrupted
    for number in range(2):
        registry.fetch("fashion-mnist", tmp_path, tmp_path, downloads=downloads, into=tmp_path / f"raw-{number}")
        assert len(registry.load("fashion-mnist", tmp_path / f"raw-{number}", tmp_path, image_size=64,
                                  skip_unusable=False).training.labels) == 60_000  # fmt: skip
        assert {path.strip("/") for path in asked} == {name for name, _ in resources}
    assert len(asked) <= 8


def test_a_set_that_is_neither_there_nor_to_be_had(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(UserError) as error:
        registry.fetch("cifar-10", tmp_path, tmp_path, downloads=tmp_path / "downloads", into=tmp_path / "raw")
    assert str(error.value).startswith(f"CIFAR-10 is not whole in {tmp_path}/cifar-10 and cannot be downloaded (")
    assert str(error.value).endswith("): put cifar-10-python.tar.gz there")


@pytest.mark.parametrize("name", MADE)
def test_a_damaged_archive_is_noticed(name, tmp_path, monkeypatch):
    folder = tmp_path / "sets" / name
    folder.mkdir(parents=True)
    MADE[name](folder, monkeypatch)
    path = folder / torchvision_sets.SETS[name].archives[-1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"is not whole in {folder} and cannot be downloaded"):
        registry.fetch(name, tmp_path / "sets", tmp_path, downloads=tmp_path / "downloads", into=tmp_path / "raw")


def test_files_that_are_gone_since(tmp_path, monkeypatch):
    fetched("cifar-10", tmp_path, monkeypatch)
    (tmp_path / "raw/cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(UserError, match="is not CIFAR-10 as torchvision fetches it"):
        registry.load("cifar-10", tmp_path / "raw", tmp_path, image_size=32, skip_unusable=False)


@pytest.mark.parametrize("name", torchvision_sets.SETS)
def test_every_set_is_one_of_torchvision_s(name):
    entry = torchvision_sets.SETS[name]
    source = inspect.getsource(inspect.getmodule(getattr(torchvision.datasets, entry.class_name)))
    assert all(archive in source for archive in entry.archives)
    assert not entry.place or entry.place.partition("/")[0].lower() in source.lower()


def test_emnist_s_letters_are_counted_from_zero_and_upright():
    class Letters:
        targets = np.arange(1, 27)

        def __len__(self) -> int:
            return 26

        def __getitem__(self, index: int):
            return Image.fromarray(IMAGES[index]), index + 1

    part = torchvision_sets._part(torchvision_sets.SETS["emnist-letters"], [Letters()], 26, 28)
    assert part.labels.tolist() == list(range(26))
    assert (part.read(np.array([3]))[0, 0] == IMAGES[3].T).all()


def test_no_such_data_set(tmp_path):
    (tmp_path / "own/flowers").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        registry.fetch("flowrs", tmp_path, tmp_path / "own", downloads=tmp_path / "downloads", into=tmp_path / "raw")
    expected = (
        f"there is no data set 'flowrs': it must be a folder in {tmp_path}/own (flowers), or one of fashion-mnist, "
    )
    assert str(error.value).startswith(expected)
    (tmp_path / "own/mnist").mkdir()
    with pytest.raises(UserError, match="has the name of a data set that is not yours: rename the folder"):
        registry.fetch("mnist", tmp_path, tmp_path / "own", downloads=tmp_path / "downloads", into=tmp_path / "other")
