"""Measure what a training recipe costs: one epoch with cached inputs, with augmentation, and with a DataLoader.

All train the same head of the selected study, on the same images, with the same batch size. The DataLoader applies the
same torchvision transforms to one image at a time, and runs the whole network. Run `dvc repro initialize@pretrained`
first.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from headstart import params
from headstart.console import run_cli
from headstart.data import splits
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Configuration
from headstart.training.augmentation import AUGMENTATIONS
from headstart.training.compute import Compute, configure
from headstart.training.inference import BatchedInference
from headstart.training.inputs import AugmentedPass, Examples, RecomputedInputs, cache_or_recompute
from headstart.training.loop import fit
from headstart.training.optimizers import make_optimizer
from headstart.training.schedules import learning_rate
from scripts import argument_parser
from stages.paths import initial_file, prepared_file

CONFIGURATION = Configuration(pretrained=True, finetuning=True, optimizer="AdamW", lr=0.001, schedule="cosine")
NO_RECIPE = "cached inputs, constant learning rate"


class Augmented(Dataset):
    """Images and labels, augmented one at a time as torchvision's reference scripts do."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: v2.Transform) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.images[index].view(-1, *self.images.shape[-2:])), self.labels[index]


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--images", type=int, default=1_024, help="number of training images (default: 1024)")
    parser.add_argument("--repeats", type=int, default=3, help="epochs per variant, of which the median counts")
    options = parser.parse_args(arguments)
    settings, compute = params.read(), configure()
    study = settings.selected_study
    initial = SavedModel.read(initial_file(settings, True, study.seeds[0]))
    images, labels, _ = splits.read_split(prepared_file(settings), "training")
    data = torch.from_numpy(images[: options.images]), torch.from_numpy(labels[: options.images])
    print(f"| {study.model_name}, {study.image_size} px | ms per image | ratio |\n|---|---:|---:|")
    for layer in (initial.classifier, study.finetune_from):
        times: dict[str, list[float]] = {}
        variants = _variants(initial, layer, data, study.batch_size, compute)
        for epoch in variants.values():
            epoch()  # warm up
        for _ in range(options.repeats):
            for name, epoch in variants.items():
                started = time.perf_counter()
                epoch()
                times.setdefault(name, []).append((time.perf_counter() - started) / len(data[1]))
        baseline = statistics.median(times[NO_RECIPE])
        for name, seconds in times.items():
            median = statistics.median(seconds)
            print(f"| trained from {layer}: {name} | {1_000 * median:.2f} | {median / baseline:.1f} |", flush=True)


def _variants(
    initial: SavedModel, layer: str, data: tuple[torch.Tensor, torch.Tensor], batch_size: int, compute: Compute
) -> dict[str, Callable[[], object]]:
    """Return functions that train one epoch each, by name."""
    images, labels = data
    network = initial.build()
    backbone, head = splitting.split_backbone_head(network, layer)
    optimizer = make_optimizer(CONFIGURATION, head, compute)
    nothing = Examples(RecomputedInputs(images[:0], BatchedInference((backbone,), compute)), labels[:0])
    n_steps = -(-len(labels) // batch_size)

    def headstart(examples: Examples, *, has_schedule: bool) -> Callable[[], object]:
        rates = (lambda step: learning_rate(CONFIGURATION, step, n_steps=n_steps)) if has_schedule else None
        return lambda: list(fit(head, optimizer, examples, nothing, epochs=range(1, 2), batch_size=batch_size, seed=0,
                                compute=compute, learning_rate=rates))  # fmt: skip

    def dataloader(name: str) -> Callable[[], object]:
        side = images.shape[-1]
        transform = v2.Compose([
            AUGMENTATIONS[name](side), v2.Resize((initial.image_size,) * 2, antialias=True),
            v2.Lambda(lambda image: image.expand(3, -1, -1)), v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(initial.mean, initial.std),
        ])  # fmt: skip
        loader = DataLoader(Augmented(images, labels, transform), batch_size=batch_size, shuffle=True)

        def epoch() -> None:
            backbone.eval()
            head.train()
            for batch, batch_labels in loader:
                with torch.no_grad():
                    outputs = backbone(batch.to(compute.device, memory_format=torch.channels_last))
                loss = F.cross_entropy(head(outputs), batch_labels.to(compute.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return epoch

    cached = Examples(
        cache_or_recompute(images, backbone, compute=compute, prepare=initial.preprocess, reuse=True), labels
    )
    inference = BatchedInference((backbone,), compute, initial.preprocess)
    variants = {
        NO_RECIPE: headstart(cached, has_schedule=False),
        "cached inputs, cosine": headstart(cached, has_schedule=True),
    }
    for name in AUGMENTATIONS:
        augmented = Examples(RecomputedInputs(images, inference, AugmentedPass(name)), labels)
        variants[f"{name}, cosine"] = headstart(augmented, has_schedule=True)
        variants[f"{name}, DataLoader"] = dataloader(name)
    return variants


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
