"""Write the complete initial network that all configurations of one start begin from."""

import sys

import torch

from headstart import compute, datasets, files, models, params, starts
from headstart.console import run
from headstart.images import Preprocess
from headstart.snapshot import Snapshot

STATISTICS_IMAGES = 1_024  # for a random start's batch-norm statistics


def main(pretrained: str) -> None:
    settings = params.read()
    scale, device = settings.current, compute.choose()
    torch.manual_seed(scale.seed)  # both starts have the same new classifier
    model = models.build(scale.model_name, len(datasets.CLASSES))
    models.cut(model, scale.finetune_from)
    models.check_image_size(model, scale.image_size)
    weights = starts.find(scale.model_name, scale.weights)
    preprocess = Preprocess(scale.image_size, weights.mean, weights.std)
    if pretrained == "true":
        label, sha256 = weights.label, starts.pretrained(model, weights)
    else:
        label, sha256 = f"random, seed {scale.seed}", ""
        images = files.read_tensors(f"data/prepared/{settings.scale}.safetensors", "training_images").tensors
        chunks = images["training_images"][:STATISTICS_IMAGES].split(device.chunk)
        model.to(device.device)
        starts.estimate_batch_norm(model, (preprocess(chunk.to(device.device)) for chunk in chunks))
    snapshot = Snapshot(
        state=model.state_dict(),
        model_name=scale.model_name,
        image_size=scale.image_size,
        mean=weights.mean,
        std=weights.std,
        classes=datasets.CLASSES,
        classifier=models.classifier_name(model),
        weights=label,
        sha256=sha256,
    )
    snapshot.write(f"data/start/{settings.scale}/pretrained-{pretrained}.safetensors")


if __name__ == "__main__":
    run(main, *sys.argv[1:])
