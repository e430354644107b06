"""What training does as a job of SLURM, on real daemons. One file: pytest-xdist then starts them in one process."""

import json
import re
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from small_scripts import REPO, RINGS, run, write_rings

pytestmark = pytest.mark.script

LONG = ("trainer.max_epochs=12", "optim.patience=null")


def test_a_job_reaches_every_node_and_their_names_resolve(slurm):
    said = slurm.run("srun", "--nodes=2", "bash", "-c", "echo $SLURM_PROCID $SLURMD_NODENAME")
    assert sorted(said.splitlines()) == [f"{rank} {name}" for rank, name in enumerate(slurm.nodes)]
    assert {socket.gethostbyname(name) for name in slurm.nodes} == {"127.0.0.1"}


def sweep_command(*options):
    here = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1")
    return [sys.executable, str(REPO / "train.py"), "-m", *here, *RINGS, *options]


def records(folder):
    return [json.loads(path.read_text()) for path in folder.glob("outputs/survey/train-sweep/*/run.json")]


def jobs_of(slurm, name="train"):
    slurm.wait_until_idle(30)
    jobs = slurm.run("scontrol", "show", "job", "--oneliner").splitlines()
    return [dict(re.findall(r"(\w+)=(\S+)", job)) for job in jobs if f"JobName={name}" in job]


def test_a_sweep_by_submitit_trains_each_job_in_a_job_of_slurm(slurm, tmp_path):
    write_rings(tmp_path)
    slurm.run(*sweep_command("seed=0,1"), cwd=tmp_path, timeout=240)
    assert sorted(record["key"]["settings"]["seed"] for record in records(tmp_path)) == [0, 1]
    assert all(record["complete"] for record in records(tmp_path))
    assert len(list(tmp_path.glob("outputs/survey/train-sweep/*/best.ckpt"))) == 2
    assert [(job["JobState"], job["Restarts"]) for job in jobs_of(slurm)] == [("COMPLETED", "0")] * 2


def test_a_job_whose_time_is_up_goes_back_to_the_queue_and_on_from_there(slurm, tmp_path):
    write_rings(tmp_path)
    before = len(jobs_of(slurm))
    command = sweep_command("seed=5", "trainer.max_epochs=20", "optim.patience=null")
    with subprocess.Popen(command, env=slurm.environment, cwd=tmp_path) as sweep:
        while not list(tmp_path.glob("outputs/survey/train-sweep/*/checkpoints/last.ckpt")):
            assert sweep.poll() is None
            time.sleep(0.1)
        # What SLURM does signal_delay_s before the end of a job's time.
        slurm.run("scancel", "--signal=USR1", "--name=train")
        assert sweep.wait(240) == 0
    (job,) = jobs_of(slurm)[before:]
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert [record["complete"] for record in records(tmp_path)] == [True]
    first, second = (
        pd.read_csv(path)["epoch"] for path in sorted(tmp_path.glob("outputs/survey/train-sweep/*/metrics/*/*.csv"))
    )
    assert first.min() == 0
    assert second.min() >= first.max()
    assert second.max() >= 19


def test_two_nodes_train_one_model_go_back_to_the_queue_and_on_to_the_same_weights(slurm, tmp_path):
    write_rings(tmp_path)
    options = (*RINGS, *LONG, "trainer.accelerator=cpu")
    nodes = ("trainer=slurm", "trainer.num_nodes=2", "trainer.devices=1")
    job = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append", "--output=job.log", "--job-name=pair")
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\nsrun " + " ".join([sys.executable, str(REPO / "train.py"), *options, *nodes]) + "\n"
    )
    slurm.run("sbatch", *job, str(script), cwd=tmp_path)
    folder = tmp_path / "outputs" / "survey" / "train"
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < deadline, (tmp_path / "job.log").read_text()
        time.sleep(0.1)
    slurm.run("scancel", "--signal=USR1", "--name=pair")
    slurm.wait_until_idle(400)
    said = (tmp_path / "job.log").read_text()
    (pair,) = jobs_of(slurm, "pair")
    assert (pair["JobState"], pair["Restarts"]) == ("COMPLETED", "1"), said
    assert json.loads((folder / "run.json").read_text())["complete"]
    assert said.count("epoch 12/12") == 1
    assert "Traceback" not in said
    run(tmp_path, "train.py", *options, "trainer=ddp", "trainer.devices=2", "name=here", small=False)
    ours, theirs = (
        torch.load(tmp_path / "outputs" / name / "train" / "best.ckpt", weights_only=True)["state_dict"]
        for name in ("survey", "here")
    )
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=name)


def test_two_nodes_embed_one_catalog_go_back_to_the_queue_and_on_to_the_same_file(slurm, tmp_path):
    write_rings(tmp_path, n_galaxies=700)
    run(tmp_path, "train.py", *RINGS, small=False)
    options = ("data=catalog", "data.catalog=rings.csv", "data.workers=0", "embedding.batch_size=2")
    nodes = ("trainer=slurm", "trainer.num_nodes=2", "trainer.devices=1", "trainer.accelerator=cpu")
    script = tmp_path / "job.sh"
    command = " ".join([sys.executable, str(REPO / "embed.py"), *options, *nodes])
    script.write_text(f"#!/bin/bash\nsrun {command}\n")
    job = (
        "--nodes=2",
        "--ntasks-per-node=1",
        "--requeue",
        "--open-mode=append",
        "--output=job.log",
        "--job-name=embed",
    )
    slurm.run("sbatch", *job, str(script), cwd=tmp_path)
    folder = tmp_path / "outputs" / "survey" / "embed"
    deadline = time.monotonic() + 120
    while not list(folder.glob("parts/*.npz")):
        assert time.monotonic() < deadline, (tmp_path / "job.log").read_text()
        time.sleep(0.02)
    slurm.run("scancel", "--signal=USR1", "--name=embed")
    slurm.wait_until_idle(300)
    said = (tmp_path / "job.log").read_text()
    (embed,) = jobs_of(slurm, "embed")
    assert (embed["JobState"], embed["Restarts"]) == ("COMPLETED", "1"), said
    assert "Traceback" not in said
    run(tmp_path, "embed.py", *options, "name=here", "checkpoint=outputs/survey/train/best.ckpt", small=False)
    with (
        h5py.File(folder / "embeddings.h5") as ours,
        h5py.File(tmp_path / "outputs/here/embed/embeddings.h5") as theirs,
    ):
        assert ours["id"].asstr()[:].tolist() == theirs["id"].asstr()[:].tolist()
        np.testing.assert_allclose(ours["representation"][:], theirs["representation"][:], rtol=1e-5, atol=1e-5)
