import io
import json

import numpy as np
import pytest
import torch
from configs import read_choice
from PIL import Image

from rarezoo.cli import UserError
from rarezoo.data.biased.prepare import prepare_biased
from rarezoo.data.biased.settings import BiasSettings
from rarezoo.models.classifier import KEY, MODEL_PREFIX, Classifier, ClassifierSpec, classifier_header
from rarezoo.report.biased import OBJECTIVES, write_figures
from rarezoo.report.figures import to_png
from rarezoo.report.layer_maps import NO_SEED, LayerMaps, layer_maps_figure, over_seeds, reference_runs
from rarezoo.similarity.classifiers import compare_classifiers

LAYERS = ("conv1", "act1", "layer1.0.conv1", "layer1.1.act2", "layer2.0.conv1", "global_pool.pool", "fc")
CPU = torch.device("cpu")


def make(objectives, seeds, dead=()):
    """Maps of some runs; `dead` are pairs of a run and a layer."""
    rng = np.random.default_rng(0)
    itself, others = rng.uniform(0, 1, (2, len(seeds), len(LAYERS), len(LAYERS)))
    for run, layer in dead:
        itself[run, layer] = itself[run, :, layer] = others[run, :, layer] = np.nan
    references = reference_runs(objectives, seeds)
    numbers = tuple(NO_SEED if other is None else seeds[other] for other in references)
    others[[other is None for other in references]] = np.nan
    return LayerMaps("C-$MNIST", LAYERS, tuple(objectives), tuple(seeds), itself, numbers, others, 1234)


def panel(figure, title):
    (axes,) = [axes for axes in figure.axes if axes.get_title() == title]
    return axes


def shown(axes):
    return np.ma.filled(axes.images[0].get_array(), np.nan)


def test_runs_are_compared_with_sce_of_their_seed_and_sce_with_another_seed():
    objectives = ["sce", "l1", "sce", "l1", "sce", "bce"]
    seeds = [1, 1, 2, 2, 5, 7]
    assert reference_runs(objectives, seeds) == [2, 0, 4, 2, 0, None]
    assert reference_runs(["sce", "l1"], [3, 3]) == [None, 0]
    assert reference_runs(["l1"], [0]) == [None]


def test_mean_and_spread_are_over_the_seeds_that_have_a_value():
    maps = np.random.default_rng(0).uniform(0, 1, (3, 4, 4))
    maps[0, 1] = maps[:2, 2] = maps[:, 3] = np.nan
    mean, std = over_seeds(maps)
    np.testing.assert_allclose(mean[:3], np.nanmean(maps[:, :3], 0))
    np.testing.assert_allclose(std[:2], np.nanstd(maps[:, :2], 0, ddof=1))
    assert np.isnan(mean[3]).all()
    assert np.isnan(std[2:]).all()


def test_panels_show_the_means_with_the_first_layer_at_the_lower_left():
    found = make(["sce", "sce", "l1", "l1"], [0, 1, 0, 1])
    figure = layer_maps_figure(found, OBJECTIVES)
    for objective, rows in (("sce", slice(0, 2)), ("l1", slice(2, 4))):
        above = panel(figure, f"{objective}: {OBJECTIVES[objective]}")
        np.testing.assert_allclose(shown(above), found.itself[rows].mean(0))
        low, high = above.get_ylim()
        assert low < high
        below = panel(figure, f"{objective} with sce{', another seed' if objective == 'sce' else ''}")
        np.testing.assert_allclose(shown(below), found.with_reference[rows].mean(0))
        std = found.itself[rows].std(0, ddof=1)
        assert above.get_xlabel() == f"2 seeds, sd {np.median(std):.2f} (median), {std.max():.2f} (most)"
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["layer1", "layer2", "global_pool"]
    assert figure.axes[0].get_yticks().tolist() == [2, 4, 5]
    assert figure.get_suptitle() == r"C-\$MNIST: 7 layers, 1,234 test images, mean over seeds; light grey: dead layers"


def test_dead_layers_are_grey_and_counted():
    found = make(["sce", "sce", "l1", "l1"], [0, 1, 0, 1], dead=[(2, 4), (2, 5), (3, 4)])
    figure = layer_maps_figure(found, OBJECTIVES)
    for title in ("l1: absolute error", "l1 with sce"):
        axes = panel(figure, title)
        assert axes.get_xlabel().splitlines()[1:] == ["up to 2 dead layers, in 2 of 2"]
        assert np.isnan(shown(axes)[:, 4]).all()
        assert np.isfinite(shown(axes)[0, 5])
    assert "dead" not in panel(figure, "sce: softmax cross-entropy").get_xlabel()


@pytest.mark.parametrize(
    "found", [make(["l1"], [0]), make(["sce"], [4], dead=[(0, layer) for layer in range(len(LAYERS))])]
)
def test_one_run_alone_can_be_drawn(found):
    figure = layer_maps_figure(found, OBJECTIVES)
    assert figure.axes[1].get_xlabel() == "no run to compare with"
    assert Image.open(io.BytesIO(to_png(figure))).size[0] > 500


def write_run(folder, sha256, objective, seed, stem="standard"):
    torch.manual_seed(10 * seed + len(objective))
    model = Classifier(ClassifierSpec(10, [0.5] * 3, [0.25] * 3, stem=stem)).eval()
    job = folder / f"{objective}-{seed}-{stem}"
    job.mkdir(parents=True)
    state = {f"{MODEL_PREFIX}{name}": values for name, values in model.state_dict().items()}
    torch.save({"state_dict": state, KEY: classifier_header(model.spec)}, job / "best.ckpt")
    settings = {
        "objective": {"name": objective},
        "bias": {"name": "digits"},
        "seed": seed,
        "classifier": {"stem": stem},
    }
    accuracies = {f"test/accuracy{group}": 0.5 for group in ("", "_aligned", "_conflicting")}
    summary = {"bias": "digits", "objective": objective, **accuracies}
    record = {"key": {"settings": settings, "inputs": {"bias": sha256}}, "complete": True, "summary": summary}
    (job / "run.json").write_text(json.dumps(record))
    return model


def test_each_value_of_what_else_was_swept_has_its_own_figure(tmp_path):
    root, sweep = tmp_path / "root", tmp_path / "sweep"
    data = prepare_biased(BiasSettings.model_validate(read_choice("bias", "digits") | {"root": root, "image_size": 8}))
    first = write_run(sweep, data.sha256, "sce", 0)
    other = write_run(sweep, data.sha256, "l1", 0)
    write_run(sweep, data.sha256, "sce", 0, stem="small")
    with pytest.raises(UserError, match=f"does not hold the images .*{data.sha256[:12]}"):
        write_figures(sweep, tmp_path / "elsewhere", 64, CPU)
    paths = write_figures(sweep, root, 64, CPU)
    stems = [f"cka-digits-classifier.stem={stem}" for stem in ("small", "standard")]
    assert sorted(paths) == sorted(f"{stem}{suffix}" for stem in stems for suffix in (".npz", ".png"))
    with np.load(sweep / f"{stems[1]}.npz") as file:
        found = {name: file[name] for name in file.files}
    assert found["objectives"].tolist() == ["l1", "sce"]
    assert found["seeds"].tolist() == [0, 0]
    assert found["reference_seeds"].tolist() == [0, NO_SEED]
    assert found["n_images"] == 449
    pairs = [("l1", "l1"), ("sce", "sce"), ("sce", "l1")]
    layers, expected = compare_classifiers({"sce": first, "l1": other}, pairs, data.splits["test"].images, 64, CPU)
    assert found["layers"].tolist() == layers
    np.testing.assert_allclose(found["itself"], expected[:2], atol=1e-6)
    np.testing.assert_allclose(found["with_reference"][0], expected[2], atol=1e-6)
    assert np.isnan(found["with_reference"][1]).all()
    assert Image.open(sweep / f"{stems[1]}.png").format == "PNG"
