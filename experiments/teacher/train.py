"""
A pupil of the bank's teacher, trained from a recipe at growing resolutions.

    python -m experiments.teacher.train experiments/teacher/vit-tiny.json --bank runs/teacher-bank --out runs/vit-tiny
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny.json --bank runs/teacher-bank --out runs/tiny
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny-mixed.json --begin runs/tiny --out runs/mixed
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny-mixed.json --begin runs/mixed \\
        --change stages=[[224,96]] ema_decay=0.999 --out runs/mixed-2
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny-deep.json \\
        --begin runs/mixed-2 --out runs/deep

The pupil learns four things of each view: its label, the teacher's ten logits, the teacher's 1,000 logits through a
head that is thrown away, and, where it keeps a token for each place, the teacher's last feature map through another
(locality guidance: Li et al. 2022, arXiv 2207.10026). Most epochs are at 112 px, where ViT-Ti/16 has 49 tokens that
stand at the 7 × 7 places of the teacher's map; a learned position is interpolated. Everything but the master weights
is in bfloat16. The same command goes on from the last epoch that was finished.

With `views` = 0 there is no bank: each view is drawn anew, most of them are two images mixed, and the teacher answers
for what the pupil sees (function matching: Beyer et al. 2022, arXiv 2106.05237). A label has no part in mixed images.
With `num_superpixels` K is drawn for each batch, so that the pupil serves several. A run may begin from a checkpoint
whose stem has fewer blocks.

`--split validation` trains on four fifths of the training images and measures on the fifth held out: choices are made
there. The default trains on all of them, and looks at the test split once, when training has ended.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from experiments.micro.data import DATA, load_pictures
from experiments.micro.processes import keep_heap
from experiments.micro.states import write_state
from experiments.teacher.bank import NUM_AXES, NUM_LOGITS, PLACES, Teaching
from experiments.teacher.efficientnet import IMAGENETTE_CLASSES, NAME, SIZE
from experiments.teacher.mixed import MixedTeaching
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.distillation import distillation_loss
from focusvit_hf.training.elastic import ElasticSuperpixels
from focusvit_hf.training.objective import parameter_groups, require_finite, soft_cross_entropy
from focusvit_hf.utils.files import read_json, write_json


STATE_FILE = "state.pt"
LOG_FILE = "log.json"
NAMES = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)


@dataclass(frozen=True)
class Recipe:
    """
    How a pupil is trained.

    Args:
        config (`dict`): Fields of `FocusViTConfig`.
        stages (list of pairs of `int`): (side of the images in pixels, epochs), one after the other.
        batch_size, learning_rate, weight_decay, warmup_epochs, ema_decay, seed: Of AdamW, its cosine and the average.
        views (`int`): Views of each image in the bank; epoch e sees view e mod views. 0: every view is a new one.
        mix (`float`): Share of the batches that are mixed where every view is new, one half by mixup, one by cutmix.
        teacher_size (`int`): Side in pixels of what the teacher sees of new views.
        num_superpixels (list of `int`): What K is drawn from for each batch; empty: the configuration's own.
        label, logits, thousand, guidance (`float`): Shares of the four losses, see the module.
        temperature (`float`): Of the ten logits; `thousand_temperature` of the 1,000.
        guided_layer (`int`): Whose tokens the map guides, counted from 1.
    """

    config: dict[str, Any]
    stages: list[list[int]]
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 3.0
    ema_decay: float = 0.998
    seed: int = 42
    views: int = 16
    mix: float = 0.0
    teacher_size: int = SIZE
    num_superpixels: list[int] = field(default_factory=list)
    label: float = 0.2
    logits: float = 0.3
    thousand: float = 0.5
    guidance: float = 2.0
    temperature: float = 3.0
    thousand_temperature: float = 2.0
    guided_layer: int = 9

    @classmethod
    def read(cls, path: Path, **changes: Any) -> Recipe:
        """From JSON; ValueError for a key that is none."""
        options = {**read_json(path), **changes}
        unknown = sorted(options.keys() - {item.name for item in fields(cls)})
        if unknown:
            raise ValueError(f"expected fields of a recipe in {path}, got {unknown}")
        return cls(**options)

    def __post_init__(self) -> None:
        if self.views and (self.mix or self.teacher_size != SIZE):
            raise ValueError(f"expected views = 0 with mix or teacher_size, got a bank of {self.views} views")
        if not self.views and self.guidance:
            raise ValueError(f"expected guidance = 0 with views = 0, whose maps are not kept, got {self.guidance}")

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(epochs for _, epochs in self.stages)

    def size(self, epoch: int) -> int:
        """Side of the images of an epoch, counted from 0."""
        ends = accumulate(epochs for _, epochs in self.stages)
        return next(size for (size, _), end in zip(self.stages, ends, strict=True) if epoch < end)


class Pupil(nn.Module):
    """The model with two heads that are thrown away: 1,000 classes, and the teacher's map."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        labels: dict[str, Any] = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
        config = FocusViTConfig(**recipe.config, **labels)
        # SDPA's backward pass is slow in bfloat16 on a CPU.
        self.model = FocusViTForImageClassification._from_config(config, attn_implementation="eager")
        self.thousand = nn.Linear(self.model.classifier.in_features, NUM_LOGITS)
        self.guided = nn.Linear(config.hidden_size, NUM_AXES) if recipe.guidance else None
        self.layer = recipe.guided_layer

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Ten logits, 1,000 logits, and the map `(batch_size, 49, 64)` where it is guided."""
        outputs = self.model.focusvit(pixels, output_hidden_states=self.guided is not None)
        features = outputs.pooler_output
        if outputs.patch_mean is not None:
            features = torch.cat((features, outputs.patch_mean), dim=1)
        logits, thousand = self.model.classifier(features), self.thousand(features)
        if self.guided is None:
            return logits, thousand, None
        tokens = outputs.hidden_states[self.layer][:, 1:]
        side, places = math.isqrt(tokens.shape[1]), math.isqrt(PLACES)
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        if side != places:
            grid = nn.functional.adaptive_avg_pool2d(grid, places)
        return logits, thousand, self.guided(grid.flatten(2).transpose(1, 2))


@dataclass
class State:
    """Where a run stands: everything that goes on after an interruption."""

    pupil: Pupil
    optimizer: torch.optim.Optimizer
    average: ExponentialMovingAverage
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Replaces an older state in one step."""
        average = self.average.average
        content = {
            "pupil": self.pupil.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if average is None else average.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
        }
        write_state(path, content)

    def load(self, path: Path) -> None:
        """Weights only: no code in the file is run."""
        content = torch.load(path, weights_only=True)
        self.pupil.load_state_dict(content["pupil"])
        self.optimizer.load_state_dict(content["optimizer"])
        if content["average"] is not None:
            self.average.update(self.pupil.model)
            assert self.average.average is not None
            self.average.average.load_state_dict(content["average"])
        self.epoch, self.history = content["epoch"], content["history"]


def warmed_cosine(progress: float, warmup: float, length: float) -> float:
    """A linear warm-up from 0 to 1, then half a cosine to 0, after `progress` of `length` epochs."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (length - warmup)))


def rate(recipe: Recipe, progress: float) -> float:
    """The learning rate after `progress` epochs."""
    return recipe.learning_rate * warmed_cosine(progress, recipe.warmup_epochs, recipe.epochs)


def losses(
    recipe: Recipe,
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    labels: torch.Tensor | None,
    logits: torch.Tensor,
    places: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """The losses by name, each times its share; that of the labels is 0 where images were mixed and have none."""
    own, thousand, guided = outputs
    ten = logits[:, list(IMAGENETTE_CLASSES)]
    parts = {
        "label": own.new_zeros(()) if labels is None else recipe.label * soft_cross_entropy(own, labels),
        "logits": recipe.logits * distillation_loss(own, ten, recipe.temperature),
        "thousand": recipe.thousand * distillation_loss(thousand, logits, recipe.thousand_temperature),
    }
    if guided is not None and places is not None:
        parts["guidance"] = recipe.guidance * nn.functional.mse_loss(guided.float(), places)
    return parts


def train_epoch(
    recipe: Recipe, state: State, teaching: Teaching | MixedTeaching, labels: torch.Tensor, rows: torch.Tensor
) -> None:
    """One epoch over the images numbered `rows`; its draws are a function of seed and epoch."""
    torch.manual_seed(recipe.seed * 10_007 + state.epoch)
    size, begin = recipe.size(state.epoch), time.time()
    order = rows[torch.randperm(len(rows))]
    batches = order[: len(order) // recipe.batch_size * recipe.batch_size].split(recipe.batch_size)
    elastic = None
    if recipe.num_superpixels:
        elastic = ElasticSuperpixels(state.pupil.model.config, recipe.num_superpixels, recipe.seed)
    sums: dict[str, float] = {}
    right = 0
    state.pupil.train()
    for number, indices in enumerate(batches):
        for group in state.optimizer.param_groups:
            group["lr"] = rate(recipe, state.epoch + number / len(batches))
        pixels, logits, told, places = teaching.lesson(indices, labels[indices], state.epoch, size)
        drawn = nullcontext() if elastic is None else elastic.drawn(state.epoch * len(batches) + number)
        with torch.autocast("cpu", torch.bfloat16), drawn:
            outputs = state.pupil(pixels)
        parts = losses(recipe, outputs, told, logits, places)
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(state.pupil.parameters(), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.average.update(state.pupil.model)
        # Of mixed images the teacher says what is right.
        aims = logits[:, list(IMAGENETTE_CLASSES)].argmax(dim=1) if told is None else told
        right += int((outputs[0].argmax(dim=1) == aims).sum())
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / len(batches)
    state.epoch += 1
    require_finite(sum(sums.values()), state.epoch * len(batches))
    figures: dict[str, float] = {"epoch": state.epoch, "views": recipe.views, "size": size}
    figures["accuracy"] = right / (len(batches) * recipe.batch_size)
    state.history.append({**figures, **sums, "seconds": time.time() - begin})


@torch.no_grad()
def measure(model: nn.Module, images: torch.Tensor, size: int, half: bool = True) -> torch.Tensor:
    """Logits of whole images `(count, 3, 224, 224)`, 8-bit levels, shrunk to `size`."""
    model.eval()
    logits = []
    for part in images.split(100):
        pixels = part.float() / 127.5 - 1
        if size != SIZE:
            pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits.append(model(pixels).logits.float())
    return torch.cat(logits)


def run(
    recipe: Recipe,
    out: Path,
    bank: Path | None,
    split: str,
    every: int,
    data: Path = DATA,
    begin: Path | None = None,
) -> dict[str, Any]:
    """Trains to the end, from the last epoch that was finished or the average of the run `begin`, and measures."""
    if (bank is None) == (recipe.views > 0):
        raise ValueError(f"expected --bank with views > 0 and only then, got {bank} and {recipe.views} views")
    pictures = load_pictures(data, "train", SIZE)
    held_out = torch.arange(len(pictures)) % 5 == 0
    rows = (~held_out if split == "validation" else torch.ones_like(held_out)).nonzero().flatten()
    teaching = (
        MixedTeaching(pictures.images, recipe.mix, recipe.teacher_size)
        if bank is None
        else Teaching(bank, pictures.images, recipe.views)
    )
    torch.manual_seed(recipe.seed)
    pupil = Pupil(recipe)
    if begin is not None:
        begin_from(begin, pupil)
    optimizer = torch.optim.AdamW(parameter_groups(pupil, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    state = State(pupil, optimizer, ExponentialMovingAverage(recipe.ema_decay))
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"recipe": asdict(recipe), "split": split, "teacher": NAME}
    earlier = []
    if begin is not None and (begin / LOG_FILE).is_file():
        log = read_json(begin / LOG_FILE)
        earlier = [*log.get("earlier", []), *log["history"]]
    if (out / STATE_FILE).is_file():
        log = read_json(out / LOG_FILE)
        if log["settings"] != settings:
            raise ValueError(f"expected the recipe of {out / LOG_FILE}, got another; choose another --out")
        earlier = log["earlier"]
        state.load(out / STATE_FILE)
    while state.epoch < recipe.epochs:
        train_epoch(recipe, state, teaching, pictures.labels, rows)
        last = state.epoch == recipe.epochs
        if split == "validation" and (last or state.epoch % every == 0):
            with state.average.applied(pupil.model):
                logits = measure(pupil.model, pictures.images[held_out], recipe.size(state.epoch - 1))
            state.history[-1]["held_out"] = float((logits.argmax(1) == pictures.labels[held_out]).float().mean())
        print({name: round(value, 4) for name, value in state.history[-1].items()}, flush=True)
        teaching.keep()
        write_json(out / LOG_FILE, {"settings": settings, "earlier": earlier, "history": state.history})
        state.save(out / STATE_FILE)
    figures = finish(state, out, teaching, split, data)
    write_json(
        out / LOG_FILE, {"settings": settings, "earlier": earlier, "history": state.history, "figures": figures}
    )
    print(figures, flush=True)
    return figures


def begin_from(folder: Path, pupil: Pupil) -> None:
    """
    The weights of a checkpoint, such as the average that a run saved.

    The heads that are thrown away are those of the run's last step; a checkpoint of another program has none, and they
    begin anew. So do residual blocks of the stem that the checkpoint lacks, which add nothing before they learn.

    Raises:
        ValueError: If the checkpoint is of another model.
    """
    if (folder / STATE_FILE).is_file():
        learned = torch.load(folder / STATE_FILE, weights_only=True)["pupil"]
        heads = {name: tensor for name, tensor in learned.items() if not name.startswith("model.")}
        pupil.load_state_dict(heads, strict=False)
    weights = load_file(folder / SAFE_WEIGHTS_NAME)
    own = pupil.model.state_dict()
    odd = [name for name in own if name not in weights and ".units.blocks." not in name]
    odd += [name for name, tensor in weights.items() if name not in own or own[name].shape != tensor.shape]
    if odd:
        raise ValueError(f"expected weights of the recipe's model in {folder}, got others: {sorted(odd)[:5]}")
    pupil.model.load_state_dict(weights, strict=False)


def finish(state: State, out: Path, teaching: Teaching | MixedTeaching, split: str, data: Path) -> dict[str, Any]:
    """Saves the averaged model with its processor, and measures it on the test split where nothing was held out."""
    model = state.pupil.model
    figures: dict[str, Any] = {}
    with state.average.applied(model):
        if split == "test":
            test = load_pictures(data, "test", SIZE)
            logits = measure(model, test.images, SIZE, half=False)
            with torch.no_grad():
                told = torch.cat([teaching.teacher(part.float() / 127.5 - 1) for part in test.images.split(100)])
            choice = told[:, list(IMAGENETTE_CLASSES)].argmax(dim=1)
            figures = {
                "test_accuracy": float((logits.argmax(dim=1) == test.labels).float().mean()),
                "teacher_accuracy": float((choice == test.labels).float().mean()),
                "agreement": float((logits.argmax(dim=1) == choice).float().mean()),
            }
        model.save_pretrained(out)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(out)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--bank", type=Path, help="folder of the teacher's answers, where the recipe has views")
    parser.add_argument("--begin", type=Path, help="folder of a run, or of a checkpoint, whose weights are begun from")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--every", type=int, default=5, help="measure held-out images every so many epochs")
    parser.add_argument(
        "--change", nargs="*", default=[], help="fields of the recipe, in JSON: learning_rate=5e-4 stages=[[224,96]] …"
    )
    args = parser.parse_args(argv)
    changes = {name: json.loads(value) for name, value in (change.split("=", 1) for change in args.change)}
    recipe = Recipe.read(args.recipe, **changes)
    run(recipe, args.out, args.bank, args.split, args.every, begin=args.begin)


if __name__ == "__main__":
    keep_heap()
    torch.set_num_threads(1)
    main()
