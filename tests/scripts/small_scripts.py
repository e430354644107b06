"""The scripts as a user runs them: in processes of their own, on a survey small enough for seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).parents[2]

SURVEY = (
    "data.n_galaxies=260",
    "data.survey_size=32",
    "data.image_size=32",
    "data.rare_share_min=0.04",
    "data.rare_share_max=0.05",
)
TRAIN = ("backbone=tiny", "trainer.max_epochs=2", "data.workers=0")
EMBED = ("data.workers=0",)
CLUSTER = (
    "selection=all",
    "layout.n_neighbors=8",
    "layout.n_epochs=30",
    "tree.min_samples=2",
    "tree.min_cluster_size=5",
)
SMALL = {"train.py": (*SURVEY, *TRAIN), "embed.py": (*SURVEY, *EMBED), "cluster.py": CLUSTER}


def environment():
    return {**os.environ, "WANDB_MODE": "disabled", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def run(folder, script, *options, small=True, check=True):
    """Run a script in `folder`; its small settings come first, so that the options may change them."""
    # Hydra reads flags only before the first override.
    settings = sorted((*(SMALL[script] if small else ()), *options), key=lambda option: not option.startswith("-"))
    command = [sys.executable, str(REPO / script), *settings]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


def interrupt_at(folder, marker, script, *options, with_signal=signal.SIGINT):
    """Start a script, send it a signal when its output shows the marker, and return its exit status and output."""
    command = [sys.executable, str(REPO / script), *SMALL[script], *options]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seen = []
    deadline = time.monotonic() + 240
    for line in process.stdout:
        seen.append(line)
        if marker in line:
            process.send_signal(with_signal)
            break
        assert time.monotonic() < deadline
    rest, _ = process.communicate(timeout=120)
    return process.returncode, "".join(seen) + rest
