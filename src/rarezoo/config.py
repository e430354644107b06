"""Settings of the stages, checked as a whole before any work starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from rarezoo.cli import UserError, console, did_you_mean

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Base of all settings: unknown names are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class ImageSettings(Settings):
    """Images and batches, whatever the source (conf/data/_images.yaml)."""

    catalog: Path
    image_root: Path | None
    truth: Path | None
    image_size: int = Field(ge=16, le=4096)
    channels: int = Field(ge=1, le=64)
    crop: float = Field(gt=0, le=1)
    batch_size: Positive
    workers: Literal["auto"] | Annotated[int, Field(ge=0)]
    validation_share: Share
    test_share: Share
    max_failed_share: float = Field(ge=0, le=1)
    on_bad_votes: Literal["error", "drop"]
    fractional_votes: bool

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share={self.validation_share} and test_share={self.test_share} leave no galaxies to train "
                "on: lower them below 1 together"
            )
        return self


class CatalogData(ImageSettings):
    """A catalog of the user's own (conf/data/catalog.yaml)."""

    kind: Literal["catalog"]


class SimulatedData(ImageSettings):
    """The embedded survey (conf/data/simulated.yaml)."""

    kind: Literal["simulated"]
    root: Path
    n_galaxies: Positive
    survey_size: int = Field(ge=32, le=1024)
    survey_seed: int = Field(ge=0)
    rare_share_min: float = Field(ge=0, le=0.05)
    rare_share_max: float = Field(ge=0, le=0.05)
    artifact_share: Share


class ShardData(ImageSettings):
    """Tar shards in the WebDataset convention, whose catalog is made from them (conf/data/shards.yaml)."""

    kind: Literal["shards"]
    shards: str = Field(min_length=1)
    image_root: None


class Hdf5Data(ImageSettings):
    """A dataset of images in an HDF5 file, whose catalog is made from it (conf/data/hdf5.yaml)."""

    kind: Literal["hdf5"]
    images: Path
    dataset: str = Field(min_length=1)
    ids: str | None
    image_root: None


Data = Annotated[CatalogData | SimulatedData | ShardData | Hdf5Data, Field(discriminator="kind")]
_DATA_KINDS: Mapping[str, type[ImageSettings]] = {
    "catalog": CatalogData,
    "simulated": SimulatedData,
    "shards": ShardData,
    "hdf5": Hdf5Data,
}


class LoggerSettings(Settings):
    """Where metrics go: Weights & Biases, a CSV file, both or neither (conf/logger)."""

    mode: Literal["auto", "online", "offline", "disabled"]
    project: str
    csv: bool
    log_model: bool


_DECIDES_NOTHING: Mapping[str, Any] = {"name": True, "overwrite": True, "logger": True}
DATA_DECIDES_NOTHING = {"workers", "max_failed_share", "truth"}


class RunSettings(Settings):
    """What every stage has."""

    name: str = Field(min_length=1, coerce_numbers_to_str=True)
    seed: int = Field(ge=0, lt=2**32)
    overwrite: bool
    logger: LoggerSettings

    _undecisive: ClassVar[Mapping[str, Any]] = {}

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the result, JSON-like; two runs that agree in them may replace each other."""
        return self.model_dump(mode="json", by_alias=True, exclude={**_DECIDES_NOTHING, **self._undecisive})


def _names_devices_plainly(trainer: dict[str, Any]) -> dict[str, Any]:
    for option, default in (("devices", "auto"), ("num_nodes", 1)):
        value = trainer.get(option, default)
        counts = isinstance(value, int) and not isinstance(value, bool) and (value >= 1 or value == -1)
        if option == "devices" and (value == "auto" or counts or _are_numbers(value)):
            continue
        if not counts or value < 1:
            allowed = "auto, -1, a number, or a list of numbers as [0,1]" if option == "devices" else "a number >= 1"
            raise ValueError(f"{option}={value!r}: give {allowed}")
    return trainer


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(each) is int and each >= 0 for each in value)


# Arguments of lightning.Trainer (conf/trainer). embed.py takes the devices and nodes of them.
TrainerOptions = Annotated[dict[str, Any], AfterValidator(_names_devices_plainly)]


class EmbeddingSettings(Settings):
    """How embed.py computes and writes."""

    batch_size: Positive
    dtype: Literal["float32", "float16"]
    device: str
    precision: Literal["float32", "bfloat16", "float16"]
    compile: bool
    features: bool
    rotations: Literal[1, 2, 4, 8]
    dropout_passes: int = Field(ge=0, le=1000)
    ensemble: Literal["first", "concatenate"]
    redundancy: bool


class EmbedSettings(RunSettings):
    """Settings of embed.py."""

    data: Data
    checkpoint: Path | Annotated[list[Path], Field(min_length=1)]
    output: Path | None
    trainer: TrainerOptions
    embedding: EmbeddingSettings

    _undecisive = {
        "data": {
            *DATA_DECIDES_NOTHING,
            "batch_size",
            "validation_share",
            "test_share",
            "image_size",
            "crop",
            "channels",
            "on_bad_votes",
            "fractional_votes",
        },
        "embedding": {"batch_size", "device", "compile"},
        "checkpoint": True,
        "trainer": True,
    }

    @property
    def checkpoints(self) -> list[Path]:
        """One checkpoint, or those of an ensemble."""
        return self.checkpoint if isinstance(self.checkpoint, list) else [self.checkpoint]

    def decisive(self) -> dict[str, Any]:
        """As of every run; the seed decides only which of the features dropout leaves out."""
        settings = super().decisive()
        if not self.embedding.dropout_passes:
            del settings["seed"]
        return settings


class ReportSettings(Settings):
    """Montages (conf/report)."""

    columns: int = Field(ge=1, le=50)
    rows: int = Field(ge=1, le=50)
    thumbnail: int = Field(ge=16, le=1024)


EMBED_READS = frozenset({"experiment", "name", "seed", "output_dir", "output", "data", "embedding", "logger"})
CLUSTER_READS = frozenset(
    {
        "experiment",
        "name",
        "output_dir",
        "data",
        "truth",
        "selection",
        "neighbours",
        "layout",
        "tree",
        "trust",
        "groups",
        "decisions",
        "report",
        "logger",
    }
)

_PLAIN_WORDS: Mapping[str, str] = {
    "model_type": "is a group of options, not one value",
    "model_attributes_type": "is a group of options, not one value",
    "dict_type": "is a group of options, not one value",
    "path_type": "give a path",
}

Model = TypeVar("Model", bound=Settings)


def validated(model: type[Model], config: Mapping[str, Any], command: str, overrides: Sequence[str] = ()) -> Model:
    """Check a resolved configuration against the settings of one command.

    Parameters
    ----------
    model : settings of the command; parts of the configuration that it does not have belong to other commands
    config : resolved configuration, plain dicts and values
    command : named in messages
    overrides : as given on the command line; one that the command does not read is noted on the terminal

    Raises
    ------
    UserError
        that lists every option that is wrong, with the value found and what is allowed
    """
    own = {field.alias or name for name, field in model.model_fields.items()}
    for override in overrides:
        option = override.lstrip("+~").split("=")[0]
        if option.split(".")[0].split("/")[0] not in {*own, "experiment", "output_dir", "data", "truth"}:
            console.print(f"note: {command} does not use {option}", style="yellow", markup=False)
    try:
        return model.model_validate(_given({name: config[name] for name in own if name in config}))
    except ValidationError as error:
        raise UserError(_explain(model, error.errors())) from error


def _given(tree: Mapping[str, Any]) -> dict[str, Any]:
    # Hydra writes ??? for what a user must give.
    return {
        name: _given(value) if isinstance(value, Mapping) else value
        for name, value in tree.items()
        if not (isinstance(value, str) and value == "???")
    }


def _explain(model: type[Settings], errors: Sequence[ErrorDetails]) -> str:
    reasons: dict[str, str] = {}
    for details in errors:
        subject, reason = _describe(model, details)
        # A value that fits none of several kinds has an error for each of them.
        reasons[subject] = f"{reasons[subject]}, or {reason}" if subject in reasons else reason
    return "\n".join(f"{subject}{reason}".rstrip(".") + "." for subject, reason in reasons.items())


def _describe(model: type[Settings], details: ErrorDetails) -> tuple[str, str]:
    option, owner = _locate(model, details["loc"])
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        allowed = [field.alias or name for name, field in owner.model_fields.items()]
        return f"option '{option}' does not exist. ", did_you_mean(option.rpartition(".")[2], allowed)
    if kind == "union_tag_invalid":
        return f"{option}.kind={value['kind']!r}: ", did_you_mean(str(value["kind"]), _DATA_KINDS)
    if kind in ("missing", "union_tag_not_found"):
        option += ".kind" if kind == "union_tag_not_found" else ""
        return f"option '{option}' is missing. ", f"Give {option}=<value>"
    if kind == "value_error":
        return f"{option}: ", details["msg"].removeprefix("Value error, ")
    reason = _PLAIN_WORDS.get(kind, details["msg"])
    return f"{option}={value!r}: ", reason[0].lower() + reason[1:]


def _locate(model: type[BaseModel], location: Sequence[int | str]) -> tuple[str, type[BaseModel]]:
    """Dotted name of an option, and the settings that it stands in; pydantic's path has the members of unions too."""
    names: list[str] = []
    owner, current = model, cast(Any, model)
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            owner = current
            fields = {field.alias or name: field.annotation for name, field in owner.model_fields.items()}
            current = fields.get(str(part))
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        elif isinstance(part, str):
            current = _DATA_KINDS.get(part)
            continue
        names.append(str(part))
    return ".".join(names), owner


EMBEDDING_SUFFIXES = (".h5", ".hdf5")


class ComparisonSettings(Settings):
    """What similarity.py compares, and on which images (conf/similarity.yaml)."""

    a: str = Field(min_length=1)
    b: str = Field(min_length=1)
    weights: str | None
    layers_a: list[str] = Field(min_length=1)
    layers_b: list[str] = Field(min_length=1)
    features: Literal["flatten", "average"]
    split: Literal["all", "train", "validation", "test"]
    n_images: Annotated[int, Field(ge=4)] | None
    batch_size: int = Field(ge=4)
    orders: int = Field(ge=1, le=100)
    device: str

    @property
    def of_embeddings(self) -> bool:
        """Whether two files of embeddings are compared, rather than two networks."""
        return self.a.endswith(EMBEDDING_SUFFIXES)

    @model_validator(mode="after")
    def _compares_like_with_like(self) -> Self:
        if self.of_embeddings != self.b.endswith(EMBEDDING_SUFFIXES):
            raise ValueError(
                f"a={self.a} and b={self.b}: a file of embeddings is compared with another one. Give two of them, or "
                "two of checkpoints and timm names"
            )
        return self


class SimilaritySettings(RunSettings):
    """Settings of similarity.py."""

    data: Data
    tree: dict[str, Any] = Field(alias="schema")
    similarity: ComparisonSettings

    _undecisive = {
        "data": {*DATA_DECIDES_NOTHING, "batch_size", "on_bad_votes", "fractional_votes"},
        # What is compared is told by its content.
        "similarity": {"a", "b", "device"},
    }
