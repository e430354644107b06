"""Run models over a catalog, in as many processes as there are, and write what they give."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rarezoo.cli import UserError, progress_bar
from rarezoo.config import EmbeddingSettings
from rarezoo.data.datamodule import GalaxyDataModule
from rarezoo.data.images import GalaxyBatch
from rarezoo.embeddings.hdf5 import require_room
from rarezoo.embeddings.parts import DamagedPartError, Part, Parts
from rarezoo.embeddings.redundancy import FeatureMoments
from rarezoo.embeddings.writer import write_embeddings
from rarezoo.models.checkpoints import load_vote_model
from rarezoo.models.inference import EmbeddedBatch, Embedder
from rarezoo.ranks import Ranks

Note = Callable[[Mapping[str, float]], None]


def choose_device(name: str) -> torch.device:
    """Device by its torch name; auto takes a GPU where there is one.

    Raises
    ------
    UserError
        if torch does not know or does not have the device
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"embedding.device={name}: cannot be used here ({reason}). Use auto, cpu or cuda.") from error
    return device


def make_embedder(checkpoints: Sequence[Path], settings: EmbeddingSettings, seed: int) -> Embedder:
    """Load the models of some checkpoints, to embed with as the settings say.

    Parameters
    ----------
    seed : of dropout

    Raises
    ------
    UserError
        if a checkpoint or the device cannot be used, or the models of an ensemble do not fit together
    """
    return Embedder(
        [load_vote_model(checkpoint) for checkpoint in checkpoints],
        choose_device(settings.device),
        precision=settings.precision,
        compiled=settings.compile,
        rotations=settings.rotations,
        dropout_passes=settings.dropout_passes,
        seed=seed,
        ensemble=settings.ensemble,
    )


def feature_moments(embedder: Embedder, wanted: bool = True) -> dict[str, FeatureMoments]:
    """Empty moments of each space whose redundancy can be studied; of none where that is not wanted.

    Returns
    -------
    features (before the bottleneck) and, where there is a bottleneck, representation
    """
    if not wanted:
        return {}
    widths = {"features": embedder.n_features, "representation": embedder.representation_dim}
    if embedder.models[0].spec.bottleneck_dim is None:
        del widths["representation"]
    return {space: FeatureMoments(width) for space, width in widths.items()}


def describe_members(embedder: Embedder, checkpoints: Sequence[str]) -> list[dict[str, str | int]]:
    """Whose predictions `member_concentrations` holds; none where there is one model and no dropout.

    Parameters
    ----------
    checkpoints : SHA-256 of each model's
    """
    return [{"checkpoint_sha256": checkpoints[each["model"]], "pass": each["pass"]} for each in embedder.members]


@dataclass
class Embedding:
    """Embeds a catalog block by block.

    Parameters
    ----------
    embedder : the models
    data : gives the catalog's images in the size and channels that the models were trained on
    parts : where the blocks that are done are kept
    settings : what is kept of each galaxy
    ranks : the processes that embed together
    note : takes images_per_second and failed after each block, of this process
    moments : space (features, representation) -> where the redundancy of the space is gathered, if it is wanted
    """

    embedder: Embedder
    data: GalaxyDataModule
    parts: Parts
    settings: EmbeddingSettings
    ranks: Ranks = field(default_factory=Ranks)
    note: Note = lambda numbers: None
    moments: Mapping[str, FeatureMoments] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._failures = self.data.failure_log()

    def run(self, path: Path, provenance: Mapping[str, Any], resume: bool) -> dict[str, Any]:
        """Compute the parts that are missing, then let the leading process write all of them to one file.

        Parameters
        ----------
        path : of the file
        provenance : further attributes of the file
        resume : take over the parts that an interrupted run left

        Returns
        -------
        dict with n_galaxies, n_failed, dim, and images_per_second of all processes where anything was computed

        Raises
        ------
        UserError
            if too many images cannot be read, the disk is full, or a part was damaged meanwhile
        """
        missing = self.ranks.agree(lambda: self._missing(path, resume))
        speeds = self.ranks.gather(self._compute(missing[self.ranks.rank :: self.ranks.n_ranks]))
        summary = self.ranks.agree(lambda: self._merge(path, provenance))
        return {**summary, **({"images_per_second": round(sum(speeds), 1)} if any(speeds) else {})}

    def _missing(self, path: Path, resume: bool) -> list[range]:
        if not resume:
            self.parts.clear()
        failed = {block: set(part.failed) for block, part in self.parts.whole()}
        repaired = self._readable([row for rows in failed.values() for row in rows])
        missing = [block for block in self.parts.blocks if block not in failed or failed[block] & repaired]
        # Each row is there twice until the parts are one file.
        n_rows = sum(map(len, missing)) + len(self.data.catalog)
        require_room(path, n_rows * self._bytes_per_row())
        return missing

    def _readable(self, rows: Sequence[int]) -> set[int]:
        """Those of the images that failed before which can be read by now."""
        batches = self.data.block_dataloader([range(row, row + 1) for row in rows])
        return {row for batch in batches for row in batch["row"].tolist()}

    def _bytes_per_row(self) -> int:
        embedder, settings = self.embedder, self.settings
        n_answers = len(embedder.schema.label_cols)
        width = np.dtype(settings.dtype).itemsize
        features = 2 * embedder.n_features if settings.features else 0
        return width * embedder.representation_dim + 4 * n_answers * (1 + len(embedder.members)) + features

    def _compute(self, blocks: Sequence[range]) -> float:
        n_images = sum(map(len, blocks))
        if not n_images:
            return 0.0
        start = time.perf_counter()
        n_done = 0
        title = "embedding" if self.ranks.n_ranks == 1 else f"embedding (1 of {self.ranks.n_ranks} processes)"
        with progress_bar(n_images, title, "img") as bar:
            batches = iter(self.data.block_dataloader(blocks))
            for block in blocks:
                n_batches = -(-len(block) // self.data.batch_size)
                self.parts.write(block, self._embed(islice(batches, n_batches), bar.update))
                n_done += len(block)
                bar.set_postfix(failed=len(self._failures), refresh=False)
                speed = n_done / (time.perf_counter() - start)
                self.note({"images_per_second": speed, "failed": len(self._failures), "images": n_done})
        return n_images / (time.perf_counter() - start)

    def _embed(self, batches: Iterator[GalaxyBatch], count: Callable[[int], object]) -> Part:
        rows: list[torch.Tensor] = []
        found: list[EmbeddedBatch] = []
        failed: dict[int, str] = {}
        for batch in batches:
            failed.update(batch["failed"])
            self._failures.add(batch["failed"])
            self._failures.check(len(self.data.catalog))
            if len(batch["row"]):
                rows.append(batch["row"])
                found.append(self.embedder(batch["image"], batch["row"]))
            count(len(batch["row"]) + len(batch["failed"]))
        if not rows:
            return Part(np.empty(0, np.int64), {}, failed)
        return Part(torch.cat(rows).numpy(), self._arrays(found), failed)

    def _arrays(self, found: Sequence[EmbeddedBatch]) -> dict[str, np.ndarray]:
        dtypes = {"representation": getattr(torch, self.settings.dtype), "concentrations": torch.float32}
        if self.embedder.members:
            dtypes["member_concentrations"] = torch.float32
        if self.settings.features or "features" in self.moments:
            dtypes["features"] = torch.float16
        return {
            name: torch.cat([getattr(each, name).to(dtype) for each in found]).cpu().numpy()
            for name, dtype in dtypes.items()
        }

    def _merge(self, path: Path, provenance: Mapping[str, Any]) -> dict[str, Any]:
        catalog = self.data.catalog
        failures = self.data.failure_log()

        def parts() -> Iterator[Part]:
            for block in self.parts.blocks:
                part = self._read(block)
                failures.add(part.failed.items())
                for space, moments in self.moments.items():
                    if len(part.rows):
                        moments.update(part.arrays[space])
                if not self.settings.features:
                    part.arrays.pop("features", None)
                yield part
            failures.check(len(catalog))

        return write_embeddings(path, catalog, parts(), self.embedder.models[0], provenance)

    def _read(self, block: range) -> Part:
        try:
            return self.parts.read(block)
        except DamagedPartError as error:
            raise UserError(
                f"{error}. It was whole when it was written. Run the same command again: this part is computed anew."
            ) from error
