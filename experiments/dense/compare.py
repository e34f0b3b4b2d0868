"""
Figures found with superpixels, with grids and by other networks, from scratch, by one recipe.

    python -m experiments.dense.compare runs/figures --rows superpixel_49 grid_49 grid_196 grid_400 --seeds 0 1 2
    python -m experiments.dense.tables

`runs/figures` is what `experiments.dense.teacher` wrote. All rows of a seed see the same views in the same order.
Stem, encoder, head and training are the same; the regions alone differ. `grid_<K>` interpolates what its tiles say
between their centres, in training, too (`segmentation_lay_back="bilinear"`); `grid_<K>_nearest` does not.
`segformer_b0`, `mobilevit_deeplabv3` and `mobilenet_v2_deeplabv3plus` are networks of Transformers. How logits become
pixels is chosen on the images held out. The test split of ECSSD is measured once, at the images' own size: IoU of the
figure and F of its border within 2 px, of every image. `experiments/results/dense/<row>-seed<n>.json` holds a run; a
run whose JSON is there is left out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from experiments.dense.peers import MOBILENET, MOBILEVIT, SEGFORMER, build_peer
from experiments.dense.teacher import ECSSD, squashed
from experiments.frontier.peers import steady_batch_norms
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.processes import keep_heap
from experiments.teacher.recipe import warmed_cosine
from focusvit_hf import FocusViTConfig, FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.segmentation_maps import IGNORED, decode_mask, segmentation_maps_of
from focusvit_hf.training.augmentation import color_jitter, crop_and_resize, random_crop_boxes
from focusvit_hf.training.objective import parameter_groups, require_finite
from focusvit_hf.training.segmentation import overlap_loss
from focusvit_hf.training.segmentation_collator import crop_mask
from focusvit_hf.training.segmentation_metrics import boundary_f, confusion_matrix, overlaps
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import write_json


QUESTION = "dense"
# Both ask the network alone; what the colours of an image add is a question of its own, see `experiments.dense.edges`.
UPSAMPLINGS = ("bilinear", "nearest")
# Images are kept a little larger than they are seen, so that a crop need not be enlarged much.
KEPT = 1.2
RECIPE: dict[str, Any] = {
    "side": 160,
    "epochs": 4,
    "batch_size": 32,
    "learning_rate": 1e-3,
    "weight_decay": 0.05,
    "warmup": 0.05,
    "crop_scale": [0.35, 1.0],
    "jitter": 0.3,
    "overlap_loss_weight": 1.0,
    "precision": "bfloat16",
}
ENCODER: dict[str, Any] = {
    "patch_size": 16,
    "superpixel_cell_size": 4,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "layer_types": ["latent_attention"] * 4,
    "num_latents": 16,
    "embedding_type": "conv",
    "position_embedding_type": "dynamic",
    "segmentation_kernel_size": 3,
}
# Networks of Transformers, as they are timed in `experiments.dense.speed`.
PEER_ROWS = {"segformer_b0": SEGFORMER, "mobilevit_deeplabv3": MOBILEVIT, "mobilenet_v2_deeplabv3plus": MOBILENET}


class Row:
    """
    A network and how its images are prepared.

    Args:
        name (`str`): Of the row.
        side (`int`): Of the images in pixels.
        attention (`str`): How a FocusViT computes it. SDPA's backward pass is slow in bfloat16 on a CPU.

    Raises:
        ValueError: If there is no such row.
    """

    def __init__(self, name: str, side: int, attention: str = "eager"):
        kind, _, rest = name.partition("_")
        self.processor: FocusViTImageProcessor
        self.model: nn.Module
        labels = {0: "ground", 1: "figure"}
        if name in PEER_ROWS:
            self.model = build_peer(PEER_ROWS[name], labels)
            steady_batch_norms(self.model)
            self.processor = FocusViTImageProcessor(size={"height": side, "width": side}, do_superpixels=False)
            return
        if kind not in ("superpixel", "grid"):
            raise ValueError(f"Expected superpixel_K, grid_K, grid_K_nearest or one of {[*PEER_ROWS]}, got {name!r}.")
        count, _, nearest = rest.partition("_")
        smooth = kind == "grid" and nearest != "nearest"
        config = FocusViTConfig(
            image_size=side,
            num_superpixels=int(count),
            patch_pooling=kind,
            segmentation_lay_back="bilinear" if smooth else "nearest",
            id2label=labels,
            **ENCODER,
        )
        self.model = FocusViTForSemanticSegmentation._from_config(config, attn_implementation=attention)
        self.processor = FocusViTImageProcessor.from_model_config(config)

    def logits(self, levels: torch.Tensor) -> torch.Tensor:
        """Of 8-bit images `(batch_size, 3, side, side)`: `(batch_size, 2, rows, columns)`, float32."""
        batch = dict(self.processor.process_levels(levels))
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(**batch).logits.float()


def loaded(folder: Path, side: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Images of a folder, squashed to `side` px, and their masks at their own size."""
    images, masks = [], []
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as image:
            images.append(squashed(image, side))
        masks.append(torch.from_numpy(decode_mask(str(folder / "masks" / f"{path.stem}.png")).astype(np.int64)))
    return torch.stack(images), masks


def tested(side: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """ECSSD's test split, as [`loaded`]."""
    rows = datasets.load_dataset("parquet", data_dir=str(ECSSD), split="test")
    images = torch.stack([squashed(image, side) for image in rows["image"]])
    return images, [torch.from_numpy(decode_mask(mask).astype(np.int64)) for mask in rows["mask"]]


def scaled_box(box: torch.Tensor, seen: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """
    A box (top, left, height, width) of an image of (height, width) `seen`, in whole pixels of one of `size`, which is
    no smaller. The edges are rounded, since a rounded corner and a rounded height may together end outside.
    """
    scale = torch.tensor(size) / torch.tensor(seen)
    corner = (box[:2] * scale).round().long()
    end = ((box[:2] + box[2:]) * scale).round().long()
    return torch.cat((corner, end - corner))


def views(
    images: torch.Tensor, masks: Sequence[torch.Tensor], rows: torch.Tensor, side: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random boxes of images, mirrored by the toss of a coin, with other colours, and their labels."""
    kept = (images.shape[-2], images.shape[-1])
    boxes = random_crop_boxes(len(rows), kept, tuple(RECIPE["crop_scale"]), (3 / 4, 4 / 3), generator)
    levels = crop_and_resize(images[rows], boxes, (side, side), torch.float32)
    labels = torch.stack(
        [
            crop_mask(masks[row], scaled_box(box, kept, (masks[row].shape[0], masks[row].shape[1])), (side, side))
            for row, box in zip(rows.tolist(), boxes, strict=True)
        ]
    )
    flipped = torch.rand(len(rows), 1, 1, generator=generator) < 0.5
    labels = torch.where(flipped, labels.flip(-1), labels)
    levels = torch.where(flipped[:, None], levels.flip(-1), levels)
    strength = RECIPE["jitter"]
    levels = color_jitter(levels, strength, strength, strength, generator)
    return levels.mul(255).round(), labels


def fit(row: Row, images: torch.Tensor, masks: Sequence[torch.Tensor], recipe: dict[str, Any], seed: int) -> float:
    """Trains a row, and returns the mean loss of the last epoch."""
    generator = torch.Generator().manual_seed(seed)
    batch, side = recipe["batch_size"], recipe["side"]
    per_epoch = len(images) // batch
    steps = recipe["epochs"] * per_epoch
    optimizer = torch.optim.AdamW(parameter_groups(row.model, recipe["weight_decay"]), lr=recipe["learning_rate"])
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmed_cosine(step, recipe["warmup"] * steps, steps)
    )
    row.model.train()
    total, step = 0.0, 0
    for epoch in range(recipe["epochs"]):
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator)[: per_epoch * batch].split(batch):
            levels, labels = views(images, masks, rows, side, generator)
            wide = F.interpolate(row.logits(levels), (side, side), mode="bilinear")
            loss = F.cross_entropy(wide, labels, ignore_index=IGNORED)
            loss = loss + recipe["overlap_loss_weight"] * overlap_loss(wide, labels, IGNORED)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(row.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            total += float(loss.detach()) / per_epoch
        require_finite(total, step)
        print({"epoch": epoch + 1, "loss": round(total, 4)}, flush=True)
    row.model.eval()
    return total


@torch.no_grad()
def scores(row: Row, images: torch.Tensor, masks: Sequence[torch.Tensor]) -> dict[str, dict[str, list[float]]]:
    """By upsampling: the figure's IoU and the border's F of each image, at its own size."""
    found: dict[str, dict[str, list[float]]] = {how: {"iou": [], "boundary_f": []} for how in UPSAMPLINGS}
    for start in range(0, len(images), 16):
        logits = row.logits(images[start : start + 16])
        for one, mask in zip(logits, masks[start : start + 16], strict=True):
            for how in UPSAMPLINGS:
                (answer,) = segmentation_maps_of(one[None], [(mask.shape[0], mask.shape[1])], how)
                iou = overlaps(confusion_matrix(answer, mask, 2, IGNORED))[1]
                found[how]["iou"].append(round(float(iou.nan_to_num(1.0)), 5))
                found[how]["boundary_f"].append(round(boundary_f(answer, mask, IGNORED), 5))
    return found


def run(name: str, seed: int, folder: Path, results: Path, **changes: Any) -> dict[str, Any]:
    """Trains and measures one row with one seed, and writes its JSON."""
    recipe, started = {**RECIPE, **changes}, time.perf_counter()
    side = recipe["side"]
    torch.manual_seed(seed)
    row = Row(name, side)
    images, masks = loaded(folder / "train", round(KEPT * side))
    loss = fit(row, images, masks, recipe, seed)
    held = scores(row, *loaded(folder / "validation", side))
    chosen = max(UPSAMPLINGS, key=lambda how: float(np.mean(held[how]["iou"])))
    test = scores(row, *tested(side))
    result = {
        "question": QUESTION,
        "row": name,
        "seed": seed,
        "recipe": recipe,
        "encoder": ENCODER,
        "training_images": len(images),
        "parameters": sum(parameter.numel() for parameter in row.model.parameters()),
        "loss": loss,
        "upsampling": chosen,
        "held_out": {how: {kind: float(np.mean(values)) for kind, values in held[how].items()} for how in held},
        "test": test,
        "seconds": time.perf_counter() - started,
        "environment": environment(torch.device("cpu"), torch.float32),
    }
    write_json(results / QUESTION / f"{name}-seed{seed}.json", result)
    iou, border = (float(np.mean(test[chosen][kind])) for kind in ("iou", "boundary_f"))
    print(f"{name}, seed {seed}: IoU {iou:.4f}, F {border:.4f}, {chosen}", flush=True)
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what has no result yet, one after the other."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path, help="what experiments.dense.teacher wrote")
    parser.add_argument("--rows", nargs="+", default=["superpixel_49", "grid_49", "grid_196", "grid_400"])
    add_options(parser, "seeds", "epochs", "results", epochs=RECIPE["epochs"])
    parser.add_argument("--side", type=int, default=RECIPE["side"])
    arguments = parser.parse_args(argv)
    for seed in arguments.seeds:
        for name in arguments.rows:
            if not (arguments.results / QUESTION / f"{name}-seed{seed}.json").is_file():
                run(name, seed, arguments.folder, arguments.results, epochs=arguments.epochs, side=arguments.side)


if __name__ == "__main__":
    keep_heap()
    main()
