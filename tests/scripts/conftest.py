"""The three stages, run once for the tests that look at what they leave."""

import pytest
from small_scripts import CLUSTER, EMBED, run


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
