"""
A pupil of the bank's teacher, trained from a recipe at growing resolutions.

    python -m experiments.teacher.train experiments/teacher/vit-tiny.json --bank runs/teacher-bank --out runs/vit-tiny
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny.json --bank runs/teacher-bank --out runs/tiny
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny-mixed.json --begin runs/tiny --out runs/mixed
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny-mixed.json --begin runs/mixed \\
        --change stages=[[224,96]] ema_decay=0.999 --out runs/mixed-2
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny-deep.json \\
        --begin runs/mixed-2 --out runs/deep
    python -m experiments.teacher.train experiments/teacher/focusvit-tiny-varied.json \\
        --begin model_cards/focusvit-tiny-imagenette-taught --out runs/varied
    python -m experiments.teacher.train experiments/teacher/dense_controls/*.json --out runs/controls

The pupil learns four things of each view: its label, the teacher's ten logits, the teacher's 1,000 logits through a
head that is thrown away, and, where it keeps a token for each place, the teacher's last feature map through another
(locality guidance: Li et al. 2022, arXiv 2207.10026). Most epochs are at 112 px, where ViT-Ti/16 has 49 tokens that
stand at the 7 × 7 places of the teacher's map; a learned position is interpolated. Everything but the master weights
is in bfloat16. The same command goes on from the last epoch that was finished.

With `views` = 0 there is no bank: each view is drawn anew, most of them are two images mixed, and the teacher answers
for what the pupil sees (function matching: Beyer et al. 2022, arXiv 2106.05237). A label has no part in mixed images.
Several recipes, which differ in their pupils alone, are taught side by side: all see the same views, and the teacher
answers once. With `unlabelled`, images of other data sets are among the views; the teacher's answers are all that is
learned of them.

With `num_superpixels` K is drawn for each batch, so that the pupil serves several. A run may begin from a checkpoint
whose stem has fewer blocks.

`--split validation` trains on four fifths of the training images and measures on the fifth held out: choices are made
there. The default trains on all of them, and looks at the test split once, when training has ended.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.utils import SAFE_WEIGHTS_NAME

from experiments.micro.data import DATA, Examples, load_examples, load_images
from experiments.micro.processes import keep_heap
from experiments.micro.results import packed
from experiments.micro.states import write_state
from experiments.teacher.bank import UNLABELLED, Lesson, Teaching
from experiments.teacher.efficientnet import IMAGENETTE_CLASSES, NAME, SIZE
from experiments.teacher.mixed import MixedTeaching
from experiments.teacher.pupils import NAMES, Peer, Pupil
from experiments.teacher.recipe import Recipe, rate
from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.hub.contents import TRAINING_LOG_FILE
from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.distillation import distillation_loss
from focusvit_hf.training.elastic import ElasticSuperpixels
from focusvit_hf.training.objective import parameter_groups, require_finite, soft_cross_entropy
from focusvit_hf.utils.files import read_json, write_json


STATE_FILE = "state.pt"
LOG_FILE = "log.json"


@dataclass
class State:
    """
    Where a pupil stands: everything that goes on after an interruption.

    Args:
        recipe (`Recipe`): How it is trained.
        out (`Path`): Folder of its run.
        pupil, optimizer, average: Its weights, AdamW, and the average that is measured and saved.
        epoch (`int`): Epochs that are finished; `history` has the figures of each, `earlier` those of the runs before.
        rounds (list of `dict`): `command` and `recipe` of the runs before, and its own.
    """

    recipe: Recipe
    out: Path
    pupil: Pupil | Peer
    optimizer: torch.optim.Optimizer
    average: ExponentialMovingAverage
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    earlier: list[dict[str, float]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)

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


def losses(
    recipe: Recipe,
    outputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    labels: torch.Tensor | None,
    logits: torch.Tensor,
    places: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """The losses by name, each times its share; that of the labels is 0 for images that were mixed or have none."""
    own, thousand, guided = outputs
    ten = logits[:, list(IMAGENETTE_CLASSES)]
    parts = {
        "label": own.new_zeros(()) if labels is None else recipe.label * label_loss(own, labels),
        "logits": recipe.logits * distillation_loss(own, ten, recipe.temperature),
        "thousand": recipe.thousand * distillation_loss(thousand, logits, recipe.thousand_temperature),
    }
    if guided is not None and places is not None:
        parts["guidance"] = recipe.guidance * nn.functional.mse_loss(guided.float(), places)
    return parts


def label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The cross entropy, a mean over the batch in which an image without a label counts 0."""
    known = labels != UNLABELLED
    each = soft_cross_entropy(logits, labels.where(known, labels.new_zeros(())), reduction="none")
    return each.where(known, each.new_zeros(())).mean()


class Course:
    """One epoch of one pupil: its steps, and the means of its losses."""

    def __init__(self, state: State, num_batches: int):
        recipe = state.recipe
        self.state = state
        self._num_batches = num_batches
        self._sums: dict[str, float] = {}
        self._right = 0
        self._elastic = None
        if recipe.num_superpixels:
            self._elastic = ElasticSuperpixels(state.pupil.model.config, recipe.num_superpixels, recipe.seed)
        state.pupil.train()

    def step(self, number: int, lesson: Lesson) -> None:
        """Learns from the batch of this number."""
        state, recipe, count = self.state, self.state.recipe, self._num_batches
        for group in state.optimizer.param_groups:
            group["lr"] = rate(recipe, state.epoch + number / count)
        drawn = nullcontext() if self._elastic is None else self._elastic.drawn(state.epoch * count + number)
        with torch.autocast("cpu", torch.bfloat16), drawn:
            outputs = state.pupil(lesson.pixels)
        parts = losses(recipe, outputs, lesson.labels, lesson.logits, lesson.places)
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(state.pupil.parameters(), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.average.update(state.pupil.model)
        # Of mixed images, and of those without a label, the teacher says what is right.
        aims = lesson.logits[:, list(IMAGENETTE_CLASSES)].argmax(dim=1)
        if lesson.labels is not None:
            aims = lesson.labels.where(lesson.labels != UNLABELLED, aims)
        self._right += int((outputs[0].argmax(dim=1) == aims).sum())
        for name, value in parts.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach()) / count

    def end(self, seconds: float) -> None:
        """Writes the figures of the epoch, which took `seconds` for all pupils together."""
        state, recipe = self.state, self.state.recipe
        figures: dict[str, float] = {"epoch": state.epoch + 1, "views": recipe.views, "size": recipe.size(state.epoch)}
        state.epoch += 1
        require_finite(sum(self._sums.values()), state.epoch * self._num_batches)
        figures["accuracy"] = self._right / (self._num_batches * recipe.batch_size)
        state.history.append({**figures, **self._sums, "seconds": seconds})


def train_epoch(
    states: Sequence[State], teaching: Teaching | MixedTeaching, labels: torch.Tensor, rows: torch.Tensor
) -> None:
    """
    One epoch over the images numbered `rows`, as many as have labels, whichever they are; its draws are a function of
    seed and epoch. All pupils, which stand at the same epoch, see the same views.
    """
    recipe, epoch = states[0].recipe, states[0].epoch
    torch.manual_seed(recipe.seed * 10_007 + epoch)
    size, begin = recipe.size(epoch), time.time()
    order = rows[torch.randperm(len(rows))]
    count = int((labels[rows] != UNLABELLED).sum()) // recipe.batch_size
    batches = order[: count * recipe.batch_size].split(recipe.batch_size)
    courses = [Course(state, len(batches)) for state in states]
    for number, indices in enumerate(batches):
        lesson = teaching.lesson(indices, labels[indices], epoch, size)
        for course in courses:
            course.step(number, lesson)
    for course in courses:
        course.end(time.time() - begin)


def pixels_of(images: torch.Tensor, size: int) -> torch.Tensor:
    """In -1..1, of whole images `(count, 3, 224, 224)`, 8-bit levels, shrunk to `size`."""
    pixels = images.float() / 127.5 - 1
    if size != SIZE:
        pixels = nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels


@torch.no_grad()
def measure(model: nn.Module, images: torch.Tensor, size: int, half: bool = True) -> torch.Tensor:
    """Logits of whole images `(count, 3, 224, 224)`, 8-bit levels, shrunk to `size`."""
    model.eval()
    logits = []
    for part in images.split(100):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits.append(model(pixels_of(part, size)).logits[:, : len(NAMES)].float())
    return torch.cat(logits)


def run(
    recipes: Mapping[Path, Recipe],
    bank: Path | None,
    split: str,
    every: int,
    data: Path = DATA,
    begin: Path | None = None,
    command: str = "",
) -> dict[Path, dict[str, Any]]:
    """
    Trains pupils, each with its recipe and the folder of its run, to the end, and measures them. A run goes on from
    the last epoch that was finished; a new one begins from the average of the run `begin`, if there is one. The log of
    a run says which `command` began it.

    Raises:
        ValueError: If the recipes differ in more than their pupils, if a bank is missing or not used, and if a folder
            holds the run of another recipe.
    """
    first = next(iter(recipes.values()))
    if (bank is None) == (first.views > 0):
        raise ValueError(f"expected --bank with views > 0 and only then, got {bank} and {first.views} views")
    for out, recipe in recipes.items():
        odd = [name for name, value in asdict(recipe).items() if value != getattr(first, name)]
        if set(odd) - {"config", "peer"}:
            raise ValueError(f"expected recipes that differ in config and peer alone, got {odd} in that of {out}")
    examples = with_unlabelled(load_examples(data, "train", SIZE), data, first.unlabelled)
    held_out = (torch.arange(len(examples)) % 5 == 0) & (examples.labels != UNLABELLED)
    rows = (~held_out if split == "validation" else torch.ones_like(held_out)).nonzero().flatten()
    teaching = MixedTeaching(examples.images, first) if bank is None else Teaching(bank, examples.images, first.views)
    states = [begun(recipe, out, begin, split, command) for out, recipe in recipes.items()]
    while (epoch := min(state.epoch for state in states)) < first.epochs:
        # An interruption may have left one epoch of some of them alone.
        behind = [state for state in states if state.epoch == epoch]
        train_epoch(behind, teaching, examples.labels, rows)
        for state in behind:
            model, entry = state.pupil.model, state.history[-1]
            if split == "validation" and (state.epoch == first.epochs or state.epoch % every == 0):
                with state.average.applied(model):
                    logits = measure(model, examples.images[held_out], first.size(epoch))
                entry["held_out"] = float((logits.argmax(1) == examples.labels[held_out]).float().mean())
            name = {"pupil": state.out.name} if len(states) > 1 else {}
            print(name | {key: round(value, 4) for key, value in entry.items()}, flush=True)
            write_log(state, split)
            state.save(state.out / STATE_FILE)
        teaching.keep()
    exam = Exam(teaching.teacher, data) if split == "test" else None
    figures = {}
    for state in states:
        figures[state.out], right = finish(state, exam)
        # What it said of each image lets pupils be compared image by image.
        write_log(state, split, figures=figures[state.out], correct=packed(right.numpy()))
        print(state.out.name, figures[state.out], flush=True)
    return figures


def with_unlabelled(examples: Examples, data: Path, sets: Sequence[str]) -> Examples:
    """The labelled images of the data set in the folder `data`, and behind them those of `sets`, see [`Recipe`]."""
    others = [load_images(data.parent / folder, split, SIZE) for folder, split in (name.split("/") for name in sets)]
    if not others:
        return examples
    count = sum(map(len, others))
    labels = torch.cat([examples.labels, examples.labels.new_full((count,), UNLABELLED)])
    return Examples(torch.cat([examples.images, *others]), labels)


def settings_of(recipe: Recipe, split: str) -> dict[str, Any]:
    """What the log says of a run, and what makes it another one."""
    return {"recipe": asdict(recipe), "split": split, "teacher": NAME}


def write_log(state: State, split: str, **figures: Any) -> None:
    """Replaces the log of a run."""
    about = {"settings": settings_of(state.recipe, split), "rounds": state.rounds}
    entries = {"earlier": state.earlier, "history": state.history}
    write_json(state.out / LOG_FILE, {**about, **entries, **figures})


def begun(recipe: Recipe, out: Path, begin: Path | None, split: str, command: str = "") -> State:
    """A pupil at the beginning of its run, or where the run in `out` ended."""
    torch.manual_seed(recipe.seed)
    pupil = Peer(recipe) if recipe.peer else Pupil(recipe)
    if begin is not None:
        if not isinstance(pupil, Pupil):
            raise ValueError(f"expected no --begin for {recipe.peer}, which begins untrained, got {begin}")
        begin_from(begin, pupil)
    optimizer = torch.optim.AdamW(parameter_groups(pupil, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    own = {"command": command, "recipe": asdict(recipe)}
    state = State(recipe, out, pupil, optimizer, ExponentialMovingAverage(recipe.ema_decay), rounds=[own])
    out.mkdir(parents=True, exist_ok=True)
    # A checkpoint that was kept has the log of its run under another name.
    before = [begin / name for name in (LOG_FILE, TRAINING_LOG_FILE) if begin is not None and (begin / name).is_file()]
    log = read_json(before[0]) if before else {}
    # That of another program has other figures.
    if "history" in log:
        state.earlier = [*log.get("earlier", []), *log["history"]]
        state.rounds = [*log.get("rounds", []), own]
    if (out / STATE_FILE).is_file():
        log = read_json(out / LOG_FILE)
        # A log that was written before a field was known means its default.
        there = log["settings"] | {"recipe": asdict(Recipe(**log["settings"]["recipe"]))}
        if there != settings_of(recipe, split):
            raise ValueError(f"expected the recipe of {out / LOG_FILE}, got another; choose another --out")
        state.earlier, state.rounds = log["earlier"], log.get("rounds", [own])
        state.load(out / STATE_FILE)
    return state


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


class Exam:
    """The test images and what the teacher says of them: it is asked once, however many pupils there are."""

    @torch.no_grad()
    def __init__(self, teacher: nn.Module, data: Path):
        self._test = load_examples(data, "test", SIZE)
        told = torch.cat([teacher(pixels_of(part, SIZE)) for part in self._test.images.split(100)])
        self._choice = told[:, list(IMAGENETTE_CLASSES)].argmax(dim=1)

    def taken(self, model: nn.Module, size: int) -> tuple[dict[str, float], torch.Tensor]:
        """The figures of a model at images of `size`, and whether each image `(num_images,)` was right."""
        answers = measure(model, self._test.images, size, half=False).argmax(dim=1)
        right = answers == self._test.labels
        figures = {
            "test_accuracy": float(right.float().mean()),
            "teacher_accuracy": float((self._choice == self._test.labels).float().mean()),
            "agreement": float((answers == self._choice).float().mean()),
        }
        return figures, right


def finish(state: State, exam: Exam | None) -> tuple[dict[str, float], torch.Tensor]:
    """
    Saves the averaged model with its processor, and measures it at the size of its last epoch, where there is an exam:
    the figures, and whether each image was right.
    """
    model, recipe = state.pupil.model, state.recipe
    figures: dict[str, float] = {}
    right = torch.zeros(0, dtype=torch.bool)
    with state.average.applied(model):
        if exam is not None:
            figures, right = exam.taken(model, recipe.size(recipe.epochs - 1))
        model.save_pretrained(state.out)
    if isinstance(state.pupil, Pupil):
        FocusViTImageProcessor.from_model_config(model.config).save_pretrained(state.out)
    return figures, right


def command_of(argv: Sequence[str]) -> str:
    """The command as it was given, whose absolute paths are named as if they were below `runs/`."""
    parts = [f"runs/{Path(part).name}" if Path(part).is_absolute() else part for part in argv]
    return f"python -m experiments.teacher.train {shlex.join(parts)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, nargs="+")
    parser.add_argument("--bank", type=Path, help="folder of the teacher's answers, where the recipe has views")
    parser.add_argument("--begin", type=Path, help="folder of a run, or of a checkpoint, whose weights are begun from")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the run; of several recipes, the folder of their folders"
    )
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--every", type=int, default=5, help="measure held-out images every so many epochs")
    parser.add_argument(
        "--change", nargs="*", default=[], help="fields of the recipe, in JSON: learning_rate=5e-4 stages=[[224,96]] …"
    )
    args = parser.parse_args(argv)
    several = len(args.recipe) > 1
    if several and args.begin is not None:
        parser.error("expected --begin with one recipe, got several")
    changes = {name: json.loads(value) for name, value in (change.split("=", 1) for change in args.change)}
    recipes = {args.out / path.stem if several else args.out: Recipe.read(path, **changes) for path in args.recipe}
    if len(recipes) < len(args.recipe):
        parser.error(f"expected recipes of different names, got {[path.name for path in args.recipe]}")
    run(
        recipes,
        args.bank,
        args.split,
        args.every,
        begin=args.begin,
        command=command_of(sys.argv[1:] if argv is None else argv),
    )


if __name__ == "__main__":
    keep_heap()
    torch.set_num_threads(1)
    main()
