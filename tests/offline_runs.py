"""Reads back what Weights & Biases keeps of an offline run: a log of protobuf records in the format of LevelDB."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto import wandb_internal_pb2

MAGIC = b":W&B"
FILE_HEADER = 7
BLOCK = 32768
RECORD_HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What the file says: `history` is a dict per row, `files` a path on this disk per file of an artifact."""

    run_id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    config: dict = field(default_factory=dict)
    history: list = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    artifacts: list = field(default_factory=list)
    files: dict = field(default_factory=dict)
    exit_code: int | None = None
    system_metrics: set = field(default_factory=set)

    def metrics(self):
        """Names of the logged numbers, without those that wandb adds and without images and tables."""
        names = {name for row in self.history for name in row if not name.startswith("_")}
        media = {name.removesuffix("._type") for name in names if name.endswith("._type")}
        return {name for name in names if name.rpartition(".")[0] not in media}

    def table(self, name):
        """Rows of a logged table as the server gets them, as dicts; images are their paths on this disk."""
        content = json.loads(self.files[f"{name}.table.json"].read_text())
        return [
            {column: self._cell(value) for column, value in zip(content["columns"], row, strict=True)}
            for row in content["data"]
        ]

    def _cell(self, value):
        is_image = isinstance(value, dict) and value["_type"] == "image-file"
        return self.files[value["path"]] if is_image else value


def read_offline_run(path):
    run = OfflineRun()
    for record in records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id, run.name = record.run.run_id, record.run.display_name
            run.group, run.job_type = record.run.run_group, record.run.job_type
            run.config |= values(record.run.config.update)
        elif kind == "config":
            run.config |= values(record.config.update)
        elif kind == "history":
            run.history.append(values(record.history.item))
        elif kind == "summary":
            run.summary |= values(record.summary.update)
        elif kind == "artifact":
            run.artifacts.append((record.artifact.type, record.artifact.name))
            run.files |= {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
        elif kind == "stats":
            run.system_metrics |= {item.key for item in record.stats.item}
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def records(content):
    assert content.startswith(MAGIC)
    at, pending = FILE_HEADER, b""
    while at + RECORD_HEADER.size <= len(content):
        if BLOCK - at % BLOCK < RECORD_HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = RECORD_HEADER.unpack_from(content, at)
        at += RECORD_HEADER.size
        pending += content[at : at + length]
        at += length
        assert kind in (FULL, FIRST, MIDDLE, LAST)
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(pending)
            pending = b""
    assert not pending


def values(items):
    # A key with dots of its own stands in `key`; a path into a nested value in `nested_key`.
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
