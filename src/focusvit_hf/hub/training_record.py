"""What a training run knows of itself: the log it writes, reduced to what a model card tells."""

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import __version__ as torch_version
from transformers import __version__ as transformers_version

from ..utils.names import hub_name, last_part


if TYPE_CHECKING:
    # Loads datasets and more, which nothing here needs.
    from transformers import Trainer

# Arguments of a run that a card shows, in its order; those that are off are left out.
HYPERPARAMETERS = (
    "preset",
    "config_overrides",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "optim",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "label_smoothing_factor",
    "ema_decay",
    "train_num_superpixels",
    "train_keep_ratio",
    "teacher_model_name_or_path",
    "distillation_type",
    "distillation_alpha",
    "distillation_temperature",
    "distillation_token_weight",
    "augmentation",
    "class_weights",
    "overlap_loss_weight",
    "do_reduce_labels",
    "bf16",
    "fp16",
    "seed",
)
METRICS = {
    "accuracy": "Accuracy",
    "top_5_accuracy": "Top-5 accuracy",
    "mean_iou": "Mean IoU",
    "pixel_accuracy": "Pixel accuracy",
    "boundary_f": "F of the border within 2 pixels",
}
# Of a class, whose name follows.
_METRICS_OF_CLASSES = {"iou_": "IoU of {}", "image_iou_": "IoU of {}, mean over images"}


@dataclass(frozen=True)
class TrainingRecord:
    """
    What a card tells of a training run.

    Args:
        dataset (`str`, *optional*): Name of the data for people.
        dataset_id (`str`, *optional*): Its name on the Hub, where it is there.
        base_model (`str`, *optional*): The model that training began from: a name on the Hub, or that of a folder.
        license (`str`, *optional*): Licence of the weights as the Hub abbreviates it, such as `"apache-2.0"`.
        license_name, license_link (`str`, *optional*): Of a licence for which the Hub has `"other"`.
        command (`str`, *optional*): The command that repeats the run.
        images (`Mapping[str, int]`): Number of images of each split.
        evaluation_split (`str`): The split that figures beginning with `eval_` belong to.
        figures (`Mapping[str, float]`): What was measured, such as `eval_accuracy` and `test_accuracy`, in 0..1.
        hyperparameters (`Mapping[str, Any]`): Arguments of the run, by name.
        versions (`Mapping[str, str]`): Of the libraries.
        wall_time_seconds (`float`, *optional*): How long the run took.
    """

    dataset: str | None = None
    dataset_id: str | None = None
    base_model: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    command: str | None = None
    images: Mapping[str, int] = field(default_factory=dict)
    evaluation_split: str = "evaluation"
    figures: Mapping[str, float] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    wall_time_seconds: float | None = None

    @classmethod
    def from_log(cls, log: Mapping[str, Any]) -> "TrainingRecord":
        """
        The record of a run from the log that the training scripts write, `training_log.json`.

        Args:
            log (`Mapping[str, Any]`): Has `"arguments"` and, as far as known, the fields of this class by name.
        """
        arguments = log.get("arguments", {})
        given = next((arguments[key] for key in ("dataset_name", "data_dir", "train_dir") if arguments.get(key)), None)
        known = {key: log[key] for key in cls.__dataclass_fields__ if key in log}
        derived = {
            "dataset": last_part(given),
            "dataset_id": hub_name(arguments.get("dataset_name")),
            "base_model": arguments.get("model_name_or_path"),
            "license": arguments.get("license"),
            "hyperparameters": hyperparameters_of(arguments),
        }
        return cls(**{**derived, **known})

    @classmethod
    def from_trainer(cls, trainer: "Trainer") -> "TrainingRecord":
        """The record of a run from its trainer: its arguments, the sizes of its data and its last evaluation."""
        data = {"train": trainer.train_dataset, "evaluation": trainer.eval_dataset}
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        return cls.from_log(
            {
                # Shows tokens as their names only.
                "arguments": trainer.args.to_dict(),
                "figures": evaluations[-1] if evaluations else {},
                "images": {split: len(rows) for split, rows in data.items() if isinstance(rows, Sized)},
                "versions": {"transformers": transformers_version, "torch": torch_version},
            }
        )

    def results(self) -> Iterator[tuple[str, str, float]]:
        """(split, metric, value) of each figure that a card shows, the test split first."""
        for prefix, split in (("test", "test"), ("eval", self.evaluation_split)):
            if prefix == "eval" and split == "test" and any(f"test_{metric}" in self.figures for metric in METRICS):
                continue
            metrics = [metric for metric in METRICS if self.figures.get(f"{prefix}_{metric}") is not None]
            for kind in _METRICS_OF_CLASSES:
                of_kind = [name for name in self.figures if name.startswith(f"{prefix}_{kind}")]
                metrics += [name.removeprefix(f"{prefix}_") for name in of_kind]
            for metric in metrics:
                yield split, metric, round(float(self.figures[f"{prefix}_{metric}"]), 4)


def metric_name(metric: str) -> str:
    """What a card calls a metric."""
    for kind, text in _METRICS_OF_CLASSES.items():
        if metric.startswith(kind):
            return text.format(metric.removeprefix(kind))
    return METRICS[metric]


def hyperparameters_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of [`HYPERPARAMETERS`] that are given; of a teacher its name alone, and nothing where there is none."""
    given = {key: arguments[key] for key in HYPERPARAMETERS if key in arguments}
    teacher = given.get("teacher_model_name_or_path")
    if not teacher:
        return {key: value for key, value in given.items() if not key.startswith(("teacher_", "distillation_"))}
    return {**given, "teacher_model_name_or_path": hub_name(teacher) or last_part(teacher)}
