"""Compare pretrained networks by linear probes on the same test images: accuracies, costs and significance tests."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import ConstantInputWarning, spearmanr
from statsmodels.stats.multitest import multipletests

from headstart.params import Study
from headstart.results import comparison
from headstart.results.comparison import ALPHA, Estimate, PairedComparison

RESAMPLES = 2_000  # of the test images, for the interval of the rank correlation
MIN_RANKED = 3  # networks; two can only agree or disagree


@dataclass(frozen=True, kw_only=True)
class NetworkResult:
    """The probes of one network, and its fine-tuned accuracy if it was fine-tuned."""

    name: str
    weights: str  # their source
    sha256: str  # of the weights file
    license: str  # of the weights; empty if the source does not state it
    parameters: int
    macs: int  # multiply-accumulate operations per image
    memory: int  # bytes for one batch of inference
    milliseconds: float | None  # per image; None if it was not measured
    device: str  # on which it was measured
    label_budgets: tuple[int, ...]
    cross_validated_accuracy: float  # of the probe on all labeled images
    correct: np.ndarray  # whether the probes predict the test images: bool [budgets, seeds, images]
    finetuned_correct: np.ndarray | None = None  # the same of the fine-tuned network: bool [seeds, images]


@dataclass(frozen=True, kw_only=True)
class RankedNetwork:
    """A network with its place in the comparison."""

    result: NetworkResult
    accuracy: Estimate  # of the probe on all labels
    gap: PairedComparison | None  # the gain of the best network over this one; None for the best
    # No other network is at least as accurate and at least as cheap, and better in one of the two.
    is_on_front: bool
    finetuned_accuracy: Estimate | None

    @property
    def is_significantly_worse(self) -> bool:
        """Return whether the best network is significantly more accurate than this one."""
        return self.gap is not None and self.gap.is_significant


@dataclass(frozen=True)
class NetworkComparison:
    """All networks, the most accurate first."""

    networks: Sequence[RankedNetwork]
    rank_correlation: Estimate | None  # between probes and fine-tuned networks; None with fewer than three
    cost_is_time: bool  # True: milliseconds per image, measured on one device; False: multiply-accumulate operations

    @property
    def best(self) -> RankedNetwork:
        return self.networks[0]

    @property
    def not_significantly_worse(self) -> list[RankedNetwork]:
        """Return the networks other than the best that are not significantly worse than the best."""
        return [network for network in self.networks[1:] if not network.is_significantly_worse]

    def cost(self, network: RankedNetwork) -> float:
        """Return milliseconds per image if all networks were timed on one device, otherwise GMACs."""
        return _cost(network.result, self.cost_is_time)


@dataclass(frozen=True, kw_only=True)
class NetworksData:
    """Everything that the page of a comparison of networks shows."""

    study_name: str
    study: Study
    dataset: str
    classes: Sequence[str]
    n_test: int
    ranking: NetworkComparison
    left_out: Mapping[str, str]  # networks that could not be compared, with the reason
    batch_size: int  # images, for which the memory is reported
    majority: tuple[str, float]  # the most frequent training class, and the accuracy of always predicting it


def compare(results: Sequence[NetworkResult]) -> NetworkComparison:
    """Rank the networks by the test accuracy of their probes on all labels.

    The best network is chosen on the test images, so Holm's correction is for all pairs of networks, not only for the
    pairs with the best one. A gap that is significant after this correction is valid no matter which network is best.

    Args:
        results: at least one; all on the same test images and seeds.
    """
    correct = {result.name: result.correct[-1] for result in results}
    ranked = sorted(results, key=lambda result: (-correct[result.name].mean(), result.name))
    best = ranked[0].name
    cost_is_time = None not in {result.milliseconds for result in results} and len({row.device for row in results}) == 1
    gaps = _gaps(correct, best)
    networks = [
        RankedNetwork(
            result=result,
            accuracy=comparison.accuracy(correct[result.name]),
            gap=gaps.get(result.name),
            is_on_front=not any(_dominates(other, result, cost_is_time) for other in results),
            finetuned_accuracy=(
                None if result.finetuned_correct is None else comparison.accuracy(result.finetuned_correct)
            ),
        )
        for result in ranked
    ]
    return NetworkComparison(networks, rank_correlation(results), cost_is_time)


def _cost(result: NetworkResult, cost_is_time: bool) -> float:
    return result.milliseconds if cost_is_time and result.milliseconds is not None else result.macs / 1e9


def _dominates(first: NetworkResult, second: NetworkResult, cost_is_time: bool) -> bool:
    """Return whether ``first`` is at least as accurate and as cheap as ``second``, and better in one of them."""
    accuracies = [result.correct[-1].mean() for result in (first, second)]
    costs = [_cost(result, cost_is_time) for result in (first, second)]
    is_no_worse = accuracies[0] >= accuracies[1] and costs[0] <= costs[1]
    return bool(is_no_worse and (accuracies[0] > accuracies[1] or costs[0] < costs[1]))


def _gaps(correct: Mapping[str, np.ndarray], best: str) -> dict[str, PairedComparison]:
    """Return the gain of ``best`` over each other network, tested with Holm's correction for all pairs."""
    pairs = list(combinations(correct, 2))
    if not pairs:
        return {}
    p_values = [comparison.p_value(correct[first], correct[second]) for first, second in pairs]
    corrected = dict(zip(map(frozenset, pairs), multipletests(p_values, alpha=ALPHA, method="holm")[1], strict=True))
    return {
        name: PairedComparison(
            gain=comparison.bootstrap(correct[best].astype(float) - values),
            n_seeds=len(values),
            p=float(corrected[frozenset((best, name))]),
        )
        for name, values in correct.items()
        if name != best
    }


def rank_correlation(results: Sequence[NetworkResult]) -> Estimate | None:
    """Return Spearman's rank correlation between the accuracies of probes and of fine-tuned networks.

    The interval is a percentile bootstrap interval over test images, which are resampled with all networks and seeds.
    """
    rows = [
        (row.correct[-1].mean(0), row.finetuned_correct.mean(0)) for row in results if row.finetuned_correct is not None
    ]
    if len(rows) < MIN_RANKED:
        return None
    values = np.array(rows)  # [networks, 2, images]
    n_images = values.shape[-1]
    generator = np.random.default_rng(0)
    resampled = [
        _spearman(values @ generator.multinomial(n_images, np.full(n_images, 1 / n_images))) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(resampled, [ALPHA / 2, 1 - ALPHA / 2]).tolist()
    return Estimate(_spearman(values.sum(-1)), low, high)


def _spearman(accuracies: np.ndarray) -> float:
    """Return the rank correlation of ``accuracies`` [networks, 2]; 0 if all networks are equally accurate."""
    with warnings.catch_warnings(action="ignore", category=ConstantInputWarning):
        return float(np.nan_to_num(spearmanr(*accuracies.T).statistic))
