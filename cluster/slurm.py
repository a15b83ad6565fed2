"""SLURM, through submitit: the units of a level are one array."""

import getpass
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import submitit
from submitit.core.logger import get_logger
from submitit.slurm import slurm as submitit_slurm

from cluster.engine import State
from cluster.settings import Settings
from cluster.unit import ROOT, Outcome, Unit, attempt, last_line, terminated
from headstart.console import UserError

RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING"}
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "GONE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
         "TIMEOUT"}  # fmt: skip
SETTLING = 10  # seconds that a shared folder may take to show a result


class Attempt(submitit.helpers.Checkpointable):
    """What a job does; submitit begins it anew after a pre-emption and at the end of its time."""

    def __call__(self, unit: Unit) -> Outcome:
        signal.signal(signal.SIGTERM, terminated)
        return attempt(unit)


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
    """A unit in SLURM's queue."""

    def __init__(self, unit: Unit, job: submitit.Job) -> None:
        self.unit = unit
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
        why = f"its job {self.job.job_id} ended with {name}" + (f": {last_line(said)}" if said else "")
        return State("ended", outcome=Outcome(node or "SLURM", problem=why, output=said))

    def _is_not_lost(self) -> bool:
        """Whether a second look finds a result, or that SLURM has begun the job anew."""
        folder = self.job.paths.result_pickle.parent
        folder.chmod(folder.stat().st_mode)  # NFS forgets what it remembers of a folder that changes
        if self.job.paths.result_pickle.exists():
            return True
        return self.job.watcher.get_info(self.job.job_id, mode="force").get("State", "PENDING") not in ENDED

    def _outcome(self) -> Outcome:
        kind, result = submitit.core.utils.pickle_load(self.job.paths.result_pickle)
        return result if kind == "success" else Outcome("SLURM", problem=last_line(result), output=result)


class Engine:
    """SLURM as `cluster.yaml` asks for it."""

    def __init__(self, settings: Settings) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("SLURM is not here: run this where `sbatch` is, such as a cluster's login node")
        if settings.shared_folder is None:
            raise UserError("SLURM needs a shared_folder in cluster.yaml: jobs and what they say go through it")
        get_logger().setLevel("ERROR")
        submitit_slurm.SlurmJob.watcher = Queue(delay_s=30)
        self._gpus = settings.gpus
        # So that what is interrupted between the asking and the answer can be cancelled too.
        self._name = f"headstart-{uuid.uuid4().hex[:8]}"
        self._executor = submitit.SlurmExecutor(Path(settings.shared_folder).resolve() / "jobs",
                                                max_num_timeout=settings.attempts)  # fmt: skip
        slurm = settings.slurm
        options = {"chdir": str(ROOT), "requeue": True, **slurm.options}
        self._executor.update_parameters(
            job_name=self._name, time=slurm.minutes, mem=f"{round(slurm.memory_gb * 1024)}M",
            cpus_per_task=settings.cpus, array_parallelism=settings.at_once, additional_parameters=options,
            **{key: value for key in ("partition", "account") if (value := getattr(slurm, key))},
        )  # fmt: skip

    def submit(self, units: Sequence[Unit], *, computes: bool) -> list[SlurmJob]:
        self._executor.update_parameters(gpus_per_node=self._gpus if computes and self._gpus else None)
        try:
            given = self._executor.map_array(Attempt(), units)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"SLURM does not take the stages: {last_line(str(error))}") from None
        return [SlurmJob(unit, job) for unit, job in zip(units, given, strict=True)]

    def look(self) -> None:
        """The queue is asked by the jobs, and no more often than `Queue` allows."""

    def close(self) -> None:
        command = ["scancel", f"--user={getpass.getuser()}", f"--name={self._name}"]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
