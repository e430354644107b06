import numpy as np
import pytest
import torch
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from rarezoo.cli import UserError
from rarezoo.models.classifier import Classifier, ClassifierSpec
from rarezoo.similarity import classifiers
from rarezoo.similarity.classifiers import compare_classifiers, layers_of

NORMAL = {"mean": [0.5] * 3, "std": [0.25] * 3}
CPU = torch.device("cpu")
# torchvision's network overwrites the outputs of other layers in place.
KNOWN = {
    "conv1": "conv1",
    "layer2.0.downsample.0": "layer2.0.downsample.0",
    "layer3.0.conv1": "layer3.0.conv1",
    "layer4.1.act2": "layer4",
    "fc": "fc",
}


def make(seed, **options):
    torch.manual_seed(seed)
    return Classifier(ClassifierSpec(10, **NORMAL, **options)).eval()


def draw(n, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8)


@pytest.fixture(scope="module")
def models():
    return {"one": make(0), "other": make(1)}


def hsic(K, L):
    """Nguyen et al. (2021), eq. 3."""
    n = len(K)
    K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    inner = np.trace(K @ L) + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K @ L).sum()
    return inner / (n * (n - 3))


def grams_of(model, images):
    """Gram matrices of known layers, from torchvision's network with the same weights."""
    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.load_state_dict(model.network.state_dict())
    extract = create_feature_extractor(theirs.eval().double(), {theirs: ours for ours, theirs in KNOWN.items()})
    with torch.no_grad():
        found = extract((torch.from_numpy(images).double() / 255 - 0.5) / 0.25)
    flat = {name: values.flatten(1).numpy() for name, values in found.items()}
    return {name: values @ values.T for name, values in flat.items()}


def test_every_convolution_normalisation_activation_pooling_and_linear_layer_is_compared(models):
    network = models["one"].network
    kinds = ("Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "AdaptiveAvgPool2d", "FastAdaptiveAvgPool", "Linear")
    expected = {name for name, layer in network.named_modules() if type(layer).__name__ in kinds}
    layers, _ = compare_classifiers(models, [("one", "one")], draw(8), 8, CPU)
    assert set(layers) == set(layers_of(models["one"])) == expected
    assert len(layers) == 60
    assert layers[:4] == ["conv1", "bn1", "act1", "maxpool"]
    # In the order of execution, where that of the definition is another.
    last_of_block = ["conv2", "bn2", "downsample.0", "downsample.1", "act2"]
    assert layers[-13:-8] == [f"layer4.0.{name}" for name in last_of_block]
    assert layers[-2:] == ["global_pool.pool", "fc"]


def test_cka_is_the_ratio_of_mean_hsic_over_the_batches(models):
    images = draw(21)
    layers, (found,) = compare_classifiers(models, [("one", "other")], images, 8, CPU)
    batches = np.array_split(np.random.default_rng(0).permutation(21), 3)
    grams = [[grams_of(models[name], images[rows]) for rows in batches] for name in ("one", "other")]
    for a in KNOWN:
        for b in KNOWN:
            cross, own_a, own_b = (
                np.mean([hsic(x[p], y[q]) for x, y in zip(grams[i], grams[j], strict=True)])
                for i, j, p, q in ((0, 1, a, b), (0, 0, a, a), (1, 1, b, b))
            )
            expected = cross / np.sqrt(own_a * own_b)
            assert found[layers.index(a), layers.index(b)] == pytest.approx(expected, abs=1e-4), (a, b)


def test_pairs_are_compared_in_the_direction_that_is_asked_for(models):
    pairs = [("one", "one"), ("one", "other"), ("other", "one")]
    _, (itself, there, back) = compare_classifiers(models, pairs, draw(16), 8, CPU)
    np.testing.assert_allclose(np.diagonal(itself), 1, rtol=1e-9)
    np.testing.assert_allclose(itself, itself.T, rtol=1e-9)
    np.testing.assert_allclose(there, back.T, rtol=1e-9)
    assert np.abs(there - there.T).max() > 0.01


def test_dead_layers_have_no_cka_and_all_others_do():
    model = make(0)
    with torch.no_grad():
        model.network.layer3[0].bn1.weight.zero_()
        model.network.layer3[0].bn1.bias.fill_(-1.0)
    layers, (found,) = compare_classifiers({"dead": model}, [("dead", "dead")], draw(12), 8, CPU)
    dead = np.array([name in {f"layer3.0.{each}" for each in ("bn1", "act1", "conv2", "bn2")} for name in layers])
    assert np.isnan(found[dead]).all()
    assert np.isnan(found[:, dead]).all()
    assert np.isfinite(found[~dead][:, ~dead]).all()


def test_batches_are_alike_in_size_and_mix_what_the_file_sorts(models, monkeypatch):
    seen = []
    images = draw(41) // 3
    images[20:] += 150
    capture = classifiers.capture

    def watched(model, batch, *options):
        seen.append((batch.float().mean((1, 2, 3)) > 120).tolist())
        return capture(model, batch, *options)

    monkeypatch.setattr(classifiers, "capture", watched)
    compare_classifiers({"one": models["one"]}, [("one", "one")], images, 10, CPU)
    assert [len(batch) for batch in seen] == [9, 8, 8, 8, 8]
    assert sum(map(sum, seen)) == 21
    assert all(0 < sum(batch) < len(batch) for batch in seen)


def test_no_batch_is_too_small(models):
    for n in (4, 9, 17):
        _, (found,) = compare_classifiers({"one": models["one"]}, [("one", "one")], draw(n), 8, CPU)
        assert np.isfinite(found).all()
    with pytest.raises(UserError, match="3 test images"):
        compare_classifiers(models, [("one", "one")], draw(3), 8, CPU)


def test_small_stem_has_no_pooling_to_compare():
    layers, _ = compare_classifiers({"small": make(0, stem="small")}, [("small", "small")], draw(8), 8, CPU)
    assert "maxpool" not in layers
    assert len(layers) == 59
