"""Ray: on this machine alone, or on a cluster by its address."""

import contextlib
import itertools
import logging
import os
import re
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from cluster.backend import State
from cluster.job import ROOT, JobResult, JobSpec, attempt, host
from cluster.settings import Settings
from headstart.console import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do by default, and warns of
import ray
from ray.exceptions import RayError

# What a machine needs of Headstart to begin a spec; the spec itself uses the code of its clone.
PACKAGES = ("cluster", "pipeline", "stages", "src/headstart")
HEAD = {"node:__internal_head__": 0.001}  # where that ends, all ends
TIMEOUT = 60  # seconds for the head to answer
NO_TOKEN = ("it asks for a token: copy its head's ~/.ray/auth_token to here and set RAY_AUTH_MODE=token, or start it "
            "with RAY_AUTH_MODE=disabled")  # fmt: skip
GONE = 20  # seconds after which a head that takes no connection counts as dead


class Whereabouts:
    """Where each job was begun: without its dashboard Ray tells nobody."""

    def __init__(self) -> None:
        self._hosts: dict[int, str] = {}

    def begun(self, number: int, host: str) -> None:
        self._hosts[number] = host

    def hosts(self) -> dict[int, str]:
        return self._hosts


@ray.remote
def _attempt(spec: JobSpec, number: int, whereabouts: Any) -> JobResult:
    whereabouts.begun.remote(number, host())
    return attempt(spec)


class RayJob:
    """A spec that Ray has."""

    def __init__(self, spec: JobSpec, number: int, needs_gpu: bool) -> None:
        self.unit = spec
        self.number = number
        self.needs_gpu = needs_gpu
        self.now = State("waiting")

    def state(self) -> State:
        return self.now


class Backend:
    """Ray as `cluster.yaml` asks for it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._given: dict[ray.ObjectRef, RayJob] = {}
        self._numbers = itertools.count()
        self._silent_since: float | None = None
        self._is_gone = False
        packages = [str(ROOT / package) for package in PACKAGES]
        # "local", or it would be whatever cluster RAY_ADDRESS names or `ray start` has begun here.
        address = settings.ray.address or "local"
        dashboard = {} if settings.ray.address else {"include_dashboard": False}
        # Ray puts the path of Python into a shell's command, where a space would end it.
        python = {} if settings.ray.address else {"py_executable": shlex.quote(sys.executable)}
        said: list[str] = []
        try:
            _require_reachable(settings.ray.address)
            with _captured_stderr(said):
                ray.init(address, **dashboard, log_to_driver=False, logging_level=logging.ERROR,
                         runtime_env={"py_modules": packages, **python})  # fmt: skip
            self._address = settings.ray.address if ":" in address else ray.get_runtime_context().gcs_address
            self._whereabouts: Any = ray.remote(num_cpus=0, resources=HEAD)(Whereabouts).remote()
        except (OSError, RuntimeError, ValueError, RayError) as error:
            where = settings.ray.address or "this machine"
            why = NO_TOKEN if any("InvalidAuthToken" in line for line in said) else _first_line(error)
            raise UserError(f"Ray at {where} cannot be used: {why}") from None

    def submit(self, specs: Sequence[JobSpec], *, needs_gpu: bool, avoid: Collection[str] = ()) -> list[RayJob]:
        # Home begins again what is lost, and counts: Ray's own retries would multiply that.
        options = {"num_cpus": self._settings.cpus, "num_gpus": self._gpus(needs_gpu), "max_retries": 0}
        jobs = [RayJob(spec, next(self._numbers), needs_gpu) for spec in specs]
        for job in jobs:
            self._given[_attempt.options(**options).remote(job.unit, job.number, self._whereabouts)] = job
        return jobs

    def look(self) -> None:
        """Learn what has ended, and where the rest is.

        Raises:
            UserError: the head has gone.
        """
        if not self._head_answers():
            return
        if self._given:
            ended, _ = ray.wait(list(self._given), num_returns=len(self._given), timeout=0)
            for reference in ended:
                job = self._given.pop(reference)
                job.now = State("ended", outcome=_outcome(reference))
        try:
            hosts = ray.get(self._whereabouts.hosts.remote(), timeout=TIMEOUT)
            lacks = {needs_gpu: self._lacks(needs_gpu) for needs_gpu in {job.needs_gpu for job in self._given.values()}}
        except (ConnectionError, RuntimeError, RayError) as error:
            raise self._gone(_first_line(error)) from None
        if self._settings.ray.address is None and any(lacks.values()):
            raise UserError(f"{next(filter(None, lacks.values()))} here: change gpus and cpus in cluster.yaml")
        for job in self._given.values():
            host = hosts.get(job.number)
            job.now = State("running", host) if host else State("waiting", lacks[job.needs_gpu])

    def _head_answers(self) -> bool:
        """Whether the head's port is open.

        Ray itself would wait for a head that has died for a minute, and then end this process without a word.

        Raises:
            UserError: it has been closed for GONE seconds.
        """
        try:
            _require_reachable(self._address)
        except OSError as error:
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since > GONE:
                raise self._gone(str(error)) from None
            return False
        self._silent_since = None
        return True

    def _gone(self, why: str) -> UserError:
        self._is_gone = True
        return UserError(f"Ray's head does not answer any more: {why}; what is complete stays: run the same "
                         "command to continue")  # fmt: skip

    def _gpus(self, needs_gpu: bool) -> int:
        return self._settings.gpus if needs_gpu else 0

    def _lacks(self, needs_gpu: bool) -> str:
        """What no machine of the cluster has as much of as a stage asks for; nothing if one has."""
        needs = {"CPU": self._settings.cpus, "GPU": self._gpus(needs_gpu)}
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(has.get(kind, 0) >= count for kind, count in needs.items()) for has in alive):
            return ""
        return "no machine has " + " and ".join(f"{count} {kind}" for kind, count in needs.items() if count)

    def close(self) -> None:
        if self._is_gone:
            return
        left = list(self._given)
        for reference in left:
            ray.cancel(reference)
        if left:
            ray.wait(left, num_returns=len(left), timeout=30)  # they clean up, which takes its time on a busy machine
        ray.shutdown()


@contextlib.contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    """Append to ``lines`` what this process writes to stderr, Ray's C++ code included."""
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def _require_reachable(address: str | None) -> None:
    """Raise OSError where nobody listens: Ray would try for many minutes."""
    found = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or "")
    if found:
        socket.create_connection((found[1], int(found[2])), timeout=TIMEOUT).close()


def _outcome(reference: Any) -> JobResult:
    try:
        return ray.get(reference)
    except RayError as error:
        return JobResult("Ray", problem=f"its machine or process ended: {_first_line(error)}", output=str(error))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
