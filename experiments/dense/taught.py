"""
A segmenter that learns figures from new views, for which a teacher answers.

    python -m experiments.dense.teacher runs/figures
    python -m experiments.dense.taught --teacher runs/figures/teacher.pt --begin runs/figures-tiny --out runs/figures-2

No view comes twice: boxes of the training images of Imagenette and ECSSD are drawn anew for every step, some batches
are mixed, and the teacher gives each cell the probability that it belongs to a figure (function matching: Beyer et
al. 2022, arXiv 2106.05237). No mask has a part, and neither has an image that `focusvit train --train_val_split 0.1
--seed 42` holds out, on which each epoch is measured. The folder that is written is what
`configuration/recipes/ecssd-tiny.json` begins from. The same command goes on from the last epoch that was finished.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn

from experiments.dense.teacher import ECSSD, HELD_OUT, SEED, FigureTeacher, figure_loss, image_iou, squashed, views
from experiments.micro.arguments import parser_of
from experiments.micro.data import DATA, load_examples
from experiments.micro.processes import keep_heap
from experiments.micro.states import write_state
from experiments.teacher.efficientnet import SIZE
from experiments.teacher.mixed import mixed_views
from experiments.teacher.recipe import warmed_cosine
from focusvit_hf import FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.training.augmentation import AugmentationConfig
from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.objective import parameter_groups, require_finite
from focusvit_hf.utils.files import read_json, write_json


STATE_FILE, LOG_FILE = "state.pt", "log.json"
CROP_SCALE = (0.35, 1.0)
JITTER = (0.3, 0.3, 0.3)
MIX = AugmentationConfig(mixup_alpha=1.0, cutmix_alpha=1.0, mix_probability=0.25)


def training_images(rows: datasets.Dataset, copies: int) -> torch.Tensor:
    """8-bit images `(count, 3, 224, 224)`: Imagenette's training images, and ECSSD's `copies` times."""
    own = torch.stack([squashed(row["image"], SIZE) for row in rows])
    return torch.cat((load_examples(DATA, "train", SIZE).images, own.repeat(copies, 1, 1, 1)))


def lesson(teacher: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """New views of 8-bit images in 0..1, and the teacher's probability of a figure for each cell of 4 × 4 pixels."""
    seen, _ = mixed_views(images, CROP_SCALE, JITTER, MIX)
    with torch.no_grad():
        return seen, teacher(seen).sigmoid()


def figure_logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """How much more likely than ground each cell of images in 0..1 is to belong to a figure: `(B, 56, 56)`."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images * 2 - 1).logits.float()
    return logits[:, 1] - logits[:, 0]


@torch.no_grad()
def held_out_iou(model: nn.Module, images: torch.Tensor, masks: torch.Tensor) -> float:
    """The mean over images of the figure's IoU, the mask being at half of the side."""
    model.eval()
    logits = torch.cat([figure_logits(model, part.float() / 255) for part in images.split(16)])
    return image_iou(logits[:, None], masks)


@dataclass(frozen=True)
class Plan:
    """Of AdamW, its cosine, whose ends are warm-up and zero, and the average of the weights."""

    epochs: int = 24
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 0.05
    ema_decay: float = 0.999


def train(
    model: FocusViTForSemanticSegmentation,
    teacher: nn.Module,
    images: torch.Tensor,
    held_out: tuple[torch.Tensor, torch.Tensor],
    plan: Plan,
    out: Path,
) -> list[dict[str, float]]:
    """
    Trains to the end, from the last epoch that was finished, and writes the averaged model with its processor.

    Args:
        model ([`FocusViTForSemanticSegmentation`]): Of ground and figure.
        teacher (`nn.Module`): From images in 0..1 to logits of a figure for each cell.
        images (`torch.ByteTensor` of shape `(count, 3, 224, 224)`): What is learned from.
        held_out (two tensors): Images `(count, 3, 224, 224)` in 0..255 and masks `(count, height, width)` of 0 and 1.
        plan ([`Plan`]): How.
        out (`Path`): Folder of the run.

    Returns:
        `list[dict[str, float]]`: Loss, IoU of the figure on the images held out, and seconds of each epoch.

    Raises:
        ValueError: If the folder holds a run by another plan.
    """
    optimizer = torch.optim.AdamW(parameter_groups(model, plan.weight_decay), lr=plan.learning_rate, fused=True)
    average = ExponentialMovingAverage(plan.ema_decay)
    average.update(model)
    assert average.average is not None
    history: list[dict[str, float]] = []
    out.mkdir(parents=True, exist_ok=True)
    if (out / STATE_FILE).is_file():
        log = read_json(out / LOG_FILE)
        if log["plan"] != asdict(plan):
            raise ValueError(f"expected the plan of {out / LOG_FILE}, got another; choose another --out")
        state = torch.load(out / STATE_FILE, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.average.load_state_dict(state["average"])
        history = log["history"]
    while len(history) < plan.epochs:
        epoch, begin, total = len(history), time.time(), 0.0
        torch.manual_seed(SEED * 10_007 + epoch)
        model.train()
        order = torch.randperm(len(images))
        batches = order[: len(order) // plan.batch_size * plan.batch_size].split(plan.batch_size)
        for number, rows in enumerate(batches):
            share = warmed_cosine(epoch + number / len(batches), plan.warmup_epochs, plan.epochs)
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * share
            seen, chances = lesson(teacher, images[rows])
            loss = figure_loss(figure_logits(model, seen), chances)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
            total += float(loss.detach()) / len(batches)
        require_finite(total, (epoch + 1) * len(batches))
        with average.applied(model):
            found = held_out_iou(model, *held_out)
        history.append({"epoch": epoch + 1, "loss": total, "image_iou": found, "seconds": time.time() - begin})
        print({name: round(value, 4) for name, value in history[-1].items()}, flush=True)
        write_json(out / LOG_FILE, {"plan": asdict(plan), "history": history})
        content = {"model": model.state_dict(), "average": average.average.state_dict()}
        write_state(out / STATE_FILE, {**content, "optimizer": optimizer.state_dict()})
    with average.applied(model):
        model.save_pretrained(out)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(out)
    return history


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="teacher.pt of experiments.dense.teacher")
    parser.add_argument("--begin", type=Path, required=True, help="folder of the segmenter that is begun from")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--copies", type=int, default=2, help="how often each of ECSSD's images is seen in an epoch")
    for item in fields(Plan):
        parser.add_argument(f"--{item.name}", type=type(item.default), default=item.default)
    args = parser.parse_args(argv)
    parts: Any = datasets.load_dataset("parquet", data_dir=str(ECSSD), split="train")
    parts = parts.train_test_split(HELD_OUT, seed=SEED)
    levels, masks = views(parts["test"], 1, SEED)
    levels = nn.functional.interpolate(levels.float(), (SIZE, SIZE), mode="bilinear", antialias=True)
    # SDPA's backward pass is slow in bfloat16 on a CPU.
    model = FocusViTForSemanticSegmentation.from_pretrained(
        args.begin, dtype=torch.float32, attn_implementation="eager"
    )
    plan = Plan(**{item.name: getattr(args, item.name) for item in fields(Plan)})
    images = training_images(parts["train"], args.copies)
    train(model, FigureTeacher.load(args.teacher), images, (levels, masks), plan, args.out)


if __name__ == "__main__":
    keep_heap()
    torch.set_num_threads(1)
    main()
