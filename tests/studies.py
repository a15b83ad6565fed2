"""A study of random numbers, for tests of the report."""

from collections.abc import Sequence

import numpy as np

from headstart import files, params
from headstart.data.fashion_mnist import CLASSES
from headstart.results import comparison, content, examples
from headstart.results.content import Details, ReportData, Row

from .conftest import ROOT
from .test_comparison import CORRECT, PUBLISHED

SETTINGS = params.read(ROOT / "params.yaml")
TRAINING = {
    "precision": "float32", "weights": "some <weights>", "weights_sha256": "abc", "trained_from": "blocks.5",
    "trained_parameters": 12_810,
}  # fmt: skip


def rows() -> list[Row]:
    """Return one row per configuration, with the published metrics as the measured ones."""
    published = content.published_results(files.read_csv(ROOT / "docs/published.csv"))
    return [
        Row(
            name=name,
            configuration=configuration,
            metrics=published[configuration] | {"expected_calibration_error": 0.031},
            accuracy=comparison.accuracy(CORRECT[name]),
            published=published[configuration],
        )
        for name, configuration in SETTINGS.configurations.items()
    ]


def study(classes: Sequence[str] = CLASSES, *, color: bool = False) -> ReportData:
    generator = np.random.default_rng(0)
    n = len(classes)
    details = {
        name: Details(
            epochs=[
                {"seed": "0", "epoch": str(epoch), "train_accuracy": f"{accuracy - 0.1 / epoch}",
                 "validation_loss": f"{1 / epoch}", "validation_accuracy": f"{accuracy - 0.2 / epoch}"}
                for epoch in (1, 2, 3)
            ],
            training=TRAINING,
            confusion=np.diag([int(1_000 * accuracy)] * n) + generator.integers(0, 20, (n, n)),
            f1=generator.random(n),
            calibration=np.stack([np.linspace(0, 1, 15), np.linspace(0, 1, 15), np.full(15, 100)], axis=1),
        )
        for name, accuracy in PUBLISHED.items()
    }  # fmt: skip
    images = generator.integers(0, 256, (20, 96, 96, 3) if color else (20, 28, 28), dtype=np.uint8)
    shown = list(zip(images, images[10:], classes, strict=False))
    correct: list = [examples.Example(image, label, label, 0.9) for image, _, label in shown]
    wrong: list = [examples.Example(image, label, classes[8 % n], 0.8) for _, image, label in shown]
    wrong[8 % n] = None
    return ReportData(
        study_name="quick",
        study=SETTINGS.selected_study,
        dataset="Fashion-MNIST",
        classes=classes,
        skipped_files={},
        rows=rows(),
        details=details,
        analysis=comparison.analyze(SETTINGS.configurations, CORRECT),
        correct=CORRECT,
        examples=examples.ExampleSet(correct, wrong),
        from_scratch=[],
        label_efficiency=None,
        augmented_images={},
        issues=None,
        majority=(classes[0], 1 / n),
        feature_maps={"first": generator.random((10, 8, 8)), "last": generator.random((10, 2, 2))},
    )
