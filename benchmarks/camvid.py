"""A small dilated ResNet on CamVid, as the supplement's Cityscapes table is laid out.

    python benchmarks/camvid.py --out runs/camvid [--images 60] [--write] [KEY=VALUE ...]

Trains the recipes camvid/fcn_resnet20-*, with changes if there are any, and scores them on test
images that are evenly spread: mIoU in percent, whole images at a single scale, at several (0.5 to
1.75), and with mirrored images too; beside it the peak memory of a training step, counted. Finished
runs are kept. Pictures of each network's answers are put into its run's folder. --write puts
the table into benchmarks/camvid.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from memory_tables import table, write
from short_runs import Quiet

from hpff.experiments.segmentation import draw, evaluate_pixels
from hpff.recipes import files as recipe_files
from hpff.runs.finished_run import FinishedRun
from hpff.training import loop
from hpff.training.inference import MULTI_SCALE, Inference

RECIPES = ("bp", "k4-dgl", "k4-dgl-hpff", "k4-infopro", "k4-infopro-hpff")
WAYS = (Inference(), Inference(MULTI_SCALE), Inference(MULTI_SCALE, flip=True))
HEADER = ("method", "single scale", "multi scale", "and flip", "peak, MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--images", type=int, default=None, help="to score on; by default all")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for hpff train")
    given = parser.parse_args()
    rows = []
    for name in given.recipes.split(","):
        recipe = recipe_files.load(f"camvid/fcn_resnet20-{name}", given.overrides)
        path = given.out / name
        report = loop.go_on(recipe, path, Quiet())
        run = FinishedRun.read(path)
        found = [evaluate_pixels(run, inference=way, subset=given.images) for way in WAYS]
        draw(run, path / "pictures")
        peak = f"{report['peak_memory_bytes'] / 2**20:.0f}"
        rows.append((recipe.local.label(), *(f"{each.score.miou:.2f}" for each in found), peak))
        print(rows[-1], flush=True)
    changes = f" with {' '.join(given.overrides)}" if given.overrides else ""
    images = f"{given.images} test images" if given.images else "all test images"
    made = f"{table(HEADER, rows)}\n\nRecipes{changes}, {images}, one seed."
    print(made)
    if given.write:
        write(__file__, __doc__, made)


if __name__ == "__main__":
    main()
