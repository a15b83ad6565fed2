"""What the factors of the study do to a metric."""

from collections.abc import Mapping
from statistics import mean

from headstart.params import Experiment

# In each factor, the level whose gain over the other is the effect.
FACTORS = {"pretrained": True, "finetuning": True, "optimizer": "Adam"}
BELONGS_TO_OPTIMIZER = ("momentum", "weight_decay")


def pairs(experiments: Mapping[str, Experiment], factor: str) -> list[tuple[str, str]]:
    """Configurations that differ in ``factor`` and nothing else: (with the gaining level, with the other)."""

    def others(experiment: Experiment) -> dict[str, object]:
        ignored = {factor, *(BELONGS_TO_OPTIMIZER if factor == "optimizer" else ())}
        return {key: value for key, value in vars(experiment).items() if key not in ignored}

    return [
        (gaining, other)
        for gaining, left in experiments.items()
        for other, right in experiments.items()
        if others(left) == others(right)
        and getattr(left, factor) == FACTORS[factor]
        and getattr(right, factor) != FACTORS[factor]
    ]


def effects(experiments: Mapping[str, Experiment], accuracy: Mapping[str, float]) -> dict[str, float]:
    """The mean gain in ``accuracy`` over the pairs of each factor; a factor without a pair is left out."""
    gains = {
        factor: [accuracy[gaining] - accuracy[other] for gaining, other in pairs(experiments, factor)]
        for factor in FACTORS
    }
    return {factor: mean(values) for factor, values in gains.items() if values}


def study_metrics(experiments: Mapping[str, Experiment], accuracy: Mapping[str, float]) -> dict[str, float]:
    """The study in at most four numbers, rounded to four places."""
    named = {f"effect_{factor}": gain for factor, gain in effects(experiments, accuracy).items()}
    return {name: round(value, 4) for name, value in {"best_accuracy": max(accuracy.values()), **named}.items()}
