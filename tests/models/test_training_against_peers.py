"""Where other programs that train on Galaxy Zoo votes go wrong, or differ from ours (docs/compared_with_zoobot.md)."""

import ast
import math
import os
import pickle
import pty
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from scipy.stats import dirichlet_multinomial
from small_training import SCHEMA, make_survey, prepare, train
from torch import nn

from rarezoo.data import augment
from rarezoo.models.backbones import create_backbone
from rarezoo.models.pretrained import load_weights
from rarezoo.models.scores import VoteScores
from rarezoo.models.vote_model import ScaledSigmoid
from rarezoo.votes import Schema, load_schema, vote_nll

REPO = Path(__file__).parents[2]
SOURCES = sorted([*(REPO / "src").rglob("*.py"), *REPO.glob("*.py")])
# Without anything random, so that a step can be computed again.
PLAIN = {
    **{f"augment__{name}": False for name in ("rotate", "flip")},
    **{"augment__zoom": [1.0, 1.0], "augment__shift": 0.0, "augment__brightness": 0.0},
    **{"head__dropout": 0.0, "backbone__drop_path_rate": 0.0},
}


pytestmark = pytest.mark.filterwarnings("ignore:The `srun` command is available")


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    return make_survey(tmp_path_factory.mktemp("survey"))


def test_loss_of_a_step_is_the_mean_over_galaxies_of_the_sum_over_questions(survey):
    training, data = prepare(survey, **PLAIN)
    training.log = lambda *arguments, **options: None
    batch = next(iter(data.train_dataloader()))
    training.train()
    loss = float(training.training_step(batch, 0).detach())
    concentrations = training.model(batch["image"] / 255).detach().double().numpy()
    counts = batch["counts"].numpy().astype(int)
    expected = [
        sum(
            -dirichlet_multinomial.logpmf(
                votes[q.start : q.stop], alpha[q.start : q.stop], votes[q.start : q.stop].sum()
            )
            for q in SCHEMA.questions
        )
        for alpha, votes in zip(concentrations, counts, strict=True)
    ]
    assert (counts.reshape(-1, 2, 2).sum(2) == 0).any()
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)


def zoobots_way(concentrations, counts, schema):
    """The same likelihood term by term, in whatever precision the concentrations come."""

    def log_ways(n, a):
        return torch.lgamma(n + 1) + torch.lgamma(a) - torch.lgamma(a + n)

    member = schema.membership.to(concentrations)
    counts = counts.to(concentrations)
    return log_ways(counts, concentrations) @ member - log_ways(counts @ member, concentrations @ member)


def test_loss_under_bfloat16_autocast_errs_by_a_fraction_of_a_nat_and_not_by_several():
    schema = load_schema("decals_dr5")
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(128, len(schema.label_cols)), ScaledSigmoid())
    representation = 2 * torch.randn(64, 128)
    counts = torch.randint(0, 40, (64, len(schema.label_cols))).float()
    with torch.no_grad():
        exact = vote_nll(head(representation), counts, schema).sum(1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        concentrations = head(representation)
        found = vote_nll(concentrations, counts, schema).sum(1)
        careless = zoobots_way(concentrations.bfloat16(), counts, schema).sum(1)
    assert found.dtype == torch.float32
    assert float((found - exact).abs().mean()) < 0.2
    assert float((careless - exact).abs().mean()) > 5
    assert 50 < float(exact.mean()) < 500


def test_votes_that_cost_nothing_count_as_asked():
    schema = Schema.from_tree(
        {"shape": {"answers": ["yes", "no"]}, "any": {"answers": ["it"]}, "odd": {"answers": ["x"]}}
    )
    counts = torch.tensor([[3.0, 1.0, 5.0, 0.0], [2.0, 2.0, 0.0, 0.0]])
    concentrations = torch.full((2, 4), 2.0)
    scores = VoteScores(schema)
    scores.update(vote_nll(concentrations, counts, schema), concentrations, counts)
    per_question = scores.result().per_question
    assert per_question[1] == pytest.approx(0, abs=1e-6)
    assert math.isnan(per_question[2])


class Rates(lightning.Callback):
    """Learning rate of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.found.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("accumulated", [1, 2])
def test_learning_rate_changes_with_every_step_of_the_optimiser_and_ends_near_zero(accumulated, survey, tmp_path):
    rates = Rates()
    options = {"accumulate_grad_batches": accumulated}
    train(survey, tmp_path, extra=[rates], max_epochs=3, batch_size=5, optim__warmup_share=0.0, options=options)
    n_steps = len(rates.found) // accumulated
    assert n_steps == (12 if accumulated == 1 else 6)
    # The first step of all is that of the warm-up, which is never shorter.
    falling = 0.5 * (1 + np.cos(np.pi * np.arange(n_steps - 1) / (n_steps - 1)))
    assert rates.found[::accumulated] == pytest.approx([0.01, *0.01 * falling])


def test_views_are_made_at_the_models_size_and_at_random_in_training_alone(survey, tmp_path, monkeypatch):
    made = {True: [], False: []}
    affine_view = augment.affine_view

    def spy(images, angle, flip, zoom, shift):
        made[torch.is_grad_enabled()].append((tuple(images.shape[1:]), angle, zoom))
        return affine_view(images, angle, flip, zoom, shift)

    monkeypatch.setattr(augment, "affine_view", spy)
    training, _ = prepare(survey, data__image_size=24)
    made[True].clear()
    made[False].clear()
    train(survey, tmp_path, max_epochs=1, data__image_size=24)
    assert training.model.spec.image_size == 24
    for views in made.values():
        assert {shape for shape, _, _ in views} == {(3, 24, 24)}
    angles = {learning: torch.cat([angle for _, angle, _ in views]) for learning, views in made.items()}
    zooms = {learning: torch.cat([zoom for _, _, zoom in views]) for learning, views in made.items()}
    assert len(angles[True].unique()) == len(angles[True]) > 8
    assert angles[False].unique().tolist() == [0]
    assert zooms[False].unique().tolist() == pytest.approx([1.2])
    assert zooms[True].min() < 1.15
    assert zooms[True].max() > 1.25


def test_dataset_travels_to_a_spawned_worker(survey):
    _, data = prepare(survey)
    loader = data.train_dataloader()
    # What multiprocessing sends to a process that is not forked.
    dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
    ours, theirs = (
        make([images[0], images[3]])
        for make, images in ((data.train_dataloader().collate_fn, loader.dataset), (collate, dataset))
    )
    assert torch.equal(ours["image"], theirs["image"])
    assert torch.equal(ours["counts"], theirs["counts"])
    assert ours["row"].tolist() == theirs["row"].tolist() == data.rows("train")[[0, 3]].tolist()


def nodes(kind):
    return [
        (path.name, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kind)
    ]


def test_no_default_of_a_function_can_be_changed_by_a_call():
    functions = nodes((ast.FunctionDef, ast.Lambda))
    assert len(functions) > 300
    for name, function in functions:
        defaults = [*function.args.defaults, *(value for value in function.args.kw_defaults if value)]
        changeable = [value for value in defaults if isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp)]
        assert not changeable, (name, function.lineno)


def test_no_fault_of_the_user_is_met_by_an_assertion():
    # Those that there are tell the type checker what the lines before have made sure of.
    for name, found in nodes(ast.Assert):
        condition = ast.unparse(found.test)
        assert condition.startswith("isinstance(") or condition.endswith(" is not None"), (name, condition)
        assert found.msg is None


def save_as_lightning_does(model: lightning.LightningModule, path: Path) -> Path:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path, weights_only=False)
    return path


@pytest.mark.parametrize("kind", ["tree", "finetuned", "compiled"])
def test_checkpoint_that_zoobot_itself_writes_gives_its_encoder(kind, tmp_path):
    reason = "zoobot is not installed (pip install --no-deps zoobot galaxy-datasets)"
    models = pytest.importorskip("zoobot.pytorch.estimators.define_model", reason=reason)
    finetune = pytest.importorskip("zoobot.pytorch.training.finetune", reason=reason)
    schema = pytest.importorskip("zoobot.shared.schemas", reason=reason).decals_dr5_ortho_schema
    model = models.ZoobotTree(
        output_dim=34,
        question_answer_pairs=schema.question_answer_pairs,
        dependencies=schema.dependencies,
        architecture_name="test_efficientnet",
    )
    encoder = model.encoder.eval()
    if kind == "compiled":
        model.encoder = torch.compile(encoder)
    path = save_as_lightning_does(model, tmp_path / "tree.ckpt")
    if kind == "finetuned":
        finetuned = finetune.FinetuneableZoobotClassifier(num_classes=2, zoobot_checkpoint_loc=str(path))
        path = save_as_lightning_does(finetuned, tmp_path / "finetuned.ckpt")
    backbone = create_backbone("test_efficientnet")
    loaded = load_weights(backbone, str(path), "test_efficientnet")
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(backbone.eval()(images), encoder(images))
    assert loaded.origin == "Zoobot checkpoint"


ONLINE = """
from pathlib import Path
from rarezoo.report.wandb import tracked_run
with tracked_run("online", "rarezoo", folder=Path("run")) as run:
    print("mode is", run.mode)
"""


def test_tracking_online_without_a_key_asks_nothing_on_a_terminal(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9"}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ONLINE]
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, **streams) as process:
        try:
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    said = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert " ".join(said.split()).count("could not start online") == 1
    assert said.strip().splitlines()[-1] == "mode is offline"
