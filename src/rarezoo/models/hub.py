"""Encoders of hub repositories and of folders in the same form, by way of timm."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, get_session
from timm.models import load_model_config_from_hf
from torch import nn

from rarezoo.cli import UserError, did_you_mean

FOLDER = "local-dir:"
_HUB = "hf-hub:"
_HUB_SECONDS = 5.0
_ELSEWHERE = "Without a network, give the path of a folder or file that you have, or backbone.weights=null."


def source_of(text: str) -> str | None:
    """Hub repository or folder that a name or path means, as timm writes it; None where it means neither."""
    kind, _, place = text.partition(":")
    if kind.lower() in ("hf_hub", "hf-hub", "local-dir"):
        return f"{kind.lower().replace('_', '-')}:{place}"
    return f"{FOLDER}{text}" if (Path(text) / "config.json").is_file() else None


def resolve_architecture(name: str) -> tuple[str, dict[str, Any]]:
    """Name of the architecture, and the options that a hub repository or folder builds it with.

    Parameters
    ----------
    name : timm name; hf_hub:owner/repository; local-dir:path or the path of a folder, as timm's save_for_hf writes it

    Raises
    ------
    UserError
        if timm does not have it, or the repository or folder cannot be read
    """
    source = source_of(name)
    options: dict[str, Any] = {}
    architecture = name
    if source is not None:
        try:
            architecture, options = _config(source)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"backbone.name={name}: cannot be read ({_line(error)}). {_ELSEWHERE}") from error
    if not timm.is_model(architecture):
        named = "" if source is None else f"{name} is of "
        near = did_you_mean(architecture, timm.list_models()).split("Allowed")[0]
        raise UserError(f"backbone.name: {named}timm has no '{architecture}'. {near}timm.list_models() lists all.")
    ours = {"num_classes", "in_chans", "drop_path_rate", "pretrained"}
    return architecture, {option: value for option, value in options.items() if option not in ours}


def pretrained_by_timm(source: str, weights: str, channels: int) -> tuple[nn.Module, list[str]]:
    """Encoder with its pretrained weights, and what timm told of them.

    Parameters
    ----------
    source : timm name, or as `source_of` gives it
    weights : as the user gave it
    channels : of the images

    Raises
    ------
    UserError
        if the weights cannot be had, or there are not enough for the whole encoder
    """
    try:
        with _cache_alone_if_out_of_reach(source), _said_by_timm() as said:
            encoder: nn.Module = timm.create_model(source, pretrained=True, num_classes=0, in_chans=channels)
    # What a network or a damaged file makes timm raise has no common base.
    except Exception as error:
        raise UserError(
            f"backbone.weights={weights}: could not be fetched for {source} ({_line(error)}). {_ELSEWHERE}"
        ) from error
    for message in said:
        if message.startswith("Missing keys"):
            raise UserError(f"backbone.weights={weights}: does not hold all weights of {source} ({message[:200]}).")
    return encoder, said


def _config(source: str) -> tuple[str, dict[str, Any]]:
    place = source.partition(":")[2]
    if source.startswith(_HUB):
        with _cache_alone_if_out_of_reach(source):
            _, architecture, options = load_model_config_from_hf(place)
        return str(architecture), dict(options)
    config = json.loads((Path(place) / "config.json").read_text())
    return str(config["architecture"]), dict(config.get("model_args") or {})


@contextmanager
def _cache_alone_if_out_of_reach(source: str) -> Iterator[None]:
    """Look into the hub's cache alone where the hub does not answer: its client would try for most of a minute."""
    before = constants.HF_HUB_OFFLINE
    if not before and not source.startswith(FOLDER):
        try:
            get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
        # The kinds of exception are those of the client's HTTP library, which differs from version to version.
        except Exception:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the text."""
        self.messages.append(record.getMessage())


@contextmanager
def _said_by_timm() -> Iterator[list[str]]:
    """What timm tells of weights that it loads, missing ones included, which it takes for no error."""
    logger = logging.getLogger("timm.models._builder")
    level, propagate = logger.level, logger.propagate
    listener = _Listener()
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield listener.messages
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
        logger.propagate = propagate


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
