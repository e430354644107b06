"""Files of weights, read without executing anything in them."""

from __future__ import annotations

import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch.serialization import safe_globals

# What checkpoints of Lightning hold beside tensors: settings, callbacks, metrics. Nothing of these packages is
# imported or called; their objects become `Inert`.
_FOREIGN = frozenset(
    {
        "argparse",
        "datetime",
        "enum",
        "functools",
        "galaxy_datasets",
        "lightning",
        "lightning_fabric",
        "lightning_utilities",
        "numpy",
        "omegaconf",
        "pathlib",
        "pytorch_lightning",
        "timm",
        "torch",
        "torchmetrics",
        "typing",
        "zoobot",
    }
)
_FOREIGN_NAMES = frozenset(
    {
        *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "object", "str", "tuple", "type")),
        "collections.defaultdict",
        "copyreg._reconstructor",
        "_operator.getitem",
    }
)
# torch.save writes pickles that Python 2 could read, with its names.
_MODERN_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "operator": "_operator"}
_MODERN_NAMES = {"long": "int", "unicode": "str"}
# Torch's older files are a sequence of these pickles: magic number, protocol, system, content.
_LEGACY_PICKLES = 4


class Inert:
    """Stands where a file holds an object of a class that is not wanted here; keeps its state and does nothing."""

    def __new__(cls, *arguments: object) -> Inert:
        """Take any arguments, as the class that it stands for may have."""
        return super().__new__(cls)

    def __init__(self, *arguments: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        """Keep what was pickled; nothing is restored from it."""
        self.state = state


class InertMapping:
    """Stands for a kind of dict; torch fills no others than its own."""

    def __new__(cls, *arguments: object) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Make an empty one."""
        return OrderedDict()


def read_plain(path: Path, foreign: bool = False) -> Any:
    """Content of a file of tensors and plain values, on the CPU.

    Parameters
    ----------
    path : written by torch.save in its present or its older format, or by safetensors
    foreign : put inert stand-ins for objects of the packages that published checkpoints were made with

    Raises
    ------
    ValueError
        with the reason in one line, if the file is damaged, not of this kind, or holds code
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device="cpu")
        # torch does not compare the checksums that it writes: weights with flipped bits would load without a word.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"the checksum of {damaged} is wrong")
        with safe_globals(list(_stand_ins(path)) if foreign else []):
            return torch.load(path, map_location="cpu", weights_only=True)
    # On files that are not its own, torch.load raises nearly every kind of exception that there is.
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # Of torch's advice to a developer, the name of what the file holds is all that tells a user something.
    named = next((line.partition("GLOBAL ")[2].split(" ")[0] for line in lines if "GLOBAL " in line), "")
    return f"it holds code or an unknown object: {named}" if named else lines[0]


def _stand_ins(path: Path) -> Iterator[type]:
    for module, name in sorted(_globals(path)):
        if module.split(".")[0] in _FOREIGN or f"{module}.{name}" in _FOREIGN_NAMES:
            is_mapping = name in ("AttributeDict", "defaultdict")
            # torch finds a class that it may make by these two names.
            names = {"__module__": module, "__qualname__": name}
            yield type(name, (InertMapping if is_mapping else Inert,), names)


def _globals(path: Path) -> set[tuple[str, str]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            return set().union(*(_globals_of_pickle(stream) for _ in range(_LEGACY_PICKLES)))
    with zipfile.ZipFile(path) as archive:
        found: set[tuple[str, str]] = set()
        for entry in archive.namelist():
            if entry.endswith("/data.pkl"):
                with archive.open(entry) as stream:
                    found |= _globals_of_pickle(stream)
        return found


def _globals_of_pickle(stream: IO[bytes]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            module = _MODERN_MODULES.get(module, module)
            found.add((module, _MODERN_NAMES.get(name, name) if module == "builtins" else name))
    return found
