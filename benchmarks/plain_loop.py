"""Train one fine-tuned configuration the plain way and the fast way from the same start, and compare the results.

    python -m benchmarks.plain_loop [CONFIGURATION]

The plain way is PyTorch as a newcomer would write it: the whole network on the images in every epoch, its frozen part
in eval mode. It uses the start that `dvc repro start@pretrained` (or start@scratch) made at the scale of params.yaml.
"""

import sys
import time

import torch.nn.functional as F

from headstart import compute, files, models, params
from headstart.console import run
from headstart.forward import outputs
from headstart.snapshot import Snapshot
from headstart.training import fit, image_order, make_optimizer
from stages.inputs import examples


def main(name: str = "pretrained-finetuned-adam") -> None:
    settings, device = params.read(), compute.choose()
    scale, experiment = settings.current, settings.experiment(name)
    data = files.read_tensors(f"data/prepared/{settings.scale}.safetensors").tensors
    images, labels = data["training_images"], data["training_labels"]
    start = Snapshot.read(f"data/start/{settings.scale}/pretrained-{str(experiment.pretrained).lower()}.safetensors")
    layer = scale.finetune_from if experiment.finetuning else start.classifier

    slow = start.network().to(device.device)
    trunk, head = models.cut(slow, layer)
    optimizer = make_optimizer(experiment, head.parameters())
    losses = []
    started = time.perf_counter()
    for epoch in range(1, scale.n_epochs + 1):
        trunk.eval()
        head.train()
        total = 0.0
        for batch in image_order(scale.seed, epoch, len(labels)).split(scale.batch_size):
            logits = slow(start.preprocess(images[batch].to(device.device)))
            loss = F.cross_entropy(logits, labels[batch].to(device.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(labels))
    plain_seconds = time.perf_counter() - started

    fast = start.network()
    trunk, head = models.cut(fast, layer)
    started = time.perf_counter()
    training = examples("training", experiment, settings, start, trunk, device)
    validation = examples("validation", experiment, settings, start, trunk, device)
    epochs = list(fit(head, training, validation, experiment=experiment, n_epochs=scale.n_epochs,
                      batch_size=scale.batch_size, seed=scale.seed, compute=device))  # fmt: skip
    fast_seconds = time.perf_counter() - started

    print("| epoch | train loss, plain | train loss, fast |\n|---:|---:|---:|")
    for epoch, plain, record in zip(range(1, scale.n_epochs + 1), losses, epochs, strict=True):
        print(f"| {epoch} | {plain:.6f} | {record.train_loss:.6f} |")
    predictions = [
        outputs(data["test_images"], network, compute=device, prepare=start.preprocess)[0] for network in (slow, fast)
    ]
    correct = [(logits.argmax(1) == data["test_labels"]).double().mean().item() for logits in predictions]
    print(f"test accuracy: plain {correct[0]:.4f}, fast {correct[1]:.4f}")
    print(f"seconds: plain {plain_seconds:.1f}, fast {fast_seconds:.1f}, ratio {plain_seconds / fast_seconds:.1f}")


if __name__ == "__main__":
    run(main, *sys.argv[1:])
