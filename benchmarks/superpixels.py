"""
Superpixels: speed against scikit-image, and how well they keep to what people see, on BSDS500.

    python benchmarks/superpixels.py --bsds500 ../shared/data/bsds500 --out benchmarks/results/superpixels-cpu.json

Speed: 32 images of 224 px, K = 49 and others, torch against `skimage.segmentation.slic` in one
interleaved run, both with 5 iterations.

Quality: achievable segmentation accuracy (ASA; Liu et al. 2011, "Entropy rate superpixel segmentation"): the share of
pixels that are right when each superpixel takes the label most of its pixels have in a human segmentation, the mean
over an image's segmentations and over images. Images are cropped to 480 x 320 so that the cell divides them.
scikit-image realises fewer segments than it is asked for; so it is asked first, and torch is then given as many
superpixels as scikit-image realised for that image, or the nearest smaller number that can be laid out. Iterations
are those that each has by default: 10 of scikit-image's, 5 of torch's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import skimage.segmentation
import torch
from skimage.data import astronaut, chelsea
from skimage.transform import resize
from tqdm import tqdm

from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.superpixel_options import superpixel_layout
from focusvit_hf.superpixels import slic, tile_ids
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import write_json


CELL = 4
COMPACTNESS = 10.0
ITERATIONS = 5


def asa(ids: np.ndarray, truth: np.ndarray) -> float:
    """Achievable segmentation accuracy of the map `ids` (H, W) for the segmentation `truth` (H, W)."""
    table = np.zeros((ids.max() + 1, truth.max() + 1), dtype=np.int64)
    np.add.at(table, (ids.ravel(), truth.ravel()), 1)
    return float(table.max(axis=1).sum() / ids.size)


def realisable(count: int, height: int, width: int) -> int:
    """The largest number of superpixels up to `count` that can be laid out on height x width cells."""
    for candidate in range(count, 0, -1):
        try:
            superpixel_layout(candidate, height, width)
        except ValueError:
            continue
        return candidate
    raise ValueError(f"Expected an image that takes a superpixel, got {height} x {width} cells.")


def quality(folder: Path, split: str, asked: list[int], limit: int | None) -> dict:
    """ASA by number of segments asked for, of scikit-image, torch and the grid."""
    rows = datasets.load_dataset("parquet", data_dir=str(folder), split=split)
    rows = rows.select(range(min(limit, len(rows)))) if limit else rows
    scores: dict[int, dict[str, list[float]]] = {
        k: {"skimage": [], "torch": [], "grid": [], "segments_skimage": [], "segments_torch": []} for k in asked
    }
    for row in tqdm(rows, desc="BSDS500"):
        image = np.asarray(row["image"].convert("RGB"))
        height, width = (side - side % 32 for side in image.shape[:2])
        image = np.ascontiguousarray(image[:height, :width])
        truths = [np.asarray(truth)[:height, :width].astype(np.int64) for truth in row["segmentations"]]
        for k in asked:
            theirs = skimage.segmentation.slic(image, n_segments=k, compactness=COMPACTNESS, start_label=0)
            realised = len(np.unique(theirs))
            cells = (height // CELL, width // CELL)
            count = realisable(realised, *cells)
            ours = slic(torch.from_numpy(image).permute(2, 0, 1)[None], count, COMPACTNESS, cell_size=CELL)[0]
            grid = tile_ids(superpixel_layout(count, *cells), *cells)
            maps = {"skimage": theirs}
            for name, ids in (("torch", ours), ("grid", grid)):
                maps[name] = ids.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1).numpy()
            for name, ids in maps.items():
                scores[k][name].append(float(np.mean([asa(ids, truth) for truth in truths])))
            scores[k]["segments_skimage"].append(realised)
            scores[k]["segments_torch"].append(count)
    return {str(k): {name: float(np.mean(values)) for name, values in table.items()} for k, table in scores.items()}


def speed(repeats: int) -> dict:
    """Milliseconds an image for several K, and the ratio to scikit-image at K = 49, at as many iterations."""
    photographs = [np.asarray(resize(image, (224, 224)) * 255).astype(np.uint8) for image in (chelsea(), astronaut())]
    batch = np.stack([np.roll(photographs[i % 2], 7 * i, axis=1) for i in range(32)])
    tensor = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
    subjects: dict[str, Callable] = {
        f"torch, K={k}": lambda k=k: slic(tensor, k, COMPACTNESS, ITERATIONS) for k in (49, 25, 36, 100)
    }
    # One image of scikit-image's takes as long as a batch of ours.
    options = {"n_segments": 49, "compactness": COMPACTNESS, "max_num_iter": ITERATIONS, "start_label": 0}
    subjects["skimage, K=49"] = lambda: [skimage.segmentation.slic(image, **options) for image in batch[:4]]
    seconds = interleaved(subjects, repeats)
    result = {name: summary(values, 4 if "skimage" in name else 32) for name, values in seconds.items()}
    base = result["torch, K=49"]["median_ms"]
    ratios = {f"{name} / torch, K=49": values["median_ms"] / base for name, values in result.items()}
    return {"iterations": ITERATIONS, "milliseconds_per_image": result, "ratios": ratios}


def main() -> None:
    """Runs the measurement and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bsds500", type=Path, help="Folder of BSDS500 parquet files; without it only speed.")
    parser.add_argument("--split", default="test")
    parser.add_argument("--segments", type=int, nargs="+", default=[54, 216])
    parser.add_argument("--limit", type=int, help="Use the first so many images.")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = {"environment": environment(torch.device("cpu"), torch.float32), "speed_224px": speed(arguments.repeats)}
    if arguments.bsds500:
        result["asa_bsds500"] = quality(arguments.bsds500, arguments.split, arguments.segments, arguments.limit)
    write_json(arguments.out, result)
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
