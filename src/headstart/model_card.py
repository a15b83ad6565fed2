"""The card of an exported network, in Hugging Face's format: Markdown with metadata in YAML."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headstart import files
from headstart.network.saved_model import SavedModel

FILE = "README.md"
LIBRARIES = {"onnx": "onnx", "torchscript": "pytorch", "timm": "timm", "torchvision": "torchvision"}


@dataclass(frozen=True)
class Source:
    """The folder of a trained configuration, models/STUDY/CONFIGURATION, and the repository that it is in."""

    folder: Path  # absolute

    @property
    def configuration(self) -> str:
        return self.folder.name

    @property
    def study(self) -> str:
        return self.folder.parent.name

    @property
    def export_name(self) -> str:
        """Return STUDY-CONFIGURATION, or the folder's name if it is not models/STUDY/CONFIGURATION."""
        is_in_models = self.folder.parent.parent.name == "models"
        return f"{self.study}-{self.configuration}" if is_in_models else self.configuration

    def path(self, template: str) -> Path | None:
        """Return a path in the repository, such as "metrics/{study}/record.json"; None if there is no repository."""
        models = self.folder.parent.parent
        names = {"study": self.study, "configuration": self.configuration}
        return models.parent / template.format(**names) if models.name == "models" else None


def render(source: Source, saved: SavedModel, *, format_name: str, usage: str, comparison: str) -> str:
    """Return the model card.

    Args:
        source: the metrics, the record and the settings of the study are read from its repository, if they are there.
        format_name: of the export.
        usage: a code block that uses the exported network.
        comparison: how the exported network was compared with the trained one.
    """
    study, name = source.study, source.configuration
    metrics = _read(source.path("metrics/{study}/{configuration}.json"))
    settings = _read(source.path("metrics/{study}/record.json")).get("settings", {})
    accuracy = _accuracy(source.path("plots/{study}/accuracy.csv"), name)
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": settings.get("dataset", study), "type": settings.get("dataset", study)},
        "metrics": [{"type": key.removeprefix("test_"), "value": value} for key, value in metrics.items()
                    if key in ("test_accuracy", "macro_f1")],
    }  # fmt: skip
    header = {
        "library_name": LIBRARIES[format_name],
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "headstart"],
        "license": "other",  # that of the initial weights and the images
        **({"model-index": [{"name": name, "results": [result]}]} if metrics else {}),
    }
    lines = [
        "---", yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {study}: {name}", "",
        f"{saved.model_name} for {len(saved.classes)} classes, trained with Headstart.", "",
        f"- **Classes:** {', '.join(saved.classes)}",
        f"- **Data:** {_data(settings, study)}",
        f"- **Test accuracy:** {accuracy or 'not available'}",
        f"- **Initial weights:** {saved.weights}{f' (SHA-256 {saved.sha256})' if saved.sha256 else ''}. Their license "
        "applies to this network too.",
        f"- **Input:** {_input(saved, format_name)}",
        f"- **Export:** {format_name}; {comparison}.", "", usage, "",
    ]  # fmt: skip
    return "\n".join(lines)


def _input(saved: SavedModel, format_name: str) -> str:
    """Return how an image file becomes the input."""
    side = f"{saved.prepared_size} × {saved.prepared_size} pixels"
    text = (
        "an RGB image, upright as EXIF says, transparency on white. Its largest center square is resized bilinearly "
        f"with antialias to {side}"
    )
    if format_name in ("onnx", "torchscript"):
        return f"{text}, and is the input as uint8 [N, 3, height, width]. The network contains the normalization."
    if saved.prepared_size != saved.image_size:
        text += f", and then ({saved.interpolation}, antialias) to {saved.image_size} × {saved.image_size} pixels"
    mean, std = _numbers(saved.mean), _numbers(saved.std)
    return f"{text}. Values from 0 to 1 are normalized with mean {mean} and standard deviation {std}."


def _read(path: Path | None) -> dict[str, Any]:
    return files.read_json(path) if path is not None and path.is_file() else {}


def _accuracy(path: Path | None, name: str) -> str:
    """Return the test accuracy of a configuration with its interval, from plots/STUDY/accuracy.csv."""
    for row in files.read_csv(path) if path is not None and path.is_file() else ():
        if row["configuration"] == name:
            value, low, high = (f"{float(row[key]):.1f}" for key in ("accuracy", "low", "high"))
            return f"{value} % (95 % confidence interval {low} to {high}), mean over the seeds of the study"
    return ""


def _data(settings: dict[str, Any], study: str) -> str:
    if not settings:
        return f"study {study}"
    return f"{settings['dataset']}, {settings['training_images']:,} training images"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
