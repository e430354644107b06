"""A SLURM of our own, and small trainings to run on it."""

import sys
from pathlib import Path

import pytest
from slurm import SlurmError, local_slurm

# The small runs are those of the script tests.
sys.path.append(str(Path(__file__).parents[1] / "scripts"))


@pytest.fixture(scope="session")
def slurm():
    """Two nodes of two cores; the tests that need it are skipped, with the reason, where it cannot be had."""
    try:
        context = local_slurm(n_nodes=2, cpus=2)
        cluster = context.__enter__()
    except SlurmError as error:
        pytest.skip(f"no SLURM: {error}")
    cluster.environment |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    yield cluster
    context.__exit__(None, None, None)
