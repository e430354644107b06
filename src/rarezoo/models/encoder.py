"""A trained backbone made ready to run over a survey: fast, and in the precision that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from rarezoo.cli import console
from rarezoo.models.vote_model import VoteModel

Precision = Literal["float32", "bfloat16", "float16"]

# Larger blocks of memory glibc gives back to the system at once (mallopt(3), M_MMAP_THRESHOLD), which then clears every
# page of them again for the next layer: measured to take more time than the arithmetic of an EfficientNet.
_LARGEST_BLOCK = 32 << 20
# Beyond this many small images a pass, nothing more is gained, and there are fewer passes to share among threads.
_MOST_IMAGES = 16


class Encoder:
    """The backbone of one model, with the transform before it, under inference.

    Kernels are laid out channels last, which changes the order of sums alone. Compiled for a CPU, batch normalisation
    is folded into the convolutions.

    Parameters
    ----------
    model : moved to the device, and put in evaluation mode
    precision : of the backbone's arithmetic, by autocast. With float32 on a GPU, torch lets convolutions use TF32
        unless `torch.backends.cudnn.allow_tf32` is unset
    compiled : by torch.compile, for the shape of the first images and for few others
    """

    def __init__(self, model: VoteModel, device: torch.device, precision: Precision, compiled: bool) -> None:
        self._model = model.to(device).eval()
        self._backbone: Callable[[Tensor], Tensor] = model.backbone.to(memory_format=torch.channels_last)
        self._device = device
        self._dtype = getattr(torch, precision)
        self._to_compile = compiled

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Pooled features (batch, n_features) float32 of uint8 images (batch, channels, side, side) on the device."""
        views = self._model.eval_transform(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            features = self._backbone(views)
        return features.float()

    def compile(self, images: Tensor) -> None:
        """Compile where that is wanted; where it fails, say why, once, and go on without.

        Parameters
        ----------
        images : uint8, of the shape to compile for
        """
        if not self._to_compile:
            return
        self._to_compile = False
        plain = self._backbone
        # Weights become constants: batch normalisation goes into the convolutions, and these are laid out beforehand.
        frozen = self._device.type == "cpu"
        self._backbone = torch.compile(self._model.backbone, dynamic=False, options={"freezing": frozen})
        try:
            self(images)
        # Of the many ways in which compiling fails, none needs to end a run: the plain backbone gives the same.
        except Exception as error:
            self._backbone = plain
            reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            console.print(
                f"note: embedding.compile=true: {self._model.spec.backbone} cannot be compiled here ({reason}); it "
                "runs as it is. On a CPU, compiling needs a C++ compiler, such as g++, and Python's headers.",
                style="yellow",
                markup=False,
            )

    def images_per_pass(self) -> int:
        """Most images, a power of two, with which no layer's output outgrows what the allocator keeps on a CPU."""
        spec = self._model.spec
        largest = 1

        def look(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.nbytes)

        hooks = [module.register_forward_hook(look) for module in self._model.backbone.modules()]
        self(torch.zeros((1, spec.channels, spec.image_size, spec.image_size), dtype=torch.uint8))
        for hook in hooks:
            hook.remove()
        fitting = min(_MOST_IMAGES, max(1, _LARGEST_BLOCK // largest))
        return 1 << (fitting.bit_length() - 1)
