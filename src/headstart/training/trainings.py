"""One training from its initial weights to its predictions: early stopping, checkpoints, resuming."""

import time
from dataclasses import dataclass

from torch import nn

from headstart.console import progress
from headstart.params import Configuration, Study
from headstart.training import early_stopping
from headstart.training.checkpoints import Checkpoint, TrainingResult
from headstart.training.compute import Compute
from headstart.training.criterion import make_criterion
from headstart.training.inputs import predict
from headstart.training.loading import DataSubset, TrainingData
from headstart.training.loop import EpochMetrics, fit
from headstart.training.optimizers import make_optimizer
from headstart.training.schedules import learning_rate

# A checkpoint is due when training has taken this many times as long as writing the last checkpoint …
CHECKPOINT_COST_RATIO = 10
CHECKPOINT_INTERVAL_S = 20  # … or, on a subset of the labels, this many seconds


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training of a head, with everything that it depends on.

    ``name`` identifies it in progress bars and errors, such as "random-frozen-sgd, seed 0".
    """

    name: str
    budget: int  # number of labeled images, validation included
    head: nn.Module  # from the inputs of the examples to logits; trained in place
    data: TrainingData | DataSubset
    configuration: Configuration
    study: Study
    seed: int
    n_classes: int
    checkpoint: Checkpoint

    @property
    def is_subset(self) -> bool:
        """Return whether the training uses fewer labels than the study has."""
        return self.budget < self.study.full_budget

    @property
    def passes_per_epoch(self) -> int:
        """Return the passes per epoch: each label budget has at least as many optimizer steps as all labels."""
        if not self.is_subset:
            return 1
        full_steps = -(-self.study.training_images // self.study.batch_size)
        return -(-full_steps // self.steps_per_pass)

    @property
    def steps_per_pass(self) -> int:
        return -(-len(self.data.training.labels) // self.study.batch_size)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of an optimizer step, from 0."""
        steps_per_epoch = self.passes_per_epoch * self.steps_per_pass
        n_steps, warmup_steps = (n * steps_per_epoch for n in (self.study.n_epochs, self.configuration.warmup_epochs))
        return learning_rate(self.configuration, step, n_steps=n_steps, warmup_steps=warmup_steps)

    def run(self, compute: Compute) -> list[EpochMetrics]:
        """Train the head, from the last checkpoint if there is one; return the metrics of all epochs.

        With patience, the head ends with the weights of its best epoch, else with those of the last one.
        """
        # Loading may draw random numbers and needs memory, so it comes before the generators and the head are restored.
        training, validation = self.data.training, self.data.validation
        optimizer = make_optimizer(self.configuration, self.head, compute)
        criterion = make_criterion(self.configuration, training.labels, self.n_classes, compute)
        epochs, best_weights = self.checkpoint.restore(self.head, optimizer)
        last = len(epochs) if self._should_stop(epochs) else self.study.n_epochs
        images = self.passes_per_epoch * len(training.labels)
        saved_at, cost = time.monotonic(), 0.0  # when the last checkpoint was written, and the seconds that it took
        with progress(self.study.n_epochs * images, f"training {self.name}", len(epochs) * images) as bar:
            for epoch in fit(
                self.head, optimizer, training, validation, epochs=range(len(epochs) + 1, last + 1),
                batch_size=self.study.batch_size, seed=self.seed, compute=compute,
                passes_per_epoch=self.passes_per_epoch, criterion=criterion,
                learning_rate=self.learning_rate if self.configuration.has_schedule else None,
                name=self.name, on_batch=bar.update,
            ):  # fmt: skip
                epochs.append(epoch)
                if self.study.patience and early_stopping.best_epoch(_validation_losses(epochs)) == len(epochs):
                    best_weights = {name: tensor.clone() for name, tensor in self.head.state_dict().items()}
                now = time.monotonic()
                if now - saved_at > (CHECKPOINT_COST_RATIO * cost if not self.is_subset else CHECKPOINT_INTERVAL_S):
                    self.checkpoint.save(self.head, optimizer, epochs, best_weights)
                    saved_at = time.monotonic()
                    cost = saved_at - now
                if self._should_stop(epochs):
                    break
        if best_weights:
            self.head.load_state_dict(best_weights)
        return epochs

    def train_and_predict(self, compute: Compute) -> TrainingResult:
        """Train the head and predict the test images. On a subset, use the result in the checkpoint if there is one."""
        if self.is_subset and (stored := self.checkpoint.read_result()):
            return stored
        epochs = self.run(compute)
        test = self.data.test
        logits = predict(self.head.to(compute.device), test.inputs, len(test.labels), compute).cpu()
        result = TrainingResult(epochs, logits)
        if self.is_subset:
            self.checkpoint.write_result(result)
        return result

    def _should_stop(self, epochs: list[EpochMetrics]) -> bool:
        return early_stopping.should_stop(_validation_losses(epochs), self.study.patience)


def _validation_losses(epochs: list[EpochMetrics]) -> list[float]:
    return [epoch.validation_loss for epoch in epochs if epoch.validation_loss is not None]
