import json
import signal

import pytest
import torch
from small_scripts import interrupt_at, run

pytestmark = pytest.mark.script

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=4", "optim.patience=null")


def test_two_processes_stop_on_a_signal_to_the_one_that_was_started_and_go_on_to_the_end(tmp_path):
    status, said = interrupt_at(tmp_path, "epoch 2/", "train.py", *TWO, with_signal=signal.SIGTERM)
    assert status == 130, said
    assert "Traceback" not in said
    folder = tmp_path / "outputs" / "survey" / "train"
    assert not (folder / "best.ckpt").exists()
    reached = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    again = run(tmp_path, "train.py", *TWO)
    assert "epoch 1/4" not in again.stderr
    assert again.stderr.count("epoch 4/4") == 1
    assert json.loads((folder / "run.json").read_text())["complete"]
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] > reached
    once_more = run(tmp_path, "train.py", *TWO)
    assert once_more.stderr.count("complete before") == 1


def test_fault_of_the_user_is_said_and_is_the_status_of_the_whole(tmp_path):
    done = run(tmp_path, "train.py", *TWO, "backbone.weights=nowhere.pth", check=False)
    assert done.returncode == 2
    assert "nowhere.pth" in done.stderr
    assert "ChildFailedError" not in done.stderr
