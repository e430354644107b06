"""Every command that the README shows is run, made small; every path that it links to is there."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from small_scripts import CLUSTER, EMBED, REPO, SMALL, TRAIN, environment, run

pytestmark = pytest.mark.script

README = (REPO / "README.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line
]
EFIGI = Path(os.environ.get("RAREZOO_DATA", REPO.parent / "shared" / "data")) / "efigi"
# Fits every schema, and is quick.
TINY = {
    "train.py": [*TRAIN, "data.image_size=32"],
    "embed.py": list(EMBED),
    "cluster.py": list(CLUSTER),
}


def option(setting):
    return setting.split("=")[0]


def made_small(command):
    """The command with its costly settings replaced, and no other."""
    script, *given = shlex.split(command)[1:]
    small = {option(setting): setting for setting in TINY[script]}
    swept = [setting for setting in given if "," in setting]
    kept = [setting for setting in given if option(setting) not in small or setting in swept]
    return script, [*kept, *(setting for name, setting in small.items() if name not in map(option, swept))]


@pytest.fixture(scope="module")
def workplace(finished, tmp_path_factory):
    """A folder as the README supposes it: with galaxies.parquet and its images, and EFIGI where it is at hand."""
    folder = tmp_path_factory.mktemp("readme")
    survey = next((finished[0] / "outputs" / "simulated").iterdir())
    shutil.copytree(survey / "images", folder / "images")
    shutil.copy(survey / "catalog.parquet", folder / "galaxies.parquet")
    if EFIGI.is_dir():
        (folder / "efigi").symlink_to(EFIGI)
    return folder


def test_there_are_commands_to_run():
    assert len(COMMANDS) >= 12


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("python")])
def test_command_of_the_readme_runs(workplace, command):
    if "efigi" in command and not EFIGI.is_dir():
        pytest.skip(f"EFIGI is not at {EFIGI}; RAREZOO_DATA names the folder that holds it")
    script, settings = made_small(command)
    run(workplace, script, *settings, small=False)


def test_make_demo_runs_the_three_stages(tmp_path):
    settings = {option(setting): setting for settings in SMALL.values() for setting in settings}
    small = " ".join(
        [*settings.values(), f"output_dir={tmp_path}/demo", f"data.root={tmp_path}/survey", "backbone.weights=null"]
    )
    done = subprocess.run(
        ["make", "demo", f"DEMO={small}"], cwd=REPO, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "of 12 planted classes" in done.stderr
    assert (tmp_path / "demo" / "cluster" / "report.html").is_file()


def test_make_test_is_what_runs_these():
    planned = subprocess.run(["make", "-n", "test"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for tool in ("ruff format --check", "ruff check", "mypy", "pytest"):
        assert tool in planned
    assert "make test" in (REPO / ".ci" / "run").read_text()


def test_a_second_make_installs_nothing():
    planned = subprocess.run(["make", "-n", "install"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    assert "pip" not in planned


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not link.startswith("http") and not (REPO / link).exists()] == []


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", (REPO / "docs/embeddings.md").read_text(), re.DOTALL)
)
def test_documented_ways_to_read_embeddings_work(finished, code):
    path = str(finished[0] / "outputs/whole/embed/embeddings.h5")
    names = {}
    exec(code.replace("outputs/mine/embed/embeddings.h5", path), names)
    assert len(names["representation"] if "representation" in names else names["table"]) == 260


@pytest.mark.parametrize(
    "code", re.findall(r"```python\n(.*?)```", (REPO / "docs/finding_classes.md").read_text(), re.DOTALL)
)
def test_documented_ways_to_read_a_search_work(finished, code):
    names = {}
    exec(code.replace("outputs/mine", str(finished[0] / "outputs/whole")), names)
    assert len(names["galaxies"] if "galaxies" in names else names["search"].catalog) == 260


@pytest.mark.parametrize("table", ["galaxies", "classes", "columns"])
def test_every_column_of_a_search_is_documented(finished, table):
    text = (REPO / "docs/class_files.md").read_text()
    columns = pd.read_parquet(finished[0] / f"outputs/whole/cluster/{table}.parquet").columns
    assert [name for name in columns if f"`{name}`" not in text] == []
