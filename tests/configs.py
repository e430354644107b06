"""The configuration files, read without Hydra."""

from pathlib import Path

import yaml

CONF = Path(__file__).parents[1] / "conf"
# What the tests train with unless they say otherwise.
CHOSEN = {
    "backbone": "tiny",
    "bottleneck": "d128",
    "head": "sigmoid",
    "augment": "zoobot",
    "optim": "adamw",
    "retrain": "all",
    "logger": "none",
}


def read_base() -> dict:
    """What stands in no group."""
    return yaml.safe_load((CONF / "base.yaml").read_text())


def read_choice(group: str, name: str) -> dict:
    """One choice of a group, with those that its defaults list names."""
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    merged: dict = {}
    for other in content.pop("defaults", []):
        if other != "_self_":
            merged |= read_choice(group, other)
    return merged | content
