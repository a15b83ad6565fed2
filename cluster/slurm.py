"""SLURM, through submitit. Jobs that are submitted at the same time form one job array."""

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

from cluster.backend import JobState
from cluster.job import ROOT, JobResult, JobSpec, failed_result, handle_sigterm, host, last_line, run_job
from cluster.settings import Settings
from headstart import files
from headstart.console import UserError

RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING"}
FORGOTTEN = "GONE"  # not one of SLURM's states: squeue no longer lists the job
ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
    FORGOTTEN,
}
NFS_GRACE_S = 10  # how long a shared folder may take to show a result
IDENTITY = ROOT / ".cluster/identity"  # random; the job name of this folder is derived from it
ERROR_LINE = re.compile(r"\berror: |^\w+(?:Error|Exception)\b")


class SlurmTask(submitit.helpers.Checkpointable):
    """The function that a SLURM job runs. submitit calls it again after a preemption and at the time limit."""

    def __call__(self, spec: JobSpec) -> JobResult:
        signal.signal(signal.SIGTERM, handle_sigterm)
        try:
            return run_job(spec)
        except submitit.core.utils.UncompletedJobError:
            # Permanent: a retry by the driver would make it `max_attempts` times `max_attempts` jobs.
            problem = (
                "the stage reached the time limit in all of its jobs. Increase slurm.time_limit_minutes or "
                "max_attempts in cluster.yaml."
            )
            return JobResult(host(), problem=problem, permanent=True)
        except Exception as error:
            return failed_result(error)


class QueueWatcher(submitit_slurm.SlurmInfoWatcher):
    """Job states from `squeue`. submitit uses `sacct`, but not every cluster has accounting."""

    def _make_command(self) -> list[str]:
        return ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%N|%r"]

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string.decode() if isinstance(string, bytes) else string
        rows = [line.split("|") for line in text.splitlines()]
        listed = {job: {"State": state, "NodeList": nodes, "Reason": reason} for job, state, nodes, reason in rows}
        forgotten = {"State": FORGOTTEN, "NodeList": ""}  # squeue lists ended jobs for some minutes only
        return dict.fromkeys(self._registered, forgotten) | listed


class SlurmJob:
    """Handle of a job in SLURM's queue."""

    def __init__(self, spec: JobSpec, job: submitit.Job) -> None:
        self.spec = spec
        self.job = job
        self._ended_since: float | None = None  # time.monotonic()

    def state(self) -> JobState:
        if self.job.paths.result_pickle.exists():
            return JobState("ended", result=self._result())
        info = self.job.watcher.get_info(self.job.job_id)
        slurm_state, node = info.get("State", "PENDING"), info.get("NodeList", "")
        if slurm_state in RUNNING:
            self._ended_since = None
            return JobState("running", node)
        if slurm_state not in ENDED:
            self._ended_since = None
            reason = info.get("Reason", "None")
            return JobState("waiting", "" if reason == "None" else reason)
        self._ended_since = self._ended_since or time.monotonic()
        if time.monotonic() - self._ended_since < NFS_GRACE_S or not self._is_lost():
            return JobState("running", node)
        log = self.job.paths.stderr
        output = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        problem = f"SLURM job {self.job.job_id} ended as {slurm_state}" + (f": {first_error(output)}" if output else "")
        return JobState("ended", result=JobResult(node or "SLURM", problem=problem, output=output))

    def _is_lost(self) -> bool:
        """Check again: return False if there is a result after all, or if SLURM has requeued the job."""
        folder = self.job.paths.result_pickle.parent
        folder.chmod(folder.stat().st_mode)  # a change of the folder invalidates the NFS cache
        if self.job.paths.result_pickle.exists():
            return False
        return self.job.watcher.get_info(self.job.job_id, mode="force").get("State", "PENDING") in ENDED

    def _result(self) -> JobResult:
        kind, content = submitit.core.utils.pickle_load(self.job.paths.result_pickle)
        if kind == "success":
            return content
        node = self.job.watcher.get_info(self.job.job_id).get("NodeList", "")
        return JobResult(node or "SLURM", problem=last_line(content), output=content)


def first_error(text: str) -> str:
    """Return the first line of ``text`` that reports an error, which causes all later ones; else the last line.

    srun's own lines, which only repeat that there was an error, are skipped if there are others.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("srun: ")]
    return next((line for line in lines if ERROR_LINE.search(line)), lines[-1] if lines else last_line(text))


def job_name() -> str:
    """Return the name of all jobs of this folder, which is the same for every driver in it and unique to it.

    It is on disk before the first job is submitted, so a driver finds the jobs of a killed driver.
    """
    if not IDENTITY.is_file():
        files.write_text(IDENTITY, uuid.uuid4().hex)
    identity = IDENTITY.read_text(encoding="utf-8")
    # The path distinguishes copies of the folder.
    return f"headstart-{hashlib.sha256(f'{identity} {ROOT}'.encode()).hexdigest()[:12]}"


class Backend:
    """SLURM with the settings of `cluster.yaml`."""

    def __init__(self, settings: Settings) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("sbatch not found. Run this command on a SLURM login node.")
        if settings.shared_folder is None:
            raise UserError(
                "SLURM needs shared_folder in cluster.yaml: it holds the job files and logs. Set it to a folder that "
                "all nodes see."
            )
        get_logger().setLevel("ERROR")
        submitit_slurm.SlurmJob.watcher = QueueWatcher(delay_s=30)
        self._gpus = settings.gpus
        self._name = job_name()
        self._folder = Path(settings.shared_folder).resolve() / "jobs" / self._name
        self._cancel_old_jobs()
        # submitit counts the timeouts: `max_attempts` jobs, all but the first of them after a timeout.
        self._executor = submitit.SlurmExecutor(self._folder, max_num_timeout=settings.max_attempts - 1)
        slurm = settings.slurm
        self._executor.update_parameters(
            job_name=self._name,
            time=slurm.time_limit_minutes,
            mem=f"{round(slurm.memory_gb * 1024)}M",
            cpus_per_task=settings.cpus,
            array_parallelism=settings.max_jobs,
            additional_parameters={"chdir": str(ROOT), "requeue": True, **slurm.options},
            **{key: value for key in ("partition", "account") if (value := getattr(slurm, key))},
        )

    def _cancel_old_jobs(self) -> None:
        """Cancel the jobs of a killed driver of this folder, and wait until all of them have ended.

        If a process that survived its driver submits a job later, the job does not find its files and ends.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        is_reported = False
        while job_ids := self._queued():
            if not is_reported:
                print(f"cancelling {len(job_ids)} jobs of a killed `make cluster` in this folder")
                is_reported = True
            self._cancel()
            time.sleep(1)

    def _queued(self) -> list[str]:
        """Return the ids of this folder's jobs in the queue, including those that are completing."""
        command = ["squeue", "--me", "--noheader", f"--name={self._name}", "--format=%i"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise UserError(f"cannot read SLURM's queue: {last_line(result.stderr)}")
        return result.stdout.split()

    def _cancel(self) -> None:
        command = ["scancel", f"--user={getpass.getuser()}", f"--name={self._name}"]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)

    def submit(self, specs: Sequence[JobSpec], *, needs_gpu: bool, avoid: Collection[str] = ()) -> list[SlurmJob]:
        gpus = self._gpus if needs_gpu and self._gpus else None
        self._executor.update_parameters(gpus_per_node=gpus, exclude=",".join(avoid) or None)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints the text of the error as well
                jobs = self._executor.map_array(SlurmTask(), specs)
        except submitit.core.utils.FailedJobError as error:
            if avoid:  # there may be no other node
                return self.submit(specs, needs_gpu=needs_gpu)
            raise UserError(f"SLURM rejected the jobs: {last_line(str(error))}") from None
        return [SlurmJob(spec, job) for spec, job in zip(specs, jobs, strict=True)]

    def poll(self) -> None:
        """Do nothing: the handles read the queue themselves, as often as `QueueWatcher` allows."""

    def close(self) -> None:
        self._cancel()
        shutil.rmtree(self._folder, ignore_errors=True)
