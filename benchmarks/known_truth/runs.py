"""Networks and embeddings of a survey, as train.py and embed.py make them in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from rarezoo.cli import UserError, announce, unwritable

REPO = Path(__file__).resolve().parents[2]
_LINES_SHOWN = 15


@dataclass(frozen=True)
class Source:
    """A catalog of images, and the networks that embed it.

    Outputs are <folder>/<network>/train/best.ckpt and <folder>/<network>/embed/embeddings.h5. What is there already is
    taken as it is, and what was interrupted goes on.

    Attributes
    ----------
    folder : absolute
    overrides : of train.py and embed.py, whatever the network: catalog, backbone, seed
    networks : network -> its own overrides
    with_features : networks whose features before the bottleneck are kept too
    trained : the source on whose catalog the networks are trained; None for this one
    """

    folder: Path
    overrides: tuple[str, ...]
    networks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    with_features: frozenset[str] = frozenset()
    trained: Source | None = None

    def training(self, network: str) -> tuple[str, ...]:
        """Overrides of train.py."""
        return (*self.overrides, *self.networks[network])

    def embedding(self, network: str) -> tuple[str, ...]:
        """Overrides of embed.py."""
        if self.trained is None:
            overrides = self.training(network)
        else:
            overrides = (*self.overrides, option("checkpoint", self.trained.checkpoint(network)))
        return (*overrides, "embedding.features=true") if network in self.with_features else overrides

    def checkpoint(self, network: str) -> Path:
        """Where the network is, trained or not."""
        return self.folder / network / "train" / "best.ckpt"

    def train(self, network: str) -> None:
        """Train the network, or find it trained."""
        if self.trained is not None:
            return self.trained.train(network)
        return run_stage("train.py", self.folder / network, self.training(network))

    def embeddings(self, network: str) -> Path:
        """Embed the catalog with the network, both made where they are not there."""
        self.train(network)
        run_stage("embed.py", self.folder / network, self.embedding(network))
        return self.folder / network / "embed" / "embeddings.h5"


def option(name: str, path: Path) -> str:
    """Override that gives a path, whatever its characters mean to Hydra."""
    return f'{name}="{path}"'


# Once a process: to say that a run is complete takes a script seconds.
@cache
def run_stage(script: str, folder: Path, overrides: tuple[str, ...]) -> None:
    """Run a script to its end; what it says is added to <folder>/<script>.log.

    Parameters
    ----------
    script : train.py or embed.py
    folder : its output_dir

    Raises
    ------
    UserError
        with the last of what it said, if it fails; if the folder cannot be written to
    """
    announce(f"{folder.parent.name}: {script} {folder.name}")
    log = folder / f"{script}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("a") as said:
            command = [sys.executable, str(REPO / script), *overrides, option("output_dir", folder)]
            done = subprocess.run(command, stdout=said, stderr=subprocess.STDOUT, check=False)
    except OSError as error:
        reason = unwritable(error)
        if reason is None:
            raise
        raise UserError(f"{folder}: cannot be written ({reason}). Choose another folder with --out.") from error
    if done.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:])
        raise UserError(f"{script} ended with status {done.returncode} for {folder}.\n{last}\nAll it said is in {log}.")
