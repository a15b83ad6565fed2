import numpy as np
import torch
from scipy.special import softmax
from torchvision.models import resnet18

from headstart.network import models
from headstart.network.saved_model import SavedModel
from headstart.results import examples, feature_maps


def test_examples_by_hand():
    # Class c has no image. The second image of class a is misclassified, and so are two images of class b.
    labels = np.array([0, 0, 1, 1, 1])
    logits = np.array([[2.0, 0, 0], [0, 3, 0], [1, 0, 0], [5, 0, 0], [0, 1, 0]], dtype=np.float32)
    images = np.broadcast_to(np.arange(5, dtype=np.uint8).reshape(5, 1, 1), (5, 2, 2))
    correct, wrong = examples.choose_examples(images, labels=labels, logits=logits, classes=("a", "b", "c"))
    assert [example and (example.image[0, 0], example.actual, example.predicted) for example in correct] == [
        (0, "a", "a"), (4, "b", "b"), None,
    ]  # fmt: skip
    assert [example and (example.image[0, 0], example.actual, example.predicted) for example in wrong] == [
        (1, "a", "b"), (3, "b", "a"), None,
    ]  # fmt: skip
    assert wrong[1].confidence == softmax(logits[3])[0]


def saved_model(name: str) -> SavedModel:
    torch.manual_seed(0)
    model = models.build(name, 10)
    return SavedModel(
        state=model.state_dict(), model_name=name, prepared_size=28, image_size=64, mean=(0.5,) * 3, std=(0.5,) * 3,
        interpolation="bilinear", classes=tuple("abcdefghij"), classifier=models.classifier_name(model),
        weights="random", sha256="",
    )  # fmt: skip


def test_feature_maps_match_the_network_s_layers():
    model = saved_model("resnet18")
    image = np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)
    maps = feature_maps.feature_maps(model, image)
    assert list(maps) == ["conv1: 32×32", "layer4.1: 2×2"]

    network = resnet18(num_classes=10).eval()
    network.load_state_dict(model.state)
    outputs = {}
    network.conv1.register_forward_hook(lambda *call: outputs.update(first=call[2][0]))
    network.layer4.register_forward_hook(lambda *call: outputs.update(last=call[2][0]))
    with torch.no_grad():
        network(model.preprocess(torch.from_numpy(image[None])))
    for result, expected in zip(maps.values(), (outputs["first"], outputs["last"]), strict=True):
        order = expected.flatten(1).std(1).argsort(descending=True)[:10]
        torch.testing.assert_close(torch.from_numpy(result), expected[order])


def test_feature_maps_of_different_architectures():
    for name in ("tf_efficientnet_lite0", "mobilenet_v2", "densenet121", "efficientnet_b0", "vgg11", "swin_t"):
        assert len(feature_maps.feature_maps(saved_model(name), np.zeros((28, 28), dtype=np.uint8))) == 2


def test_examples_of_many_classes_are_those_with_the_lowest_recall():
    labels = np.repeat(np.arange(30), 2)
    correct = np.ones(60, dtype=bool)
    correct[1::4] = False  # one image of every second class
    correct[14:16] = False  # both images of class 7
    predicted = np.where(correct, labels, (labels + 1) % 30)
    classes = [str(number) for number in range(30)]
    chosen = examples.choose_examples(np.zeros((60, 4, 4), np.uint8), labels=labels, logits=np.eye(30)[predicted],
                                     classes=classes)  # fmt: skip
    assert [example.actual for example in chosen.wrong] == ["0", "2", "4", "6", "7", "8", "10", "12", "14", "16"]
    assert chosen.correct[4] is None
    assert chosen.correct[0].actual == "0"


def test_large_examples_are_downsized():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 224, 224), dtype=np.uint8)
    correct, _ = examples.choose_examples(images, labels=np.array([0, 1]), logits=np.eye(2), classes=("a", "b"))
    assert [example.image.shape for example in correct] == [(112, 112, 3)] * 2
