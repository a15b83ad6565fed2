"""Ray: on this machine alone, or on a cluster by its address."""

import itertools
import logging
import os
import re
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from cluster.engine import State
from cluster.settings import Settings
from cluster.unit import ROOT, Outcome, Unit, attempt, host
from headstart.console import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default, and warns of
import ray
from ray.exceptions import RayError

# What a machine needs of Headstart to begin a unit; the unit itself uses the code of its clone.
PACKAGES = ("cluster", "stages", "src/headstart")
HEAD = {"node:__internal_head__": 0.001}  # where that ends, all ends
TIMEOUT = 60  # seconds for the head to answer


class Whereabouts:
    """Where each job was begun: without its dashboard Ray tells nobody."""

    def __init__(self) -> None:
        self._hosts: dict[int, str] = {}

    def begun(self, number: int, host: str) -> None:
        self._hosts[number] = host

    def hosts(self) -> dict[int, str]:
        return self._hosts


@ray.remote
def _attempt(unit: Unit, number: int, whereabouts: Any) -> Outcome:
    whereabouts.begun.remote(number, host())
    return attempt(unit)


class RayJob:
    """A unit that Ray has, or that waits to be given to it."""

    def __init__(self, unit: Unit, number: int, computes: bool) -> None:
        self.unit = unit
        self.number = number
        self.computes = computes
        self.now = State("waiting")

    def state(self) -> State:
        return self.now


class Engine:
    """Ray as `cluster.yaml` asks for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: deque[RayJob] = deque()
        self._given: dict[ray.ObjectRef, RayJob] = {}
        self._numbers = itertools.count()
        packages = [str(ROOT / package) for package in PACKAGES]
        # "local", or it would be whatever cluster RAY_ADDRESS names or `ray start` has begun here.
        address = settings.ray.address or "local"
        dashboard = {} if settings.ray.address else {"include_dashboard": False}
        try:
            _require_reachable(settings.ray.address)
            ray.init(address, **dashboard, log_to_driver=False, logging_level=logging.ERROR,
                     runtime_env={"py_modules": packages})  # fmt: skip
            self._whereabouts: Any = ray.remote(num_cpus=0, resources=HEAD)(Whereabouts).remote()
        except (OSError, RuntimeError, ValueError, RayError) as error:
            where = settings.ray.address or "this machine"
            raise UserError(f"Ray at {where} cannot be used: {_first_line(error)}") from None

    def submit(self, units: Sequence[Unit], *, computes: bool) -> list[RayJob]:
        jobs = [RayJob(unit, next(self._numbers), computes) for unit in units]
        self._queue.extend(jobs)
        return jobs

    def look(self) -> None:
        """Learn what has ended, give Ray what waits as long as it has no more than `at_once`, and ask where it is.

        Raises:
            UserError: the head has gone.
        """
        if self._given:
            ended, _ = ray.wait(list(self._given), num_returns=len(self._given), timeout=0)
            for reference in ended:
                job = self._given.pop(reference)
                job.now = State("ended", outcome=_outcome(reference))
        while self._queue and len(self._given) < self._settings.at_once:
            job = self._queue.popleft()
            # Home begins again what is lost, and counts: Ray's own retries would multiply that.
            options = {"num_cpus": self._settings.cpus, "num_gpus": self._gpus(job.computes), "max_retries": 0}
            self._given[_attempt.options(**options).remote(job.unit, job.number, self._whereabouts)] = job
        try:
            hosts = ray.get(self._whereabouts.hosts.remote(), timeout=TIMEOUT)
            lacks = {computes: self._lacks(computes) for computes in {job.computes for job in self._given.values()}}
        except (ConnectionError, RuntimeError, RayError) as error:
            raise UserError(f"Ray's head does not answer any more: {_first_line(error)}; what is complete stays, and "
                            "the same command goes on") from None  # fmt: skip
        if self._settings.ray.address is None and any(lacks.values()):
            raise UserError(f"{next(filter(None, lacks.values()))} here: change gpus and cpus in cluster.yaml")
        for job in self._given.values():
            host = hosts.get(job.number)
            job.now = State("running", host) if host else State("waiting", lacks[job.computes])

    def _gpus(self, computes: bool) -> int:
        return self._settings.gpus if computes else 0

    def _lacks(self, computes: bool) -> str:
        """What no machine of the cluster has as much of as a stage asks for; nothing if one has."""
        needs = {"CPU": self._settings.cpus, "GPU": self._gpus(computes)}
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(has.get(kind, 0) >= count for kind, count in needs.items()) for has in alive):
            return ""
        return "no machine has " + " and ".join(f"{count} {kind}" for kind, count in needs.items() if count)

    def close(self) -> None:
        self._queue.clear()
        left = list(self._given)
        for reference in left:
            ray.cancel(reference)
        if left:
            ray.wait(left, num_returns=len(left), timeout=10)  # they clean up
        ray.shutdown()


def _require_reachable(address: str | None) -> None:
    """Raise OSError where nobody listens: Ray would try for many minutes."""
    found = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or "")
    if found:
        socket.create_connection((found[1], int(found[2])), timeout=TIMEOUT).close()


def _outcome(reference: Any) -> Outcome:
    try:
        return ray.get(reference)
    except RayError as error:
        return Outcome("Ray", problem=f"its machine or process ended: {_first_line(error)}", output=str(error))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
