"""Model cards, written from the record of a training run, and checked before they go to the Hub."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedModel

from ..configuration_focusvit import FocusViTConfig
from ..modeling_focusvit import FocusViTForImageClassification
from ..modeling_focusvit_dense import FocusViTForSemanticSegmentation
from ..utils.messages import told_of
from ..utils.names import check_identifier, hub_name, last_part
from .training_record import TrainingRecord, metric_name


if TYPE_CHECKING:
    # Loads datasets and more, which nothing here needs.
    from transformers import Trainer

CLASSIFICATION, SEGMENTATION, FEATURES = "image-classification", "image-segmentation", "image-feature-extraction"
_KINDS = {CLASSIFICATION: "image classifier", SEGMENTATION: "semantic segmentation model", FEATURES: "image encoder"}
_SHOWN_CLASSES = 20
_TEMPLATES = Path(__file__).parent / "templates"
_USE = re.compile(r"^## Use\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def model_card(
    model: PreTrainedModel,
    name: str,
    *,
    location: str | None = None,
    record: TrainingRecord | None = None,
    remote_code: bool = False,
) -> ModelCard:
    """
    Writes the card of a model. It says nothing that is not known: what is missing in the record is missing in it.

    Args:
        model ([`FocusViTPreTrainedModel`]): The model.
        name (`str`): Its name, the card's title.
        location (`str`, *optional*): What `from_pretrained` finds it by: a name on the Hub or a folder.
        record ([`TrainingRecord`], *optional*): What is known of its training.
        remote_code (`bool`, *optional*, defaults to `False`): Whether the model's code lies beside the card.

    Returns:
        `huggingface_hub.ModelCard`, which [`check_card`] has passed.

    Raises:
        ValueError: when the result would not be a card the Hub accepts.
    """
    record = record or TrainingRecord()
    task = task_of(model)
    config = cast(FocusViTConfig, model.config)
    card = ModelCard.from_template(
        _metadata(name, record, task),
        template_path=str(_TEMPLATES / "card.md"),
        name=name,
        kind=_KINDS[task],
        regions=_regions(config),
        has_latents="latent_attention" in (config.layer_types or ()),
        use=use_section(location or name, task, remote_code),
        # A line for programs to find.
        first_result=next((f"{metric}: {value:.4f}" for _, metric, value in record.results()), None),
        results=_results(record),
        model=_model_rows(model, task),
        command=record.command,
        training=_training_rows(record),
        licence=record.license_name or record.license,
    )
    check_card(card)
    return card


def trainer_card(
    trainer: "Trainer",
    name: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    base_model: str | None = None,
    dataset: str | list[str] | None = None,
    dataset_id: str | list[str] | None = None,
) -> ModelCard:
    """
    Writes the card of a trainer's model from the state of the trainer.

    Args:
        trainer ([`~transformers.Trainer`]): Its model is a FocusViT.
        name (`str`, *optional*): The model's name; by default that of the output folder.
        license (`str`, *optional*): Licence of the weights.
        tags (`str` or `list[str]`, *optional*): Tags beside the usual ones.
        base_model (`str`, *optional*): The model that training began from.
        dataset, dataset_id (`str` or `list[str]`, *optional*): Names of the data for people and on the Hub.

    Raises:
        ValueError: when the result would not be a card the Hub accepts.
    """
    folder = Path(trainer.args.output_dir or ".")
    known: dict[str, Any] = {"license": license, "base_model": base_model, "dataset": ", ".join(_listed(dataset))}
    known["dataset_id"] = next(iter(_listed(dataset_id)), None)
    record = replace(TrainingRecord.from_trainer(trainer), **{key: value for key, value in known.items() if value})
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    card = model_card(model, name or folder.resolve().name, location=folder.as_posix(), record=record)
    data: Any = card.data
    data.tags += [tag for tag in _listed(tags) if tag not in data.tags]
    return card


def relocated(text: str, location: str) -> str:
    """
    The text of a card that was written for another place, as it is but for its section "Use", if it has one.

    Args:
        text (`str`): The card with its metadata, as written by [`model_card`] and perhaps edited since.
        location (`str`): What `from_pretrained` finds the model by from now on, with its code beside it.

    Raises:
        ValueError: when it is no card the Hub accepts.
    """
    with told_of("the card"):
        card = ModelCard(text)
        check_card(card)
    section = use_section(location, getattr(card.data, "pipeline_tag", None) or CLASSIFICATION, remote_code=True)
    return _USE.sub(lambda match: f"{section}\n\n", text)


def check_card(card: ModelCard) -> None:
    """
    Checks a card by the rules of the Hub that can be known without asking it; the Hub itself checks it when it is
    pushed.

    Raises:
        ValueError: naming the first field that breaks a rule.
    """
    data: Any = card.data
    for name in ("license", "pipeline_tag", "library_name"):
        check_identifier(name, getattr(data, name))
    if data.license == "other" and not data.license_name:
        raise ValueError("expected a license_name in the card beside license: other, got none")
    for name in ("datasets", "base_model"):
        values = getattr(data, name) or []
        for value in [values] if isinstance(values, str) else values:
            try:
                validate_repo_id(value)
            except HFValidationError as error:
                raise ValueError(f"expected names on the Hub under {name} in the card, got {value!r}") from error
    for name in ("tags", "metrics"):
        values = getattr(data, name) or []
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise ValueError(f"expected {name} in the card as a list of words, got {values!r}")
    for result in data.eval_results or []:
        value = result.metric_value
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expected a finite {result.metric_type} in the card, got {value}")
    if not card.text.strip():
        raise ValueError("expected text in the card, got none")
    if ModelCard(str(card)).data.to_dict() != data.to_dict():
        raise ValueError("expected metadata in the card that YAML gives back as they are, got others")


def task_of(model: PreTrainedModel) -> str:
    """What a model is for, as the Hub and `pipeline` call it."""
    if isinstance(model, FocusViTForSemanticSegmentation):
        return SEGMENTATION
    return CLASSIFICATION if isinstance(model, FocusViTForImageClassification) else FEATURES


def use_section(location: str, task: str, remote_code: bool) -> str:
    """The section "Use" of a card: code that runs as it stands beside two images, `cat.png` and `dog.png`."""
    template = jinja2.Template((_TEMPLATES / "use.md").read_text(encoding="utf-8"))
    return template.render(
        location=json.dumps(location),
        task=task,
        has_pipeline=task != FEATURES,
        does={CLASSIFICATION: "classify", SEGMENTATION: "segment"}.get(task),
        remote_code=remote_code,
        trust=", trust_remote_code=True" if remote_code else "",
    )


def _metadata(name: str, record: TrainingRecord, task: str) -> ModelCardData:
    results = list(record.results())
    measured = [
        EvalResult(
            task_type=task,
            dataset_type=record.dataset_id or "imagefolder",
            dataset_name=record.dataset or record.dataset_id or "unknown",
            dataset_split=split,
            metric_type=_metric_type(metric),
            metric_name=metric_name(metric),
            metric_value=value,
        )
        for split, metric, value in results
        # Where the test split was measured, it stands for the model.
        if split == results[0][0]
    ]
    return ModelCardData(
        license=record.license,
        license_name=record.license_name,
        license_link=record.license_link,
        library_name="transformers",
        pipeline_tag=task,
        tags=["focusvit", "superpixels", "vision"],
        datasets=[record.dataset_id] if record.dataset_id else None,
        base_model=hub_name(record.base_model),
        metrics=list(dict.fromkeys(result.metric_type for result in measured)) or None,
        model_name=name,
        eval_results=measured or None,
    )


def _metric_type(metric: str) -> str:
    """The kind of a metric as the Hub names it."""
    if metric.endswith("accuracy"):
        return "accuracy"
    return "f1" if metric == "boundary_f" else "mean_iou"


def _regions(config: FocusViTConfig) -> str:
    return {
        "superpixel": f"{config.num_tokens} superpixels",
        "grid": f"{config.num_tokens} tiles of a regular grid",
        "none": f"{config.num_tokens} patches",
    }[config.patch_pooling]


def _results(record: TrainingRecord) -> list[tuple[str, str, str, str]]:
    """Metric, split, number of images and value of each figure, as a card shows them."""
    return [
        (metric_name(metric), split, f"{record.images[split]:,}" if split in record.images else "", f"{value:.4f}")
        for split, metric, value in record.results()
    ]


def _model_rows(model: PreTrainedModel, task: str) -> list[tuple[str, str]]:
    config: Any = model.config
    height, width = config.image_height_and_width
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "images": f"{height} x {width} pixels, {config.num_channels} channels",
        "tokens": f'{config.num_tokens}, `patch_pooling="{config.patch_pooling}"`',
    }
    if config.patch_pooling == "superpixel":
        rows["superpixels"] = (
            f"K = {config.num_superpixels}, compactness {config.superpixel_compactness:g}, "
            f"{config.superpixel_iterations} iterations, cells of {config.cell_size} pixels, "
            f'`superpixel_method="{config.superpixel_method}"`'
        )
    kinds = dict.fromkeys(config.layer_types)
    rows["layers"] = ", ".join(f"{config.layer_types.count(kind)} of {kind.replace('_', ' ')}" for kind in kinds)
    if "latent_attention" in kinds:
        rows["latents"] = str(config.num_latents)
    rows["width"] = f"{config.hidden_size}, {config.num_attention_heads} heads, MLP {config.intermediate_size}"
    rows["embedding, position"] = f"{config.embedding_type}, {config.position_embedding_type}"
    if task != FEATURES:
        names = [config.id2label[index] for index in sorted(config.id2label)]
        more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
        rows["classes"] = f"{len(names)}: {', '.join(names[:_SHOWN_CLASSES])}{more}"
    return list(rows.items())


def _training_rows(record: TrainingRecord) -> list[tuple[str, str]]:
    rows: dict[str, str] = {}
    if record.dataset or record.dataset_id:
        number = f", {record.images['train']:,} images" if "train" in record.images else ""
        rows["data"] = f"{record.dataset_id or record.dataset}{number}"
    if record.base_model:
        rows["began from"] = record.base_model if hub_name(record.base_model) else last_part(record.base_model) or ""
    steps = record.hyperparameters.get("max_steps")
    for key, value in record.hyperparameters.items():
        # A number of steps overrides one of epochs.
        unused = key == ("num_train_epochs" if steps and steps > 0 else "max_steps")
        if not unused and value not in (None, False, "", {}, 0.0):
            rows[f"`{key}`"] = _shown(value)
    if record.wall_time_seconds is not None:
        rows["wall time"] = f"{record.wall_time_seconds / 60:.1f} minutes"
    if record.versions:
        rows["versions"] = ", ".join(f"{library} {version}" for library, version in record.versions.items())
    return list(rows.items())


def _listed(words: str | list[str] | None) -> list[str]:
    return [words] if isinstance(words, str) else list(words or [])


def _shown(value: Any) -> str:
    value = getattr(value, "value", value)
    return f"`{json.dumps(value, sort_keys=True)}`" if isinstance(value, dict) else str(value)
