import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import torchvision
from configs import read_choice
from torch import nn

from rarezoo.cli import UserError
from rarezoo.data.biased.datamodule import BiasedDataModule
from rarezoo.data.biased.kept import BiasedData, BiasedImages
from rarezoo.models.biased import Accuracies, biased_callbacks, fit_biased, make_biased_training
from rarezoo.models.biased_settings import BiasedSettings
from rarezoo.models.classifier import Classifier, ClassifierSpec, load_classifier
from rarezoo.models.fitting import fit

PAPER = {
    "stem": "standard",
    "dropout": 0.4,
    "dropout_at": "stages",
    "batch_size": 512,
    "lr": 1e-3,
    "weight_decay": 1e-5,
    "patience": 12,
    "watch": "loss",
}
NORMAL = {"mean": [0.5] * 3, "std": [0.25] * 3}


def images(n=4, size=32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def split(n, conflicting, seed):
    """Two classes: dark and bright halves, and a colour that goes with them but for some."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % 2
    attribute = target.copy()
    attribute[rng.permutation(n)[: round(conflicting * n)]] ^= 1
    pixels = rng.integers(0, 60, (n, 3, 8, 8))
    pixels[np.arange(n), attribute] += 150
    pixels[target == 1, :, :4] += 40
    return BiasedImages(pixels.astype(np.uint8), target, attribute)


@pytest.fixture
def data():
    splits = {"train": split(40, 0.1, 0), "validation": split(12, 0.1, 1), "test": split(21, 0.5, 2)}
    return BiasedData(splits, [0.3] * 3, [0.25] * 3, "0" * 64, "made")


def settings(objective="sce", seed=3, **classifier):
    return BiasedSettings.model_validate(
        {
            "name": "test",
            "seed": seed,
            "overwrite": False,
            "logger": read_choice("logger", "none"),
            "task": "biased",
            "bias": read_choice("bias", "digits"),
            "objective": read_choice("objective", objective),
            "classifier": PAPER | {"batch_size": 8, "patience": None} | classifier,
            "trainer": {},
            "save_every_minutes": 1000,
        }
    )


def prepare(data, folder, chosen, max_epochs=2, callbacks=()):
    module = BiasedDataModule(data, chosen.classifier.batch_size, chosen.seed)
    lightning.seed_everything(chosen.seed, verbose=False)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=[*biased_callbacks(folder, chosen), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )
    return trainer, make_biased_training(chosen, module), module


def train(data, folder, chosen, **options):
    trainer, training, module = prepare(data, folder, chosen, **options)
    return fit_biased(trainer, training, module, folder, resume=False)


def test_standard_network_is_torchvisions_resnet18_layer_by_layer():
    ours = Classifier(ClassifierSpec(7, **NORMAL, dropout=0.0)).eval()
    theirs = torchvision.models.resnet18(num_classes=7).eval()
    theirs.load_state_dict(ours.network.state_dict())
    given = images(2, 64)
    torch.testing.assert_close(ours(given), theirs((given / 255 - 0.5) / 0.25))


def test_small_stem_keeps_every_pixel_up_to_the_second_stage():
    seen = []
    for stem in ("standard", "small"):
        network = Classifier(ClassifierSpec(10, **NORMAL, stem=stem)).eval().network
        network.layer1.register_forward_hook(lambda module, given, found: seen.append(tuple(found.shape[1:])))
        network(torch.zeros(1, 3, 32, 32))
    assert seen == [(64, 8, 8), (64, 32, 32)]


def test_dropout_stands_after_every_stage_or_once_before_the_last_layer():
    stages, head = (Classifier(ClassifierSpec(10, **NORMAL, dropout_at=at)) for at in ("stages", "head"))
    drops = [name for name, module in stages.named_modules() if isinstance(module, nn.Dropout) and module.p]
    assert drops == [f"network.layer{stage}.2" for stage in (1, 2, 3, 4)]
    assert not [module for module in head.modules() if isinstance(module, nn.Dropout) and module.p]
    assert head.network.drop_rate == 0.4
    for model in (stages, head):
        model.train()
        given = images(8)
        torch.manual_seed(0)
        first = model(given)
        assert not torch.equal(first, model(given))
        model.eval()
        assert torch.equal(model(given), model(given))


def test_accuracies_are_the_shares_of_all_of_the_aligned_and_of_the_conflicting():
    rng = np.random.default_rng(0)
    target, attribute = torch.from_numpy(rng.integers(0, 3, 50)), torch.from_numpy(rng.integers(0, 3, 50))
    outputs = torch.from_numpy(rng.normal(size=(50, 3)))
    accuracies = Accuracies()
    for rows in (slice(0, 20), slice(20, 50), slice(50, 50)):
        accuracies.update(outputs[rows], {"target": target[rows], "attribute": attribute[rows], "image": target[rows]})
    right, aligned = (outputs.argmax(1) == target).numpy(), (target == attribute).numpy()
    assert accuracies.result() == pytest.approx(
        {
            "accuracy": right.mean(),
            "accuracy_aligned": right[aligned].mean(),
            "accuracy_conflicting": right[~aligned].mean(),
        }
    )


def test_optimiser_is_that_of_the_paper(data, tmp_path):
    _, training, _ = prepare(data, tmp_path, settings())
    optimizer = training.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 1e-5)
    assert len(group["params"]) == len(list(training.model.parameters()))


def test_summary_agrees_with_the_classifier_that_is_kept_and_nothing_else_is(data, tmp_path):
    summary = train(data, tmp_path, settings())
    model = load_classifier(tmp_path / "best.ckpt")
    test = data.splits["test"]
    with torch.no_grad():
        right = (model(torch.from_numpy(test.images)).argmax(1).numpy() == test.target).astype(float)
    aligned = test.target == test.attribute
    assert summary["test/accuracy"] == pytest.approx(right.mean())
    assert summary["test/accuracy_aligned"] == pytest.approx(right[aligned].mean())
    assert summary["test/accuracy_conflicting"] == pytest.approx(right[~aligned].mean())
    assert {name: summary[name] for name in ("bias", "objective", "origin", "epochs")} == {
        "bias": "digits",
        "objective": "sce",
        "origin": "made",
        "epochs": 2,
    }
    assert 1 <= summary["best_epoch"] <= 2
    json.dumps(summary)
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    # Without the state of Adam, which is twice the weights.
    n_values = sum(values.numel() for values in model.state_dict().values())
    assert (tmp_path / "best.ckpt").stat().st_size < 1.1 * 4 * n_values


def final_weights(data, folder, chosen, **options):
    summary = train(data, folder, chosen, **options)
    return summary, load_classifier(folder / "best.ckpt").state_dict()


def test_cross_entropy_and_likelihood_of_the_log_softmax_end_at_the_same_weights(data, tmp_path):
    first, weights = final_weights(data, tmp_path / "sce", settings("sce"), max_epochs=1)
    other, same = final_weights(data, tmp_path / "nll", settings("nll"), max_epochs=1)
    for name, values in weights.items():
        assert torch.equal(values, same[name]), name
    assert first | {"objective": "nll"} == other


def test_another_seed_or_objective_ends_at_other_weights(data, tmp_path):
    _, weights = final_weights(data, tmp_path / "sce", settings("sce"), max_epochs=1)
    for name, chosen in (("seed", settings("sce", seed=4)), ("l2", settings("l2"))):
        _, others = final_weights(data, tmp_path / name, chosen, max_epochs=1)
        assert not torch.equal(weights["network.fc.weight"], others["network.fc.weight"])


class BrokenOff(lightning.Callback):
    """Ends the run as Ctrl-C does, in the middle of the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            next(each for each in trainer.checkpoint_callbacks if hasattr(each, "_save"))._save(trainer)
            raise KeyboardInterrupt


def test_run_that_was_broken_off_within_an_epoch_goes_on_to_the_same_weights(data, tmp_path):
    chosen = settings("bce")
    summary, weights = final_weights(data, tmp_path / "whole", chosen)
    trainer, training, module = prepare(data, tmp_path / "broken", chosen, callbacks=[BrokenOff()])
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, training, module, tmp_path / "broken", resume=False)
    trainer, training, module = prepare(data, tmp_path / "broken", chosen)
    assert fit_biased(trainer, training, module, tmp_path / "broken", resume=True) == summary
    for name, values in load_classifier(tmp_path / "broken" / "best.ckpt").state_dict().items():
        assert torch.equal(values, weights[name]), name


@pytest.mark.parametrize(("watch", "watched"), [("loss", "validation/loss"), ("accuracy", "validation/error")])
def test_early_stopping_and_the_epoch_that_is_kept_watch_what_is_asked_for(watch, watched, tmp_path):
    monitors = [
        each.monitor
        for each in biased_callbacks(tmp_path, settings(watch=watch, patience=12))
        if hasattr(each, "monitor")
    ]
    assert monitors == [watched, watched]


def test_training_stops_after_as_many_epochs_without_improvement_as_patience_says(data, tmp_path):
    chosen = settings(watch="accuracy", lr=1e-9, patience=1)
    assert train(data, tmp_path, chosen, max_epochs=5)["epochs"] < 5


def test_loss_that_is_not_finite_ends_training_with_what_to_change(data, tmp_path):
    with pytest.raises(UserError, match=r"validation loss is (nan|inf) after epoch 1\. Lower classifier.lr=1e\+30"):
        train(data, tmp_path, settings("sos", lr=1e30))


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_file_that_is_no_classifier_is_refused(content, tmp_path):
    path = tmp_path / "best.ckpt"
    if content is None:
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.ckpt"):
        load_classifier(path)
    with pytest.raises(UserError, match="there is no such file"):
        load_classifier(tmp_path / "absent.ckpt")


def test_truncated_classifier_is_refused(data, tmp_path):
    train(data, tmp_path, settings(), max_epochs=1)
    path: Path = tmp_path / "best.ckpt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("option", "value"), [("batch_size", 1), ("dropout", 1.0), ("stem", "tiny"), ("patience", 0), ("watch", "test")]
)
def test_setting_that_cannot_be_used_is_refused(option, value):
    with pytest.raises(ValueError, match=option):
        settings(**{option: value})


def test_where_the_data_set_lies_does_not_decide_the_run_and_all_else_does():
    chosen = settings()
    moved = chosen.model_copy(update={"bias": chosen.bias.model_copy(update={"root": Path("elsewhere")})})
    assert moved.decisive() == chosen.decisive()
    assert settings("l2").decisive() != chosen.decisive()
    assert settings(stem="small").decisive() != chosen.decisive()
