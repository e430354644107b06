"""Checkpoints that hold all that a model needs, and are read without executing anything in them."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from rarezoo.cli import UserError
from rarezoo.models.vote_model import ModelSpec, VoteModel
from rarezoo.provenance import made_with

KEY = "rarezoo"
FORMAT = 1
MODEL_PREFIX = "model."


def checkpoint_header(spec: ModelSpec) -> dict[str, Any]:
    """What a checkpoint says of itself beside the weights: format, model and what it was made with."""
    return {"format": FORMAT, "spec": spec.to_dict(), **made_with()}


def load_vote_model(path: Path) -> VoteModel:
    """Load a trained model, ready to embed: in evaluation mode, on the CPU.

    Raises
    ------
    UserError
        if there is no such file, it is damaged, or it is not a checkpoint that train.py wrote
    """
    checkpoint = _read(path)
    header = checkpoint.get(KEY)
    if not isinstance(header, dict) or header.get("format") != FORMAT or "state_dict" not in checkpoint:
        raise UserError(f"{path}: is not a checkpoint of train.py (format {FORMAT}). Give one that train.py wrote.")
    known = {field.name for field in fields(ModelSpec)}
    spec = ModelSpec(**{name: value for name, value in header["spec"].items() if name in known})
    model = VoteModel(spec)
    state = checkpoint["state_dict"]
    model.load_state_dict({k.removeprefix(MODEL_PREFIX): v for k, v in state.items() if k.startswith(MODEL_PREFIX)})
    return model.eval()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"checkpoint={path}: there is no such file. Run train.py first, or give checkpoint=<file>.ckpt."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: cannot be read as a checkpoint ({reason}). Run train.py again.") from error
    return content if isinstance(content, dict) else {}
