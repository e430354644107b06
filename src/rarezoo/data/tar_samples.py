"""Galaxies in tar files that follow the WebDataset convention: an image and a JSON of further columns under one key."""

from __future__ import annotations

import glob
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rarezoo.cli import UserError
from rarezoo.data.addresses import TarMember

# Of formats that Pillow or astropy read.
IMAGE_EXTENSIONS = (
    "jpg", "jpeg", "png", "tif", "tiff", "webp", "bmp", "fits", "fit", "fts", "fits.gz", "fits.fz",
)  # fmt: skip

_COLUMNS = "json"
_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")
_RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
# webdataset's own rule: the key ends, and the extension begins, at the first point of the last part of the path.
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


def find_shards(pattern: str) -> list[Path]:
    """Tar files that a folder, a glob or a brace pattern names.

    Parameters
    ----------
    pattern : folder, whose *.tar are taken; or path, with * ? [] as of a shell, and {000000..000099} for numbers that
        all must be there

    Returns
    -------
    absolute paths, sorted within each number

    Raises
    ------
    UserError
        if one is missing, or compressed
    """
    shards = []
    for each in _numbered(str(Path(pattern).expanduser().absolute())):
        path = Path(each)
        found = _in_folder(path) if path.is_dir() else [path] if path.is_file() else sorted(map(Path, glob.glob(each)))  # noqa: PTH207 (the pattern is absolute)
        if not found:
            raise UserError(f"data.shards={pattern}: there is no {each}. Give a folder, tar files by *, or {{0..9}}.")
        shards += found
    for path in shards:
        _refuse_compressed(path)
    return shards


def read_shard(path: Path) -> list[dict[str, Any]]:
    """Rows of a catalog for the galaxies of one tar, from its headers and JSON members.

    Members with other extensions than those of an image and `json` are left alone. What a JSON holds in lists or
    groups of its own stays JSON text.

    Parameters
    ----------
    path : absolute, uncompressed tar

    Returns
    -------
    for each galaxy in order, id_str (by default the key), file_loc (the address of its image), and the JSON's columns

    Raises
    ------
    UserError
        if the tar is damaged or truncated, a key has no image or several, or a JSON is none
    """
    try:
        with tarfile.open(path, "r:") as tar:
            rows = [_row(path, tar, key, members) for key, members in _samples(tar)]
            # tarfile takes the end of the file, or a damaged header, for the end of the archive.
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"no end of the archive, nor another member, at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: is damaged or truncated ({error}). Copy or make this shard anew.") from error
    return rows


def _numbered(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found[1], found[2]
    for number in range(int(first), int(last) + 1):
        yield from _numbered(f"{pattern[: found.start()]}{number:0{len(first)}d}{pattern[found.end() :]}")


def _in_folder(folder: Path) -> list[Path]:
    tars = (path for path in folder.iterdir() if path.name.lower().endswith((".tar", *_COMPRESSED_SUFFIXES)))
    # Tars that are still being written have names that begin with a point.
    return sorted(path for path in tars if not path.name.startswith("."))


def _refuse_compressed(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(max(map(len, _COMPRESSED_STARTS)))
    if path.name.lower().endswith(_COMPRESSED_SUFFIXES) or start.startswith(_COMPRESSED_STARTS):
        raise UserError(
            f"{path}: is compressed, so that no image in it can be read without all before it. Decompress it, for "
            "example with gunzip; images are compressed already, and take hardly more room in a plain .tar."
        )
    if path.suffix.lower() != ".tar":
        raise UserError(f"{path}: shards end in .tar. Rename it, or give other files with data.shards=...")


def _samples(tar: tarfile.TarFile) -> list[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Key and members by extension; a key that has an extension twice begins anew, for the catalog to refuse."""
    samples: list[tuple[str, dict[str, tarfile.TarInfo]]] = []
    latest: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in tar:
        named = _KEY.fullmatch(posixpath.normpath(member.name))
        if named is None or not member.isreg():
            continue
        key, extension = named[1], named[2].lower()
        if key not in latest or extension in latest[key]:
            latest[key] = {}
            samples.append((key, latest[key]))
        latest[key][extension] = member
    return samples


def _row(path: Path, tar: tarfile.TarFile, key: str, members: Mapping[str, tarfile.TarInfo]) -> dict[str, Any]:
    images = [extension for extension in members if extension in IMAGE_EXTENSIONS]
    if len(images) != 1:
        raise UserError(
            f"{path}: key '{key}' has {'several images' if images else 'no image'} ("
            f"{', '.join(member.name for member in members.values())}). A key is what comes before the first point of "
            f"a name, and has one member of {', '.join(IMAGE_EXTENSIONS)}. Name or pack the members so."
        )
    columns = _columns(path, tar, members[_COLUMNS]) if _COLUMNS in members else {}
    image = members[images[0]]
    address = TarMember(str(path), posixpath.normpath(image.name), image.offset_data, image.size)
    name = columns.pop("id_str", None)
    return {"id_str": key if name is None else str(name), "file_loc": str(address), **columns}


def _columns(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    stream = tar.extractfile(member)
    try:
        content = json.loads(stream.read()) if stream else None
    except ValueError as error:
        raise UserError(f"{path}: member {member.name} is not JSON ({error}). Make this shard anew.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: member {member.name} holds no columns, name: value. Make this shard anew.")
    if isinstance(content.get("id_str"), float):
        raise UserError(f"{path}: member {member.name} has id_str={content['id_str']}, a fraction. Write it as text.")
    content.pop("file_loc", None)
    return {
        str(name): json.dumps(value) if isinstance(value, list | dict) else value for name, value in content.items()
    }
