"""The interface of a backend: submit jobs to machines, poll their states, close."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cluster.job import JobResult, JobSpec


@dataclass(frozen=True)
class JobState:
    """State of a submitted job."""

    status: Literal["waiting", "running", "ended"]
    detail: str = ""  # the host of a running job, or the reason why a job waits
    result: JobResult | None = None  # if the job has ended


class JobHandle(Protocol):
    """A submitted job."""

    spec: JobSpec

    def state(self) -> JobState:
        """Return the state of the job. A lost job has ended, with a result that describes the problem."""


class Backend(Protocol):
    """A system that runs jobs on machines."""

    def submit(self, specs: Sequence[JobSpec], *, needs_gpu: bool, avoid: Collection[str] = ()) -> Sequence[JobHandle]:
        """Queue jobs.

        Args:
            needs_gpu: request GPUs, if `cluster.yaml` configures any.
            avoid: hosts on which one of these jobs has failed. Other hosts are preferred if there are any.
        """

    def poll(self) -> None:
        """Update the states of all jobs; called before the states are read."""

    def close(self) -> None:
        """Cancel running and waiting jobs: at the end, and when the driver is interrupted."""
