"""Rate at which libraries bring JPEG files to square pictures of 224 pixels, and how far their pixels are apart.

    python benchmarks/decoding.py galaxies/images

The folder holds JPEG files of galaxies. Each is measured as it is, and enlarged or reduced to 256, 424 and 1024 pixels
at quality 90. Peers that are not installed are left out: simplejpeg, torchvision, opencv-python-headless, imagecodecs.

A rate is that of one thread: its own time, so that a busy machine disturbs little, and the best of several rounds in
which all take turns. Grey levels are compared with Pillow's full decoding and its bilinear antialiased resize.
"""

from __future__ import annotations

import argparse
import importlib
import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, __version__

from rarezoo.data.decoding import decode_picture, resized

SIZE = 224
STORED = (256, 424, 1024)
QUALITY = 90
_DRAFT_MARGIN = 2.0

Route = Callable[[bytes], NDArray[np.uint8]]


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed, and left out")
        return None


def pillow_full(content: bytes) -> NDArray[np.uint8]:
    """Pillow alone, decoding all pixels: what the others are compared with."""
    with Image.open(io.BytesIO(content)) as image:
        return _pillow_square(image.convert("RGB"))


def pillow_draft(content: bytes) -> NDArray[np.uint8]:
    """Pillow alone, with scaled decoding where that leaves twice the size."""
    with Image.open(io.BytesIO(content)) as image:
        wanted = _DRAFT_MARGIN * SIZE / min(image.size)
        if wanted <= 0.5:
            image.draft(None, (math.ceil(image.width * wanted), math.ceil(image.height * wanted)))
        return _pillow_square(image.convert("RGB"))


def _pillow_square(image: Image.Image) -> NDArray[np.uint8]:
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(small.transpose(2, 0, 1))


def pillow_torch(content: bytes) -> NDArray[np.uint8]:
    """Pillow decodes, torch resizes."""
    with Image.open(io.BytesIO(content)) as image:
        return resized(np.array(image.convert("RGB")).transpose(2, 0, 1), SIZE, 1.0)


def rarezoo(content: bytes) -> NDArray[np.uint8]:
    """What `read_image` does: simplejpeg decodes, torch resizes, Pillow looks at the header."""
    return resized(decode_picture(content, SIZE, 1.0), SIZE, 1.0)


def routes() -> dict[str, Route]:
    """Name -> route, of those whose libraries are installed."""
    found: dict[str, Route] = {
        "Pillow, resized by Pillow": pillow_draft,
        "Pillow, resized by torch": pillow_torch,
        "rarezoo": rarezoo,
    }
    if simplejpeg := _module("simplejpeg"):
        for eighths in (5, 6):

            def scaled(content: bytes, eighths: int = eighths) -> NDArray[np.uint8]:
                height, width = (-(-side * eighths // 8) for side in simplejpeg.decode_jpeg_header(content)[:2])
                pixels = simplejpeg.decode_jpeg(content, min_height=height, min_width=width)
                return resized(pixels.transpose(2, 0, 1), SIZE, 1.0)

            found[f"simplejpeg at {eighths}/8, resized by torch"] = scaled
    if torchvision := _module("torchvision"):
        found["torchvision, resized by torch"] = lambda content: resized(
            torchvision.io.decode_jpeg(torch.frombuffer(content, dtype=torch.uint8)).numpy(), SIZE, 1.0
        )
    if cv2 := _module("cv2"):
        cv2.setNumThreads(1)
        found["OpenCV, resized by area"] = lambda content: np.ascontiguousarray(
            cv2.resize(
                cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB),
                (SIZE, SIZE),
                interpolation=cv2.INTER_AREA,
            ).transpose(2, 0, 1)
        )
    if imagecodecs := _module("imagecodecs"):
        found["imagecodecs, resized by torch"] = lambda content: resized(
            imagecodecs.jpeg8_decode(content).transpose(2, 0, 1), SIZE, 1.0
        )
    return found


def stored(files: list[Path]) -> dict[str, list[bytes]]:
    """The files as they are, and at each of `STORED` sizes."""
    sets = {"as they are": [file.read_bytes() for file in files]}
    for size in STORED:
        sets[f"{size} px"] = [_at_size(content, size) for content in sets["as they are"]]
    return sets


def _at_size(content: bytes, size: int) -> bytes:
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def rates(routes: list[Route], contents: list[bytes], rounds: int) -> list[float]:
    """Images per second of each route."""
    best = [math.inf] * len(routes)
    for _ in range(rounds):
        for position, route in enumerate(routes):
            start = time.thread_time()
            for content in contents:
                route(content)
            best[position] = min(best[position], time.thread_time() - start)
    return [len(contents) / seconds for seconds in best]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of JPEG files of galaxies")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(file for file in settings.folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg"))
    files = files[:: max(1, len(files) // settings.images)][: settings.images]
    found = routes()
    print(
        f"Pillow {__version__}, torch {torch.__version__}, {len(files)} images, best of {settings.rounds} rounds, "
        f"load average {os.getloadavg()[0]:.2f}"
    )
    print("| stored | KB | route | images/s | ratio | difference, mean (largest) |\n|---|---|---|---|---|---|")
    for name, contents in stored(files).items():
        speeds = rates(list(found.values()), contents, settings.rounds)
        exact = [pillow_full(content).astype(int) for content in contents]
        kilobytes = sum(map(len, contents)) / len(contents) / 1000
        for (route, decode), speed in zip(found.items(), speeds, strict=True):
            apart = [np.abs(decode(content) - full) for content, full in zip(contents, exact, strict=True)]
            difference = f"{np.mean([each.mean() for each in apart]):.3f} ({max(each.max() for each in apart)})"
            print(f"| {name} | {kilobytes:.0f} | {route} | {speed:.0f} | {speed / speeds[0]:.2f} | {difference} |")


if __name__ == "__main__":
    main()
