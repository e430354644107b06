"""The scripts as a user runs them: in processes of their own, on a survey small enough for seconds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

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
    # A twentieth of so small a survey is fewer than a planted group has.
    "tree.max_cluster_size=0",
    # Repeats of the search would take longer than all the rest.
    "trust=none",
)
SMALL = {"train.py": (*SURVEY, *TRAIN), "embed.py": (*SURVEY, *EMBED), "cluster.py": CLUSTER}

# The catalog of write_rings: for tests that are about how runs are started and kept, not about what they learn.
RINGS = (
    "data=catalog",
    "data.catalog=rings.csv",
    "data.image_size=32",
    "data.workers=0",
    "data.batch_size=8",
    "data.validation_share=0.2",
    "data.test_share=0.2",
    "schema=from_file",
    "schema.path=rings.yaml",
    "backbone=tiny",
    "trainer.max_epochs=1",
)


def write_rings(folder, n_galaxies=32):
    """Write rings.csv and rings.yaml, a few galaxies and one question, into a folder."""
    rng = np.random.default_rng(0)
    rows = ["id_str,file_loc,ring_yes,ring_no"]
    for index in range(n_galaxies):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.jpg")
        rows.append(f"g{index},{index}.jpg,{index % 4},{3 - index % 4}")
    (folder / "rings.csv").write_text("\n".join(rows) + "\n")
    (folder / "rings.yaml").write_text("ring: {answers: ['yes', 'no']}\n")


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


# Imports and compiles once for many commands, where that is what takes the time.
EACH_IN_TURN = """
import contextlib, io, json, os, runpy, sys, traceback
from hydra.core.global_hydra import GlobalHydra
for command in sys.stdin:
    folder, *sys.argv = json.loads(command)
    os.chdir(folder)
    status, said = 0, io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            if sys.argv[0].endswith(".py"):
                runpy.run_path(sys.argv[0], run_name="__main__")
            else:
                runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            status = 1
            traceback.print_exc()
    GlobalHydra.instance().clear()
    print("ended:", json.dumps([status, said.getvalue()]), file=sys.__stdout__)
"""


class OneProcess:
    """A process that runs one script after another."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", EACH_IN_TURN],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.communicate()

    def start(self, folder, script, *options):
        """Run a script, or a module by its name, in `folder`."""
        settings = sorted(options, key=lambda option: not option.startswith("-")) if script in SMALL else options
        what = str(REPO / script) if script.endswith(".py") else script
        self._process.stdin.write(json.dumps([str(folder), what, *map(str, settings)]) + "\n")
        self._process.stdin.flush()

    def wait(self):
        """Exit status and standard error of what was started."""
        # Hydra's own lines come before ours.
        ended = next(line for line in self._process.stdout if line.startswith("ended:"))
        return tuple(json.loads(ended.removeprefix("ended:")))

    def run(self, folder, script, *options):
        self.start(folder, script, *options)
        return self.wait()


def run_in_turn(commands):
    """Run several (folder, script, *options) in one process; exit status and standard error of each."""
    with OneProcess() as process:
        return [process.run(*command) for command in commands]


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
