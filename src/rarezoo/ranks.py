"""The processes of one job: how they are started, which of them leads, and how they agree."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rarezoo.cli import EXIT_USER_ERROR, UserError, console
from rarezoo.provenance import RunFolder

Decision = TypeVar("Decision")

# The leading process may have a survey to render while the others wait.
_PATIENCE = timedelta(hours=2)
_PASSED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those of the job."""

    rank: int = 0
    n_ranks: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def agree(self, decide: Callable[[], Decision]) -> Decision:
        """Let the leading process decide, and give its decision to all.

        Raises
        ------
        SystemExit
            in the others, quietly, where the leading process failed to decide
        """
        if self.n_ranks == 1:
            return decide()
        message: list[Any] = [False, None]
        try:
            if self.leads:
                message = [True, decide()]
        finally:
            distributed.broadcast_object_list(message, src=0, device=torch.device("cpu"))
        if not message[0]:
            raise SystemExit(EXIT_USER_ERROR)
        decision: Decision = message[1]
        return decision

    def gather(self, value: Decision) -> list[Decision]:
        """What each process has found, by rank; all of them have come this far then."""
        if self.n_ranks == 1:
            return [value]
        found: list[Any] = [None] * self.n_ranks
        distributed.all_gather_object(found, value)
        return found

    def leader_first(self, work: Callable[[], Decision]) -> Decision:
        """Let the leading process do what the others then find done, such as making a file that all read."""
        done: list[Decision] = []
        self.agree(lambda: done.append(work()))
        return done[0] if done else work()

    @contextmanager
    def claimed(self, claim: Callable[[], RunFolder]) -> Iterator[RunState]:
        """Let the leading process claim the folder of the run, and tell the others what it found there."""
        owned: list[RunFolder] = []

        def look() -> tuple[bool, bool, dict[str, Any]]:
            run = claim()
            owned.append(run)
            return run.complete, run.resumable, run.summary

        try:
            yield RunState(*self.agree(look), finish_folder=owned[0].finish if owned else None)
        finally:
            for run in owned:
                run.close()


@dataclass
class RunState:
    """What stands in the folder of a run, as every process of the job knows it."""

    complete: bool
    resumable: bool
    summary: dict[str, Any]
    finish_folder: Callable[[Mapping[str, Any]], None] | None

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Record that all outputs are in place, once for all processes."""
        self.summary = dict(summary)
        if self.finish_folder:
            self.finish_folder(summary)


def count_ranks(trainer: Mapping[str, Any]) -> int:
    """Processes that a configuration of lightning.Trainer asks for: devices of each node times nodes."""
    devices = trainer.get("devices", "auto")
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        n_devices = len(devices)
    elif devices in ("auto", -1):
        gpus = torch.cuda.device_count() if trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") else 0
        n_devices = max(1, gpus)
    else:
        n_devices = int(devices)
    return n_devices * int(trainer.get("num_nodes", 1))


def join_ranks(n_ranks: int) -> Ranks | None:
    """Find the other processes, where srun or torchrun started all of them; None where they are still to be started.

    Raises
    ------
    UserError
        if another number of processes was started than the options ask for
    """
    if n_ranks == 1:
        return Ranks()
    environment = _environment()
    if environment is None:
        return None
    started = environment.world_size()
    if started != n_ranks:
        raise UserError(
            f"trainer.devices times trainer.num_nodes is {n_ranks}, but {started} processes were started. Give "
            "trainer.num_nodes and trainer.devices as srun --nodes and --ntasks-per-node (or torchrun) have them."
        )
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(environment.local_rank())
    rank = environment.global_rank()
    console.quiet = rank > 0
    distributed.init_process_group(backend, rank=rank, world_size=n_ranks, timeout=_PATIENCE)
    return Ranks(rank, n_ranks)


def lightning_plugins(n_ranks: int) -> list[ClusterEnvironment]:
    """What lightning.Trainer has to be told of SLURM: that the run itself asks for another turn."""
    managed = SLURMEnvironment.detect() and SLURMEnvironment().world_size() == n_ranks
    return [SLURMEnvironment(auto_requeue=False)] if managed else []


def start_ranks(n_ranks: int, command: Sequence[str]) -> None:
    """Run a Python script in several processes on this machine, and wait for them.

    Parameters
    ----------
    command : script and its arguments

    Raises
    ------
    KeyboardInterrupt
        if they were interrupted
    SystemExit
        with the status of the process that failed first, which has said why
    """
    # The processes speak for themselves.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n_ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        signals_to_handle=_PASSED_ON,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // n_ranks)))
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as stop:
        raise KeyboardInterrupt from stop
    except ChildFailedError as failed:
        raise SystemExit(failed.get_first_failure()[1].exitcode) from failed


def _environment() -> ClusterEnvironment | None:
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and SLURMEnvironment().world_size() > 1:
        return SLURMEnvironment(auto_requeue=False)
    return None
