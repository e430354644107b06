"""What a person sees on the terminal: errors that say how to go on, progress bars, the closing lines of a run."""

from __future__ import annotations

import difflib
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TypeVar

import yaml
from rich.console import Console
from tqdm import tqdm

Item = TypeVar("Item")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

console = Console(stderr=True, highlight=False, soft_wrap=True)


class UserError(Exception):
    """A fault that the user can mend. The message names the file, column or option, the value found, and the fix."""


def did_you_mean(wrong: str, allowed: Iterable[object]) -> str:
    """Near match and the list of what is allowed, as a sentence to end an error message with."""
    names = [str(name) for name in allowed]
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return (f"Did you mean '{near[0]}'? " if near else "") + (f"Allowed: {listed}." if names else "")


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "it") -> Iterator[Item]:
    """Iterate with a progress bar; where the output is not a terminal, one line every half minute."""
    interval = 0.1 if sys.stderr.isatty() else 30.0
    bar = tqdm(items, desc=description, total=total, unit=unit, mininterval=interval, maxinterval=2 * interval)
    return iter(bar)


def quiet_libraries() -> None:
    """Silence the advice of libraries that a user of these scripts cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "numba", "wandb"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*n_jobs value 1 overridden.*")
    warnings.filterwarnings("ignore", message=".*using precomputed metric; inverse_transform.*")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("KMP_WARNINGS", "0")


def option_names(conf_dir: Path) -> list[str]:
    """Dotted names of all options that the YAML files below a configuration folder define, and of its groups."""
    names: set[str] = set()
    for path in sorted(conf_dir.rglob("*.yaml")):
        group = path.relative_to(conf_dir).parent.parts
        prefix = () if not group or group[0] in ("experiment", "hydra") else group
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
        return f"option '{name}' does not exist. {did_you_mean(name, option_names(conf_dir))}"
    if choice := re.search(r"Could not find '([^']+)'", message):
        group, _, name = choice[1].rpartition("/")
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
        _fail("Interrupted. Nothing unfinished stands under a final name; the same command goes on.", EXIT_INTERRUPTED)
    except Exception as error:
        if not type(error).__module__.startswith(("hydra.", "omegaconf.")):
            raise
        _fail(explain_override_error(str(error), conf_dir), EXIT_USER_ERROR)


def _raise_interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> None:
    console.print(f"[bold red]{'Interrupted' if status == EXIT_INTERRUPTED else 'Error'}[/]", end=": ")
    console.print(message.removeprefix("Interrupted. "), markup=False)
    sys.stderr.flush()
    # A script that is stopped must not wait for worker processes or for a network upload.
    sys.exit(status)


def closing_lines(outputs: Mapping[str, Path], next_command: str | None) -> None:
    """Say where the output of a run went and what to run next."""
    for what, path in outputs.items():
        console.print(f"  [bold]{what}[/]  {path}")
    if next_command:
        console.print(f"  [bold green]next[/]  {next_command}")
