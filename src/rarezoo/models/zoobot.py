"""Where published checkpoints keep the weights of their encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# Zoobot's models of every age since v1.0, ours, and what remains of the two where the trainer around them is left off.
_ENCODERS = (
    ("encoder.", "Zoobot checkpoint"),
    ("model.encoder.", "Zoobot checkpoint"),
    ("model.backbone.", "rarezoo checkpoint"),
    ("backbone.", "rarezoo checkpoint"),
)
_BEFORE_V1 = "model.0.features."
_HUB_OWNER = "mwalmsley/"
_HUB_NAME = "zoobot-encoder-"
# Zoobot called its one EfficientNet by this name.
_OLD_NAMES = {"efficientnet": "efficientnet_b0"}
# Zoobot gives its encoders pixel values in 0..1 (galaxy-datasets, transforms), whatever the hub's config.json says.
_MEAN, _STD = 0.0, 1.0


@dataclass(frozen=True)
class EncoderWeights:
    """The encoder that a file holds.

    Attributes
    ----------
    state : timm's keys, and maybe those of its classifier
    origin : kind of file, in words
    unused : keys that are no part of the encoder: heads, metrics
    architecture : as the file says; None where it does not
    mean, std : of the images that the weights were made with; None where not known
    """

    state: Mapping[str, Tensor]
    origin: str
    unused: tuple[str, ...] = ()
    architecture: str | None = None
    mean: Any = None
    std: Any = None


def encoder_weights(content: Any) -> EncoderWeights:
    """Find the encoder in what a file of weights holds.

    Read are checkpoints of Zoobot since v1.0 (trained, finetuned, gz-evo baselines) and of rarezoo, compiled or not,
    and state dicts with timm's own keys, bare or below `state_dict`.

    Parameters
    ----------
    content : of the file, as `read_plain` gives it

    Raises
    ------
    ValueError
        with the reason, if there is no encoder with timm's keys
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError("holds no state dict (names to tensors)")
    state = {_plain_key(str(key)): value for key, value in state.items()}
    if any(key.startswith(_BEFORE_V1) for key in state):
        raise ValueError(
            "is a checkpoint of Zoobot before v1.0, whose encoder was not timm's (its keys begin with "
            "model.0.features); take a later one"
        )
    for prefix, origin in _ENCODERS:
        encoder = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if encoder:
            unused = tuple(sorted(key for key in state if not key.startswith(prefix)))
            return EncoderWeights(encoder, origin, unused, **_described(content, origin))
    return EncoderWeights(state, "state dict")


def is_zoobot_name(name: str) -> bool:
    """Whether a hub or folder name is that of a Zoobot encoder."""
    return _HUB_OWNER in name or "zoobot" in name.lower()


def zoobot_normalisation() -> dict[str, float]:
    """Mean and std of the images that Zoobot's encoders take."""
    return {"mean": _MEAN, "std": _STD}


def _plain_key(key: str) -> str:
    # Modules that were compiled, or wrapped for several devices, have these in their names.
    return key.removeprefix("module.").replace("_orig_mod.", "")


def _described(content: Mapping[str, Any], origin: str) -> dict[str, Any]:
    if origin == "rarezoo checkpoint":
        header = content.get("rarezoo")
        spec = header.get("spec") if isinstance(header, Mapping) else None
        spec = spec if isinstance(spec, Mapping) else {}
        named = spec.get("architecture") or spec.get("backbone")
        return {"architecture": named, "mean": spec.get("mean"), "std": spec.get("std")}
    settings = content.get("hyper_parameters")
    settings = settings if isinstance(settings, Mapping) else {}
    named = next((settings[key] for key in ("architecture_name", "architecture", "name") if settings.get(key)), None)
    return {"architecture": _architecture(named), **zoobot_normalisation()}


def _architecture(named: Any) -> str | None:
    if not isinstance(named, str):
        return None
    name = named.rpartition(_HUB_NAME)[2] if _HUB_NAME in named else named
    return _OLD_NAMES.get(name, name)
