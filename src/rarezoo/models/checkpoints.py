"""Checkpoints that hold all that a model needs, and are read without executing anything in them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from rarezoo.cli import UserError
from rarezoo.models.plain import read_plain
from rarezoo.models.vote_model import ModelSpec, VoteModel
from rarezoo.provenance import fingerprint, made_with

KEY = "rarezoo"
FORMAT = 2
MODEL_PREFIX = "model."


def checkpoint_header(spec: ModelSpec) -> dict[str, Any]:
    """What a checkpoint says of itself beside the weights: format, model, transform and what it was made with."""
    transform = fingerprint(spec.transform)
    return {"format": FORMAT, "spec": spec.to_dict(), "transform_sha256": transform, **made_with()}


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
        raise UserError(
            f"{path}: is not a checkpoint of train.py (format {FORMAT}). Give one that train.py wrote; "
            "train.py takes others, such as Zoobot's, as backbone.weights=<file>."
        )
    try:
        return _build(header["spec"], checkpoint["state_dict"]).eval()
    except (UserError, AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(
            f"{path}: its model cannot be built again ({' '.join(str(error).split())[:200]}). "
            "Install the version of timm that it was made with, or run train.py again."
        ) from error


def _build(spec: dict[str, Any], state: dict[str, Any]) -> VoteModel:
    known = {field.name for field in fields(ModelSpec)}
    model = VoteModel(ModelSpec(**{name: value for name, value in spec.items() if name in known}))
    model.load_state_dict({k.removeprefix(MODEL_PREFIX): v for k, v in state.items() if k.startswith(MODEL_PREFIX)})
    return model


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"checkpoint={path}: there is no such file. Run train.py first, or give checkpoint=<file>.ckpt."
        )
    try:
        content = read_plain(path)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({error}). Run train.py again.") from error
    return content if isinstance(content, dict) else {}
