import errno
import json
import os
import signal
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rarezoo.cli import UserError
from rarezoo.embeddings.parts import DamagedPartError, Part, Parts, cut_into_blocks

BLOCKS = cut_into_blocks(20, 8)


def make_part(block, failed=()) -> Part:
    rows = np.asarray([row for row in block if row not in failed], np.int64)
    representation = np.random.default_rng(block.start).normal(size=(len(rows), 3)).astype(np.float16)
    concentrations = rows[:, None] + np.ones((1, 2), np.float32)
    arrays = {"representation": representation, "concentrations": concentrations}
    return Part(rows, arrays if len(rows) else {}, dict.fromkeys(failed, "empty file «ü»"))


def make_parts(folder, key="k", blocks=BLOCKS) -> Parts:
    return Parts(folder / "parts", blocks, key)


@given(st.integers(0, 200_000), st.none() | st.integers(1, 3000))
def test_blocks_hold_every_row_once_and_in_order(n_rows, rows_per_block):
    blocks = cut_into_blocks(n_rows, rows_per_block)
    assert all(len(block) for block in blocks)
    edges = [block.start for block in blocks] + [n_rows] * (n_rows > 0)
    assert edges == ([0] if n_rows else []) + [block.stop for block in blocks]
    assert len({len(block) for block in blocks[:-1]}) <= 1


def test_blocks_are_small_for_few_rows_and_never_large():
    assert max(map(len, cut_into_blocks(260))) == 64
    assert max(map(len, cut_into_blocks(10_000))) == 312
    assert max(map(len, cut_into_blocks(10_000_000))) == 2048


@pytest.mark.parametrize("failed", [(), (9,), tuple(BLOCKS[1])])
def test_part_comes_back_as_it_was_written(failed, tmp_path):
    parts, part = make_parts(tmp_path), make_part(BLOCKS[1], failed)
    parts.write(BLOCKS[1], part)
    found = parts.read(BLOCKS[1])
    assert found.rows.tolist() == part.rows.tolist()
    assert found.failed == part.failed
    assert found.arrays.keys() == part.arrays.keys()
    for name, values in part.arrays.items():
        assert found.arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(found.arrays[name], values)


def test_same_part_is_written_as_the_same_bytes(tmp_path):
    parts = make_parts(tmp_path)
    contents = []
    for _ in range(2):
        parts.write(BLOCKS[0], make_part(BLOCKS[0], (3,)))
        contents.append(parts.path(BLOCKS[0]).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_part_is_not_taken(share, tmp_path):
    parts = make_parts(tmp_path)
    parts.write(BLOCKS[0], make_part(BLOCKS[0]))
    path = parts.path(BLOCKS[0])
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DamagedPartError, match=path.name):
        parts.read(BLOCKS[0])
    assert list(parts.whole()) == []


def test_any_altered_byte_of_the_numbers_is_noticed(tmp_path):
    parts = make_parts(tmp_path)
    parts.write(BLOCKS[0], make_part(BLOCKS[0]))
    path = parts.path(BLOCKS[0])
    whole = path.read_bytes()
    numbers = make_part(BLOCKS[0]).arrays["representation"].tobytes()
    first = whole.index(numbers)
    for at in range(first, first + len(numbers), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(DamagedPartError):
            parts.read(BLOCKS[0])


def rewritten(path, **changes) -> None:
    with np.load(path) as content:
        arrays = {name: content[name] for name in content.files}
    about = json.loads(arrays["_about"].tobytes())
    arrays |= {name: values for name, values in changes.items() if name not in about}
    about |= {name: value for name, value in changes.items() if name in about}
    arrays["_about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"key": "another"}, "another run"),
        ({"format": 0}, "another run"),
        ({"block": [0, 7]}, "another run"),
        ({"_rows": np.arange(1, 9)}, "not rows 0 to 7"),
        ({"_rows": np.arange(8)[::-1]}, "not rows 0 to 7"),
        ({"_rows": np.zeros(8, np.int64)}, "not rows 0 to 7"),
        ({"failed": [[3, "again"]]}, "not rows 0 to 7"),
        ({"representation": np.zeros((7, 3))}, "differ in length"),
    ],
)
def test_part_that_does_not_belong_is_not_taken(changes, reason, tmp_path):
    parts = make_parts(tmp_path)
    parts.write(BLOCKS[0], make_part(BLOCKS[0]))
    rewritten(parts.path(BLOCKS[0]), **changes)
    with pytest.raises(DamagedPartError, match=reason):
        parts.read(BLOCKS[0])


def test_part_with_objects_in_it_is_not_unpickled(tmp_path):
    parts = make_parts(tmp_path)
    parts.write(BLOCKS[0], make_part(BLOCKS[0]))

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    np.savez(parts.path(BLOCKS[0]), _about=np.asarray([Bomb()], object))
    with pytest.raises(DamagedPartError):
        parts.read(BLOCKS[0])
    assert not (tmp_path / "exploded").exists()


def test_only_whole_parts_of_the_same_run_are_gone_on_from(tmp_path):
    parts = make_parts(tmp_path)
    for block in BLOCKS:
        parts.write(block, make_part(block))
    parts.path(BLOCKS[1]).write_bytes(b"PK")
    assert [block for block, _ in parts.whole()] == [BLOCKS[0], BLOCKS[2]]
    assert list(make_parts(tmp_path, "another").whole()) == []
    assert list(make_parts(tmp_path, blocks=cut_into_blocks(20, 5)).whole()) == []
    parts.clear()
    assert list(parts.whole()) == []
    parts.clear()


def test_killed_process_leaves_no_part(tmp_path):
    parts = make_parts(tmp_path)
    child = os.fork()
    if child == 0:

        def killed(archive):
            os.kill(os.getpid(), signal.SIGKILL)

        zipfile.ZipFile.close = killed
        parts.write(BLOCKS[0], make_part(BLOCKS[0]))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert not parts.path(BLOCKS[0]).exists()
    assert len(list(parts.folder.iterdir())) == 1
    parts.write(BLOCKS[0], make_part(BLOCKS[0]))
    assert [block for block, _ in parts.whole()] == [BLOCKS[0]]


def test_full_disk_is_a_users_fault_and_leaves_no_part(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rarezoo.embeddings.parts.np.savez", full)
    parts = make_parts(tmp_path)
    with pytest.raises(UserError, match=r"rows-0000000000\.npz: cannot be written \(No space left on device\)"):
        parts.write(BLOCKS[0], make_part(BLOCKS[0]))
    assert list(parts.folder.iterdir()) == []
