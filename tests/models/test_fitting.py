import shutil
from pathlib import Path

import pytest
import torch
from small_training import make_survey, make_trainer, prepare, train, weights

from rarezoo.cli import UserError
from rarezoo.models.checkpoints import load_vote_model
from rarezoo.models.fitting import find_batch_size, search_batch_size

pytestmark = [pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")]


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    return make_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def pretrained(survey, tmp_path_factory) -> Path:
    """A state dict of the encoder, as backbone.weights takes it."""
    training, _ = prepare(survey)
    path = tmp_path_factory.mktemp("weights") / "encoder.pth"
    torch.save(training.model.backbone.state_dict(), path)
    return path


def test_retraining_the_head_leaves_the_encoder_as_it_was(survey, pretrained, tmp_path):
    train(survey, tmp_path, retrain__n_blocks=0, backbone__weights=str(pretrained))
    model = load_vote_model(tmp_path / "best.ckpt")
    for name, value in torch.load(pretrained, weights_only=True).items():
        assert torch.equal(model.backbone.state_dict()[name], value), name


def test_holding_an_encoder_that_has_learned_nothing_is_refused(survey):
    with pytest.raises(ValueError, match=r"backbone\.weights=null fills it with random numbers"):
        prepare(survey, retrain__n_blocks=0)


def test_compiled_encoder_leaves_a_checkpoint_like_any_other(survey, tmp_path, monkeypatch):
    # The graph is captured as for any backend; generating code for it takes a minute and is torch's own affair.
    compile_module = torch.nn.Module.compile
    used = []

    def eager(module, *arguments, **options):
        used.append(type(module).__name__)
        compile_module(module, *arguments, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", eager)
    options = {"optim__compile": True, "max_epochs": 1, "backbone__name": "test_resnet"}
    train(survey, tmp_path / "compiled", **options)
    train(survey, tmp_path / "plain", **{**options, "optim__compile": False})
    ours, theirs = weights(tmp_path / "compiled" / "best.ckpt"), weights(tmp_path / "plain" / "best.ckpt")
    assert used == ["ResNet"]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4, msg=name)


def test_batch_size_is_doubled_until_memory_is_full(survey, tmp_path, monkeypatch):
    training, data = prepare(survey, batch_size=2)
    step, seen = type(training).training_step, []

    def limited(self, batch, batch_idx):
        seen.append(len(batch["image"]))
        if len(batch["image"]) > 9:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(type(training), "training_step", limited)
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    search_batch_size(make_trainer(tmp_path), training, data)
    assert data.batch_size == 8
    assert max(seen) > 9
    for name, value in training.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_batch_is_never_larger_than_the_training_split(survey, tmp_path):
    training, data = prepare(survey, batch_size=2)
    search_batch_size(make_trainer(tmp_path), training, data)
    assert data.batch_size <= len(data.rows("train"))


def test_batch_size_is_not_searched_on_a_cpu(survey, tmp_path):
    training, data = prepare(survey)
    with pytest.raises(UserError, match=r"optim\.find_batch_size=true: works on one GPU only"):
        find_batch_size(make_trainer(tmp_path), training, data)


def test_batch_size_that_was_found_is_that_of_the_resumed_run(survey):
    _, data = prepare(survey, batch_size=2)
    state = data.state_dict()
    _, other = prepare(survey, batch_size=4)
    other.load_state_dict(state)
    assert other.batch_size == 2


def test_run_without_a_last_epoch_is_refused_by_name(survey, tmp_path):
    with pytest.raises(UserError, match=r"trainer\.max_epochs=-1: the learning rate falls to zero by the last epoch"):
        train(survey, tmp_path, max_epochs=-1)


def test_batch_of_which_one_image_is_left_is_no_step(survey, tmp_path):
    _, data = prepare(survey)
    spoilt = tmp_path / "survey"
    shutil.copytree(survey, spoilt)
    for row in next(iter(data.train_dataloader()))["row"].tolist()[1:]:
        (spoilt / f"{row}.png").write_bytes(b"")
    _, trainer = train(spoilt, tmp_path, max_epochs=1, data__max_failed_share=0.9)
    assert trainer.global_step == trainer.num_training_batches
