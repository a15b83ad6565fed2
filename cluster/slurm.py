"""SLURM, through submitit: specs that begin at the same time are one array."""

import contextlib
import getpass
import hashlib
import io
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

import submitit
from submitit.core.logger import get_logger
from submitit.slurm import slurm as submitit_slurm

from cluster.backend import State
from cluster.job import ROOT, JobResult, JobSpec, failed, handle_sigterm, host, last_line, perform
from cluster.settings import Settings
from headstart import files
from headstart.console import UserError

RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING"}
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "GONE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
         "TIMEOUT"}  # fmt: skip
SETTLING = 10  # seconds that a shared folder may take to show a result
IDENTITY = ROOT / ".cluster/identity"  # what the names of all jobs of this folder are made from
ERROR = re.compile(r"\berror: |^\w+(?:Error|Exception)\b")


class Attempt(submitit.helpers.Checkpointable):
    """What a job does; submitit begins it anew after a preemption and at the end of its time."""

    def __call__(self, spec: JobSpec) -> JobResult:
        signal.signal(signal.SIGTERM, handle_sigterm)
        try:
            return perform(spec)
        except submitit.core.utils.UncompletedJobError:
            # Not once more from the beginning: that would be `max_attempts` times `max_attempts` jobs.
            problem = "the time of all its jobs was not enough: raise slurm.time_limit_minutes, or max_attempts, in cluster.yaml"
            return JobResult(host(), problem=problem, permanent=True)
        except Exception as error:
            return failed(error)


class Queue(submitit_slurm.SlurmInfoWatcher):
    """The states of all jobs from `squeue`, which every SLURM has; submitit asks the accounting, which not all keep."""

    def _make_command(self) -> list[str]:
        return ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%N|%r"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string.decode() if isinstance(string, bytes) else string
        rows = [line.split("|") for line in text.splitlines()]
        listed = {job: {"State": state, "NodeList": nodes, "Reason": reason} for job, state, nodes, reason in rows}
        return {job: {"State": "GONE", "NodeList": ""} for job in self._registered} | listed  # it forgets in minutes


class SlurmJob:
    """A spec in SLURM's queue."""

    def __init__(self, spec: JobSpec, job: submitit.Job) -> None:
        self.unit = spec
        self.job = job
        self._ended: float | None = None  # since when SLURM says so

    def state(self) -> State:
        if self.job.paths.result_pickle.exists():
            return State("ended", outcome=self._outcome())
        info = self.job.watcher.get_info(self.job.job_id)
        name, node = info.get("State", "PENDING"), info.get("NodeList", "")
        if name in RUNNING:
            self._ended = None
            return State("running", node)
        if name not in ENDED:
            self._ended = None
            reason = info.get("Reason", "None")
            return State("waiting", "" if reason == "None" else reason)
        self._ended = self._ended or time.monotonic()
        if time.monotonic() - self._ended < SETTLING or self._is_not_lost():
            return State("running", node)
        log = self.job.paths.stderr
        said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        why = f"its job {self.job.job_id} ended with {name}" + (f": {first_error(said)}" if said else "")
        return State("ended", outcome=JobResult(node or "SLURM", problem=why, output=said))

    def _is_not_lost(self) -> bool:
        """Whether a second look finds a result, or that SLURM has begun the job anew."""
        folder = self.job.paths.result_pickle.parent
        folder.chmod(folder.stat().st_mode)  # NFS forgets what it remembers of a folder that changes
        if self.job.paths.result_pickle.exists():
            return True
        return self.job.watcher.get_info(self.job.job_id, mode="force").get("State", "PENDING") not in ENDED

    def _outcome(self) -> JobResult:
        kind, result = submitit.core.utils.pickle_load(self.job.paths.result_pickle)
        if kind == "success":
            return result
        node = self.job.watcher.get_info(self.job.job_id).get("NodeList", "")
        return JobResult(node or "SLURM", problem=last_line(result), output=result)


def first_error(text: str) -> str:
    """Return the first line of ``text`` that tells of an error, which causes all others; else the last line.

    srun's own lines, which only say that there was one, count where there is no other.
    """
    own = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("srun: ")]
    return next((line for line in own if ERROR.search(line)), own[-1] if own else last_line(text))


def own_name() -> str:
    """Return the name of all jobs of this folder, which is the same for each driver in it and for no other folder's.

    It is on the disk before the first job is in the queue, so a driver finds the jobs of one that was killed.
    """
    if not IDENTITY.is_file():
        files.write_text(IDENTITY, uuid.uuid4().hex)
    identity = IDENTITY.read_text(encoding="utf-8")
    return f"headstart-{hashlib.sha256(f'{identity} {ROOT}'.encode()).hexdigest()[:12]}"  # a copy is another folder


class Backend:
    """SLURM as `cluster.yaml` asks for it."""

    def __init__(self, settings: Settings) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("SLURM is not here: run this where `sbatch` is, such as a cluster's login node")
        if settings.shared_folder is None:
            raise UserError("SLURM needs a shared_folder in cluster.yaml: jobs and what they say go through it")
        get_logger().setLevel("ERROR")
        submitit_slurm.SlurmJob.watcher = Queue(delay_s=30)
        self._gpus = settings.gpus
        self._name = own_name()
        self._folder = Path(settings.shared_folder).resolve() / "jobs" / self._name
        self._end_earlier()
        # A job begins `max_attempts` times, this many of them after its time was over.
        self._executor = submitit.SlurmExecutor(self._folder, max_num_timeout=settings.max_attempts - 1)
        slurm = settings.slurm
        options = {"chdir": str(ROOT), "requeue": True, **slurm.options}
        self._executor.update_parameters(
            job_name=self._name, time=slurm.time_limit_minutes, mem=f"{round(slurm.memory_gb * 1024)}M",
            cpus_per_task=settings.cpus, array_parallelism=settings.max_jobs, additional_parameters=options,
            **{key: value for key in ("partition", "account") if (value := getattr(slurm, key))},
        )  # fmt: skip

    def _end_earlier(self) -> None:
        """Cancel the jobs of a driver that was killed here, and wait until none runs any more.

        One that SLURM is given only now, by a process that has survived its driver, does not find its files and ends.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        said = False
        while left := self._queued():
            if not said:
                print(f"cancelling {len(left)} jobs of a `make cluster` that was killed here")
                said = True
            self._cancel()
            time.sleep(1)

    def _queued(self) -> list[str]:
        """Return what SLURM has of this folder's jobs, those that are ending included."""
        command = ["squeue", "--me", "--noheader", f"--name={self._name}", "--format=%i"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"SLURM does not take the stages: {last_line(done.stderr)}")
        return done.stdout.split()

    def _cancel(self) -> None:
        command = ["scancel", f"--user={getpass.getuser()}", f"--name={self._name}"]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)

    def submit(self, specs: Sequence[JobSpec], *, needs_gpu: bool, avoid: Collection[str] = ()) -> list[SlurmJob]:
        self._executor.update_parameters(gpus_per_node=self._gpus if needs_gpu and self._gpus else None,
                                         exclude=",".join(avoid) or None)  # fmt: skip
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where submitit prints what is in the error too
                given = self._executor.map_array(Attempt(), specs)
        except submitit.core.utils.FailedJobError as error:
            if avoid:  # there may be no other node
                return self.submit(specs, needs_gpu=needs_gpu)
            raise UserError(f"SLURM does not take the stages: {last_line(str(error))}") from None
        return [SlurmJob(spec, job) for spec, job in zip(specs, given, strict=True)]

    def look(self) -> None:
        """The queue is asked by the jobs, and no more often than `Queue` allows."""

    def close(self) -> None:
        self._cancel()
        shutil.rmtree(self._folder, ignore_errors=True)
