"""Settings of a biased data set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rarezoo.config import Positive, Settings

CONFLICT_PERCENTS = (0.5, 1.0, 2.0, 5.0)
"""Shares of conflicting images that Lee et al. (2021, NeurIPS) release, in per cent."""
N_CLASSES = {"digits": 10, "cmnist": 10, "cifar10c": 10, "bffhq": 2}
_WITHOUT_SEVERITY = "bffhq"
_RELEASED_BFFHQ = 0.5


class BiasSettings(Settings):
    """Which biased data set, and how strongly it is biased (conf/bias)."""

    name: Literal["digits", "cmnist", "cifar10c", "bffhq"]
    source: Path | None
    root: Path
    conflict_percent: float
    severity: int | None = Field(ge=1, le=5)
    validation: Literal["biased", "unbiased"]
    n_validation: Positive
    n_training: Positive | None
    image_size: int = Field(ge=8, le=1024)
    data_seed: int = Field(ge=0, lt=2**32)

    @model_validator(mode="after")
    def _is_a_data_set_that_there_is(self) -> Self:
        percents = (_RELEASED_BFFHQ,) if self.name == "bffhq" else CONFLICT_PERCENTS
        if self.conflict_percent not in percents:
            allowed = ", ".join(f"{percent:g}" for percent in percents)
            raise ValueError(f"conflict_percent={self.conflict_percent:g}: for {self.name}, give one of {allowed}")
        if (self.name == "digits") != (self.source is None):
            raise ValueError(
                f"source={self.source}: digits come with scikit-learn, give source=null"
                if self.source
                else f"source=null: give the files that {self.name} is made from or read from (docs/objectives.md)"
            )
        if (self.severity is None) != (self.name == _WITHOUT_SEVERITY):
            raise ValueError(
                f"severity={self.severity}: photographs have none, give severity=null"
                if self.severity
                else f"severity=null: give 1 to 5 for {self.name}"
            )
        return self

    @property
    def n_classes(self) -> int:
        """Number of classes, and of values of the attribute that is confounded with them."""
        return N_CLASSES[self.name]
