"""Runs tracked with Weights & Biases. Tracking never asks, never hangs and never ends a run: it only gives way."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

import yaml
from numpy.typing import NDArray

from rarezoo.cli import console
from rarezoo.provenance import SWEEP_MARK, fingerprint, flat, git_commit, sweep_of
from rarezoo.report.wandb.media import as_histogram, as_image, as_table, with_montages

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch.loggers import Logger

Mode = Literal["auto", "online", "offline", "disabled"]

INIT_SECONDS = 20.0
FINISH_SECONDS = 60.0
_LONGEST_NAME = 128
_MODES_OF_ENVIRONMENT: Mapping[str, Mode] = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
_DATA_DIR = "WANDB_DATA_DIR"
_ARTIFACT_FORBIDS = re.compile(r"[^A-Za-z0-9._-]")


class TrackedRun:
    """A run that takes numbers, images and tables, or quietly nothing where tracking is disabled.

    Attributes
    ----------
    mode : "online", "offline" or "disabled", as it came to be
    csv : whether Lightning's metrics go to a CSV file too
    """

    def __init__(self, run: Any | None, mode: Mode, csv: bool = True, log_model: bool = False) -> None:
        self._run = run
        self.mode = mode
        self.csv = csv
        self._log_model = log_model
        self._warned = False

    def log(self, numbers: Mapping[str, float]) -> None:
        """Add one row of numbers to the run's history."""
        self._safely(lambda run: run.log(dict(numbers)))

    def log_images(self, images: Mapping[str, Path | bytes]) -> None:
        """Log image files, or encoded images such as PNG bytes, under their names."""
        self._safely(lambda run: run.log({name: as_image(image) for name, image in images.items()}))

    def log_histograms(self, histograms: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]) -> None:
        """Log histograms that were counted already: name -> counts (n,) and edges of the bins (n + 1,)."""
        self._safely(lambda run: run.log({name: as_histogram(*each) for name, each in histograms.items()}))

    def log_table(self, name: str, table: pd.DataFrame) -> None:
        """Log a table. Columns of mixed type are allowed; an index is not kept."""
        self._safely(lambda run: run.log({name: as_table(table)}))

    def log_class_table(self, classes: pd.DataFrame, montages: Mapping[int, Path]) -> None:
        """Log the table of classes with the montage of each as an image; lists and mappings become JSON text.

        Parameters
        ----------
        classes : one row a class, with its number as `cluster`
        montages : class -> image file; a class may have none
        """
        self._safely(lambda run: run.log({"classes": as_table(with_montages(classes, montages))}))

    def log_model(self, path: Path, name: str) -> None:
        """Keep a file as a model artifact of that name, where the run was asked to (`logger.log_model`)."""
        if self._log_model:
            self._safely(lambda run: run.log_artifact(str(path), _ARTIFACT_FORBIDS.sub("-", name), type="model"))

    def summary(self, values: Mapping[str, object]) -> None:
        """Set the figures that stand for the run as a whole; nested ones are shown by dotted name."""
        self._safely(lambda run: run.summary.update(dict(values)))

    def finish(self, exit_code: int = 0) -> None:
        """End the run: upload what is left, or give up after `FINISH_SECONDS` and leave it on disk."""
        self._safely(lambda run: run.finish(exit_code=exit_code))
        self._run = None

    def _safely(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if not self._warned:
                _warn(f"a record was not taken ({_first_line(error)}); others like it go unsaid")
            self._warned = True


@contextmanager
def tracked_run(
    mode: Mode,
    project: str,
    *,
    folder: Path,
    csv: bool = True,
    log_model: bool = False,
    group: str | None = None,
    job_type: str | None = None,
    config: Mapping[str, Any] | None = None,
    init_seconds: float = INIT_SECONDS,
) -> Iterator[TrackedRun]:
    """Track a run for as long as the context lasts; it is finished also where an exception ends it (exit code 1).

    Files of artifacts, and with them the images in tables, are kept in `folder`/wandb too, unless WANDB_DATA_DIR says
    otherwise: by itself the client puts them below the home directory. `wandb sync` looks for them under the same path.

    A job of a sweep, whatever launched it, is a run of its own. Its group is that of the sweep, `group`/folder of the
    sweep, and its name is that of its folder, which Hydra gives the options, without those that all jobs share.

    Parameters
    ----------
    mode : "auto" is online where an API key is found and WANDB_MODE does not say otherwise, else offline.
        A run that cannot start online starts offline; one that cannot start at all is disabled; either is said
        in one line. "disabled" does not import wandb.
    project, group, job_type : as Weights & Biases has them
    folder : the run's files are written to `folder`/wandb
    csv : let `lightning_loggers` write a CSV file too
    log_model : let `TrackedRun.log_model` keep the file it is given
    config : settings of the run, JSON-like; they are stored with dotted names, together with the git commit
    init_seconds : time allowed for the start of an online run
    """
    name = group
    if sweep_of(folder):
        group, name = f"{group}/{folder.parent.name}", _job_name(folder)
    arguments = {
        "project": project,
        "name": name and _short(name),
        "group": group and _short(group),
        "job_type": job_type,
        "config": {**flat(config or {}), "git_commit": git_commit()},
        "dir": str(folder),
    }
    with _artifacts_kept_in(folder / "wandb"):
        wandb_run, came_to_be = _start(mode, init_seconds, arguments)
        run = TrackedRun(wandb_run, came_to_be, csv, log_model)
        exit_code = 1
        try:
            yield run
            exit_code = 0
        finally:
            run.finish(exit_code)


def lightning_loggers(run: TrackedRun, folder: Path) -> list[Logger]:
    """Loggers for Lightning's metrics: `folder`/metrics/version_*/metrics.csv, and the same run where it is tracked.

    In the run they are shown against Lightning's `trainer/global_step`.
    """
    from lightning.pytorch.loggers import CSVLogger, WandbLogger

    loggers: list[Logger] = [CSVLogger(folder, "metrics")] if run.csv else []
    wandb_run = run._run
    if wandb_run is not None:
        wandb_run.define_metric("trainer/global_step")
        wandb_run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        loggers.append(WandbLogger(experiment=wandb_run, save_dir=wandb_run.settings.root_dir, log_model=False))
    return loggers


def resolve_mode(mode: Mode) -> Mode:
    """The mode that "auto" stands for here: WANDB_MODE where set, else online with an API key, else offline."""
    if mode != "auto":
        return mode
    if stated := _MODES_OF_ENVIRONMENT.get(os.environ.get("WANDB_MODE", "").lower()):
        return stated
    return "online" if _has_api_key() else "offline"


@contextmanager
def _artifacts_kept_in(folder: Path) -> Iterator[None]:
    """Let wandb, which reads the variable each time, put copies of files there; each job of a sweep has its own."""
    if _DATA_DIR in os.environ:
        yield
        return
    os.environ[_DATA_DIR] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ[_DATA_DIR]


def _start(mode: Mode, init_seconds: float, arguments: Mapping[str, Any]) -> tuple[Any | None, Mode]:
    if mode == "disabled" or not _is_first_rank():
        return None, "disabled"
    # Silences what wandb prints before a run's own settings hold, such as where a key came from.
    os.environ.setdefault("WANDB_SILENT", "true")
    wanted = resolve_mode(mode)
    fallbacks: dict[Mode, tuple[Mode, ...]] = {"online": ("online", "offline"), "offline": ("offline",)}
    for attempt in fallbacks.get(wanted, ()):
        try:
            return _init(attempt, init_seconds, arguments), attempt
        except Exception as error:
            next_mode = "offline" if attempt == "online" else "disabled"
            _warn(f"the run could not start {attempt} ({_first_line(error)}); it goes on {next_mode}")
    return None, "disabled"


def _init(mode: Mode, init_seconds: float, arguments: Mapping[str, Any]) -> Any:
    import wandb

    Path(arguments["dir"]).mkdir(parents=True, exist_ok=True)
    wanted: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "save_code": False,
        "init_timeout": init_seconds,
        "login_timeout": init_seconds,
        "finish_timeout": FINISH_SECONDS,
    }
    known = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
    wandb_mode = cast(Literal["online", "offline"], mode)
    return wandb.init(mode=wandb_mode, settings=wandb.Settings(**known), **arguments)


def _is_first_rank() -> bool:
    """Whether this is the one process of a distributed run that may track it, by the variables Lightning reads."""
    ranks = (os.environ[name] for name in _RANK_VARIABLES if name in os.environ)
    return next(ranks, "0") == "0"


def _has_api_key() -> bool:
    import wandb

    settings = wandb.setup().settings
    if settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    hosts = {urlsplit(settings.base_url).hostname or ""}
    if "WANDB_BASE_URL" not in os.environ:
        # Keys saved before the client's default address changed are filed under this one.
        hosts.add("api.wandb.ai")
    try:
        entries = netrc.netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(entries[host][2] for host in hosts & entries.keys())


def _job_name(folder: Path) -> str:
    sweep = yaml.safe_load((folder.parent / SWEEP_MARK).read_text())
    parts = f",{folder.name},"
    for option in sweep["hydra"]["overrides"]["task"]:
        parts = parts.replace(f",{option},", ",")
    return parts.strip(",") or folder.name


def _short(name: str) -> str:
    # Weights & Biases refuses longer ones, and the end may be what tells jobs apart.
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 9]}-{fingerprint(name)[:8]}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _warn(message: str) -> None:
    console.print(f"Warning: Weights & Biases: {message}.", markup=False)
