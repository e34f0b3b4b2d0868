"""Model cards, written from the record of a training run, and checked before they go to the Hub."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedModel, Trainer

from ..configuration_focusvit import FocusViTConfig
from ..modeling_focusvit import FocusViTForImageClassification
from ..utils.names import check_identifier, hub_name, last_part
from .training_record import METRICS, TrainingRecord


CLASSIFICATION, FEATURES = "image-classification", "image-feature-extraction"
_SHOWN_CLASSES = 20
_LIMITS = (
    "## Limits\n\nNothing was measured but what stands under Results. The score of a class is no measure of doubt: "
    "pictures unlike\nthose of the training get high scores, too."
)
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
        model ([`FocusViTForImageClassification`] or [`FocusViTModel`]): The model.
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
    task = CLASSIFICATION if isinstance(model, FocusViTForImageClassification) else FEATURES
    sections = [
        f"# {name}",
        _summary(cast(FocusViTConfig, model.config), task),
        use_section(location or name, task, remote_code),
        _results_section(record),
        _model_section(model, task),
        _training_section(record),
        _LIMITS,
        _licence_section(record),
    ]
    text = "\n\n".join(sections)
    card = ModelCard(f"---\n{_metadata(name, record, task).to_yaml()}\n---\n\n{text}\n")
    check_card(card)
    return card


def trainer_card(
    trainer: Trainer,
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


def use_section(location: str, task: str, remote_code: bool) -> str:
    """The section "Use" of a card: code that runs as it stands beside two pictures, `cat.png` and `dog.png`."""
    trust = ", trust_remote_code=True" if remote_code else ""
    package = "" if remote_code else "import focusvit_hf  # registers the Auto classes\n"
    imports = (
        "from transformers import pipeline"
        if task == CLASSIFICATION
        else "from transformers import AutoImageProcessor, AutoModel"
    )
    lines = [
        "## Use\n",
        "```python",
        "from PIL import Image",
        f"{imports}\n",
        *([package] if package else []),
        f"name = {json.dumps(location)}",
        'pictures = [Image.open("cat.png"), Image.open("dog.png")]',
    ]
    if task == CLASSIFICATION:
        lines += [
            f'classify = pipeline("{task}", model=name{trust})',
            "print(classify(pictures, batch_size=2))",
        ]
    else:
        lines += [
            f"image_processor = AutoImageProcessor.from_pretrained(name{trust})",
            f"model = AutoModel.from_pretrained(name{trust})",
            'print(model(**image_processor(pictures, return_tensors="pt")).pooler_output)',
        ]
    lines.append("```")
    if remote_code:
        lines.append(
            "\n`trust_remote_code=True` runs the code that lies beside the weights. Where the package `focusvit_hf` "
            "is installed,\n`import focusvit_hf` takes its place: then the package's own code runs."
        )
    return "\n".join(lines)


def _metadata(name: str, record: TrainingRecord, task: str) -> ModelCardData:
    results = list(record.results())
    measured = [
        EvalResult(
            task_type=task,
            dataset_type=record.dataset_id or "imagefolder",
            dataset_name=record.dataset or record.dataset_id or "unknown",
            dataset_split=split,
            metric_type="accuracy",
            metric_name=METRICS[metric],
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
        metrics=["accuracy"] if measured else None,
        model_name=name,
        eval_results=measured or None,
    )


def _summary(config: FocusViTConfig, task: str) -> str:
    regions = {
        "superpixel": f"{config.num_tokens} superpixels",
        "grid": f"{config.num_tokens} tiles of a regular grid",
        "none": f"{config.num_tokens} patches",
    }[config.patch_pooling]
    is_latent = "latent_attention" in (config.layer_types or ())
    latents = ", to which a few learned latent tokens attend" if is_latent else ""
    kind = "image classifier" if task == CLASSIFICATION else "image encoder"
    return (
        f"A FocusViT {kind} ([arXiv 2506.18791](https://arxiv.org/abs/2506.18791)): it sees a picture as {regions}"
        f"{latents}."
    )


def _results_section(record: TrainingRecord) -> str:
    results = list(record.results())
    if not results:
        return "## Results\n\nNot measured where this card was written."
    rows = [
        (METRICS[metric], split, f"{record.pictures[split]:,}" if split in record.pictures else "", f"{value:.4f}")
        for split, metric, value in results
    ]
    _, metric, value = results[0]
    # A line for programs to find.
    return f"## Results\n\n{metric}: {value:.4f}\n\n{_table(('metric', 'split', 'pictures', 'value'), rows)}"


def _model_section(model: PreTrainedModel, task: str) -> str:
    config: Any = model.config
    height, width = config.image_height_and_width
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "pictures": f"{height} x {width} pixels, {config.num_channels} channels",
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
    if task == CLASSIFICATION:
        names = [config.id2label[index] for index in sorted(config.id2label)]
        more = f" and {len(names) - _SHOWN_CLASSES} more" if len(names) > _SHOWN_CLASSES else ""
        rows["classes"] = f"{len(names)}: {', '.join(names[:_SHOWN_CLASSES])}{more}"
    return f"## Model\n\n{_table(('', ''), rows.items())}"


def _training_section(record: TrainingRecord) -> str:
    rows: dict[str, str] = {}
    if record.dataset or record.dataset_id:
        number = f", {record.pictures['train']:,} pictures" if "train" in record.pictures else ""
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
    if not rows and not record.command:
        return "## Training\n\nNot known where this card was written."
    command = f"\n\n```bash\n{record.command}\n```" if record.command else ""
    table = f"\n\n{_table(('', ''), rows.items())}" if rows else ""
    return f"## Training{command}{table}"


def _licence_section(record: TrainingRecord) -> str:
    license = record.license_name or record.license
    weights = f"Weights: {license}." if license else "The licence of the weights is not stated."
    return f"## Licence\n\n{weights} Code: apache-2.0. The pictures it was trained on have licences of their own."


def _listed(words: str | list[str] | None) -> list[str]:
    return [words] if isinstance(words, str) else list(words or [])


def _shown(value: Any) -> str:
    value = getattr(value, "value", value)
    return f"`{json.dumps(value, sort_keys=True)}`" if isinstance(value, dict) else str(value)


def _table(head: tuple[str, ...], rows: Any) -> str:
    # A bar would end the cell.
    body = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ("---",) * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
