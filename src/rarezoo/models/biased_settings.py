"""Settings of a classifier that is trained on a biased data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rarezoo.config import Positive, RunSettings, Settings, Share, TrainerOptions
from rarezoo.data.biased.settings import BiasSettings

# The choices that each objective leaves open.
_CHOICES: Mapping[str, frozenset[str]] = {
    "sce": frozenset(),
    "bce": frozenset({"over"}),
    "nll": frozenset({"link"}),
    "l1": frozenset({"of", "over"}),
    "l2": frozenset({"of", "over"}),
    "sos": frozenset({"alpha", "beta", "over"}),
}
_LEAST_BATCH = 2


class ObjectiveSettings(Settings):
    """What is minimised (conf/objective); null where an objective leaves no choice."""

    name: Literal["sce", "bce", "nll", "l1", "l2", "sos"]
    link: Literal["log_softmax", "softplus"] | None
    of: Literal["softmax", "outputs"] | None
    over: Literal["sum", "mean"] | None
    alpha: float | None = Field(gt=0)
    beta: float | None = Field(gt=0)

    @model_validator(mode="after")
    def _has_its_own_choices_and_no_other(self) -> Self:
        for name, value in self.model_dump(exclude={"name"}).items():
            if (value is None) == (name in _CHOICES[self.name]):
                fix = "give a value" if value is None else "it has no such choice, give null"
                raise ValueError(f"{name}={'null' if value is None else value}: for {self.name}, {fix}")
        return self


class ClassifierSettings(Settings):
    """The network and its training (conf/classifier)."""

    stem: Literal["standard", "small"]
    dropout: Share
    dropout_at: Literal["stages", "head"]
    batch_size: int = Field(ge=_LEAST_BATCH)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    patience: Positive | None
    watch: Literal["loss", "accuracy"]


class BiasedSettings(RunSettings):
    """Settings of train.py with task=biased."""

    task: Literal["biased"]
    bias: BiasSettings
    objective: ObjectiveSettings
    classifier: ClassifierSettings
    trainer: TrainerOptions
    save_every_minutes: float = Field(gt=0)

    # Where files are says nothing of what they hold: that is among the inputs of the run.
    _undecisive: ClassVar[Mapping[str, Any]] = {"bias": {"root", "source"}, "save_every_minutes": True}
