"""The card of an exported network, in Hugging Face's format: Markdown with metadata in YAML."""

from pathlib import Path
from typing import Any

import yaml

from headstart import files
from headstart.network.saved_model import SavedModel

FILE = "README.md"
LIBRARIES = {"onnx": "onnx", "torchscript": "pytorch", "timm": "timm", "torchvision": "torchvision"}


def render(path: Path, saved: SavedModel, *, format_name: str, usage: str, comparison: str) -> str:
    """Return the model card.

    Args:
        path: of the model file, models/STUDY/CONFIGURATION/model-SEED.safetensors. The metrics, the record and the
            settings of the study are read from the same repository if they are there.
        format_name: of the export.
        usage: a code block that uses the exported network.
        comparison: how the exported network was compared with the trained one.
    """
    root, study, name = path.resolve().parents[3], path.parent.parent.name, path.parent.name
    metrics = _read(root / f"metrics/{study}/{name}.json")
    settings = _read(root / f"metrics/{study}/record.json").get("settings", {})
    accuracy = _accuracy(root / f"plots/{study}/accuracy.csv", name)
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
        f"- **Input:** RGB images of {saved.prepared_size} × {saved.prepared_size} pixels: the largest center square, "
        "resized bilinearly with antialias, upright as EXIF says, transparency on white. "
        f"Normalization: mean {_numbers(saved.mean)}, standard deviation {_numbers(saved.std)}.",
        f"- **Export:** {format_name}; {comparison}.", "", usage, "",
    ]  # fmt: skip
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}


def _accuracy(path: Path, name: str) -> str:
    """Return the test accuracy of a configuration with its interval, from plots/STUDY/accuracy.csv."""
    for row in files.read_csv(path) if path.is_file() else ():
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
