"""What a survey of millions costs, on a small one: memory that does not grow with what is not asked for."""

import runpy
import tracemalloc
from pathlib import Path

import pytest

from rarezoo.embeddings import open_embeddings

benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "store.py"))
N_ROWS = 300_000
CONCENTRATIONS, REPRESENTATION = N_ROWS * 34 * 4, N_ROWS * 128 * 4


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("large") / "embeddings.h5"
    benchmark["write"](path, N_ROWS)
    return path


def memory_of(path: Path, question: str) -> int:
    """Bytes of arrays and objects that an answer took at most, by Python's own account."""
    with open_embeddings(path) as embeddings:
        tracemalloc.start()
        try:
            assert len(eval(benchmark["QUESTIONS"][question], {"embeddings": embeddings})) > 0
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("question", "most"),
    [
        ("select(the paper's three cuts)", 0.2 * CONCENTRATIONS),
        ("representation[selected]", 0.2 * REPRESENTATION),
        ("vote_fractions()", 1.5 * CONCENTRATIONS),
    ],
)
def test_memory_is_that_of_the_answer_and_of_a_few_pieces(path, question, most, monkeypatch):
    monkeypatch.setattr("rarezoo.embeddings.rows.PIECE_BYTES", 2**20)
    monkeypatch.setattr("rarezoo.embeddings.store._ROWS_AT_ONCE", 2**13)
    assert memory_of(path, question) < most
