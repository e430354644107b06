import json
import math

import pytest
from configs import CHOSEN, read_base, read_choice

from rarezoo.cli import UserError
from rarezoo.config import EmbedSettings, SimulatedData, validated
from rarezoo.models.settings import TrainSettings

OF_THE_USER = {"catalog": "galaxies.parquet", "root": "survey", "truth": None, "image_size": 64}


def make_config(kind: str = "catalog", **changes) -> dict:
    """The configuration files as Hydra would resolve them; dotted names in `changes` replace values."""
    config = {group: read_choice(group, name) for group, name in CHOSEN.items()}
    of_the_user = {name: value for name, value in OF_THE_USER.items() if kind == "simulated" or name != "root"}
    config["data"] = read_choice("data", kind) | of_the_user
    config["schema"] = {"smooth": {"answers": ["yes", "no"], "asked_after": None}}
    config["trainer"] = read_choice("trainer", "default")
    config["checkpoint"] = "best.ckpt"
    config["embedding"] = read_base()["embedding"]
    config["output"] = None
    config |= {"name": "survey", "seed": 0, "overwrite": False, "save_every_minutes": 10}
    for option, value in changes.items():
        put(config, option, value)
    return config


def put(config: dict, option: str, value) -> None:
    *groups, name = option.split(".")
    for group in groups:
        config = config[group]
    config[name] = value


def remove(config: dict, option: str) -> dict:
    *groups, name = option.split(".")
    inner = config
    for group in groups:
        inner = inner[group]
    del inner[name]
    return config


def message(config: dict, model=TrainSettings) -> str:
    with pytest.raises(UserError) as caught:
        validated(model, config, "train.py")
    return str(caught.value)


@pytest.mark.parametrize("kind", ["catalog", "simulated"])
@pytest.mark.parametrize("model", [TrainSettings, EmbedSettings])
def test_configuration_files_hold_every_option_and_no_other(kind, model):
    settings = validated(model, make_config(kind), "train.py")
    assert settings.data.kind == kind


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**32, f"less than {2**32}"),
        ("seed", 1.5, "valid integer"),
        ("name", "", "at least 1 character"),
        ("overwrite", "perhaps", "valid boolean"),
        ("data.image_size", 15, "greater than or equal to 16"),
        ("data.image_size", 4097, "less than or equal to 4096"),
        ("data.channels", 0, "greater than or equal to 1"),
        ("data.channels", 65, "less than or equal to 64"),
        ("data.crop", 0, "greater than 0"),
        ("data.crop", 1.01, "less than or equal to 1"),
        ("data.batch_size", 0, "greater than or equal to 1"),
        ("data.validation_share", -0.1, "greater than or equal to 0"),
        ("data.validation_share", 1, "less than 1"),
        ("data.test_share", 1.0, "less than 1"),
        ("data.max_failed_share", 1.5, "less than or equal to 1"),
        ("data.max_failed_share", -0.5, "greater than or equal to 0"),
        ("data.on_bad_votes", "ignore", "'error' or 'drop'"),
        ("data.fractional_votes", "some", "valid boolean"),
        ("data.catalog", None, "give a path"),
        ("data.image_root", 5, "give a path"),
        ("backbone.drop_path_rate", 1, "less than 1"),
        ("backbone.name", None, "valid string"),
        ("bottleneck.dim", 0, "greater than or equal to 1"),
        ("bottleneck.activation", "tanh", "'none', 'relu' or 'gelu'"),
        ("augment.zoom", [1.0], "at least 2 items"),
        ("augment.zoom", [1.0, 1.1, 1.2], "at most 2 items"),
        ("augment.zoom", 1.2, "valid list"),
        ("augment.shift", "far", "valid number"),
        ("optim.lr", 0, "greater than 0"),
        ("optim.lr", math.inf, "finite number"),
        ("optim.lr", math.nan, "finite number"),
        ("optim.weight_decay", -1e-9, "greater than or equal to 0"),
        ("optim.warmup_share", 1, "less than 1"),
        ("head.dropout", 1, "less than 1"),
        ("optim.patience", 0, "greater than or equal to 1"),
        ("logger.mode", "on", "'auto', 'online', 'offline' or 'disabled'"),
        ("trainer", None, "group of options"),
        ("schema", ["smooth"], "group of options"),
        ("backbone", "resnet18", "group of options"),
    ],
)
def test_value_that_is_not_allowed_is_named_with_its_option_and_what_is(option, value, allowed):
    found = message(make_config(**{option: value}))
    assert found.startswith(f"{option}={value!r}: ")
    assert allowed in found
    assert found.count("\n") == 0


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("data.n_galaxies", 0, "greater than or equal to 1"),
        ("data.survey_size", 31, "greater than or equal to 32"),
        ("data.survey_size", 1025, "less than or equal to 1024"),
        ("data.survey_seed", -1, "greater than or equal to 0"),
        ("data.rare_share_min", -0.01, "greater than or equal to 0"),
        ("data.rare_share_max", 0.06, "less than or equal to 0.05"),
        ("data.artifact_share", 1, "less than 1"),
    ],
)
def test_value_of_the_simulated_survey_that_is_not_allowed_is_named(option, value, allowed):
    found = message(make_config("simulated", **{option: value}))
    assert found.startswith(f"{option}={value!r}: ")
    assert allowed in found


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("embedding.batch_size", 0, "greater than or equal to 1"),
        ("embedding.dtype", "bfloat16", "'float32' or 'float16'"),
        ("embedding.device", None, "valid string"),
        ("embedding.precision", "float64", "'float32', 'bfloat16' or 'float16'"),
        ("embedding.rotations", 3, "1, 2, 4 or 8"),
        ("embedding.dropout_passes", -1, "greater than or equal to 0"),
        ("embedding.ensemble", "mean", "'first' or 'concatenate'"),
        ("checkpoint", 3, "give a path"),
    ],
)
def test_value_of_the_embedding_that_is_not_allowed_is_named(option, value, allowed):
    found = message(make_config(**{option: value}), EmbedSettings)
    assert found.startswith(f"{option}={value!r}: ")
    assert allowed in found


@pytest.mark.parametrize("value", ["many", -1, 1.5, None])
def test_option_of_several_kinds_is_refused_in_one_line_with_all_of_them(value):
    found = message(make_config(**{"data.workers": value}))
    assert found.startswith(f"data.workers={value!r}: input should be 'auto', or input should be ")
    assert found.count("\n") == 0


def test_wrong_value_in_a_list_is_named_with_its_position():
    assert message(make_config(**{"augment.zoom": [1.0, "x"]})).startswith("augment.zoom.1='x': ")


@pytest.mark.parametrize(
    ("option", "near"),
    [
        ("data.image_sise", "image_size"),
        ("data.catalogue", "catalog"),
        ("backbone.drop_path", "drop_path_rate"),
        ("bottleneck.dims", "dim"),
        ("augment.rotat", "rotate"),
        ("optim.learning_rate", "lr"),
        ("logger.modes", "mode"),
    ],
)
def test_misspelt_option_names_what_is_allowed_in_its_group(option, near):
    found = message(make_config(**{option: 1}))
    assert found.startswith(f"option '{option}' does not exist. ")
    allowed = found.split("Allowed: ")[1].rstrip(".").split(", ")
    assert near in allowed
    if near != "lr":
        assert f"Did you mean '{near}'?" in found


def test_misspelt_option_of_the_simulated_survey_names_the_near_match():
    found = message(make_config("simulated", **{"data.rare_share_mn": 0.1}))
    assert found.startswith("option 'data.rare_share_mn' does not exist. Did you mean 'rare_share_min'?")


def test_option_of_the_simulated_survey_is_none_of_a_catalog():
    assert message(make_config(**{"data.n_galaxies": 5})).startswith("option 'data.n_galaxies' does not exist. ")


@pytest.mark.parametrize("option", ["data.catalog", "data.batch_size", "optim.lr", "data", "schema", "seed"])
def test_missing_option_is_named(option):
    assert message(remove(make_config(), option)) == f"option '{option}' is missing. Give {option}=<value>."


def test_option_that_the_configuration_leaves_to_the_user_counts_as_missing():
    assert read_choice("data", "catalog")["catalog"] == "???"
    found = message(make_config(**{"data.catalog": "???"}))
    assert found == "option 'data.catalog' is missing. Give data.catalog=<value>."


def test_unknown_kind_of_data_names_the_near_match_without_the_whole_group():
    found = message(make_config(**{"data.kind": "catalogue"}))
    assert found == "data.kind='catalogue': Did you mean 'catalog'? Allowed: catalog, simulated, shards, hdf5."


def test_missing_kind_of_data_is_named():
    assert message(remove(make_config(), "data.kind")) == "option 'data.kind' is missing. Give data.kind=<value>."


def test_one_value_in_the_place_of_the_data_is_refused():
    assert message(make_config(data="catalog")).startswith("data='catalog': ")


def test_all_faults_are_told_at_once():
    config = make_config(**{"data.crop": 2, "optim.lr": -1, "seed": -5, "augment.turn": 1})
    found = message(remove(config, "bottleneck.dim"))
    assert sorted(line.split(":")[0].split(" does")[0] for line in found.splitlines()) == [
        "data.crop=2",
        "optim.lr=-1",
        "option 'augment.turn'",
        "option 'bottleneck.dim' is missing. Give bottleneck.dim=<value>.",
        "seed=-5",
    ]


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (0.9, 0.2)])
def test_shares_that_leave_nothing_to_train_on_are_refused(validation, test):
    found = message(make_config(**{"data.validation_share": validation, "data.test_share": test}))
    assert f"data: validation_share={validation} and test_share={test} leave no galaxies to train on" in found


def test_parts_of_the_configuration_that_a_command_does_not_have_are_left_alone():
    config = make_config() | {"layout": {"n_neighbors": "none of train.py's business"}}
    validated(TrainSettings, config, "train.py")


def test_override_that_the_command_does_not_read_is_noted(capsys):
    overrides = ["layout.n_neighbors=5", "data.crop=0.5", "+trainer.max_steps=3", "experiment=demo", "schema=desi"]
    validated(TrainSettings, make_config(), "train.py", overrides)
    notes = capsys.readouterr().err.splitlines()
    assert notes == ["note: train.py does not use layout.n_neighbors"]


def test_name_may_be_a_number():
    assert validated(TrainSettings, make_config(name=2026), "train.py").name == "2026"


def test_settings_do_not_change():
    settings = validated(TrainSettings, make_config(), "train.py")
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 4


def decisive(model, kind="catalog", **changes) -> dict:
    return validated(model, make_config(kind, **changes), "train.py").decisive()


@pytest.mark.parametrize("model", [TrainSettings, EmbedSettings])
@pytest.mark.parametrize("kind", ["catalog", "simulated"])
def test_decisive_settings_are_json_and_come_from_the_files_alone(model, kind):
    found = decisive(model, kind)
    assert json.loads(json.dumps(found)) == found
    assert found == decisive(model, kind)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("name", "other"),
        ("overwrite", True),
        ("logger.mode", "offline"),
        ("logger.project", "other"),
        ("data.workers", 3),
        ("data.max_failed_share", 0.5),
        ("data.truth", "truth.parquet"),
    ],
)
@pytest.mark.parametrize("model", [TrainSettings, EmbedSettings])
def test_what_decides_nothing_is_no_part_of_the_decisive_settings(model, option, value):
    assert decisive(model, **{option: value}) == decisive(model)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", 1),
        ("data.batch_size", 3),
        ("data.crop", 0.5),
        ("data.validation_share", 0.2),
        ("data.fractional_votes", True),
        ("backbone.name", "resnet18"),
        ("bottleneck.dim", 3),
        ("augment.zoom", [1.0, 2.0]),
        ("optim.lr", 0.5),
        ("optim.patience", None),
        ("trainer.max_epochs", 7),
        ("schema.smooth.answers", ["no", "yes"]),
    ],
)
def test_what_decides_the_model_is_part_of_the_decisive_settings_of_training(option, value):
    assert decisive(TrainSettings, **{option: value}) != decisive(TrainSettings)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", 1),
        ("checkpoint", "elsewhere.ckpt"),
        ("embedding.batch_size", 3),
        ("embedding.device", "cpu"),
        ("embedding.compile", True),
        ("trainer.devices", 4),
        ("data.batch_size", 3),
        ("data.image_size", 32),
        ("data.crop", 0.5),
        ("data.channels", 1),
        ("data.validation_share", 0.2),
        ("data.test_share", 0.2),
        ("data.on_bad_votes", "drop"),
        ("data.fractional_votes", True),
    ],
)
def test_what_the_checkpoint_or_the_input_says_is_no_part_of_the_decisive_settings_of_embedding(option, value):
    assert decisive(EmbedSettings, **{option: value}) == decisive(EmbedSettings)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("embedding.dtype", "float16"),
        ("embedding.precision", "bfloat16"),
        ("embedding.rotations", 4),
        ("embedding.features", True),
        ("output", "elsewhere.h5"),
        ("data.catalog", "other.csv"),
        ("data.image_root", "images"),
    ],
)
def test_what_decides_the_embeddings_is_part_of_their_decisive_settings(option, value):
    assert decisive(EmbedSettings, **{option: value}) != decisive(EmbedSettings)


def test_simulated_data_keep_the_options_of_their_kind():
    assert isinstance(validated(TrainSettings, make_config("simulated"), "train.py").data, SimulatedData)


@pytest.mark.parametrize("devices", [1, 4, -1, "auto", [0, 2]])
def test_devices_are_named_as_lightning_names_them(devices):
    config = make_config()
    config["trainer"]["devices"] = devices
    validated(TrainSettings, config, "train.py")


@pytest.mark.parametrize(
    ("option", "value"), [("devices", 0), ("devices", "two"), ("devices", []), ("devices", True), ("num_nodes", "auto")]
)
def test_number_of_devices_or_nodes_that_is_none_is_refused(option, value):
    config = make_config()
    config["trainer"][option] = value
    assert f"{option}={value!r}: give " in message(config)


def test_holding_an_encoder_of_random_weights_is_refused():
    config = make_config(**{"retrain.n_blocks": 0, "backbone.weights": None})
    assert "give backbone.weights, or retrain=all" in message(config)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_weights_in_other_precision_than_the_images_are_refused(precision):
    config = make_config()
    config["trainer"]["precision"] = precision
    assert f"precision={precision}: images and weights are float32. Give bf16-mixed" in message(config)


def test_batches_of_one_image_are_refused_for_training_alone():
    config = make_config(**{"data.batch_size": 1})
    assert "batch_size=1: batch normalisation needs at least 2 images" in message(config)
    validated(EmbedSettings, config, "embed.py")


def test_seed_decides_the_embedding_only_where_dropout_draws_from_it():
    passes = {"embedding.dropout_passes": 5}
    assert decisive(EmbedSettings, seed=1) == decisive(EmbedSettings)
    assert decisive(EmbedSettings, seed=1, **passes) != decisive(EmbedSettings, **passes)


def test_one_checkpoint_or_several_are_checkpoints():
    one, several = (
        validated(EmbedSettings, make_config(checkpoint=given), "embed.py").checkpoints
        for given in ("a.ckpt", ["a.ckpt", "b.ckpt"])
    )
    assert [path.name for path in one] == ["a.ckpt"]
    assert [path.name for path in several] == ["a.ckpt", "b.ckpt"]
    with pytest.raises(UserError, match="checkpoint"):
        validated(EmbedSettings, make_config(checkpoint=[]), "embed.py")
