import shlex
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from rarezoo.cli import UserError
from rarezoo.embeddings import open_embeddings
from rarezoo.embeddings.convert import convert, parse
from rarezoo.votes import load_schema

TEXT = h5py.string_dtype("utf-8")
IDS = ["a", "b c", "d"]
ANSWERS = list(load_schema("rings").label_cols)


def zoobot_file(path: Path, columns: list[str]) -> Path:
    with h5py.File(path, "w") as file:
        file["predictions"] = np.arange(1.0, 1 + 3 * len(columns), dtype=np.float32).reshape(3, -1)
        file["id_str"] = np.array(IDS, dtype=TEXT)
        file["label_cols"] = np.array(columns, dtype=TEXT)
    return path


def parquet_file(path: Path) -> Path:
    pd.DataFrame({"id_str": IDS, "feat_pca_0": [1.0, 2, 3], "feat_pca_1": [4.0, 5, 6]}).to_parquet(path)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught, open_embeddings(path):
        pass
    return str(caught.value)


def run(command: str) -> None:
    """Run a command that a message gave, in this process."""
    program, arguments = shlex.split(command)[:3], shlex.split(command)[3:]
    assert program == ["python", "-m", "rarezoo.embeddings.convert"]
    convert(parse(arguments))


FOREIGN = {
    "a parquet table of representations": lambda folder: parquet_file(folder / "with space.parquet"),
    "a Zoobot file of features": lambda folder: zoobot_file(folder / "f.hdf5", ["feat_0", "feat_1"]),
    "a Zoobot file of predicted votes": lambda folder: zoobot_file(folder / "p.h5", ANSWERS),
}


@pytest.mark.parametrize("said", FOREIGN)
def test_foreign_file_is_recognised_and_the_command_that_is_given_converts_it(said, tmp_path):
    message = refusal(FOREIGN[said](tmp_path))
    assert f"is {said}, not embeddings of this program" in message
    command = message.partition("Convert it: ")[2]
    run(command)
    with open_embeddings(shlex.split(command)[4]) as embeddings:
        assert embeddings.ids.tolist() == IDS


def test_predictions_of_an_unknown_tree_leave_its_name_open(tmp_path):
    assert refusal(zoobot_file(tmp_path / "p.h5", ["a_yes", "a_no"])).endswith("--schema NAME")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: pd.DataFrame({"id_str": IDS}).to_parquet(path),
        lambda path: path.write_bytes(b"PAR1 and no more"),
        lambda path: h5py.File(path, "w").create_group("label_cols").file.close(),
    ],
)
def test_file_that_cannot_be_converted_is_not_called_convertible(write, tmp_path):
    write(tmp_path / "x")
    assert "convert" not in refusal(tmp_path / "x")


def test_it_says_what_came_out_and_what_to_run_next(tmp_path, capsys):
    features, votes = zoobot_file(tmp_path / "f.h5", ["feat_0", "feat_1"]), zoobot_file(tmp_path / "v.h5", ANSWERS)
    convert(parse([str(features), str(tmp_path / "mine.h5")]))
    said = capsys.readouterr().err
    target = tmp_path / "mine.h5"
    assert f"next          python cluster.py name=mine embeddings={target} selection=all" in said
    assert "n_galaxies    3" in said
    convert(parse([str(features), str(tmp_path / "both.h5"), "--predictions", str(votes), "--schema", "rings"]))
    said = capsys.readouterr().err
    assert said.rstrip().endswith(f"python cluster.py name=both embeddings={tmp_path / 'both.h5'}")
    convert(parse([str(tmp_path / "both.h5"), str(tmp_path / "out.parquet"), "--to", "gz-desi"]))
    said = capsys.readouterr().err
    assert str(tmp_path / "out.parquet") in said
    assert "next" not in said


def test_file_that_is_there_is_not_written_over(tmp_path):
    source = parquet_file(tmp_path / "r.parquet")
    for target in (source, zoobot_file(tmp_path / "f.h5", ["feat_0"])):
        before = target.read_bytes()
        with pytest.raises(UserError, match="is there already"):
            convert(parse([str(source), str(target)]))
        assert target.read_bytes() == before


@pytest.mark.parametrize("option", ["predictions", "schema", "catalog"])
def test_options_of_reading_are_refused_where_is_written(option, tmp_path):
    with pytest.raises(UserError, match=f"--{option}: is for files that are read into format 1"):
        convert(parse(["e.h5", str(tmp_path / "t"), "--to", "gz-desi", f"--{option}", "x"]))


def test_embeddings_of_format_1_without_a_layout_are_refused_with_the_option(tmp_path):
    run(f"python -m rarezoo.embeddings.convert {parquet_file(tmp_path / 'r.parquet')} {tmp_path / 'e.h5'}")
    with pytest.raises(UserError, match="Embeddings of this program are converted with --to"):
        convert(parse([str(tmp_path / "e.h5"), str(tmp_path / "f.h5")]))
