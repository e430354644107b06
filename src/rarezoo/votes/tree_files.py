"""Files that hold a decision tree each, and may be put together from others of the same folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rarezoo.cli import UserError, did_you_mean

SCHEMA_FOLDER = Path(__file__).resolve().parents[3] / "conf" / "schema"
SELF = "_self_"


class NoRepeats(yaml.SafeLoader):
    """Plain YAML would let the second of two questions of one name replace the first, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Mapping of a node whose keys are all different."""
        names = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if twice := [str(name) for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice[0]}' is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def tree_names(folder: Path = SCHEMA_FOLDER) -> list[str]:
    """Names of the trees that a folder holds."""
    return sorted(found.stem for found in folder.glob("*.yaml") if found.stem != "from_file")


def read_tree(path: Path) -> dict[str, Any]:
    """Tree of a file, with the trees that its `defaults` name put together as Hydra does.

    A `defaults` list holds names of files of the same folder and `_self_`, which stands for the file's own content and
    is last where it is not listed. Later ones override what earlier ones say, entry by entry.

    Raises
    ------
    UserError
        if a file is not there or not YAML, a list of defaults is not one of names, or files name each other in a circle
    """
    return _read(path, ())


def _read(path: Path, within: tuple[Path, ...]) -> dict[str, Any]:
    if path in within:
        circle = " -> ".join(step.stem for step in (*within[within.index(path) :], path))
        raise UserError(f"{path}: the defaults go in a circle ({circle}). Take one of them out.")
    content = _read_yaml(path)
    names = content.pop("defaults", None)
    if names is None:
        return content
    tree: dict[str, Any] = {}
    for name in _checked_names(names, path):
        part = content if name == SELF else _read(path.with_name(f"{name}.yaml"), (*within, path))
        tree = _merged(tree, part)
    return tree


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), NoRepeats)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not readable as YAML ({error}). Repair the file.") from error
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: holds no questions. Write question: {{answers: [...], asked_after: null}}.")
    return dict(content)


def _checked_names(names: object, path: Path) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: defaults is {names!r}. Give a list of names of the trees to put together.")
    for name in names:
        if name != SELF and name not in tree_names(path.parent):
            raise UserError(f"{path}: defaults has '{name}'. {did_you_mean(name, tree_names(path.parent))}")
    return names if SELF in names else [*names, SELF]


def _merged(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(below, value)
        else:
            merged[name] = value
    return merged
