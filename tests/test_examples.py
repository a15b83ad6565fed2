import numpy as np
import torch
from scipy.special import softmax
from torchvision.models import resnet18

from headstart.network import models
from headstart.network.saved_model import SavedModel
from headstart.results import examples, feature_maps


def test_examples_by_hand():
    # Two classes and one that nothing belongs to; the second image of class a is wrong, and so are two of b.
    labels = np.array([0, 0, 1, 1, 1])
    logits = np.array([[2.0, 0, 0], [0, 3, 0], [1, 0, 0], [5, 0, 0], [0, 1, 0]], dtype=np.float32)
    images = np.broadcast_to(np.arange(5, dtype=np.uint8).reshape(5, 1, 1), (5, 2, 2))
    right, wrong = examples.choose_examples(images, labels=labels, logits=logits, classes=("a", "b", "c"))
    assert [example and (example.image[0, 0], example.actual, example.predicted) for example in right] == [
        (0, "a", "a"), (4, "b", "b"), None,
    ]  # fmt: skip
    assert [example and (example.image[0, 0], example.actual, example.predicted) for example in wrong] == [
        (1, "a", "b"), (3, "b", "a"), None,
    ]  # fmt: skip
    assert wrong[1].confidence == softmax(logits[3])[0]


def snapshot(name: str) -> SavedModel:
    torch.manual_seed(0)
    model = models.build(name, 10)
    return SavedModel(
        state=model.state_dict(), model_name=name, prepared_size=28, image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3,
        interpolation="bilinear", classes=tuple("abcdefghij"), classifier=models.classifier_name(model),
        weights="random", sha256="",
    )  # fmt: skip


def test_feature_maps_are_the_network_s():
    model = snapshot("resnet18")
    image = np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)
    found = feature_maps.feature_maps(model, image)
    assert list(found) == ["conv1: 32×32", "layer4.1: 2×2"]

    network = resnet18(num_classes=10).eval()
    network.load_state_dict(model.state)
    seen = {}
    network.conv1.register_forward_hook(lambda *call: seen.update(first=call[2][0]))
    network.layer4.register_forward_hook(lambda *call: seen.update(last=call[2][0]))
    with torch.no_grad():
        network(model.preprocess(torch.from_numpy(image[None])))
    for ours, expected in zip(found.values(), (seen["first"], seen["last"]), strict=True):
        order = expected.flatten(1).std(1).argsort(descending=True)[:10]
        torch.testing.assert_close(torch.from_numpy(ours), expected[order])


def test_every_kind_of_network_has_maps():
    for name in ("tf_efficientnet_lite0", "mobilenet_v2", "densenet121", "efficientnet_b0", "vgg11", "swin_t"):
        assert len(feature_maps.feature_maps(snapshot(name), np.zeros((28, 28), dtype=np.uint8))) == 2


def test_of_many_classes_the_hardest_are_shown_in_their_order():
    labels = np.repeat(np.arange(30), 2)
    right = np.ones(60, dtype=bool)
    right[1::4] = False  # one image of every other class, and of class 7 both
    right[14:16] = False
    predicted = np.where(right, labels, (labels + 1) % 30)
    classes = [str(number) for number in range(30)]
    chosen = examples.choose_examples(np.zeros((60, 4, 4), np.uint8), labels=labels, logits=np.eye(30)[predicted],
                                     classes=classes)  # fmt: skip
    assert [example.actual for example in chosen.wrong] == ["0", "2", "4", "6", "7", "8", "10", "12", "14", "16"]
    assert chosen.right[4] is None
    assert chosen.right[0].actual == "0"


def test_a_photograph_is_shown_small():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8)
    right, _ = examples.choose_examples(images, labels=np.array([0, 1]), logits=np.eye(2), classes=("a", "b"))
    assert [example.image.shape for example in right] == [(112, 112, 3)] * 2
