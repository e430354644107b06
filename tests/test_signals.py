import os
import signal

import pytest

from rarezoo.signals import back_to_the_queue, held_signals


@pytest.fixture
def seen():
    """Numbers of the signals that came through, in order."""
    numbers: list[int] = []
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda number, frame: numbers.append(number)) for number in watched}
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_wait_until_they_are_let_through_and_then_come_in_their_order(seen):
    with held_signals() as let_through:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert seen == []
        let_through()
        assert seen == [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
        let_through()
        os.kill(os.getpid(), signal.SIGINT)
        assert len(seen) == 3
    assert len(seen) == 4
    os.kill(os.getpid(), signal.SIGINT)
    assert len(seen) == 5


def test_ctrl_c_is_raised_where_it_is_let_through(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    reached = []
    with pytest.raises(KeyboardInterrupt), held_signals() as let_through:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("before")
        let_through()
        reached.append("after")
    assert reached == ["before"]


def test_fault_within_is_not_hidden_by_a_signal_that_waits(seen):
    with pytest.raises(ValueError, match="fault"), held_signals():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("fault")
    assert seen == []


@pytest.mark.parametrize("leads", [True, False])
def test_sigusr1_ends_the_run_and_the_leading_process_asks_for_another_turn(leads, tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/said\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt), back_to_the_queue(leads):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signal.getsignal(signal.SIGUSR1) == before
    assert (tmp_path / "said").exists() == leads
    if leads:
        assert (tmp_path / "said").read_text().strip() == "requeue 7"
