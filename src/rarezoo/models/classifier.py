"""ResNet18 as a classifier of small images, as Bangaru et al. (2022) train it from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn

from rarezoo.cli import UserError
from rarezoo.models.plain import read_plain
from rarezoo.provenance import made_with

KEY = "rarezoo_classifier"
FORMAT = 1
MODEL_PREFIX = "model."
_STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class ClassifierSpec:
    """All that a classifier is built from.

    Attributes
    ----------
    n_classes : number of outputs
    mean, std : of the images' channels, of values from 0 to 1
    stem : "standard" is that of every ResNet, 7 x 7 pixels in steps of 2 and a maximum in steps of 2, which leaves
        7 x 7 of 28 x 28; "small" is the one for CIFAR (He et al. 2016, CVPR, Sec. 4.2), 3 x 3 pixels in steps of 1 and
        no maximum
    dropout : share of the values that training leaves out
    dropout_at : after each of the four "stages", or once, before the last layer ("head")
    """

    n_classes: int
    mean: Sequence[float]
    std: Sequence[float]
    stem: Literal["standard", "small"] = "standard"
    dropout: float = 0.4
    dropout_at: Literal["stages", "head"] = "stages"


class Classifier(nn.Module):
    """ResNet18 with global average pooling and one linear layer, [512, n_classes]; weights are random.

    The layers have timm's names below `network`; the dropout of a stage is the stage's last child.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__()
        self.spec = spec
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            # Not in the state_dict: they are in the spec, which a checkpoint keeps.
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, 1, 1), persistent=False)
        network: Any = timm.create_model(
            "resnet18",
            pretrained=False,
            num_classes=spec.n_classes,
            drop_rate=spec.dropout if spec.dropout_at == "head" else 0.0,
            zero_init_last=False,
        )
        if spec.stem == "small":
            network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        if spec.dropout_at == "stages":
            for stage in _STAGES:
                getattr(network, stage).append(nn.Dropout(spec.dropout))
        self.network: nn.Module = network

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (B, n_classes), before any softmax, of uint8 images (B, 3, S, S)."""
        outputs: Tensor = self.network((images.to(torch.float32) / 255.0 - self.mean) / self.std)
        return outputs


def classifier_header(spec: ClassifierSpec) -> dict[str, Any]:
    """What a checkpoint says of itself beside the weights."""
    return {"format": FORMAT, "spec": asdict(spec), **made_with()}


def load_classifier(path: Path) -> Classifier:
    """Load a trained classifier, in evaluation mode, on the CPU.

    Raises
    ------
    UserError
        if there is no such file, it is damaged, or train.py with task=biased did not write it
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file. Run train.py with task=biased first.")
    try:
        content = read_plain(path)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as a checkpoint ({error}). Run train.py again.") from error
    header = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UserError(f"{path}: is not a classifier of train.py with task=biased (format {FORMAT}). Give one.")
    model = Classifier(ClassifierSpec(**header["spec"]))
    state = content["state_dict"]
    model.load_state_dict({k.removeprefix(MODEL_PREFIX): v for k, v in state.items() if k.startswith(MODEL_PREFIX)})
    return model.eval()
