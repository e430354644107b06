"""Settings of training: names, ranges and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rarezoo.config import DATA_DECIDES_NOTHING, Data, Positive, RunSettings, Settings, Share, TrainerOptions
from rarezoo.provenance import sha256_of_file

PerChannel = float | list[float]
_LEAST_BATCH = 2
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth")


class BackboneSettings(Settings):
    """Encoder (conf/backbone)."""

    name: str
    weights: str | None
    drop_path_rate: Share
    channels_last: bool
    mean: PerChannel
    std: PerChannel

    def weights_sha256(self) -> dict[str, str]:
        """Content hashes of the files that the pretrained weights may come from; none for those of the hub."""
        found: dict[str, str] = {}
        for option, place in (("backbone.name", self.name), ("backbone.weights", self.weights or "")):
            path = Path(place.removeprefix("local-dir:"))
            if place and path.is_file():
                found[option] = sha256_of_file(path)
            elif (path / "config.json").is_file():
                files = (file for file in sorted(path.iterdir()) if file.suffix in _WEIGHT_SUFFIXES)
                found |= {f"{option}/{file.name}": sha256_of_file(file) for file in files}
        return found


class BottleneckSettings(Settings):
    """Representation (conf/bottleneck)."""

    dim: Positive | None
    norm: Literal["none", "layer"]
    activation: Literal["none", "relu", "gelu"]


class HeadSettings(Settings):
    """From the representation to concentrations (conf/head)."""

    activation: Literal["sigmoid", "softplus"]
    dropout: Share


class AugmentSettings(Settings):
    """Training transforms (conf/augment)."""

    rotate: bool
    flip: bool
    zoom: list[float] = Field(min_length=2, max_length=2)
    shift: float
    brightness: float


class OptimSettings(Settings):
    """Optimiser, schedule, regularisation, early stopping (conf/optim)."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    warmup_share: Share
    patience: Positive | None
    ema_decay: float | None = Field(gt=0, lt=1)
    compile: bool
    find_batch_size: bool


class RetrainSettings(Settings):
    """Which part of the encoder learns, and how fast (conf/retrain)."""

    n_blocks: int | None = Field(ge=0)
    layer_decay: float = Field(gt=0, le=1)


class TrainSettings(RunSettings):
    """Settings of train.py."""

    data: Data
    tree: dict[str, Any] = Field(alias="schema")
    backbone: BackboneSettings
    bottleneck: BottleneckSettings
    head: HeadSettings
    augment: AugmentSettings
    optim: OptimSettings
    retrain: RetrainSettings
    trainer: TrainerOptions
    save_every_minutes: float = Field(gt=0)

    @field_validator("trainer")
    @classmethod
    def _keeps_weights_in_full_precision(cls, trainer: dict[str, Any]) -> dict[str, Any]:
        precision = str(trainer.get("precision", "32-true"))
        if precision.endswith("-true") and precision != "32-true":
            raise ValueError(f"precision={precision}: images and weights are float32. Give bf16-mixed or 16-mixed")
        return trainer

    @field_validator("data")
    @classmethod
    def _has_batches_of_several(cls, data: Data) -> Data:
        if data.batch_size < _LEAST_BATCH:
            raise ValueError("batch_size=1: batch normalisation needs at least 2 images to train on")
        return data

    @model_validator(mode="after")
    def _holds_only_what_has_learned(self) -> Self:
        if self.retrain.n_blocks is not None and self.backbone.weights is None:
            raise ValueError(
                f"retrain.n_blocks={self.retrain.n_blocks} keeps the rest of the encoder as it is, but "
                "backbone.weights=null fills it with random numbers: give backbone.weights, or retrain=all"
            )
        return self

    _undecisive: ClassVar[Mapping[str, Any]] = {"data": DATA_DECIDES_NOTHING, "save_every_minutes": True}
