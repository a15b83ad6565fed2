"""What home asks of an engine: do these units, say how far each is, stop."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cluster.unit import Outcome, Unit


@dataclass(frozen=True)
class State:
    """How far a unit is. ``where``: the machine that runs it, or what it waits for. ``outcome``: of one that ended."""

    kind: Literal["waiting", "running", "ended"]
    where: str = ""
    outcome: Outcome | None = None


class Job(Protocol):
    """A unit that an engine has been given."""

    unit: Unit

    def state(self) -> State:
        """How far it is; a unit that was lost has ended with an outcome that says so."""


class Engine(Protocol):
    """Something that runs units on machines."""

    def submit(self, units: Sequence[Unit], *, computes: bool, avoid: Collection[str] = ()) -> Sequence[Job]:
        """Begin ``units``.

        Args:
            computes: they want a GPU, if `cluster.yaml` asks for GPUs.
            avoid: the hosts on which one of them failed; others are better where there are any.
        """

    def look(self) -> None:
        """Learn how far all jobs are; before they are asked for it."""

    def close(self) -> None:
        """End what runs and forget what waits: at the end, and when home is interrupted."""
