"""Files that torch.save wrote, read without executing anything in them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch


def read_plain(path: Path) -> Any:
    """Content of a file of tensors and plain values, on the CPU.

    Raises
    ------
    ValueError
        with the reason in one line, if the file is damaged, not of this kind, or holds code
    """
    try:
        # torch does not compare the checksums that it writes: weights with flipped bits would load without a word.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    # On files that are not its own, torch.load raises nearly every kind of exception that there is.
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ValueError(reason[0] if reason else type(error).__name__) from error
