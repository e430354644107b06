"""Methods by name, as methods.yaml and files of users give them."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from known_truth import methods, peers
from known_truth.contest import Found, KnownSurvey, Method
from rarezoo.cli import UserError, did_you_mean

METHODS_FILE = Path(__file__).with_name("methods.yaml")

Truth = Literal["planted", "attributes", "injected"]


RUNS: Mapping[str, Callable[..., Found]] = {
    "search": methods.search,
    "pca_search": peers.pca_search,
    "kmeans": peers.kmeans,
    "mixture": peers.mixture,
    "evoc": peers.evoc,
    "isolation_forest": peers.isolation_forest,
    "local_outlier_factor": peers.local_outlier_factor,
    "random_order": peers.random_order,
}


class _Entry(BaseModel):
    """One entry of methods.yaml, whose head says what each field means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    options: dict[str, Any] = Field(default_factory=dict)
    representation: str = "bottleneck"
    truth: tuple[Truth, ...] = ("planted", "attributes", "injected")
    most_galaxies: int | None = Field(default=None, ge=1)
    kinds: bool = False


@dataclass(frozen=True)
class Contestant:
    """A method with its name and its place in the contest.

    Attributes
    ----------
    name : in tables and files
    find : looks for classes
    representation : what it searches
    truth : kinds of surveys in which it takes part
    most_galaxies : in surveys of no more than these; None for any
    kinds : it also searches the galaxies before artifacts are removed
    setup : all that decides what it does, to tell whether a result is of this method as it is now
    """

    name: str
    find: Method
    representation: str = "bottleneck"
    truth: Sequence[str] = ("planted", "attributes", "injected")
    most_galaxies: int | None = None
    kinds: bool = False
    setup: str = ""

    def takes_part(self, survey: KnownSurvey) -> bool:
        """Whether a survey is of its kind and size, and has its representation."""
        small_enough = self.most_galaxies is None or len(survey.ids) <= self.most_galaxies
        return survey.truth in self.truth and small_enough and self.representation in survey.representations


def read_methods(path: Path = METHODS_FILE) -> dict[str, Contestant]:
    """Methods of a YAML file, by name, in its order.

    Raises
    ------
    UserError
        if the file is none, or an entry has a field or an option that there is not
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({error}). Repair it, or name another file.") from error
    if not isinstance(entries, dict):
        raise UserError(f"{path}: holds no methods. Write one as NAME: {{run: search, options: ...}}.")
    return {str(name): _contestant(str(name), entry, path) for name, entry in entries.items()}


def read_extra(path: Path) -> dict[str, Contestant]:
    """Methods of a Python file with a dict METHODS of name -> function from `Task` to `Found`.

    Raises
    ------
    UserError
        if there is no such file or dict, or the file raises an error
    """
    spec = importlib.util.spec_from_file_location(f"extra_methods_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"--extra {path}: is no Python file. Name one that has METHODS = {{'name': function}}.")
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses and processes look themselves up there.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"--extra {path}: {type(error).__name__}: {error}. Repair the file.") from error
    found = getattr(module, "METHODS", None)
    if not isinstance(found, dict) or not all(callable(find) for find in found.values()):
        raise UserError(f"--extra {path}: has no METHODS = {{'name': function}}, each function from Task to Found.")
    source = path.read_text(encoding="utf-8")
    return {str(name): Contestant(str(name), find, setup=source) for name, find in found.items()}


def chosen(contestants: Mapping[str, Contestant], names: Sequence[str]) -> list[Contestant]:
    """Some by name, in the order of the mapping; all for no names.

    Raises
    ------
    UserError
        if a name is none of theirs
    """
    for name in names:
        if name not in contestants:
            raise UserError(f"--methods {name}: there is none of that name. {did_you_mean(name, contestants)}")
    return [contestant for name, contestant in contestants.items() if not names or name in names]


def _contestant(name: str, content: object, path: Path) -> Contestant:
    try:
        entry = _Entry.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise UserError(f"{path}: method '{name}': {faults}. The head of methods.yaml lists the fields.") from error
    if entry.run not in RUNS:
        raise UserError(f"{path}: method '{name}': run: {entry.run}: there is none. {did_you_mean(entry.run, RUNS)}")
    run = RUNS[entry.run]
    try:
        inspect.signature(run).bind(None, **entry.options)
    except TypeError as error:
        raise UserError(f"{path}: method '{name}': options of {entry.run}: {error}.") from error
    return Contestant(
        name,
        partial(run, **entry.options),
        entry.representation,
        entry.truth,
        entry.most_galaxies,
        entry.kinds,
        setup=entry.model_dump_json(),
    )
