"""Datasets by name. Those of torchvision are small files in the same formats, because a test cannot download them."""

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
COLOR = np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(20) % 10


def kmnist(folder, monkeypatch) -> None:
    resources = []
    for prefix, rows in (("train", slice(0, 12)), ("t10k", slice(12, 20))):
        for kind, array in (("images-idx3", IMAGES[rows]), ("labels-idx1", LABELS[rows])):
            path = folder / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array)))
            resources.append((path.name, md5(path)))
    monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", ["http://127.0.0.1:9/"])


def cifar(folder, monkeypatch) -> None:
    source = folder / "cifar-10-batches-py"
    source.mkdir()
    lists = {"train": [], "test": []}
    for name, rows, split in (("data_batch_1", slice(0, 12), "train"), ("test_batch", slice(12, 20), "test")):
        data = COLOR[rows].transpose(0, 3, 1, 2).reshape(-1, 3_072)
        (source / name).write_bytes(pickle.dumps({"data": data, "labels": LABELS[rows].tolist()}))
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
    for split, rows in (("train", slice(0, 12)), ("test", slice(12, 20))):
        path = folder / f"{split}_32x32.mat"
        labels = np.where(LABELS[rows] == 0, 10, LABELS[rows])  # SVHN labels zeros as 10
        scipy.io.savemat(path, {"X": COLOR[rows].transpose(1, 2, 3, 0), "y": labels[:, None]})
        lists[split] = [f"http://127.0.0.1:9/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {**lists, "extra": lists["train"]})


def flowers(folder, monkeypatch) -> None:
    jpg = folder / "jpg"
    jpg.mkdir()
    for number, pixels in enumerate(COLOR, 1):
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


ARCHIVES = {"kmnist": kmnist, "cifar-10": cifar, "svhn": svhn, "flowers-102": flowers}


def fetch_and_load(name, tmp_path, monkeypatch) -> Dataset:
    folder = tmp_path / "sets" / name
    folder.mkdir(parents=True)
    ARCHIVES[name](folder, monkeypatch)
    registry.fetch(name, tmp_path / "sets", tmp_path / "none", downloads=tmp_path / "downloads", dest=tmp_path / "raw")
    return registry.load(name, tmp_path / "raw", tmp_path / "none", image_size=32, skip_unusable=False)


@pytest.mark.parametrize("name", ARCHIVES)
def test_torchvision_datasets_load_by_name(name, tmp_path, monkeypatch):
    dataset = fetch_and_load(name, tmp_path, monkeypatch)
    assert dataset.title == registry.title(name)
    assert len(dataset.classes) >= 10
    assert dataset.test is not None
    assert dataset.training.labels.tolist() == LABELS[:12].tolist()
    assert dataset.test.labels.tolist() == LABELS[12:].tolist()
    training, test = dataset.training.read(np.array([0, 11, 7])), dataset.test.read(np.array([3]))
    if name == "kmnist":
        assert (training == IMAGES[[0, 11, 7], None]).all()
        assert (test == IMAGES[[15], None]).all()
    elif name == "flowers-102":  # JPEG, reduced
        assert training.shape == (3, 3, 32, 32)
        assert abs(training.mean((2, 3)) - COLOR[[0, 11, 7]].mean((1, 2))).max() < 10
    else:
        assert (training == COLOR[[0, 11, 7]].transpose(0, 3, 1, 2)).all()
        assert (test == COLOR[[15]].transpose(0, 3, 1, 2)).all()
    archives = [path.name for path in (tmp_path / "raw").rglob("*") if path.suffix in (".gz", ".tgz")]
    assert not archives  # deleted after unpacking


@pytest.fixture
def server(tmp_path):
    """Serve a folder on this machine; return the address, the folder and the list of requested paths."""
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    served = tmp_path / "served"
    served.mkdir()
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served)))
    thread = Thread(target=http_server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http_server.server_port}/", served, requests
    http_server.shutdown()
    thread.join()


def test_downloads_are_cached(tmp_path, monkeypatch, server):
    address, served, requests = server
    cifar(served, monkeypatch)
    archive = "cifar-10-python.tar.gz"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{address}{archive}")
    for number in range(2):
        dest = tmp_path / f"raw-{number}"
        registry.fetch("cifar-10", tmp_path / "sets", tmp_path, downloads=tmp_path / "downloads", dest=dest)
        assert not (dest / archive).exists()
    assert set(requests) == {f"/{archive}"}
    n = len(requests)  # torchvision requests the location of the file, then the file
    assert (tmp_path / "downloads/cifar-10" / archive).read_bytes() == (served / archive).read_bytes()
    (tmp_path / "downloads/cifar-10" / archive).unlink()
    registry.fetch("cifar-10", tmp_path / "sets", tmp_path, downloads=tmp_path / "downloads", dest=tmp_path / "raw-2")
    assert len(requests) == 2 * n


def test_downloads_of_fashion_mnist_are_cached(tmp_path, monkeypatch, server, folder):
    address, served, requests = server
    for name in fashion_mnist.SHA256:
        content = fashion_mnist.fetch(name, folder, DOWNLOADS)
        (served / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1, mtime=0))
    resources = [(path.name, md5(path)) for path in sorted(served.iterdir())]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/", address])
    downloads = tmp_path / "downloads"
    downloads.joinpath("fashion-mnist").mkdir(parents=True)
    (downloads / "fashion-mnist" / resources[0][0]).write_bytes(b"half of it")  # of an interrupted download
    for number in range(2):
        registry.fetch("fashion-mnist", tmp_path, tmp_path, downloads=downloads, dest=tmp_path / f"raw-{number}")
        assert len(registry.load("fashion-mnist", tmp_path / f"raw-{number}", tmp_path, image_size=64,
                                  skip_unusable=False).training.labels) == 60_000  # fmt: skip
        assert {path.strip("/") for path in requests} == {name for name, _ in resources}
    assert len(requests) <= 8


def test_a_dataset_that_is_missing_and_cannot_be_downloaded_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(UserError) as error:
        registry.fetch("cifar-10", tmp_path, tmp_path, downloads=tmp_path / "downloads", dest=tmp_path / "raw")
    assert str(error.value).startswith(
        f"missing dataset: CIFAR-10 is not complete in {tmp_path}/cifar-10 and cannot be downloaded ("
    )
    assert str(error.value).endswith(f"). Put cifar-10-python.tar.gz into {tmp_path}/cifar-10.")


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_damaged_archive_is_an_error(name, tmp_path, monkeypatch):
    folder = tmp_path / "sets" / name
    folder.mkdir(parents=True)
    ARCHIVES[name](folder, monkeypatch)
    path = folder / torchvision_sets.SETS[name].archives[-1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"is not complete in {folder} and cannot be downloaded"):
        registry.fetch(name, tmp_path / "sets", tmp_path, downloads=tmp_path / "downloads", dest=tmp_path / "raw")


def test_a_missing_file_of_a_fetched_dataset_is_an_error(tmp_path, monkeypatch):
    fetch_and_load("cifar-10", tmp_path, monkeypatch)
    (tmp_path / "raw/cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(UserError, match=r"^damaged dataset: .*raw is not CIFAR-10 as torchvision downloads it"):
        registry.load("cifar-10", tmp_path / "raw", tmp_path, image_size=32, skip_unusable=False)


@pytest.mark.parametrize("name", torchvision_sets.SETS)
def test_every_dataset_is_in_torchvision(name):
    spec = torchvision_sets.SETS[name]
    source = inspect.getsource(inspect.getmodule(getattr(torchvision.datasets, spec.class_name)))
    assert all(archive in source for archive in spec.archives)
    assert not spec.subdir or spec.subdir.partition("/")[0].lower() in source.lower()


def test_emnist_letters_are_labeled_from_zero_and_upright():
    class Letters:
        targets = np.arange(1, 27)

        def __len__(self) -> int:
            return 26

        def __getitem__(self, index: int):
            return Image.fromarray(IMAGES[index]), index + 1

    partition = torchvision_sets._concatenate(torchvision_sets.SETS["emnist-letters"], [Letters()], 26, 28)
    assert partition.labels.tolist() == list(range(26))
    assert (partition.read(np.array([3]))[0, 0] == IMAGES[3].T).all()


def test_unknown_and_reserved_names_are_errors(tmp_path):
    pictures_dir = tmp_path / "pictures"
    (pictures_dir / "flowers").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        registry.fetch("flowrs", tmp_path, pictures_dir, downloads=tmp_path / "downloads", dest=tmp_path / "raw")
    expected = f"unknown dataset: 'flowrs'. Choose a folder in {pictures_dir} (flowers), or one of fashion-mnist, "
    assert str(error.value).startswith(expected)
    (pictures_dir / "mnist").mkdir()
    with pytest.raises(UserError, match=r"^reserved name: .*mnist has the name of a built-in dataset\. Rename the"):
        registry.fetch("mnist", tmp_path, pictures_dir, downloads=tmp_path / "downloads", dest=tmp_path / "other")
