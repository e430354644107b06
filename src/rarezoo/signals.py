"""Signals that end a job: held back where they would break something, and answered where SLURM sends them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rarezoo.cli import console


@contextmanager
def held_signals() -> Iterator[Callable[[], None]]:
    """Keep Ctrl-C and the signals that end a job from interrupting what does not survive it, such as HDF5's calls.

    The function that is given lets those through that came meanwhile; so does the end of the context.
    """
    waiting: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            handler = signal.getsignal(number)
            if callable(handler):
                handlers[number] = handler
                signal.signal(number, lambda number, frame: waiting.append((number, frame)))

    def let_through() -> None:
        while waiting:
            number, frame = waiting.pop(0)
            handlers[number](number, frame)

    try:
        yield let_through
    finally:
        for held, handler in handlers.items():
            signal.signal(held, handler)
    let_through()


@contextmanager
def back_to_the_queue(leads: bool) -> Iterator[None]:
    """End on SIGUSR1, with which SLURM says that a job's time is nearly up, and ask SLURM for another turn.

    Parameters
    ----------
    leads : whether this process is the one of the job's that asks

    Raises
    ------
    KeyboardInterrupt
        where the signal came
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        if leads:
            requeue()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def requeue() -> None:
    """Ask SLURM to put the job of this process back into its queue; outside SLURM, do nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or f"status {done.returncode}"
        console.print(f"note: job {job} could not be requeued ({reason}): submit it again", markup=False)
