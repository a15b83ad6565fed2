"""Export a trained network for use without Headstart.

    python -m headstart.export models/quick/pretrained-finetuned-adam --format onnx

Formats: onnx for ONNX Runtime; torchscript for torch.jit.load; timm for timm.create_model("local-dir:…"); torchvision
for the state dict of torchvision's builder. Writes a folder with the network and a model card, README.md. Before that,
the exported network is compared with the trained one on the test images of its study.
"""

import argparse
import json
import math
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from headstart import files, find_model, model_card
from headstart.console import UserError, progress, run_cli
from headstart.data import splits
from headstart.network import models
from headstart.network.saved_model import SavedModel

TOLERANCE = 1e-4  # of the logits; two classes that are nearly as probable may then change places
BATCH_SIZE = 64
SIZE_FACTOR = 2  # upper bound of the size of an export, relative to the model file
N_RANDOM_IMAGES = 64  # images for the comparison if there are no test images
FILES = {model_card.FILE, "model.onnx", "model.pt", "model.pth", "model.safetensors", "config.json"}
Logits = Callable[[torch.Tensor], torch.Tensor]  # uint8 [N, 3, prepared_size, prepared_size] to [N, classes]


class ExportedNetwork(nn.Module):
    """A trained network with its normalization, from uint8 [N, 3, prepared_size, prepared_size] to logits."""

    mean: torch.Tensor
    std: torch.Tensor
    resize: torch.Tensor  # [image_size, prepared_size]

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        self.network = saved.build()
        self.is_resized, self.is_clamped = saved.prepared_size != saved.image_size, saved.interpolation == "bicubic"
        # Resizing is linear in rows and columns. A matrix product has the same result in every library; resizing with
        # antialias has not.
        identity = torch.eye(saved.prepared_size)[None, None]
        size = (saved.image_size, saved.prepared_size)
        buffers = {
            "mean": torch.tensor(saved.mean).view(1, 3, 1, 1),
            "std": torch.tensor(saved.std).view(1, 3, 1, 1),
            "resize": F.interpolate(identity, size=size, mode=saved.interpolation, antialias=True)[0, 0],
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.float() / 255
        if self.is_resized:
            pixels = self.resize @ pixels @ self.resize.T
            pixels = pixels.clamp(0, 1) if self.is_clamped else pixels
        return self.network((pixels - self.mean) / self.std)


class Exported(NamedTuple):
    """An exported network that was read again."""

    logits: Logits
    usage: str  # a code block that uses the network, for the model card


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m headstart.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a trained configuration, or one of its model files")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="default: exports/STUDY-CONFIGURATION-FORMAT")
    parser.add_argument("--seed", metavar="N", type=int, help="seed of the training (default: the smallest)")
    options = parser.parse_args(arguments)
    path = find_model(options.model, options.seed)
    source = model_card.Source(path.parent.resolve())
    saved = SavedModel.read(path)
    output = options.output or Path("exports", f"{source.export_name}-{options.format}")
    if output.resolve().is_relative_to(source.folder):
        raise UserError(
            f"{output} is in the folder of the model, which DVC tracks. Choose another folder with --output."
        )
    if output.is_symlink() or (output.exists() and not _is_export(output)):
        raise UserError(f"{output} exists, and is no exported network. Choose another folder with --output.")
    saved.build()  # before any format is blamed for a damaged model
    files.require_disk_space(output, SIZE_FACTOR * path.stat().st_size, "Free some space.")
    with files.atomic_write(output) as folder:
        folder.mkdir()
        exported = FORMATS[options.format](saved, folder)
        description = _compare(saved, exported.logits, *_test_images(source, saved))
        card = model_card.render(
            source, saved, format_name=options.format, usage=exported.usage, comparison=description
        )
        files.write_text(folder / model_card.FILE, card)
    print(f"{output}: {description}")


def _is_export(folder: Path) -> bool:
    """Return whether ``folder`` has nothing but an exported network, so that another export may replace it."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return model_card.FILE in names and names <= FILES


def export_onnx(saved: SavedModel, folder: Path) -> Exported:
    """Write model.onnx; its metadata has the classes and how an image becomes the input."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - PyTorch's exporter imports it
    except ImportError as error:
        raise UserError(
            f"a package is missing: {error.name}. Run `{sys.executable} -m pip install onnxruntime onnxscript`."
        ) from None
    images = torch.zeros(2, 3, saved.prepared_size, saved.prepared_size, dtype=torch.uint8)
    torch.backends.cudnn.allow_tf32 = False  # the exporter reads it, and rejects the setting of `compute.configure`
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                ExportedNetwork(saved).eval(), (images,), dynamo=True, verbose=False, input_names=["images"],
                output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
            )  # fmt: skip
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever the exporter raises for an operator that it does not know
        raise UserError(f"ONNX cannot express this network: {_explain(error)}. Choose another format.") from None
    assert program is not None
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata(saved).items()})
    program.save(folder / "model.onnx", external_data=False)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return Exported(
        lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0]),
        "```bash\npip install onnxruntime pillow\n"
        "python predict_onnx.py model.onnx photo.jpg  # from the folder docs of Headstart\n```",
    )


def export_torchscript(saved: SavedModel, folder: Path) -> Exported:
    """Write model.pt; its extra file metadata.json has the classes and how an image becomes the input."""
    images = torch.zeros(2, 3, saved.prepared_size, saved.prepared_size, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(ExportedNetwork(saved).eval(), images)
        path = str(folder / "model.pt")
        torch.jit.save(traced, path, _extra_files={"metadata.json": json.dumps(metadata(saved))})
        loaded = torch.jit.load(path)
    usage = "```python\nnetwork = torch.jit.load('model.pt')  # uint8 images [N, 3, side, side] to logits\n```"
    return Exported(loaded, usage)


def export_timm(saved: SavedModel, folder: Path) -> Exported:
    """Write a folder for timm.create_model."""
    import timm

    _require_library(saved, "timm")
    network = saved.build()
    network.num_classes = len(saved.classes)  # type: ignore[assignment]
    side = saved.image_size
    timm.models.save_for_hf(
        network, str(folder), model_config={"label_names": list(saved.classes)},
        model_args=models.timm_options(saved.model_name, side), safe_serialization=True,
        data_config={
            "input_size": (3, side, side), "mean": saved.mean, "std": saved.std, "interpolation": saved.interpolation,
            "crop_pct": 1.0, "crop_mode": "center",
        },
    )  # fmt: skip
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # else only the owner may read it
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    first = ""
    if saved.prepared_size != side:
        prepared = (saved.prepared_size,) * 2
        first = (
            "import PIL.Image, PIL.ImageOps\n"
            f"image = PIL.ImageOps.fit(image, {prepared}, PIL.Image.Resampling.BILINEAR)  # as the training images\n"
        )
    return Exported(
        lambda batch: loaded(saved.preprocess(batch)),
        f"```python\nnetwork = timm.create_model('local-dir:{folder.name}', pretrained=True).eval()\n"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))\n"
        f"{first}logits = network(transform(image)[None])  # image: an RGB PIL image\n```",
    )


def export_torchvision(saved: SavedModel, folder: Path) -> Exported:
    """Write model.pth, a state dict for torchvision's builder."""
    from torchvision.models import get_model

    _require_library(saved, "torchvision")
    torch.save(saved.state, folder / "model.pth")
    options: dict[str, Any] = {
        "num_classes": len(saved.classes),
        **models.torchvision_options(saved.model_name, saved.image_size),
    }
    loaded = get_model(saved.model_name.lower(), weights=None, **options)
    loaded.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    loaded.eval()
    settings = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return Exported(
        lambda batch: loaded(saved.preprocess(batch)),
        f"```python\nnetwork = torchvision.models.get_model({saved.model_name.lower()!r}, weights=None, {settings})\n"
        "network.load_state_dict(torch.load('model.pth', weights_only=True))\nnetwork.eval()\n```",
    )


FORMATS: dict[str, Callable[[SavedModel, Path], Exported]] = {
    "onnx": export_onnx, "torchscript": export_torchscript, "timm": export_timm, "torchvision": export_torchvision,
}  # fmt: skip


def metadata(saved: SavedModel) -> dict[str, Any]:
    """Return what a program needs to turn an image file into the input, and logits into classes."""
    return {
        "classes": saved.classes,
        "side": saved.prepared_size,  # of the input, in pixels
        "crop": "largest center square",
        "interpolation": "bilinear with antialias",
        "channels": "RGB, transparency on white, upright as EXIF says",
        "network": saved.model_name,
    }


def _require_library(saved: SavedModel, library: str) -> None:
    actual = "torchvision" if saved.model_name.lower() in models.list_torchvision_models() else "timm"
    if actual != library:
        raise UserError(f"{saved.model_name} is a network of {actual}, not of {library}. Use --format {actual}.")


def _explain(error: BaseException) -> str:
    """Return what failed: the operator that the exporter does not know, or else the first line of the first error."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = "\n".join(map(str, causes))
    match = re.search(r"\b(aten|torchvision|prims)[.:]+[\w.]+", text)
    return f"the operator {match[0]}" if match else (str(causes[-1]).strip() or type(error).__name__).splitlines()[0]


def _test_images(source: model_card.Source, saved: SavedModel) -> tuple[np.ndarray, str]:
    """Return images for the comparison, uint8 [N, (3,) side, side], and what they are."""
    prepared = source.path("data/prepared/{study}.safetensors")
    if prepared is not None and prepared.is_file():
        images = splits.read_split(prepared, "test").images
        if images.shape[-1] == saved.prepared_size:  # not of another version of the study
            return images, f"{len(images):,} test images"
    shape = (N_RANDOM_IMAGES, 3, saved.prepared_size, saved.prepared_size)
    return np.random.default_rng(0).integers(
        0, 256, shape, dtype=np.uint8
    ), f"{N_RANDOM_IMAGES} images of random pixels"


@torch.inference_mode()
def _compare(saved: SavedModel, logits: Logits, images: np.ndarray, what: str) -> str:
    """Compare an exported network with the trained one; return a description of the comparison.

    Raises:
        UserError: logits differ by more than ``TOLERANCE``, relative to the largest one if that is above 1.
    """
    network = saved.build().to(memory_format=torch.channels_last)
    difference, n_changed = 0.0, 0
    with progress(len(images), "comparing") as bar:
        for start in range(0, len(images), BATCH_SIZE):
            batch = torch.from_numpy(images[start : start + BATCH_SIZE])
            color = batch.unsqueeze(1).expand(-1, 3, -1, -1).contiguous() if batch.dim() == 3 else batch
            expected, actual = network(saved.preprocess(batch)), logits(color)
            relative = float((expected - actual).abs().max() / expected.abs().max().clamp(min=1))
            difference = max(difference, relative if math.isfinite(relative) else math.inf)
            n_changed += int((expected.argmax(1) != actual.argmax(1)).sum())
            bar.update(len(batch))
    if difference > TOLERANCE:
        raise UserError(
            f"the exported network differs from the trained one on {what}: logits by up to {difference:.1e}, and "
            f"{n_changed:,} classes. Choose another format."
        )
    return f"{n_changed:,} different classes on {what}, logits equal within {difference:.0e}"


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
