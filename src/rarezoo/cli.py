"""What a person sees on the terminal: errors that say how to go on, progress bars, the closing lines of a run."""

from __future__ import annotations

import difflib
import errno
import logging
import multiprocessing
import os
import re
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

Item = TypeVar("Item")

EXIT_USER_ERROR = 2
_UNWRITABLE = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
    )
)
EXIT_INTERRUPTED = 130

console = Console(stderr=True, highlight=False, soft_wrap=True)


class UserError(Exception):
    """A fault that the user can mend. The message names the file, column or option, the value found, and the fix."""


def unwritable(error: BaseException) -> str | None:
    """Reason in words, where an error means that an output cannot be written; None where it means something else."""
    if not isinstance(error, OSError) or error.errno not in _UNWRITABLE:
        return None
    return os.strerror(error.errno)


def did_you_mean(wrong: str, allowed: Iterable[object]) -> str:
    """Near match and the list of what is allowed, as a sentence to end an error message with."""
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return (f"Did you mean '{near[0]}'? " if near else "") + (f"Allowed: {listed}." if names else "")


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Iterate with a progress bar; where the output is not a terminal, one line every half minute."""
    return iter(_bar(items, description, total, unit))


def progress_bar(total: int, description: str, unit: str) -> tqdm[Any]:
    """Progress bar to be updated by hand, with rate and time left; to be closed, as a context manager does."""
    return _bar(None, description, total, unit)


def _bar(items: Iterable[Item] | None, description: str, total: int | None, unit: str) -> tqdm[Any]:
    interval = 0.1 if on_terminal() else 30.0
    return tqdm(
        items,
        desc=description,
        total=total,
        unit=unit,
        mininterval=interval,
        maxinterval=2 * interval,
        # Only the leading one of several processes speaks.
        disable=console.quiet,
    )


def on_terminal() -> bool:
    """Whether a person looks on, rather than a log file."""
    return sys.stderr.isatty()


def quiet_libraries() -> None:
    """Silence the advice of libraries that a user of these scripts cannot act on."""
    for name in ("numba", "wandb"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero", "lightning.fabric"):
        # A filter, since Lightning sets the level of its loggers itself when it is imported.
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*`training_step` returned `None`.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # Scores are computed from sums over all ranks before they are logged.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    # Blocks that are held do not change their running means either.
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*number of training batches .* is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*n_jobs value 1 overridden.*")
    warnings.filterwarnings("ignore", message=".*using precomputed metric; inverse_transform.*")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("KMP_WARNINGS", "0")


def settle_in() -> None:
    """Make a process that a launcher of Hydra's started like one that a script was run in.

    joblib's workers start processes in a way of their own, which neither a data loader's nor a pool's workers survive.
    """
    quiet_libraries()
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)


def option_names(conf_dir: Path) -> list[str]:
    """Dotted names of all options that the YAML files below a configuration folder define, and of its groups."""
    names: set[str] = set()
    for path in sorted(conf_dir.rglob("*.yaml")):
        group = path.relative_to(conf_dir).parent.parts
        if group[:1] == ("hydra",):
            continue
        prefix = () if not group or group[0] == "experiment" else group
        names.add(".".join(prefix))
        content = yaml.safe_load(path.read_text()) or {}
        names.update(".".join((*prefix, *key)) for key in _dotted_keys(content))
    return sorted(names - {""})


def _dotted_keys(tree: Mapping[str, object]) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if key in ("defaults", "hydra"):
            continue
        yield (str(key),)
        if isinstance(value, Mapping):
            yield from ((str(key), *rest) for rest in _dotted_keys(value))


def explain_override_error(message: str, conf_dir: Path) -> str:
    """Turn Hydra's refusal of an option or a group choice into one that names the near match.

    Parameters
    ----------
    message : text of the exception
    conf_dir : the configuration folder, from whose YAML files the allowed names are read
    """
    if option := re.search(r"Could not override '([^']+)'", message):
        name = option[1].lstrip("+~")
        near = did_you_mean(name, option_names(conf_dir)).partition("Allowed:")[0]
        return f"option '{name}' does not exist. {near}--cfg job lists all options with their values."
    if choice := re.search(r"Could not find '([^']+)'", message):
        group, _, name = choice[1].rpartition("/")
        if group == "hydra/launcher" and name.startswith(("joblib", "submitit")):
            return f"{group}={name} is not installed. Install it: pip install 'rarezoo[launchers]'."
        options = [path.stem for path in sorted((conf_dir / group).glob("*.yaml"))]
        return f"{group}={name} does not exist. {did_you_mean(name, options)}"
    return message.split("\nSet the environment variable")[0]


def run_script(main: Callable[[], object], conf_dir: Path) -> None:
    """Run a script's main function; print a user's error as text and exit with a status that a shell can test.

    Exit status: 0 done, 1 a fault of ours (with its traceback), 2 an error that the user can mend, 130 interrupted.
    """
    # Hydra then raises what it would otherwise print and swallow.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, _raise_interrupt)
    quiet_libraries()
    try:
        main()
    except UserError as error:
        _fail(str(error), EXIT_USER_ERROR)
    except KeyboardInterrupt:
        # A cluster sends SIGTERM again while what is left is put away.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _fail("Interrupted. Nothing unfinished stands under a final name; the same command goes on.", EXIT_INTERRUPTED)
    except Exception as error:
        # Hydra's own errors come first: some of them are OSErrors too.
        if type(error).__module__.startswith(("hydra.", "omegaconf.")):
            _fail(explain_override_error(str(error), conf_dir), EXIT_USER_ERROR)
        reason = unwritable(error)
        if reason is None:
            raise
        where = getattr(error, "filename", None) or "output"
        way_on = "Choose another folder with output_dir=..., or free space and permissions."
        _fail(f"{where}: cannot be written ({reason}). {way_on}", EXIT_USER_ERROR)


def _raise_interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> None:
    console.print(f"[bold red]{'Interrupted' if status == EXIT_INTERRUPTED else 'Error'}[/]", end=": ")
    console.print(message.removeprefix("Interrupted. "), markup=False)
    sys.stderr.flush()
    # A script that is stopped must not wait for worker processes or for a network upload.
    sys.exit(status)


def same_job(script: str, overrides: Sequence[str], folder: Path) -> list[str]:
    """Script and arguments with which another process takes part in a job that Hydra started here."""
    here = [f'hydra.run.dir="{folder}"', "hydra.mode=RUN", "hydra.output_subdir=null"]
    return [str(Path(script).resolve()), *overrides, *here]


def next_command(script: str, overrides: Sequence[str], reads: Collection[str], paths: Mapping[str, Path | str]) -> str:
    """Command of the following stage, with those of this run's overrides that it reads too.

    Parameters
    ----------
    script : of the following stage
    overrides : of this run, as given on the command line
    reads : top-level options and groups that the following stage reads
    paths : options that name this run's output, where the following stage would not find it by itself
    """
    kept = [text for text in overrides if _option(text).split(".")[0] in reads and _option(text) not in paths]
    return " ".join(["python", script, *map(shlex.quote, kept), *(shlex.quote(f"{k}={v}") for k, v in paths.items())])


def _option(override: str) -> str:
    return override.lstrip("+~").split("=")[0].split("@")[0]


def announce(stage: str) -> None:
    """Say which stage of a search begins."""
    console.print(f"{time.strftime('%H:%M:%S')}  {stage}", markup=False)


def print_table(table: pd.DataFrame, title: str) -> None:
    """Print a small table; fractions with two digits."""
    drawn = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in table.columns:
        drawn.add_column(str(name), no_wrap=True, justify="left" if table[name].dtype.kind in "OTU" else "right")
    for row in table.itertuples(index=False):
        drawn.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row))
    console.print(drawn, markup=False)


def closing_lines(
    outputs: Mapping[str, Path], facts: Mapping[str, object], following: str | None, already_done: bool = False
) -> None:
    """Say what came out, where it is, and what to run next.

    Parameters
    ----------
    outputs : what -> path
    facts : name -> figure
    following : command to run next
    already_done : the outputs were there from an earlier run of the same settings
    """
    if already_done:
        console.print("This run was complete before; nothing was computed. overwrite=true computes it again.")
    facts = {name: value for name, value in facts.items() if value is not None and not isinstance(value, Mapping)}
    width = max(map(len, (*outputs, *facts, "next")))
    for name, value in facts.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        console.print(f"  {name:<{width}}  {shown}", markup=False)
    for what, path in outputs.items():
        console.print(f"  {what:<{width}}  {path}", markup=False, style="bold")
    if following:
        console.print(f"  {'next':<{width}}  {following}", markup=False, style="bold green")
