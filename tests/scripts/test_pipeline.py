import json
import shutil
import signal
from html.parser import HTMLParser

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from small_scripts import CLUSTER, interrupt_at, run

pytestmark = pytest.mark.script


def outputs(folder):
    return folder / "outputs" / "whole"


def test_each_stage_leaves_its_files_and_a_complete_record(finished):
    folder, _ = finished
    for stage, names in {
        "train": ["best.ckpt"],
        "embed": ["embeddings.h5"],
        "cluster": ["galaxies.parquet", "classes.parquet", "recovery.parquet", "report.html", "montages"],
    }.items():
        for name in names:
            assert (outputs(folder) / stage / name).exists()
        record = json.loads((outputs(folder) / stage / "run.json").read_text())
        assert record["complete"]
        assert record["versions"]["torch"]


def test_records_chain_the_hashes_of_what_each_stage_was_made_from(finished):
    folder, _ = finished
    embed = json.loads((outputs(folder) / "embed" / "run.json").read_text())
    with h5py.File(outputs(folder) / "embed" / "embeddings.h5") as file:
        assert file.attrs["checkpoint_sha256"] == embed["key"]["inputs"]["checkpoint"]
        assert file.attrs["catalog_sha256"] == embed["key"]["inputs"]["catalog"]
        assert json.loads(file.attrs["config"])["seed"] == 0


def test_rows_of_the_embedding_are_the_model_run_on_those_very_images(finished):
    from rarezoo.data.images import read_image
    from rarezoo.embeddings import open_embeddings
    from rarezoo.models.checkpoints import load_vote_model

    folder, _ = finished
    model = load_vote_model(outputs(folder) / "train" / "best.ckpt")
    with open_embeddings(outputs(folder) / "embed" / "embeddings.h5") as embeddings:
        for row in (0, 101, len(embeddings) - 1):
            image = torch.from_numpy(np.asarray(read_image(embeddings.files[row], 32, 3)))[None]
            representation = model.embed(image).representation
            np.testing.assert_allclose(embeddings.representation[row], representation[0], atol=1e-4)


def test_every_class_has_a_row_a_montage_and_a_card(finished):
    folder, _ = finished
    classes = pd.read_parquet(outputs(folder) / "cluster" / "classes.parquet")
    galaxies = pd.read_parquet(outputs(folder) / "cluster" / "galaxies.parquet")
    assert len(classes) > 0
    assert classes["size"].tolist() == [(galaxies["cluster"] == cluster).sum() for cluster in classes["cluster"]]
    montages = sorted(path.name for path in (outputs(folder) / "cluster" / "montages").iterdir())
    assert montages == [f"class_{cluster:03d}.png" for cluster in classes["cluster"]]
    HTMLParser().feed((outputs(folder) / "cluster" / "report.html").read_text())
    assert set(classes["medoid_id"]) <= set(galaxies["id_str"])


def test_truth_is_compared_with_but_never_carried(finished):
    folder, said = finished
    recovery = pd.read_parquet(outputs(folder) / "cluster" / "recovery.parquet")
    assert len(recovery) == 12
    assert recovery["members"].between(10, 13).all()
    assert "collisional_ring" in said["cluster.py"]
    with h5py.File(outputs(folder) / "embed" / "embeddings.h5") as file:
        assert not [name for name in file["carried"] if "rare" in name or "artifact" in name]
    galaxies = pd.read_parquet(outputs(folder) / "cluster" / "galaxies.parquet")
    assert not {"rare_class", "morphology"} & set(galaxies.columns)


def test_the_same_commands_again_compute_nothing(finished):
    folder, _ = finished
    checkpoint = outputs(folder) / "train" / "best.ckpt"
    before = checkpoint.stat().st_mtime_ns
    for script in ("train.py", "embed.py"):
        assert "complete before" in run(folder, script, "name=whole").stderr
    assert checkpoint.stat().st_mtime_ns == before


def test_another_tree_reuses_the_stages_before_it(finished, process):
    folder, _ = finished
    options = ("name=other", "embeddings=outputs/whole/embed/embeddings.h5", "stages=outputs/whole/stages")
    status, said = process.run(folder, "cluster.py", *CLUSTER, *options, "tree.min_samples=3")
    assert status == 0, said
    stages = json.loads((folder / "outputs/other/cluster/run.json").read_text())["summary"]["stages"]
    assert {name for name, counted in stages.items() if counted["computed"]} == {"spanning", "tree"}
    assert {"neighbours", "layout"} < stages.keys()


def test_settings_that_differ_from_the_run_in_the_folder_are_refused_by_name(finished):
    folder, _ = finished
    done = run(folder, "train.py", "name=whole", "optim.lr=0.5", check=False)
    assert done.returncode == 2
    assert "optim.lr: 0.001 there, 0.5 now" in done.stderr
    assert "overwrite=true" in done.stderr


def test_a_sweep_gives_each_job_a_folder_of_its_own(finished, process):
    folder, _ = finished
    options = ("name=whole", "stages=outputs/whole/stages", "-m", "tree.min_cluster_size=5,6", "tree.method=leaf")
    status, said = process.run(folder, "cluster.py", *CLUSTER, *options)
    assert status == 0, said
    made = sorted(path.parent.name for path in outputs(folder).glob("cluster-sweep/*/report.html"))
    assert len(made) == 2
    assert all(f"tree.min_cluster_size={size}" in name for size, name in zip((5, 6), made, strict=True))


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_leaves_no_checkpoint_and_goes_on_to_the_same_result(finished, tmp_path, with_signal):
    folder, _ = finished
    shutil.copytree(folder / "outputs" / "simulated", tmp_path / "outputs" / "simulated")
    options = ("name=cut", "trainer.max_epochs=6", "optim.patience=null")
    status, said = interrupt_at(tmp_path, "epoch 2/", "train.py", *options, with_signal=with_signal)
    assert status == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "outputs/cut/train/best.ckpt").exists()
    resumed = run(tmp_path, "train.py", *options)
    assert "epoch 1/6" not in resumed.stderr
    run(tmp_path, "train.py", "name=unbroken", *options[1:])
    weights = [
        torch.load(tmp_path / "outputs" / name / "train" / "best.ckpt", weights_only=True)["state_dict"]
        for name in ("cut", "unbroken")
    ]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], msg=name)


def test_interrupted_simulation_leaves_no_survey(tmp_path):
    status, said = interrupt_at(tmp_path, "Simulating", "train.py", "data.n_galaxies=20000")
    assert status == 130, said
    assert not list(tmp_path.glob("outputs/simulated/*/"))


@pytest.mark.parametrize("stage", ["neighbours", "spanning tree", "montages"])
def test_interrupted_search_leaves_nothing_half_written(finished, tmp_path, stage):
    folder, _ = finished
    options = ("name=cut", f"embeddings={outputs(folder)}/embed/embeddings.h5")
    status, said = interrupt_at(tmp_path, f"  {stage}", "cluster.py", *options)
    assert status == 130, said
    assert "Traceback" not in said
    written = list((tmp_path / "outputs/cut").rglob("*"))
    assert not [path for path in written if ".part" in path.name], written
    assert not (tmp_path / "outputs/cut/cluster/report.html").exists()
    assert not json.loads((tmp_path / "outputs/cut/cluster/run.json").read_text())["complete"]


def test_unreadable_images_are_listed_and_the_rest_embedded(finished, process, tmp_path):
    folder, _ = finished
    shutil.copytree(folder / "outputs" / "simulated", tmp_path / "survey")
    root = next((tmp_path / "survey").iterdir())
    victims = sorted(root.glob("images/*/*.jpg"))[:3]
    victims[0].write_bytes(b"")
    victims[1].write_bytes(victims[1].read_bytes()[:300])
    victims[2].write_text("not an image")
    catalog = ("data=catalog", f"data.catalog={root}/catalog.parquet", f"checkpoint={outputs(folder)}/train/best.ckpt")
    stopped = run(tmp_path, "embed.py", *catalog, small=False, check=False)
    assert stopped.returncode == 2
    assert "data.max_failed_share" in stopped.stderr
    assert not list(tmp_path.glob("outputs/**/*.h5"))
    run(tmp_path, "embed.py", *catalog, "data.max_failed_share=0.05", small=False)
    with h5py.File(tmp_path / "outputs/survey/embed/embeddings.h5") as file:
        assert file["failed/id_str"].asstr()[:].tolist() == [path.stem for path in victims]
        assert file["id"].shape == (257,)
    options = ("embeddings=outputs/survey/embed/embeddings.h5", *CLUSTER)
    status, said = process.run(tmp_path, "cluster.py", *options)
    assert status == 0, said
    assert "3 images could not be read" in (tmp_path / "outputs/survey/cluster/report.html").read_text()
