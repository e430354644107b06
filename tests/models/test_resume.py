import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_training import MONITOR, InterruptAt, SignalAt, assert_same_weights, make_survey, train, weights

EVERY_STEP = 1e-9
# Five steps an epoch, and all that has a state of its own: averaged weights, momenta, schedule, accumulated gradients.
BUSY = {"batch_size": 4, "max_epochs": 3, "optim__ema_decay": 0.9}

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    return make_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def unbroken(survey, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, train(survey, folder, **BUSY)[0]


def assert_same_end(folder: Path, unbroken: Path) -> None:
    for name in ("checkpoints/last.ckpt", "best.ckpt"):
        assert_same_weights(folder / name, unbroken / name)
    ours, theirs = (torch.load(place / "checkpoints" / "last.ckpt", weights_only=True) for place in (folder, unbroken))
    for one, other in zip(ours["current_model_state"].values(), theirs["current_model_state"].values(), strict=True):
        assert torch.equal(one, other)
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("at", [(0, 2), (1, 0), (2, 3)])
def test_run_that_ends_within_an_epoch_goes_on_from_its_last_step(at, n_workers, survey, unbroken, tmp_path):
    options = {"save_every_minutes": EVERY_STEP}
    with pytest.raises(KeyboardInterrupt):
        train(survey, tmp_path, extra=[InterruptAt(*at)], options=options, data__workers=n_workers, **BUSY)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["epoch"] == (at[0] if at[1] else at[0] - 1)
    steps = []
    counter = Steps(steps)
    diary, _ = train(survey, tmp_path, resume=True, extra=[counter], data__workers=n_workers, **BUSY)
    # Checkpoints come after the other callbacks: that of the interrupted step was not written.
    assert steps[0] == (at if at[1] else (at[0], 0))
    assert diary.losses == unbroken[1].losses[at[0] :]
    assert_same_end(tmp_path, unbroken[0])


class Steps(InterruptAt):
    """Which steps were taken."""

    def __init__(self, steps) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append((trainer.current_epoch, batch_idx))


def test_gradients_that_are_accumulated_are_never_cut_in_two(survey, tmp_path):
    changes = {**BUSY, "batch_size": 2}
    options = {"accumulate_grad_batches": 2, "save_every_minutes": EVERY_STEP}
    train(survey, tmp_path / "unbroken", options=options, **changes)
    with pytest.raises(KeyboardInterrupt):
        train(survey, tmp_path / "cut", extra=[InterruptAt(1, 4)], options=options, **changes)
    steps = []
    train(survey, tmp_path / "cut", resume=True, extra=[Steps(steps)], options=options, **changes)
    assert steps[0] == (1, 4)
    assert_same_weights(tmp_path / "cut" / "best.ckpt", tmp_path / "unbroken" / "best.ckpt")


def start_process(survey: Path, folder: Path, **options) -> subprocess.Popen[bytes]:
    """Train in a process of its own: one that has run other things may add up in another order, in other threads."""
    code = (
        "import small_training as t; from pathlib import Path; "
        f"t.train(Path({str(survey)!r}), Path({str(folder)!r}), **{BUSY | options})"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parent)}
    return subprocess.Popen([sys.executable, "-c", code], cwd=here, env=environment)


def test_run_killed_at_a_random_step_ends_with_the_weights_of_an_unbroken_one(survey, tmp_path):
    whole = start_process(survey, tmp_path / "whole")
    folder = tmp_path / "killed"
    last = folder / "checkpoints" / "last.ckpt"
    process = start_process(survey, folder, options={"save_every_minutes": EVERY_STEP})
    try:
        deadline = time.monotonic() + 120
        while not last.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.6))
    finally:
        process.kill()
        process.wait()
    assert start_process(survey, folder, resume=True).wait() == 0
    assert whole.wait() == 0
    assert_same_end(folder, tmp_path / "whole")


@pytest.mark.parametrize("at", [(1, 2), (1, 4)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_saves_at_the_end_of_the_step_and_ends_the_run(number, at, survey, unbroken, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        train(survey, tmp_path, extra=[SignalAt(number, *at)], **BUSY)
    assert signal.getsignal(number) == before
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert (saved["epoch"], saved["global_step"]) == (1, 5 + at[1] + 1)
    train(survey, tmp_path, resume=True, **BUSY)
    assert_same_end(tmp_path, unbroken[0])


@pytest.mark.parametrize(
    ("job", "asked"),
    [({"SLURM_JOB_ID": "7"}, "requeue 7"), ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 7_3")],
)
def test_sigusr1_asks_slurm_for_another_turn(job, asked, survey, tmp_path, monkeypatch):
    said = fake_scontrol(tmp_path, monkeypatch, status=0)
    for name, value in {"SLURM_JOB_ID": "8", **job}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KeyboardInterrupt):
        train(survey, tmp_path / "run", extra=[SignalAt(signal.SIGUSR1, 0, 1)], **BUSY)
    assert said.read_text().strip() == asked


def test_job_that_slurm_does_not_take_back_is_said_so(survey, tmp_path, monkeypatch, capsys):
    fake_scontrol(tmp_path, monkeypatch, status=1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with pytest.raises(KeyboardInterrupt):
        train(survey, tmp_path / "run", extra=[SignalAt(signal.SIGUSR1, 0, 1)], **BUSY)
    assert "job 7 could not be requeued (Job may not be requeued): submit it again" in capsys.readouterr().err


def fake_scontrol(folder: Path, monkeypatch, status: int) -> Path:
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >{folder}/said\necho "Job may not be requeued" >&2\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return folder / "said"


def test_best_checkpoint_holds_the_averaged_weights_that_were_validated(survey, tmp_path):
    class Mean(InterruptAt):
        def __init__(self) -> None:
            self.value: dict[str, torch.Tensor] = {}

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for name, weight in pl_module.model.named_parameters():
                old = self.value.get(name, weight.detach())
                self.value[name] = 0.9 * old + 0.1 * weight.detach()

    mean = Mean()
    _, trainer = train(survey, tmp_path, extra=[mean], **{**BUSY, "max_epochs": 1})
    kept = weights(tmp_path / "best.ckpt")
    for name, value in mean.value.items():
        torch.testing.assert_close(kept[f"model.{name}"], value, rtol=1e-4, atol=1e-6)
    found = trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)[0]
    saved = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert found[MONITOR] == pytest.approx(float(score_of(saved)), rel=1e-6)


def score_of(checkpoint) -> float:
    return next(state["best_model_score"] for name, state in checkpoint["callbacks"].items() if "Best" in name)
