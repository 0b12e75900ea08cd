"""How fast images are read from disk: decoded, cropped at random, resized to 224, flipped.

    python benchmarks/data.py FOLDER [--workers 0,1,2] [--batch 128] [--seconds 20]
    python benchmarks/data.py --photos test.parquet ...

FOLDER is an image folder (train/CLASS/, test/CLASS/), such as ImageNet. Without one, the images of
a Parquet file, such as CamVid's of 480×360 (ImageNet's are 469×387 on average), are written as JPEG
of quality 92 into a temporary folder. States images per second for each number of workers, after
one batch that starts them; the files come from the system's cache where they fit.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image

from hpff import data
from hpff.data.decoding import default_workers
from hpff.runs import machine


def images_per_second(found: data.Dataset, workers: int, batch: int, seconds: float) -> float:
    batches = data.batches(
        found.train,
        found,
        batch_size=batch,
        device="cuda" if torch.cuda.is_available() else "cpu",
        shuffle=True,
        augment=True,
        drop_last=True,
        workers=workers,
    )
    generator = torch.Generator().manual_seed(0)
    began, images = 0.0, 0
    while True:
        for _, labels in batches.epoch(generator):
            now = time.perf_counter()
            if not began:
                began = now
                continue
            images += len(labels)
            if now - began > seconds:
                return images / (now - began)


def write_photos(source: Path, folder: Path, copies: int = 10) -> None:
    """The file's images as JPEG, each several times, under one class."""
    column = pq.read_table(source).column("image").to_pylist()
    for split, count in (("train", copies), ("test", 1)):
        (folder / split / "photo").mkdir(parents=True)
        for number, row in enumerate(column):
            image = Image.open(io.BytesIO(row["bytes"])).convert("RGB")
            for copy in range(count):
                image.save(folder / split / "photo" / f"{number}-{copy}.jpg", quality=92)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--workers", default=f"0,1,{default_workers()}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder
        if folder is None:
            folder = Path(temporary)
            write_photos(options.photos, folder)
        found = data.load(f"folder:{folder}")
        for workers in sorted({int(number) for number in options.workers.split(",")}):
            rate = images_per_second(found, workers, options.batch, options.seconds)
            print(f"workers {workers}: {rate:.0f} images/s")
    print(", ".join(f"{key} {value}" for key, value in machine.describe().items()))


if __name__ == "__main__":
    main()
