import copy

import pytest
import timm
import torch
import torchvision
from torch import nn

from rarezoo.cli import UserError
from rarezoo.similarity import averaged, capture, flattened


@pytest.fixture(scope="module")
def resnet():
    """torchvision's ResNet18, whose ReLUs work in place and are used several times each."""
    torch.manual_seed(0)
    return torchvision.models.resnet18().eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class Several(nn.Module):
    """Layers whose output is not a map: a tuple, a dict, rows of windows, a vector, whole numbers."""

    class Giving(nn.Module):
        def __init__(self, give):
            super().__init__()
            self.give = give

        def forward(self, images):
            return self.give(images)

    def __init__(self):
        super().__init__()
        self.pair = self.Giving(lambda x: (2 * x, None))
        self.named = self.Giving(lambda x: {"x": x})
        self.windows = self.Giving(lambda x: x.reshape(2 * len(x), -1))
        self.vector = self.Giving(lambda x: x.sum((1, 2, 3)))
        self.places = self.Giving(lambda x: x.flatten(1).argsort(1))
        self.drop = nn.Dropout()
        self.same = nn.Identity()

    def forward(self, images):
        for layer in self.children():
            layer(images)
        return images


def hooks_of(model):
    return [name for name, module in model.named_modules() if module._forward_hooks]


def by_hand(model, images):
    """Layers of the first block of ResNet18, by operations none of which works in place."""
    stem = model.maxpool(torch.relu(model.bn1(model.conv1(images))))
    block = model.layer1[0]
    first = torch.relu(block.bn1(block.conv1(stem)))
    second = block.bn2(block.conv2(first))
    return {"layer1.0.relu#1": first, "layer1.0.bn2": second, "layer1.0": torch.relu(second + stem)}


def test_layer_is_captured_before_the_next_one_overwrites_it(resnet, images):
    found = capture(resnet, images).layers
    with torch.no_grad():
        expected = by_hand(resnet, images)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.flatten(1))
    assert float(found["layer1.0.bn2"].min()) < 0 <= float(found["layer1.0"].min())
    overwritten = {}
    hook = resnet.layer1[0].bn2.register_forward_hook(lambda module, given, output: overwritten.update(bn2=output))
    with torch.no_grad():
        resnet(images)
    hook.remove()
    # So a hook that keeps what it is given finds the end of the block under the name of an earlier layer.
    torch.testing.assert_close(overwritten["bn2"].flatten(1), found["layer1.0"])


def test_layers_are_in_the_order_of_execution(resnet, images):
    names = list(capture(resnet, images).layers)
    assert names[:5] == ["conv1", "bn1", "relu", "maxpool", "layer1.0.conv1"]
    assert names.index("layer1.0.conv1") < names.index("layer1.0") < names.index("layer1.1.conv1")
    assert names.index("layer1.1") < names.index("layer1") < names.index("layer2.0.conv1")
    assert names[-2:] == ["avgpool", "fc"]


def test_layer_that_is_used_several_times_has_an_entry_for_each(resnet, images):
    found = capture(resnet, images, ["layer1.0.relu", "layer1.0.conv*"]).layers
    assert list(found) == ["layer1.0.conv1", "layer1.0.relu#1", "layer1.0.conv2", "layer1.0.relu#2"]
    assert not torch.equal(found["layer1.0.relu#1"], found["layer1.0.relu#2"])


def test_layer_with_two_names_has_one_entry_for_each_use():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), layer).eval()
    assert list(capture(model, torch.rand(4, 3)).layers) == ["0#1", "1", "0#2"]


@pytest.mark.parametrize("fault", ["none", "in the network", "in what is kept", "in a pattern", "in the last layer"])
def test_no_hook_is_left_behind(resnet, images, fault):
    def refuse(value):
        raise ZeroDivisionError

    if fault == "none":
        capture(resnet, images)
    elif fault == "in the network":
        with pytest.raises(RuntimeError):
            capture(resnet, images[:, :2])
    elif fault == "in what is kept":
        with pytest.raises(ZeroDivisionError):
            capture(resnet, images, keep=refuse)
    elif fault == "in a pattern":
        with pytest.raises(UserError):
            capture(resnet, images, ["conv1", "none of these"])
    else:
        handle = resnet.fc.register_forward_pre_hook(lambda module, given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            capture(resnet, images)
        handle.remove()
    assert hooks_of(resnet) == []


def test_what_is_captured_has_no_graph_and_can_be_copied(resnet, images):
    found = capture(resnet, images.clone().requires_grad_()).layers
    assert not any(value.requires_grad or value.grad_fn for value in found.values())
    copy.deepcopy(found)
    assert torch.is_grad_enabled()


def test_network_gives_the_same_after_as_before(resnet, images):
    with torch.no_grad():
        before = resnet(images)
        found = capture(resnet, images).layers["fc"]
        assert torch.equal(resnet(images), before)
    assert torch.equal(found, before)


def test_network_in_training_mode_is_refused(images):
    model = torchvision.models.resnet18().eval()
    model.layer1[0].bn1.train()
    with pytest.raises(RuntimeError, match=r"layer1\.0\.bn1 is in training mode: call eval\(\) first"):
        capture(model, images)


def test_output_without_one_row_per_image_is_left_out_and_named(images):
    found = capture(Several().eval(), images)
    assert list(found.layers) == ["pair"]
    torch.testing.assert_close(found.layers["pair"], 2 * images.flatten(1))
    assert found.left_out == ("named", "windows", "vector", "places")
    with pytest.raises(UserError, match="none of these gives one row per image"):
        capture(Several().eval(), images, ["windows", "vector"])


@pytest.mark.parametrize("pattern", ["drop", "layr1"])
def test_pattern_that_matches_nothing_is_named_with_what_is_near(resnet, images, pattern):
    model = Several().eval() if pattern == "drop" else resnet
    with pytest.raises(UserError, match=f"has no layer '{pattern}'") as caught:
        capture(model, images, ["*", pattern])
    if pattern == "layr1":
        assert "Did you mean 'layer1'?" in str(caught.value)


def test_patterns_choose_layers_as_the_shell_does(resnet, images):
    names = list(capture(resnet, images, ["layer[12].?", "fc"]).layers)
    assert names == ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"]


def test_mean_over_positions_is_of_maps_and_of_tokens():
    maps, tokens, rows = torch.rand(4, 3, 5, 6), torch.rand(4, 7, 3), torch.rand(4, 3)
    torch.testing.assert_close(averaged(maps), maps.mean((2, 3)))
    torch.testing.assert_close(averaged(tokens), tokens.mean(1))
    assert torch.equal(averaged(rows), rows)
    for reduce in (averaged, flattened):
        assert reduce(rows).data_ptr() != rows.data_ptr()


def test_transformer_gives_its_tokens():
    model = timm.create_model("test_vit", num_classes=0, img_size=32).eval()
    found = capture(model, torch.rand(4, 3, 32, 32))
    assert found.left_out == ()
    n_tokens = 1 + model.patch_embed.num_patches
    assert found.layers["blocks.0"].shape == (4, n_tokens * model.num_features)
    assert list(found.layers).index("blocks.0.attn.proj") < list(found.layers).index("blocks.0.attn")
