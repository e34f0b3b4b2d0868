"""Arguments of the two training scripts: dataclasses, recipes, and what is recorded of them."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from transformers import HfArgumentParser
from transformers import TrainingArguments as HfTrainingArguments

from ..utils.files import read_json
from .distillation import DISTILLATION_TYPES
from .selection import SELECTION_FORMATS


@dataclass
class ModelArguments:
    """Which model to train: a checkpoint, a configuration, or a preset."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A FocusViT checkpoint to begin from: a folder or a name on the Hub."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "A configuration to begin from without weights: a folder, JSON file or name."}
    )
    preset: str | None = field(
        default=None, metadata={"help": "A configuration of this repository, such as focusvit-nano, or a JSON file."}
    )
    config_overrides: dict | str | None = field(
        default=None,
        metadata={"help": "Fields of the configuration to change, as JSON: '{\"num_superpixels\": 36}'."},
    )
    image_processor_name: str | None = field(
        default=None,
        metadata={"help": "An image processor; by default the checkpoint's own, or the one that matches the model."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Begin with a fresh head where the checkpoint's number of classes differs."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and converted data are kept."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model on the Hub."})
    license: str | None = field(
        default=None, metadata={"help": "Licence of the trained weights, as the Hub abbreviates it: apache-2.0."}
    )
    token: str | None = field(default=None, metadata={"help": "Access token for the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that a model on the Hub brings."})


@dataclass
class DataTrainingArguments:
    """Which images to train and measure on."""

    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub, or a folder of one."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "A configuration of that data set."})
    data_dir: str | None = field(default=None, metadata={"help": "A folder of parquet files, one or more a split."})
    train_dir: str | None = field(default=None, metadata={"help": "A folder with one folder of images a class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, for validation."})
    train_val_split: float | None = field(
        default=0.0, metadata={"help": "Share of the training images held out where there is no validation split."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many images, drawn at random."})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on so many images, drawn at random, at the end too."}
    )
    image_column_name: str = field(default="image", metadata={"help": "The column with the images."})
    label_column_name: str = field(default="label", metadata={"help": "The column with the classes."})
    selection_column_name: str | None = field(
        default=None,
        metadata={
            "help": "The column with masks or boxes of what matters in the images to train on, which teach the gates "
            "of select-and-pack attention."
        },
    )
    selection_format: str = field(
        default="mask",
        metadata={
            "help": "What is in it: masks, boxes (left, top, width, height) as COCO has them, boxes (left, top, "
            "right, bottom), or annotations of Pascal VOC.",
            "choices": SELECTION_FORMATS,
        },
    )
    streaming: bool = field(default=False, metadata={"help": "Read the data as it comes; needs --max_steps."})
    shuffle_buffer_size: int = field(default=4096, metadata={"help": "Images shuffled among each other there."})
    decode_once: bool = field(
        default=False,
        metadata={"help": "Decode every image once, into the cache of `datasets`."},
    )
    skip_broken_images: bool = field(
        default=False, metadata={"help": "Decode all images first, and leave out those that cannot be decoded."}
    )
    augmentation: dict | str | None = field(
        default=None, metadata={"help": "Options of `AugmentationConfig`, as JSON; none by default."}
    )


@dataclass
class TrainingArguments(HfTrainingArguments):
    """The Trainer's arguments, and a few of these scripts'."""

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Has to stay off: images become tensors in the collator."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Decay of a moving average of the weights, for evaluation and the result."},
    )
    train_num_superpixels: list[int] | None = field(
        default=None,
        metadata={"help": "Numbers of superpixels to draw from at every step, so that the model serves all of them."},
    )
    train_keep_ratio: list[float] | None = field(
        default=None,
        metadata={"help": "Keep ratios to draw from at every step, so that the model serves all of them."},
    )
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Learn from this image classifier too: a folder or a name on the Hub."}
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Learn from the module that a function gives, package.module:function, with its mean, standard "
            "deviation and image size."
        },
    )
    teacher_classes: list[int] | None = field(
        default=None,
        metadata={"help": "The teacher's number of each class of the data, where it knows more or in another order."},
    )
    teacher_bank: str | None = field(
        default=None, metadata={"help": "A folder that keeps the teacher's answers for views that come again."}
    )
    teacher_views: int = field(
        default=16, metadata={"help": "Augmented views of each image that the bank holds; then they come again."}
    )
    distillation_type: str = field(
        default="soft",
        metadata={"help": "Learn the teacher's probabilities or its first choice.", "choices": DISTILLATION_TYPES},
    )
    distillation_alpha: float = field(default=0.5, metadata={"help": "The teacher's share of the loss, in 0..1."})
    distillation_temperature: float = field(
        default=3.0, metadata={"help": "What scores are divided by before soft distillation compares them."}
    )
    distillation_token_weight: float = field(
        default=0.0,
        metadata={"help": "The weight of the teacher's tokens in the loss, where the student's leave on the way."},
    )
    predictor_learning_rate: float | None = field(
        default=None,
        metadata={"help": "The learning rate of what chooses tokens, predictors and gates; by default as of all."},
    )
    frozen_epochs: float = field(default=0.0, metadata={"help": "For so many epochs only what chooses tokens learns."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Begin anew in a folder that is not empty; its checkpoints go when training begins."},
    )
    final_evaluation: bool = field(
        default=True,
        metadata={"help": "Measure the saved model through a pipeline on the test split or --max_eval_samples of it."},
    )

    @property
    def folder(self) -> Path:
        """`output_dir` as a path; the Trainer's own default where none was given."""
        return Path(self.output_dir or "trainer_output")

    def __getstate__(self) -> dict[str, Any]:
        # The Trainer pickles its arguments into every checkpoint, and uploads them.
        return {**self.__dict__, "hub_token": None}


def parse_arguments(
    argv: Sequence[str],
    program: str | None = None,
    data_arguments: type[DataTrainingArguments] = DataTrainingArguments,
) -> tuple[ModelArguments, DataTrainingArguments, TrainingArguments]:
    """
    Reads the command line: flags, or a JSON recipe and then flags, which override the recipe.

    Args:
        argv (sequence of `str`): The command line without the program's name.
        program (`str`, *optional*): What the help calls the program; by default its file.
        data_arguments (`type`, *optional*): The arguments of the data; by default those of classification.

    Raises:
        ValueError: If the recipe has a key that is no argument.
    """
    kinds: tuple[Any, ...] = (ModelArguments, data_arguments, TrainingArguments)
    parser = HfArgumentParser(kinds, prog=program)
    argv = list(argv)
    if argv and argv[0].endswith(".json"):
        recipe = read_json(Path(argv.pop(0)))
        known = {item.name for kind in kinds for item in fields(kind) if item.init}
        unknown = sorted(recipe.keys() - known)
        if unknown:
            raise ValueError(f"expected names of arguments in the recipe, got {unknown}")
        parser.set_defaults(**recipe)
    model_args, data_args, training_args = cast(tuple[Any, Any, Any], parser.parse_args_into_dataclasses(argv))
    for arguments in (data_args, training_args):
        check_numbers(arguments)
    if training_args.do_train and training_args.max_steps <= 0 and not training_args.num_train_epochs > 0:
        raise ValueError(
            "expected --num_train_epochs above 0 or --max_steps of at least 1 to train, got "
            f"{training_args.num_train_epochs:g} and {training_args.max_steps}"
        )
    return model_args, data_args, training_args


# The least that makes sense, and whether it is itself allowed.
_LEAST = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, True)),
    **dict.fromkeys(("gradient_accumulation_steps", "max_train_samples", "max_eval_samples"), (1, True)),
    **dict.fromkeys(("save_total_limit", "shuffle_buffer_size"), (1, True)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), (0, False)),
    **dict.fromkeys(("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"), (0, True)),
    **dict.fromkeys(("predictor_learning_rate", "frozen_epochs", "distillation_token_weight"), (0, True)),
    **dict.fromkeys(("dataloader_num_workers", "train_val_split", "label_smoothing_factor"), (0, True)),
}
_BELOW_ONE = ("train_val_split", "label_smoothing_factor")


def check_numbers(arguments: DataTrainingArguments | TrainingArguments) -> None:
    """ValueError for numbers that no run can be meant with, where they would fail late or train nothing."""
    for name, (least, included) in _LEAST.items():
        value = getattr(arguments, name, None)
        if value is None:
            continue
        if not math.isfinite(value) or value < least or (value == least and not included):
            raise ValueError(f"expected --{name} {'of at least' if included else 'above'} {least}, got {value}")
        if name in _BELOW_ONE and value >= 1:
            raise ValueError(f"expected --{name} below 1, got {value}")


def json_object(name: str, value: dict | str | None) -> dict[str, Any]:
    """The options given as JSON on the command line or as an object in a recipe; ValueError for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected a JSON object for {name}, got {value!r}: {error}") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"expected a JSON object for {name}, got {value!r}")
    return value or {}


def public_arguments(
    model_args: ModelArguments, data_args: DataTrainingArguments, training_args: TrainingArguments
) -> dict[str, Any]:
    """All arguments of a run, by name and in one dict, as a recipe would hold them; without access tokens."""
    training = {item.name: getattr(training_args, item.name) for item in fields(training_args) if item.init}
    arguments = {**asdict(model_args), **asdict(data_args), **training}
    return {name: value for name, value in arguments.items() if not name.endswith("token")}


def public_command(
    program: str, argv: Sequence[str], model_args: ModelArguments, training_args: TrainingArguments
) -> str:
    """The command that repeats a run: `program`, as it is written in a shell, and its arguments without tokens."""
    secrets = [secret for secret in (model_args.token, training_args.hub_token) if secret]
    parts = list(argv)
    for secret in secrets:
        parts = [part.replace(secret, "TOKEN") for part in parts]
    return f"{program} {shlex.join(parts)}"
