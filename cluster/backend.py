"""What home asks of an backend: do these specs, say how far each is, stop."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cluster.job import JobResult, JobSpec


@dataclass(frozen=True)
class State:
    """How far a spec is. ``where``: the machine that runs it, or what it waits for. ``outcome``: of one that ended."""

    kind: Literal["waiting", "running", "ended"]
    where: str = ""
    outcome: JobResult | None = None


class SubmittedJob(Protocol):
    """A spec that an backend has been given."""

    spec: JobSpec

    def state(self) -> State:
        """How far it is; a spec that was lost has ended with an outcome that says so."""


class Backend(Protocol):
    """Something that runs specs on machines."""

    def submit(
        self, specs: Sequence[JobSpec], *, needs_gpu: bool, avoid: Collection[str] = ()
    ) -> Sequence[SubmittedJob]:
        """Begin ``specs``.

        Args:
            needs_gpu: they want a GPU, if `cluster.yaml` asks for GPUs.
            avoid: the hosts on which one of them failed; others are better where there are any.
        """

    def look(self) -> None:
        """Learn how far all jobs are; before they are asked for it."""

    def close(self) -> None:
        """End what runs and forget what waits: at the end, and when home is interrupted."""
