"""
A pretrained network that finds figures, and the masks it gives to images that have none.

    python -m experiments.dense.teacher runs/figures

A small decoder over four maps of EfficientNet-lite0, which has ImageNet's weights, learns the masks of ECSSD's
training images, but for those that `focusvit train --train_val_split 0.1 --seed 42` holds out. Then both learn
together, and what they know is kept as `runs/figures/teacher.pt`. Last the teacher looks at the training images of
Imagenette and writes `runs/figures/train/{images,masks}`, together with ECSSD's own training images and masks, and
those held out to `runs/figures/validation`: the data set of `configuration/recipes/figures-tiny.json`. A pixel of
which the teacher is unsure gets 255, and images without a figure of a sensible size are left out. No test image is
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from experiments.micro.arguments import parser_of
from experiments.micro.data import DATA
from experiments.micro.states import write_state
from experiments.teacher.efficientnet import MEAN, STD, EfficientNetLite0, fold_batch_norms
from focusvit_hf.segmentation_maps import IGNORED, decode_mask
from focusvit_hf.training.augmentation import as_floats, color_jitter, crop_mask, random_crop_boxes
from focusvit_hf.utils.files import write_json


ECSSD, IMAGENETTE = Path("../shared/data/ecssd"), DATA
HELD_OUT, SEED = 0.1, 42
# Side of the images that the teacher sees; the blocks whose maps it reads, at 1/4, 1/8, 1/16 and 1/32 of it.
SIDE = 256
BLOCKS, CHANNELS = (2, 4, 10, 15), (24, 40, 112, 320)
# Probabilities between these are no answer, and figures are to cover a share of the image between these.
UNSURE = (0.35, 0.65)
SHARES = (0.03, 0.75)


class Decoder(nn.Module):
    """A feature pyramid: the coarse maps are added to the finer ones, from `(B, C, h, w)` each to `(B, 1, H, W)`."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, width, 1) for count in CHANNELS)
        self.smooth = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width if level == 0 else 1) for level in range(len(CHANNELS))
        )
        self.context = nn.Linear(CHANNELS[-1], width)
        self.answer = nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU(), nn.Conv2d(width, 1, 1))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """See the class."""
        above = self.context(maps[-1].mean(dim=(2, 3)))[:, :, None, None]
        for level in reversed(range(len(maps))):
            here = self.lateral[level](maps[level])
            if above.shape[-1] > 1:
                above = F.interpolate(above, here.shape[-2:], mode="bilinear")
            here = here + above
            above = here + self.smooth[level](here.relu())
        return self.answer(above.relu())


class FigureTeacher(nn.Module):
    """The network, in bfloat16 unless it learns, and the decoder on its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNetLite0().network.bfloat16()
        self.decoder = Decoder()
        self._maps: list[torch.Tensor] = []
        for block in BLOCKS:
            self.network._blocks[block].register_forward_hook(lambda _, __, output: self._maps.append(output))

    @classmethod
    def load(cls, file: Path) -> FigureTeacher:
        """The teacher that `main` kept, for use: its batch norms are part of its convolutions."""
        teacher = cls()
        teacher.load_state_dict(torch.load(file, weights_only=True))
        fold_batch_norms(teacher.network.float())
        teacher.network.bfloat16()
        return teacher.eval().requires_grad_(False)

    @torch.no_grad()
    def maps(self, levels: torch.Tensor) -> list[torch.Tensor]:
        """The four maps of 8-bit images `(B, 3, H, W)`, in bfloat16."""
        return self.features(levels.float() / 255)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The four maps of images `(B, 3, H, W)` in 0..1, in the network's type."""
        pixels = ((images - MEAN) / STD).to(next(self.network.parameters()).dtype)
        self._maps = []
        self.network.extract_features(pixels.contiguous(memory_format=torch.channels_last))
        return self._maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a figure at a quarter of the size of images in 0..1: `(B, H / 4, W / 4)` in float32."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.decoder(self.features(images)).float()[:, 0]

    @torch.no_grad()
    def probabilities(self, levels: torch.Tensor) -> torch.Tensor:
        """Of a figure, `(B, H, W)`, the mean of an image and its mirror image."""
        size = (levels.shape[-2], levels.shape[-1])
        total = torch.zeros(len(levels), *size)
        for flip in (False, True):
            with torch.autocast("cpu", torch.bfloat16):
                logits = self.decoder(self.maps(levels.flip(-1) if flip else levels))
            chance = F.interpolate(logits.float(), size, mode="bilinear").sigmoid()[:, 0]
            total = total + (chance.flip(-1) if flip else chance) / 2
        return total


def squashed(image: Image.Image, side: int) -> torch.Tensor:
    """8-bit levels `(3, side, side)`."""
    small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def views(rows: datasets.Dataset, number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`number` random boxes of each image, mirrored by the toss of a coin, and their masks at half of the side."""
    generator = torch.Generator().manual_seed(seed)
    images, masks = [], []
    for row in rows:
        image = row["image"].convert("RGB")
        mask = torch.from_numpy(decode_mask(row["mask"]).astype(np.int64))
        for view in range(number):
            height, width = mask.shape
            box = torch.tensor([0, 0, height, width])
            if view:
                box = random_crop_boxes(1, (height, width), (0.4, 1.0), (3 / 4, 4 / 3), generator)[0]
            top, left, rows_, columns = box.tolist()
            levels = squashed(image.crop((left, top, left + columns, top + rows_)), SIDE)
            labels = crop_mask(mask, box, (SIDE // 2, SIDE // 2))
            if torch.rand((), generator=generator) < 0.5:
                levels, labels = levels.flip(-1), labels.flip(-1)
            images.append(levels)
            masks.append(labels)
    return torch.stack(images), torch.stack(masks)


def all_maps(teacher: FigureTeacher, images: torch.Tensor) -> list[torch.Tensor]:
    """The maps of all images, 16 at a time."""
    parts = [teacher.maps(batch) for batch in images.split(16)]
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def image_iou(logits: torch.Tensor, masks: torch.Tensor) -> float:
    """The mean over images of the figure's IoU."""
    found = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear")[:, 0] > 0
    both, either = (found & (masks == 1)).sum(dim=(1, 2)), (found | (masks == 1)).sum(dim=(1, 2))
    return float((both / either.clamp(min=1)).mean())


def figure_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy and how far the figure is from overlapping, a mean over images (Rahman and Wang 2016), of logits
    `(B, H, W)`; `truth` holds probabilities of a figure, 0 or 1 where they are known.
    """
    chance = logits.sigmoid()
    both = (chance * truth).sum(dim=(1, 2))
    overlap = both / (chance + truth - chance * truth).sum(dim=(1, 2)).clamp(min=1e-6)
    return F.binary_cross_entropy_with_logits(logits, truth) + (1 - overlap).mean()


def train(teacher: FigureTeacher, parts: Any, number: int, epochs: int) -> list[dict[str, float]]:
    """Teaches the decoder, and returns the figures of each epoch on the images held out."""
    images, masks = views(parts["train"], number, SEED)
    held_images, held_masks = views(parts["test"], 1, SEED)
    maps, held_maps = all_maps(teacher, images), all_maps(teacher, held_images)
    print(f"maps of {len(images)} views", flush=True)
    optimizer = torch.optim.AdamW(teacher.decoder.parameters(), lr=2e-3, weight_decay=0.05)
    batch, steps = 32, epochs * (len(images) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    history = []
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED + epoch))
        teacher.decoder.train()
        for rows in order[: len(order) // batch * batch].split(batch):
            with torch.autocast("cpu", torch.bfloat16):
                logits = teacher.decoder([level[rows] for level in maps])
            wide = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear")[:, 0]
            loss = figure_loss(wide, (masks[rows] == 1).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        teacher.decoder.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            held = torch.cat([teacher.decoder(part) for part in zip(*(m.split(16) for m in held_maps), strict=True)])
        history.append({"epoch": epoch + 1, "loss": float(loss), "image_iou": image_iou(held, held_masks)})
        print(history[-1], flush=True)
    return history


def refine(teacher: FigureTeacher, parts: Any, epochs: int, rate: float = 3e-4) -> list[dict[str, float]]:
    """
    Network and decoder learn together, from each image and a new box of it in every epoch. Batch statistics stay
    ImageNet's. Returns the figures of each epoch on the images held out.
    """
    teacher.eval()
    network = teacher.network.float().requires_grad_(True)
    held_images, held_masks = views(parts["test"], 1, SEED)
    groups: list[dict[str, Any]] = [{"params": list(part.parameters())} for part in (network, teacher.decoder)]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.02)
    steps = epochs * (2 * len(parts["train"]) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [rate, 3 * rate], total_steps=steps, pct_start=0.1)
    history = []
    for epoch in range(epochs):
        torch.manual_seed(SEED + epoch)
        images, masks = views(parts["train"], 2, SEED + 1 + epoch)
        for rows in torch.randperm(len(images))[: len(images) // 16 * 16].split(16):
            logits = teacher(color_jitter(as_floats(images[rows]), 0.3, 0.3, 0.3))
            wide = F.interpolate(logits[:, None], masks.shape[-2:], mode="bilinear")[:, 0]
            loss = figure_loss(wide, (masks[rows] == 1).float())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            held = torch.cat([teacher(part) for part in as_floats(held_images).split(16)])
        history.append({"epoch": epoch + 1, "loss": float(loss), "image_iou": image_iou(held[:, None], held_masks)})
        print(history[-1], flush=True)
    network.requires_grad_(False).bfloat16()
    return history


def write_own(rows: datasets.Dataset, target: Path, copies: int = 1) -> None:
    """Writes ECSSD's images and masks into `target/{images,masks}`, each `copies` times."""
    for part in ("images", "masks"):
        (target / part).mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(rows):
        mask = Image.fromarray(decode_mask(row["mask"]))
        for copy in range(copies):
            row["image"].convert("RGB").save(target / "images" / f"ecssd-{index:04d}-{copy}.jpg", quality=92)
            mask.save(target / "masks" / f"ecssd-{index:04d}-{copy}.png")


def write_found(teacher: FigureTeacher, target: Path, limit: int | None) -> int:
    """Writes Imagenette's images with the masks found in them, and returns how many there are."""
    rows = datasets.load_dataset("parquet", data_dir=str(IMAGENETTE), split="train").shuffle(seed=SEED)
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    kept = 0
    for start in range(0, len(rows), 16):
        images = rows[start : start + 16]["image"]
        chances = teacher.probabilities(torch.stack([squashed(image, SIDE) for image in images]))
        chances = F.interpolate(chances[:, None], (224, 224), mode="bilinear")[:, 0]
        for offset, (image, chance) in enumerate(zip(images, chances, strict=True)):
            if not SHARES[0] <= float((chance > 0.5).float().mean()) <= SHARES[1]:
                continue
            unsure = (chance > UNSURE[0]) & (chance < UNSURE[1])
            labels = (chance > 0.5).byte().masked_fill(unsure, IGNORED)
            name = f"imagenette-{start + offset:05d}"
            image.convert("RGB").resize((224, 224)).save(target / "images" / f"{name}.jpg", quality=92)
            Image.fromarray(labels.numpy()).save(target / "masks" / f"{name}.png")
            kept += 1
    return kept


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("target", type=Path, help="folder of the data set")
    parser.add_argument("--views", type=int, default=4, help="boxes of each of ECSSD's images")
    parser.add_argument("--epochs", type=int, default=12, help="of the decoder")
    parser.add_argument("--refine", type=int, default=10, help="epochs of network and decoder together")
    parser.add_argument("--copies", type=int, default=2, help="how often each of ECSSD's images is written")
    parser.add_argument("--images", type=int, help="largest number of Imagenette's images, by default all")
    args = parser.parse_args(argv)
    torch.manual_seed(SEED)
    teacher = FigureTeacher().eval()
    parts = datasets.load_dataset("parquet", data_dir=str(ECSSD), split="train").train_test_split(HELD_OUT, seed=SEED)
    write_own(parts["train"], args.target / "train", args.copies)
    write_own(parts["test"], args.target / "validation")
    write_json(args.target / "train" / "labels.json", {"labels": ["ground", "figure"]})
    history = train(teacher, parts, args.views, args.epochs)
    refined = refine(teacher, parts, args.refine)
    write_state(args.target / "teacher.pt", teacher.state_dict())
    kept = write_found(teacher, args.target / "train", args.images)
    log = {
        "history": history,
        "refined": refined,
        "views": args.views,
        "copies": args.copies,
        "imagenette_images": kept,
    }
    write_json(args.target / "log.json", log)
    print(f"{kept} images of Imagenette with masks in {args.target}")


if __name__ == "__main__":
    main()
