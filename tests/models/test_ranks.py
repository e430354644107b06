import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import N_GALAXIES, assert_same_weights, make_survey, make_trainer, prepare, train

from rarezoo.cli import UserError
from rarezoo.models.fitting import evaluate
from rarezoo.ranks import Ranks, count_ranks, join_ranks

HERE = Path(__file__).parent
LAUNCH = "import sys; from rarezoo.ranks import start_ranks; start_ranks(int(sys.argv[1]), sys.argv[2:])"
OPTIONS = {"batch_size": 3, "max_epochs": 2, "data__max_failed_share": 0.5}


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """One image of the validation split, one of the test split and one of the training split are damaged."""
    folder = make_survey(tmp_path_factory.mktemp("survey"))
    _, data = prepare(folder)
    for split in ("train", "validation", "test"):
        (folder / f"{data.rows(split)[1]}.png").write_bytes(b"")
    return folder


def launch(n_ranks: int, survey: Path, folder: Path, **options) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    wanted = json.dumps({**OPTIONS, **options, "n_ranks": n_ranks})
    script = [str(HERE / "small_training.py"), str(survey), str(folder), wanted]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    return subprocess.run(
        [sys.executable, "-c", LAUNCH, str(n_ranks), *script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module", params=[2, 3])
def trained(request, survey, tmp_path_factory):
    n_ranks = request.param
    folder = tmp_path_factory.mktemp("ranks")
    done = launch(n_ranks, survey, folder)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(n_ranks)], done


def test_every_rank_ends_with_the_same_scores(trained):
    _, found, _ = trained
    for other in found[1:]:
        assert other["losses"] == found[0]["losses"]
        assert other["test"] == found[0]["test"]


def test_scores_are_those_of_one_process_though_batches_are_uneven(trained, survey):
    folder, found, _ = trained
    training, data = prepare(survey, **{"batch_size": 4, "data__max_failed_share": 0.5})
    trainer = make_trainer(folder / "alone")
    assert found[0]["test"] == pytest.approx(evaluate(trainer, training, data, folder / "best.ckpt"), rel=1e-6)
    alone = trainer.validate(training, datamodule=data, verbose=False)[0]["validation/loss"]
    assert min(found[0]["losses"]) == pytest.approx(alone, rel=1e-6)


def test_every_unreadable_image_is_met_by_one_rank(trained):
    _, found, _ = trained
    met = [row for rank in found for row in rank["failures"]]
    assert len(met) == len(set(met)) == 3


def test_only_the_leading_rank_speaks(trained):
    _, _, done = trained
    assert len([line for line in done.stderr.splitlines() if line.startswith("epoch 1/2")]) == 1
    assert "Warning" not in done.stderr
    assert "[rank" not in done.stderr


def test_rank_that_can_read_none_of_a_batch_does_not_stop_the_others(tmp_path):
    survey = make_survey(tmp_path)
    _, data = prepare(survey)
    order = [row for batch in data.train_dataloader() for row in batch["row"].tolist()]
    # The first batch of both ranks together is the first six galaxies; the second rank takes every other one.
    for row in order[1:6:2]:
        (survey / f"{row}.png").write_bytes(b"")
    done = launch(2, survey, tmp_path / "run", max_epochs=1)
    assert done.returncode == 0, done.stderr


def test_signal_to_one_rank_ends_all_at_the_same_step_and_the_run_goes_on(survey, tmp_path):
    launch(2, survey, tmp_path / "unbroken", max_epochs=3)
    stopped = launch(2, survey, tmp_path / "cut", max_epochs=3, signal_at=[signal.SIGTERM, 1, 0])
    assert stopped.returncode == 130, stopped.stderr
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)
    steps_per_epoch = saved["global_step"] - 1
    assert (saved["epoch"], steps_per_epoch) == (1, len(prepare(survey)[1].rows("train")) // 6)
    again = launch(2, survey, tmp_path / "cut", max_epochs=3, resume=True)
    assert again.returncode == 0, again.stderr
    assert_same_weights(tmp_path / "cut" / "best.ckpt", tmp_path / "unbroken" / "best.ckpt")


def test_failure_of_one_rank_ends_all_with_its_status(survey, tmp_path):
    shutil.copytree(survey, tmp_path / "survey")
    for row in range(N_GALAXIES):
        (tmp_path / "survey" / f"{row}.png").write_bytes(b"")
    done = launch(2, tmp_path / "survey", tmp_path / "run", data__max_failed_share=0.1)
    assert done.returncode not in (0, 130)
    assert "of 40 images could not be read" in done.stderr


def test_number_of_processes_is_that_of_devices_times_nodes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert count_ranks({}) == 4
    assert count_ranks({"devices": 1}) == 1
    assert count_ranks({"devices": [0, 2], "num_nodes": 3}) == 6
    assert count_ranks({"devices": -1, "accelerator": "gpu"}) == 4
    assert count_ranks({"devices": "auto", "accelerator": "cpu"}) == 1


def test_processes_that_nobody_started_are_still_to_be_started(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert join_ranks(2) is None
    assert join_ranks(1) == Ranks(0, 1)


def test_another_number_of_processes_than_the_options_ask_for_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"trainer\.num_nodes is 4, but 3 processes were started"):
        join_ranks(4)


def test_one_process_agrees_with_itself():
    assert Ranks().agree(lambda: 5) == 5
    assert Ranks().leader_first(lambda: 6) == 6


def test_resume_needs_no_more_than_one_process(survey, tmp_path):
    diary, _ = train(survey, tmp_path, ranks=Ranks(), **OPTIONS)
    assert len(diary.losses) == 2
