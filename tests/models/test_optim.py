import numpy as np
import pytest
import timm
import torch
from torch import nn

from rarezoo.cli import UserError
from rarezoo.models.optim import adamw, freeze_all_but_last, warmup_cosine

# Blocks of each, first to last, as prefixes of the names of their weights.
BLOCKS = {
    "test_resnet": [("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",)],
    "test_efficientnet": [
        ("conv_stem.", "bn1."),
        *((f"blocks.{index}.",) for index in range(4)),
        ("blocks.4.", "conv_head.", "bn2."),
    ],
}


def encoder(name="test_resnet") -> nn.Module:
    return timm.create_model(name, num_classes=0)


def head_of(model: nn.Module) -> nn.Module:
    return nn.Linear(model.num_features, 3)


def test_biases_and_norms_do_not_decay():
    model = timm.create_model("test_resnet", num_classes=3)
    optimizer = adamw(model, nn.Sequential(), lr=1e-3, weight_decay=0.05)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            decaying = isinstance(module, nn.Conv2d | nn.Linear) and kind == "weight"
            assert decays[id(parameter)] == (0.05 if decaying else 0.0), f"{name}.{kind}"


def rates(model: nn.Module, rest: nn.Module, **options) -> dict[int, float]:
    optimizer = adamw(model, rest, lr=1e-3, weight_decay=0.05, **options)
    return {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}


@pytest.mark.parametrize("name", BLOCKS)
def test_learning_rate_falls_by_a_factor_from_each_block_to_the_one_before(name):
    model = encoder(name)
    rest = head_of(model)
    found = rates(model, rest, layer_decay=0.5)
    assert {found[id(weight)] for weight in rest.parameters()} == {1e-3}
    for depth, block in enumerate(reversed(BLOCKS[name])):
        of_block = [found[id(weight)] for path, weight in model.named_parameters() if path.startswith(block)]
        assert of_block == pytest.approx([1e-3 * 0.5 ** (depth + 1)] * len(of_block))


def test_every_weight_is_trained_once_and_alike_without_layer_decay():
    model = encoder()
    rest = head_of(model)
    found = rates(model, rest)
    assert found == {id(weight): 1e-3 for weight in (*model.parameters(), *rest.parameters())}


def test_positions_of_a_transformer_do_not_decay():
    model = timm.create_model("test_vit", num_classes=0)
    optimizer = adamw(model, head_of(model), lr=1e-3, weight_decay=0.05)
    decays = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert model.pos_embed.ndim == 3
    assert decays[id(model.pos_embed)] == 0.0


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("n_blocks", [0, 1, 2])
def test_only_the_last_blocks_learn(name, n_blocks):
    model = encoder(name)
    freeze_all_but_last(model, n_blocks)
    learning = tuple(prefix for block in BLOCKS[name][len(BLOCKS[name]) - n_blocks :] for prefix in block)
    for path, weight in model.named_parameters():
        assert weight.requires_grad == path.startswith(learning), path


@pytest.mark.parametrize("n_blocks", [0, 1])
def test_what_is_held_stays_as_it_is_in_training(n_blocks):
    model = timm.create_model("test_efficientnet", num_classes=0, drop_path_rate=0.5)
    freeze_all_but_last(model, n_blocks)
    rest = head_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = adamw(model, rest, lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        rest(model(torch.rand(4, 3, 64, 64))).square().sum().backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert bool(changed) == (n_blocks > 0)
    assert all(name.startswith(BLOCKS["test_efficientnet"][-1]) for name in changed)


def test_held_encoder_sees_the_same_image_alike_every_time():
    model = timm.create_model("test_efficientnet", num_classes=0, drop_path_rate=0.9)
    freeze_all_but_last(model, 0)
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model(images), model(images))


def test_more_blocks_than_there_are_are_refused():
    with pytest.raises(UserError, match=r"retrain\.n_blocks=9: the encoder has 5 blocks"):
        freeze_all_but_last(encoder(), 9)


def learning_rates(n_steps: int, warmup_share: float, lr: float = 2.0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = warmup_cosine(optimizer, n_steps, warmup_share)
    rates = []
    for _ in range(n_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_learning_rate_rises_linearly_then_falls_as_half_a_cosine():
    rates = learning_rates(100, 0.2)
    assert rates[:20] == pytest.approx(np.arange(1, 21) / 20 * 2.0)
    assert rates[20] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.0)
    assert rates[80] == pytest.approx(2.0 * np.sin(np.pi / 8) ** 2)
    assert rates[100] == 0.0


@pytest.mark.parametrize(("n_steps", "share"), [(1, 0.0), (1, 0.5), (2, 0.9), (7, 0.99), (10, 0.0)])
def test_learning_rate_of_a_short_run_is_above_zero_at_every_step(n_steps, share):
    rates = learning_rates(n_steps, share)
    assert all(0 < rate <= 2.0 for rate in rates[:n_steps])
    assert max(rates) == 2.0
