import subprocess
import sys
from pathlib import Path

import pytest

from rarezoo.cli import did_you_mean, explain_override_error, next_command, option_names

CONF = Path(__file__).parents[1] / "conf"


def test_near_match_is_named_before_the_list():
    assert did_you_mean("smoth", ["smooth", "bar"]) == "Did you mean 'smooth'? Allowed: smooth, bar."


def test_nothing_near_leaves_only_the_list():
    assert did_you_mean("zzz", ["smooth", "bar"]) == "Allowed: smooth, bar."


def test_options_of_groups_and_of_the_base_are_known():
    names = option_names(CONF)
    assert {"seed", "layout.n_neighbors", "tree.min_samples", "data.catalog", "embedding.dtype"} <= set(names)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Could not override 'layout.n_neighbours'.\nTo append ...", "Did you mean 'layout.n_neighbors'"),
        ("Could not override 'sed'.", "Did you mean 'seed'"),
        ("In 'train': Could not find 'experiment/dmo'", "experiment=dmo does not exist. Did you mean 'demo'"),
        ("In 'train': Could not find 'data/catalogue'", "Did you mean 'catalog'"),
    ],
)
def test_hydras_refusal_is_answered_with_the_near_match(message, expected):
    assert expected in explain_override_error(message, CONF)


def test_next_command_repeats_only_what_the_next_stage_reads():
    overrides = ["experiment=demo", "optim.lr=3", "data.catalog=a b.csv", "name=x"]
    command = next_command("embed.py", overrides, {"experiment", "data", "name"}, {"checkpoint": Path("best.ckpt")})
    assert command == "python embed.py experiment=demo 'data.catalog=a b.csv' name=x checkpoint=best.ckpt"


RAISES = """
import sys
from pathlib import Path
from rarezoo.cli import UserError, run_script

def main():
    raise {raised}

run_script(main, Path("."))
"""


@pytest.mark.parametrize(
    ("raised", "status", "shown"),
    [
        ("UserError('[a.csv]: column x is missing')", 2, "Error: [a.csv]: column x is missing"),
        ("KeyboardInterrupt", 130, "Interrupted:"),
        ("ValueError('a fault of ours')", 1, "Traceback"),
    ],
)
def test_exit_status_and_message(raised, status, shown):
    code = RAISES.format(raised=raised)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert shown in done.stderr
    assert ("Traceback" in done.stderr) == (status == 1)
