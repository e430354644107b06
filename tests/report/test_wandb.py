import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from offline_runs import read_offline_run
from PIL import Image

from rarezoo.provenance import flat, git_commit
from rarezoo.report import wandb as tracking
from rarezoo.report.wandb import lightning_loggers, resolve_mode, tracked_run

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """An account without a key, settings or mode of its own."""
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("RANK", raising=False)
    yield tmp_path
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def in_a_process(code, folder):
    """Run code as a user would on a node without terminal; no test may hang here."""
    command = [sys.executable, "-c", "from pathlib import Path\nfolder = Path('.')\n" + code]
    return subprocess.run(
        command, cwd=folder, env=dict(os.environ), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90
    )


def test_disabled_does_nothing_and_does_not_import_wandb(nobody):
    done = in_a_process(
        "import sys\n"
        "from rarezoo.report.wandb import tracked_run\n"
        "with tracked_run('disabled', 'rarezoo', folder=folder) as run:\n"
        "    run.log({'loss': 1.0}); run.log_images({'a': b'no image'}); run.summary({'n': 1})\n"
        "    run.log_class_table(None, {})\n"
        "    run.log_model(folder, 'model'); assert run.mode == 'disabled'\n"
        "assert 'wandb' not in sys.modules\n",
        nobody,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (nobody / "wandb").exists()


OFFLINE = """
import io
import pandas as pd
from PIL import Image
from rarezoo.report.wandb import tracked_run
stream = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(stream, "PNG")
Path("map.png").write_bytes(stream.getvalue())
with tracked_run("auto", "rarezoo", folder=folder / "run", group="first", config={"lr": 0.1}) as run:
    assert run.mode == "offline"
    run.log({"recall_of_planted": 0.25})
    run.log_images({"map": Path("map.png"), "sizes": stream.getvalue()})
    run.log_table("classes", pd.DataFrame({"cluster": [0, 1], "medoid": ["a", None], "answers": [[1], "x"]}))
    run.summary({"classes_found": 7})
"""


def test_auto_without_a_key_keeps_a_finished_offline_run_and_is_silent(nobody):
    done = in_a_process(OFFLINE, nobody)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (record,) = (nobody / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for written in (b"recall_of_planted", b"classes_found", b"first"):
        assert written in content
    files = [path.name for path in record.parent.rglob("media/**/*") if path.is_file()]
    assert {Path(name).suffix for name in files} == {".png", ".json"}


def test_lightnings_metrics_go_to_the_same_run(nobody):
    with tracked_run("offline", "rarezoo", folder=nobody) as run:
        for logger in lightning_loggers(run, nobody):
            logger.log_metrics({"validation_loss": 3.5}, step=4)
            logger.save()
        run.log({"recall_of_planted": 0.25})
    # wandb's own process writes the last of an offline run after finish() has returned, and is done when it ends.
    sys.modules["wandb"].teardown()
    (record,) = (nobody / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for written in (b"validation_loss", b"trainer/global_step", b"recall_of_planted"):
        assert written in content
    table = pd.read_csv(nobody / "metrics" / "version_0" / "metrics.csv")
    assert table.to_dict("records") == [{"step": 4, "validation_loss": 3.5}]


@pytest.mark.parametrize(("csv", "written"), [(True, ["CSVLogger"]), (False, [])])
def test_metrics_go_to_a_file_or_nowhere_where_tracking_is_disabled(nobody, csv, written):
    with tracked_run("disabled", "rarezoo", folder=nobody, csv=csv) as run:
        assert [type(logger).__name__ for logger in lightning_loggers(run, nobody)] == written


def test_a_server_that_does_not_answer_costs_one_line_and_the_run_goes_on_offline(nobody, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = in_a_process(
        "from rarezoo.report.wandb import tracked_run\n"
        "with tracked_run('auto', 'rarezoo', folder=folder, init_seconds=2) as run:\n"
        "    run.log({'loss': 1.0}); print(run.mode)\n",
        nobody,
    )
    assert done.returncode == 0
    assert done.stdout == "offline\n"
    (line,) = done.stderr.splitlines()
    assert "could not start online" in line
    assert KEY not in line
    assert list((nobody / "wandb").glob("offline-run-*/run-*.wandb"))


def test_without_a_key_auto_is_offline(nobody):
    assert resolve_mode("auto") == "offline"


@pytest.mark.parametrize(("machine", "mode"), [("api.wandb.ai", "online"), ("example.org", "offline")])
def test_a_netrc_entry_for_the_server_makes_auto_online(nobody, machine, mode):
    (nobody / "netrc").write_text(f"machine {machine}\n  login user\n  password {KEY}\n")
    assert resolve_mode("auto") == mode


def test_a_damaged_netrc_counts_as_none(nobody):
    (nobody / "netrc").write_text("machine api.wandb.ai what\n")
    assert resolve_mode("auto") == "offline"


@pytest.mark.parametrize(
    ("stated", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("ONLINE", "online")]
)
def test_the_mode_of_the_environment_decides_for_auto_alone(nobody, monkeypatch, stated, mode):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", stated)
    assert resolve_mode("auto") == mode
    assert resolve_mode("disabled") == "disabled"


def test_only_the_first_process_of_a_distributed_run_tracks(nobody, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with tracked_run("offline", "rarezoo", folder=nobody) as run:
        assert run.mode == "disabled"
    assert not (nobody / "wandb").exists()


class FakeRun:
    """Stands for a run of wandb, to see how it is ended and what its failures do."""

    def __init__(self, failing=False):
        self.exit_codes, self.failing, self.rows, self.artifacts = [], failing, [], []

    def log(self, row):
        if self.failing:
            raise RuntimeError("the disk is full\nand more")
        self.rows.append(row)

    def log_artifact(self, path, name, type):
        self.artifacts.append((path, name, type))

    def finish(self, exit_code):
        self.exit_codes.append(exit_code)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_run_that_an_exception_ends_is_finished_as_failed(nobody, monkeypatch, error):
    fake = FakeRun()
    monkeypatch.setattr(tracking, "_init", lambda *arguments: fake)

    def fail():
        with tracked_run("offline", "rarezoo", folder=nobody) as run:
            run.log({"loss": 2.0})
            raise error

    with pytest.raises(error):
        fail()
    assert (fake.exit_codes, fake.rows) == ([1], [{"loss": 2.0}])
    with tracked_run("offline", "rarezoo", folder=nobody):
        pass
    assert fake.exit_codes == [1, 0]


def test_a_record_that_fails_is_said_once_and_ends_nothing(nobody, monkeypatch):
    monkeypatch.setattr(tracking, "_init", lambda *arguments: FakeRun(failing=True))
    said = []
    monkeypatch.setattr(tracking, "_warn", said.append)
    with tracked_run("offline", "rarezoo", folder=nobody) as run:
        for _ in range(3):
            run.log({"loss": 1.0})
        run.log_table("classes", pd.DataFrame({"a": [1]}))
    assert len(said) == 1
    assert "the disk is full" in said[0]
    assert "and more" not in said[0]


def test_a_folder_that_cannot_be_written_disables_tracking_with_one_line(nobody, monkeypatch):
    (nobody / "file").write_text("in the way")
    said = []
    monkeypatch.setattr(tracking, "_warn", said.append)
    with tracked_run("offline", "rarezoo", folder=nobody / "file") as run:
        assert run.mode == "disabled"
        assert len(lightning_loggers(run, nobody)) == 1
    assert len(said) == 1


@pytest.fixture
def started(nobody, monkeypatch):
    """What wandb.init is called with, in turn."""
    calls = []
    monkeypatch.setattr(tracking, "_init", lambda mode, seconds, arguments: calls.append(arguments) or FakeRun())
    return calls


def about(folder, **options):
    folder.mkdir(parents=True, exist_ok=True)
    with tracked_run("offline", "rarezoo", folder=folder, group="mine", job_type="train", **options):
        pass


def test_a_run_on_its_own_has_the_name_of_the_stages_that_belong_together(nobody, started):
    about(nobody / "train")
    assert [(each["group"], each["name"]) for each in started] == [("mine", "mine")]


def test_jobs_of_a_sweep_are_named_by_the_options_in_which_they_differ(nobody, started):
    sweep = nobody / "train-sweep"
    sweep.mkdir()
    swept = "hydra: {overrides: {task: [backbone=tiny, 'trainer.devices=[0,1]', 'seed=0,1', optim.lr=1]}}"
    (sweep / "multirun.yaml").write_text(swept)
    for seed in (0, 1):
        about(sweep / f"backbone=tiny,optim.lr=1,optim.lr=10,seed={seed},trainer.devices=[0,1]")
    about(sweep / "backbone=tiny,optim.lr=1")
    about(sweep / f"{'a' * 200}1")
    about(sweep / f"{'a' * 200}2")
    assert {each["group"] for each in started} == {"mine/train-sweep"}
    names = [each["name"] for each in started]
    assert names[:3] == ["optim.lr=10,seed=0", "optim.lr=10,seed=1", "backbone=tiny,optim.lr=1"]
    assert len(set(names)) == 5
    assert max(map(len, names)) == 128


SETTINGS = {"layout": {"n_neighbors": 15, "inner": {"a": None}}, "zoom": [0.7, 0.8], "cuts": {}, "seed": 3}
CLASSES = pd.DataFrame(
    {
        "cluster": [4, 7],
        "size": [50, 41],
        "persistence": [0.25, np.nan],
        "answers": [np.array([{"answer": "ring", "mean": np.float32(0.5)}], object), np.array([], object)],
        "nearest": [[7], None],
    }
)


@pytest.fixture
def search(nobody):
    """What is kept of a search, and the picture that it logged."""
    picture = nobody / "class_004.png"
    Image.new("RGB", (8, 6), (200, 30, 30)).save(picture)
    with tracked_run("offline", "rarezoo", folder=nobody / "run", config=SETTINGS) as run:
        run.log_class_table(CLASSES, {4: picture})
        run.log_table("funnel", pd.DataFrame({"cut": ["all", "smooth"], "removed": [0, 60], "below": [None, 0.5]}))
        run.log_images({"map": picture})
        run.summary({"n_classes": 2, "dbcv": float("nan"), "stages": {"layout": {"seconds": 3.5, "reused": 1}}})
    sys.modules["wandb"].teardown()
    (record,) = (nobody / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    return read_offline_run(record), record.parent, picture


def test_settings_are_kept_from_the_start_by_dotted_name_with_the_commit(search):
    run, _, _ = search
    config = {name: value for name, value in run.config.items() if name != "_wandb"}
    assert config == {**flat(SETTINGS), "git_commit": git_commit()}


def test_class_table_has_the_montages_as_images(search):
    run, folder, picture = search
    table = run.table("classes")
    montage, missing = (row.pop("montage") for row in table)
    assert table == [
        {
            "cluster": 4,
            "size": 50,
            "persistence": 0.25,
            "answers": '[{"answer": "ring", "mean": 0.5}]',
            "nearest": "[7]",
        },
        {"cluster": 7, "size": 41, "persistence": None, "answers": "[]", "nearest": None},
    ]
    assert montage.read_bytes() == picture.read_bytes()
    assert missing is None
    # What is to be uploaded later lies with the run, not in a home that other machines may not see.
    assert montage.is_relative_to(folder.parent)
    assert "WANDB_DATA_DIR" not in os.environ


def test_funnel_and_map_are_kept(search):
    run, folder, picture = search
    assert run.table("funnel") == [
        {"cut": "all", "removed": 0, "below": None},
        {"cut": "smooth", "removed": 60, "below": 0.5},
    ]
    (logged,) = (row["map.path"] for row in run.history if "map.path" in row)
    assert (folder / "files" / logged).read_bytes() == picture.read_bytes()


def test_summary_has_the_figures_of_the_search_under_stable_names(search):
    run, _, _ = search
    found = flat(run.summary)
    assert (found["n_classes"], found["stages.layout.seconds"], found["stages.layout.reused"]) == (2, 3.5, 1)
    assert run.exit_code == 0


def test_place_for_artifacts_that_the_user_chose_is_kept(nobody, monkeypatch):
    monkeypatch.setenv("WANDB_DATA_DIR", str(nobody / "chosen"))
    with tracked_run("offline", "rarezoo", folder=nobody / "run") as run:
        run.log_table("funnel", pd.DataFrame({"cut": ["all"]}))
    assert list((nobody / "chosen" / "artifacts" / "staging").iterdir())
    assert os.environ["WANDB_DATA_DIR"] == str(nobody / "chosen")


@pytest.mark.parametrize("asked", [False, True])
def test_the_model_is_kept_as_an_artifact_only_on_request(nobody, monkeypatch, asked):
    fake = FakeRun()
    monkeypatch.setattr(tracking, "_init", lambda *arguments: fake)
    with tracked_run("offline", "rarezoo", folder=nobody, log_model=asked) as run:
        run.log_model(nobody / "best.ckpt", "mine/seed=0")
    assert fake.artifacts == ([(str(nobody / "best.ckpt"), "mine-seed-0", "model")] if asked else [])
