"""Starts the trainings of an ablation through submitit: on this machine, some at a time, or as jobs of SLURM.

Beside the files of a run (see `ablation_runs`) stands `seed_1.job`, the id of its last job; what jobs print is in the
folder `jobs` of the table.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import UncompletedJobError

from querypose.analysis.ablation_runs import AblationRun
from querypose.analysis.training_job import Training
from querypose.config import ConfigError
from querypose.engine.setup import available_cores
from querypose.engine.stop_signal import STOPPED_EXIT_CODE
from querypose.progress import progress_bar

_LOG_LINES_SHOWN = 5
_MAX_REQUEUES = 1000


@dataclass(frozen=True)
class Cluster:
    """Where trainings run.

    Attributes:
        name: "local", this machine, or "slurm".
        jobs: how many trainings at a time; None: on SLURM all, here one, or as many as the GPUs are enough for.
        gpus_per_node: GPUs of a training.
        gpus: of this machine, as CUDA numbers them.
        hours: after which a job of SLURM saves and is put back into the queue.
        parameters: of SLURM, by submitit's names: `partition`, `cpus_per_task`, `account`, …
    """

    name: str = "local"
    jobs: int | None = None
    gpus_per_node: int = 0
    gpus: Sequence[int] = ()
    hours: float = 24.0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def executors(self, folder: Path) -> list[Any]:
        """The executors of submitit: on SLURM one that takes all jobs, here one for each training at a time.

        Raises:
            ConfigError: this is not a machine of a SLURM cluster, there is no such parameter, or a training is to
                have more GPUs than there are.
        """
        common = {"gpus_per_node": self.gpus_per_node, "stderr_to_stdout": True}
        if self.name == "slurm":
            try:
                executor: Any = submitit.SlurmExecutor(folder, max_num_timeout=_MAX_REQUEUES)
                executor.update_parameters(
                    **common, time=round(60 * self.hours), job_name="ablation",
                    **({} if self.jobs is None else {"array_parallelism": self.jobs}), **self.parameters,
                )  # fmt: skip
            except (RuntimeError, ValueError) as error:
                raise ConfigError(f"--cluster slurm: {error}") from error
            return [executor]
        share = self.gpus_per_node
        if share > len(self.gpus):
            raise ConfigError(f"--gpus-per-node is {share}, but this machine has {len(self.gpus)} GPUs.")
        # submitit's local executor starts a job at once; one executor for each training at a time makes them wait.
        groups = [tuple(self.gpus[first : first + share]) for first in range(0, len(self.gpus) - share + 1, share or 1)]
        jobs = self.jobs or (len(groups) if share else 1)
        if share and jobs > len(groups):
            raise ConfigError(f"--jobs is {jobs}, but the GPUs are enough for {len(groups)} trainings at a time.")
        executors = [submitit.LocalExecutor(folder) for _ in range(jobs)]
        for index, executor in enumerate(executors):
            executor.update_parameters(**common, timeout_min=60 * 24 * 365, visible_gpus=groups[index] if share else ())
        return executors

    def environment(self, num_executors: int) -> dict[str, str]:
        """Variables of a training: here the cores are shared among those that run at a time."""
        if self.name == "slurm" or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, available_cores() // num_executors))}


class AblationJobs:
    """Runs what has not finished yet; a failure does not end the others.

    Args:
        runs: all of the ablation; the finished ones are left alone.
        folder: of the table.
        command: starts a training: `[python, train_net.py]`.
        cluster: where.
        report: takes the messages.
        on_finish: called after every run that finished.
        poll_period: seconds between two looks at the jobs.
    """

    def __init__(
        self,
        runs: Sequence[AblationRun],
        folder: Path,
        command: Sequence[str],
        cluster: Cluster,
        *,
        report: Callable[[str], None] = print,
        on_finish: Callable[[], None] = lambda: None,
        poll_period: float = 0.5,
    ) -> None:
        self.runs = list(runs)
        self.folder = folder / "jobs"
        self.command = list(command)
        if cluster.gpus_per_node:
            self.command += ["--num-gpus", str(cluster.gpus_per_node)]
        self.cluster = cluster
        self.report = report
        self.on_finish = on_finish
        self.poll_period = poll_period
        self.failed: list[AblationRun] = []

    def run(self) -> list[AblationRun]:
        """Trains; returns the runs that failed.

        An interruption ends the trainings of this machine, which save first; jobs of SLURM go on, and the same command
        finds them again.

        Raises:
            ConfigError: see `Cluster.executors`; or a run is being trained already, left by a command that was killed.
        """
        waiting = deque(run for run in self.runs if not run.is_finished)
        if finished := len(self.runs) - len(waiting):
            self.report(f"{finished} of {len(self.runs)} runs have finished before and are not run again.")
        if not waiting:
            return []
        executors = self.cluster.executors(self.folder)
        self.environment = self.cluster.environment(len(executors))
        if self.cluster.name == "slurm":
            self._watch(deque(), self._submit_all(waiting, executors[0]))
        else:
            for run in waiting:
                self._earlier_job(run)
            self._watch(waiting, [], executors)
        return self.failed

    def _watch(
        self, waiting: deque[AblationRun], active: list[tuple[AblationRun, Any, Any]], free: Sequence[Any] = ()
    ) -> None:
        free = list(free)
        bar = progress_bar("trainings", total=len(waiting) + len(active), unit="training")
        try:
            while waiting or active:
                while waiting and free:
                    run, executor = waiting.popleft(), free.pop()
                    with _interrupts_ignored():  # by the job, which inherits it: at Ctrl-C `_stop` ends it
                        job = executor.submit(self._training(run))
                    self._note_start(run, job)
                    active.append((run, job, executor))
                time.sleep(self.poll_period)
                for entry in [entry for entry in active if entry[1].done()]:
                    active.remove(entry)
                    run, job, executor = entry
                    free.append(executor)
                    self._end(run, job)
                    bar.update()
        except BaseException:
            self._stop(active)
            raise
        finally:
            bar.close()

    def _submit_all(self, runs: Sequence[AblationRun], executor: Any) -> list[tuple[AblationRun, Any, Any]]:
        """One array of jobs on SLURM, of the runs that no job of an earlier command trains, has or is to train."""
        active, new = [], []
        for run in runs:
            job = self._earlier_job(run)
            if job is None or (job.done() and _exit_code(job) != 0):
                new.append(run)
            else:
                self.report(f"{run.label} is job {job.job_id} of the cluster already.")
                active.append((run, job, executor))
        if new:
            with executor.batch():
                jobs = [executor.submit(self._training(run)) for run in new]
            for run, job in zip(new, jobs, strict=True):
                self._note_start(run, job)
                active.append((run, job, executor))
        return active

    def _training(self, run: AblationRun) -> Training:
        run.folder.mkdir(parents=True, exist_ok=True)
        run.file(".yaml").write_text(run.cfg.dump(), encoding="utf-8")
        return Training([*self.command, "--config-file", str(run.file(".yaml")), "--resume"], self.environment)

    def _note_start(self, run: AblationRun, job: Any) -> None:
        run.file(".job").write_text(f"{self.cluster.name} {job.job_id}", encoding="utf-8")
        verb = "goes on" if (run.folder / "last_checkpoint").is_file() else "begins"
        self.report(f"{run.label} {verb} in job {job.job_id}; it prints into {job.paths.stdout}")

    def _end(self, run: AblationRun, job: Any) -> None:
        run.file(".job").unlink()
        exit_code = _exit_code(job)
        if exit_code == 0:
            run.finish()
        if run.is_finished:
            result = run.result()
            ap = f"AP {result.metrics['AP']:.1f}" if "AP" in result.metrics else "not evaluated"
            self.report(f"{run.label} has finished: {ap} after {result.iteration} iterations.")
            self.on_finish()
            return
        self.failed.append(run)
        if exit_code in (0, STOPPED_EXIT_CODE):
            self.report(
                f"{run.label} was stopped after {run.progress().iteration} iterations. To go on, run the same command."
            )
            return
        how = "without a result: it was killed" if exit_code is None else f"with exit code {exit_code}"
        printed = (job.stdout() or "").splitlines()
        lines = [line for line in printed if not line.startswith("submitit ")][-_LOG_LINES_SHOWN:]
        self.report("\n    ".join([f"{run.label} FAILED {how}; {job.paths.stdout} ends with:", *lines]))

    def _earlier_job(self, run: AblationRun) -> Any:
        """The job of SLURM in which an earlier command that did not wait for its end trains a run; None without one.

        Raises:
            ConfigError: a process of this machine trains the run, which would be trained twice at a time.
        """
        file = run.file(".job")
        if not file.is_file():
            return None
        cluster, job_id = file.read_text(encoding="utf-8").split()
        if cluster == self.cluster.name == "slurm":
            return submitit.SlurmJob(self.folder, job_id)
        if cluster == "slurm":
            raise ConfigError(f"Row {run.label} is job {job_id} of SLURM: use --cluster slurm, or delete {file}.")
        try:
            os.kill(int(job_id), 0)
        except ProcessLookupError:
            return None
        raise ConfigError(
            f"Row {run.label} is being trained already, by process {job_id} of an earlier command. Wait for it, or "
            f"end it with `kill {job_id}` (it saves). If that process is another program, delete {file}."
        )

    def _stop(self, active: Sequence[tuple[AblationRun, Any, Any]]) -> None:
        if self.cluster.name == "slurm":
            self.report("The jobs go on. To watch them again, run the same command; to end them, use `scancel`.")
            return
        self.report("Stopping: each training saves a checkpoint and ends.")
        for _, job, _ in active:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)  # the id of a job of this machine is that of its process
        for run, job, _ in active:
            while not job.done():
                time.sleep(self.poll_period)
            run.file(".job").unlink(missing_ok=True)


def _exit_code(job: Any) -> int | None:
    """Of the training of a job that has ended; None where it was killed before it could say."""
    try:
        return int(job.result())
    except UncompletedJobError:
        return None


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
