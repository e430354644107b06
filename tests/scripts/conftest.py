"""The three stages, run once for the tests that look at what they leave."""

import subprocess

import pytest
from small_scripts import CLUSTER, EMBED, OneProcess, run
from small_searches import SEARCH, write_survey


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder in which the three stages were run, each by the command that the one before said to run next."""
    folder = tmp_path_factory.mktemp("finished")
    said = {"train.py": run(folder, "train.py", "name=whole").stderr}
    for script, before in (("embed.py", "train.py"), ("cluster.py", "embed.py")):
        command = next(line for line in said[before].splitlines() if line.lstrip().startswith("next")).split()[1:]
        assert command[:2] == ["python", script]
        truth = "truth=" + str(next(folder.glob("outputs/simulated/*/truth.parquet")).relative_to(folder))
        extra = (*CLUSTER, truth) if script == "cluster.py" else EMBED
        said[script] = run(folder, script, *command[2:], *extra, small=False).stderr
    return folder, said


@pytest.fixture(scope="session")
def process():
    """A process for scripts whose tests do not ask for one of their own."""
    with OneProcess() as started:
        yield started


@pytest.fixture(scope="session")
def searched(process, tmp_path_factory):
    """A folder with an embedded survey and one search of it, name=one, whose stages lie in stages/; what it said."""
    folder = write_survey(tmp_path_factory.mktemp("searched"))
    options = ("name=one", "truth=truth.csv", "logger=wandb", "logger.mode=offline")
    status, said = process.run(folder, "cluster.py", *SEARCH, "stages=stages", *options)
    assert status == 0, said
    return folder, said


@pytest.fixture
def disk_of(tmp_path):
    """Give a function that mounts a disk of so many KiB, or gives the one that it mounted another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kib):
        again = "remount," if folder.is_mount() else ""
        command = ["mount", "-t", "tmpfs", "-o", f"{again}size={kib}k", "none", folder]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command")
        if done.returncode:
            pytest.skip("may not mount a small disk")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", "-l", folder], check=True)
