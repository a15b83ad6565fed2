"""Ray: on this machine, or on a cluster by its address."""

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

from cluster.backend import JobState
from cluster.job import ROOT, JobResult, JobSpec, host, run_job_safely
from cluster.settings import Settings
from headstart.console import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; silences a warning
import ray
from ray.exceptions import RayError

# Code that a worker needs to start a job; the job itself runs the code of its clone.
PACKAGES = ("cluster", "pipeline", "stages", "src/headstart")
HEAD_NODE = {"node:__internal_head__": 0.001}  # the cluster does not survive its head node anyway
TIMEOUT_S = 60  # for an answer of the head
HEAD_GRACE_S = 20  # after which a head that refuses connections counts as dead
NO_TOKEN = (
    "its head requires a token. Copy ~/.ray/auth_token from the head to this machine and set RAY_AUTH_MODE=token, or "
    "start the head with RAY_AUTH_MODE=disabled."
)


class HostRegistry:
    """Actor that knows the host of each job: without its dashboard, Ray does not tell the driver."""

    def __init__(self) -> None:
        self._hosts: dict[int, str] = {}

    def report_started(self, job_number: int, host: str) -> None:
        self._hosts[job_number] = host

    def hosts(self) -> dict[int, str]:
        return self._hosts


@ray.remote
def _run_task(spec: JobSpec, job_number: int, registry: Any) -> JobResult:
    registry.report_started.remote(job_number, host())
    return run_job_safely(spec)


class RayJob:
    """Handle of a Ray task."""

    def __init__(self, spec: JobSpec, number: int, needs_gpu: bool) -> None:
        self.spec = spec
        self.number = number
        self.needs_gpu = needs_gpu
        self.last_state = JobState("waiting")

    def state(self) -> JobState:
        """Return the state at the last poll."""
        return self.last_state


class Backend:
    """Ray with the settings of `cluster.yaml`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._jobs: dict[ray.ObjectRef, RayJob] = {}  # those that have not ended
        self._numbers = itertools.count()
        self._silent_since: float | None = None  # time.monotonic()
        self._is_head_dead = False
        packages = [str(ROOT / package) for package in PACKAGES]
        # Without "local", Ray would use the cluster of RAY_ADDRESS or of a `ray start` on this machine.
        address = settings.ray.address or "local"
        dashboard = {} if settings.ray.address else {"include_dashboard": False}
        # Ray puts the path of Python into a shell command, unquoted.
        python = {} if settings.ray.address else {"py_executable": shlex.quote(sys.executable)}
        stderr_lines: list[str] = []
        try:
            _require_reachable(settings.ray.address)
            with _captured_stderr(stderr_lines):
                ray.init(
                    address,
                    **dashboard,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"py_modules": packages, **python},
                )
            self._address = settings.ray.address if ":" in address else ray.get_runtime_context().gcs_address
            self._registry: Any = ray.remote(num_cpus=0, resources=HEAD_NODE)(HostRegistry).remote()
        except (OSError, RuntimeError, ValueError, RayError) as error:
            where = settings.ray.address or "this machine"
            has_no_token = any("InvalidAuthToken" in line for line in stderr_lines)
            reason = NO_TOKEN if has_no_token else _first_line(error)
            raise UserError(f"cannot use Ray at {where}: {reason}") from None

    def submit(self, specs: Sequence[JobSpec], *, needs_gpu: bool, avoid: Collection[str] = ()) -> list[RayJob]:
        # No retries by Ray: the driver retries, and both together would multiply.
        task = _run_task.options(num_cpus=self._settings.cpus, num_gpus=self._gpus(needs_gpu), max_retries=0)
        jobs = [RayJob(spec, next(self._numbers), needs_gpu) for spec in specs]
        for job in jobs:
            self._jobs[task.remote(job.spec, job.number, self._registry)] = job
        return jobs

    def poll(self) -> None:
        """Update the states of all jobs.

        Raises:
            UserError: the head is dead, or no machine of a local Ray has the resources that a job needs.
        """
        if not self._is_head_reachable():
            return
        if self._jobs:
            ended, _ = ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=0)
            for reference in ended:
                self._jobs.pop(reference).last_state = JobState("ended", result=_result(reference))
        try:
            hosts = ray.get(self._registry.hosts.remote(), timeout=TIMEOUT_S)
            lacking = {
                needs_gpu: self._lacking(needs_gpu) for needs_gpu in {job.needs_gpu for job in self._jobs.values()}
            }
        except (ConnectionError, RuntimeError, RayError) as error:
            raise self._dead_head_error(_first_line(error)) from None
        if self._settings.ray.address is None and any(lacking.values()):
            raise UserError(f"{next(filter(None, lacking.values()))}. Change gpus and cpus in cluster.yaml.")
        for job in self._jobs.values():
            host = hosts.get(job.number)
            job.last_state = JobState("running", host) if host else JobState("waiting", lacking[job.needs_gpu])

    def _is_head_reachable(self) -> bool:
        """Return whether the port of the head is open.

        Ray itself waits a minute for a dead head, and then ends this process without a message.

        Raises:
            UserError: the port has been closed for HEAD_GRACE_S seconds.
        """
        try:
            _require_reachable(self._address)
        except OSError as error:
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since > HEAD_GRACE_S:
                raise self._dead_head_error(str(error)) from None
            return False
        self._silent_since = None
        return True

    def _dead_head_error(self, reason: str) -> UserError:
        self._is_head_dead = True
        return UserError(
            f"Ray's head does not respond: {reason}. Completed stages are cached. Run the same command again to resume."
        )

    def _gpus(self, needs_gpu: bool) -> int:
        return self._settings.gpus if needs_gpu else 0

    def _lacking(self, needs_gpu: bool) -> str:
        """Return which resources of a job no machine has; empty if a machine has them all."""
        needs = {"CPU": self._settings.cpus, "GPU": self._gpus(needs_gpu)}
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(resources.get(kind, 0) >= count for kind, count in needs.items()) for resources in machines):
            return ""
        return "no machine has " + " and ".join(f"{count} {kind}" for kind, count in needs.items() if count)

    def close(self) -> None:
        if self._is_head_dead:
            return
        references = list(self._jobs)
        for reference in references:
            ray.cancel(reference)
        if references:
            ray.wait(references, num_returns=len(references), timeout=30)  # for the jobs to clean up
        ray.shutdown()


@contextlib.contextmanager
def _captured_stderr(lines: list[str]) -> Iterator[None]:
    """Append to ``lines`` all that this process writes to stderr, including Ray's C++ code."""
    with tempfile.TemporaryFile() as file:
        original = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(original, 2)
            os.close(original)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


def _require_reachable(address: str | None) -> None:
    """Raise OSError if nothing listens at ``address``: Ray would retry for many minutes."""
    match = re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or "")
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=TIMEOUT_S).close()


def _result(reference: Any) -> JobResult:
    try:
        return ray.get(reference)
    except RayError as error:
        return JobResult("Ray", problem=f"the worker or its machine died: {_first_line(error)}", output=str(error))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
