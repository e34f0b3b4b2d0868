"""One run at micro scale: a variant trained from scratch, measured, saved."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    get_cosine_schedule_with_warmup,
)

from experiments.micro.data import Examples
from experiments.micro.regions import region_ids
from experiments.micro.stems import with_stem
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.token_relevance import FocusViTRelevancePredictor
from focusvit_hf.training.augmentation import (
    AugmentationConfig,
    color_jitter,
    random_horizontal_flip,
    random_mix,
    random_resized_crop,
    soft_targets,
)
from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.distillation import Distillation
from focusvit_hf.training.objective import parameter_groups, require_finite, soft_cross_entropy
from focusvit_hf.training.sparsification import with_aux_loss


# What a variant changes. Attention is eager since SDPA's backward pass in bfloat16 is slow on CPUs, see LOG.md.
BASE: dict[str, Any] = {
    "image_size": 96,
    "patch_size": 8,
    "superpixel_cell_size": 4,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "num_superpixels": 36,
    "layer_types": "full_attention",
    "num_latents": 8,
    "classifier_pooling": "cls_patch_mean",
    # 0.02 is for a width of 768; what keeps the variance falls with its root.
    "initializer_range": 0.05,
    "num_labels": 10,
    "attn_implementation": "eager",
}
# Pixels of the images that are measured at a time.
_EVALUATION_PIXELS = 100 * 96 * 96
_CONFIG_KEYS = {item.name for item in fields(FocusViTConfig)} | {"num_labels", "attn_implementation"}


@dataclass(frozen=True)
class Recipe:
    """
    How a run is trained. The same for all rows of a table, unless training itself is the question.

    Args:
        epochs (`int`), batch_size (`int`), learning_rate (`float`), weight_decay (`float`), label_smoothing (`float`):
            AdamW; the last images of an epoch that fill no batch are left out.
        warmup (`float`): Share of the steps in which the learning rate rises, before it falls as a cosine to 0.
        max_grad_norm (`float`): Largest norm of the gradients.
        ema_decay (`float`, *optional*): Measure a moving average of the weights in the place of the last ones.
        precision (`str`): `"float32"`, or `"bfloat16"` (autocast) in training; measured is in float32.
        crop_scale (pair of `float`), jitter (`float`), mixup_alpha, cutmix_alpha, mix_probability (`float`):
            See [`AugmentationConfig`]; `jitter` is brightness, contrast and saturation alike.
        regions (`str`): What stands in the place of superpixels, see [`region_ids`].
        stem (`str`, *optional*): What stands in the place of the model's own stem and pooling, see `stems.STEMS`.
        train_num_superpixels (`tuple` of `int`): K of each batch is drawn from these; none: the configuration's.
        train_compactness (pair of `float`, *optional*): Compactness of each batch is log-uniform between these.
        predictor_inputs (`str`): What predictors of relevance see: `"both"`, `"embeddings"` or `"moments"` alone.
        teacher (`str`, *optional*): A classifier that teaches with the defaults of [`Distillation`]: its folder below
            the one that [`train`] is given, `<question>/<variant>-seed<n>`.
    """

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    label_smoothing: float = 0.1
    max_grad_norm: float = 1.0
    ema_decay: float | None = None
    precision: str = "float32"
    crop_scale: tuple[float, float] = (0.25, 1.0)
    jitter: float = 0.3
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 0.5
    regions: str = "superpixel"
    stem: str | None = None
    train_num_superpixels: tuple[int, ...] = ()
    train_compactness: tuple[float, float] | None = None
    predictor_inputs: str = "both"
    teacher: str | None = None

    def augmentation(self) -> AugmentationConfig:
        """The same as an [`AugmentationConfig`], which checks it."""
        return AugmentationConfig(
            crop_scale=self.crop_scale,
            brightness=self.jitter,
            contrast=self.jitter,
            saturation=self.jitter,
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            mix_probability=self.mix_probability,
        )


_RECIPE_KEYS = {item.name for item in fields(Recipe)}


@dataclass
class Run:
    """
    A trained model and how it came about.

    Args:
        model (`FocusViTForImageClassification`): In evaluation mode.
        recipe (`Recipe`): What it was trained with.
        history (`list[dict]`): For each epoch its mean loss, and seconds since the beginning.
    """

    model: FocusViTForImageClassification
    recipe: Recipe
    history: list[dict[str, float]] = field(default_factory=list)


def settings(variant: Mapping[str, Any], **recipe: Any) -> tuple[FocusViTConfig, Recipe]:
    """
    The configuration and the recipe of a variant.

    Args:
        variant (mapping): Fields of [`FocusViTConfig`] beside [`BASE`], and of [`Recipe`]. `layer_types` may be one
            kind of layer, for all layers.
        recipe: Fields of the recipe for all variants, such as `epochs=1`; the variant's own come before them.

    Raises:
        ValueError: on a key that is neither.
    """
    unknown = sorted(set(variant) - _CONFIG_KEYS - _RECIPE_KEYS)
    if unknown:
        raise ValueError(f"Expected fields of the configuration or of the recipe, got {unknown}.")
    options = {**BASE, **{key: value for key, value in variant.items() if key in _CONFIG_KEYS}}
    if isinstance(options["layer_types"], str):
        options["layer_types"] = [options["layer_types"]] * options["num_hidden_layers"]
    own = {key: value for key, value in variant.items() if key in _RECIPE_KEYS}
    return FocusViTConfig(**options), Recipe(**{**recipe, **own})


def intended(config: FocusViTConfig, recipe: Recipe) -> dict[str, dict[str, Any]]:
    """All that decides what a run is, `configuration` and `recipe`, as JSON gives it back."""
    own = {item.name for item in fields(FocusViTConfig)} - {item.name for item in fields(PreTrainedConfig)}
    everything = {"configuration": {name: getattr(config, name) for name in own}, "recipe": asdict(recipe)}
    return json.loads(json.dumps(everything))


def num_parameters(config: FocusViTConfig) -> int:
    """Number of parameters of the classifier."""
    with torch.device("meta"):
        return FocusViTForImageClassification(config).num_parameters()


def train(
    variant: Mapping[str, Any], seed: int, examples: Examples, weights: Path | None = None, **recipe: Any
) -> Run:
    """
    Trains a variant from scratch.

    Runs of the same seed see the same images in the same order, augmented alike, whatever the variant.

    Args:
        variant (mapping): See [`settings`].
        seed (`int`): Of the weights and of the images.
        examples ([`Examples`]): To train on.
        weights (`Path`, *optional*): Where the weights of teachers lie.
        recipe: See [`settings`].

    Returns:
        [`Run`].

    Raises:
        ValueError: on settings that do not fit, when the teacher is not there, and where the loss is not finite.
    """
    config, plan = settings(variant, **recipe)
    torch.manual_seed(seed)
    model: Any = FocusViTForImageClassification(config)
    if plan.stem:
        model = with_stem(model, plan.stem)
    restrict_predictors(model, plan.predictor_inputs)
    # The convolutions of the stem are faster so.
    model = model.to(memory_format=torch.channels_last)
    distillation = _teaching(plan.teacher, weights, model.config) if plan.teacher else None
    return Run(model, plan, fit(model, model.config, plan, seed, examples, distillation))


def restrict_predictors(model: nn.Module, inputs: str) -> None:
    """
    Hides a part of what predictors of relevance see, in training and in the test.

    Raises:
        ValueError: on another value than `"both"`, `"embeddings"` and `"moments"`.
    """
    if inputs not in ("both", "embeddings", "moments"):
        raise ValueError(f"Expected predictor_inputs 'both', 'embeddings' or 'moments', got {inputs!r}.")

    def hide(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, descriptors, *others = arguments
        if inputs == "embeddings":
            return tokens, torch.ones_like(descriptors), *others
        return torch.zeros_like(tokens), descriptors, *others

    for module in model.modules():
        if isinstance(module, FocusViTRelevancePredictor) and inputs != "both":
            module.register_forward_pre_hook(hide)


def _teaching(teacher: str, weights: Path | None, config: FocusViTConfig) -> Distillation:
    """The teacher sees the student's images, which it was trained on alike."""
    if weights is None or not (weights / teacher).is_dir():
        raise ValueError(f"Expected weights of the teacher {teacher}, trained before, got none in {weights}.")
    model = AutoModelForImageClassification.from_pretrained(weights / teacher, dtype=torch.float32)
    model = model.to(memory_format=torch.channels_last)
    return Distillation(model, config, config.image_mean, config.image_std)


def fit(
    model: PreTrainedModel,
    config: FocusViTConfig,
    plan: Recipe,
    seed: int,
    examples: Examples,
    distillation: Distillation | None = None,
) -> list[dict[str, float]]:
    """
    Trains a model where it stands, and leaves it in evaluation mode.

    Args:
        model ([`PreTrainedModel`]): A classifier of any kind.
        config ([`FocusViTConfig`]): What the model is fed with: the model's own where it is a FocusViT.
        plan ([`Recipe`]), seed (`int`), examples ([`Examples`]): See [`train`]; the seed is the images' alone.
        distillation ([`Distillation`], *optional*): A teacher's part in the loss.

    Returns:
        `list[dict]`: The history of [`Run`].

    Raises:
        ValueError: where the loss is not finite.
    """
    draws = {name: torch.Generator().manual_seed(2 * seed + i) for i, name in enumerate(("images", "regions"))}

    def losses() -> Iterator[torch.Tensor]:
        for images, targets in batches(examples, config, plan, draws["images"]):
            with drawn_superpixels(config, plan, draws["regions"]):
                inputs = model_inputs(config, images, plan.regions, draws["regions"])
                with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bfloat16"):
                    outputs = model(**inputs)
            logits = outputs.logits
            loss = soft_cross_entropy(logits, targets, plan.label_smoothing)
            if distillation is not None:
                loss = distillation.mixed(loss, logits, inputs["pixel_values"])
            yield with_aux_loss(loss, outputs)

    return optimise(model, plan, len(examples), losses)


def optimise(
    model: nn.Module, plan: Recipe, num_images: int, losses: Callable[[], Iterator[torch.Tensor]]
) -> list[dict[str, float]]:
    """
    AdamW with the rates and the moving average of a recipe; leaves the model in evaluation mode.

    Args:
        model (`nn.Module`): What is trained where it stands.
        plan ([`Recipe`]), num_images (`int`): How many steps there are.
        losses (callable): Called once an epoch; yields the loss of each batch in turn.

    Returns:
        `list[dict]`: The history of [`Run`].

    Raises:
        ValueError: where the loss is not finite.
    """
    model.train()
    steps_an_epoch = num_images // plan.batch_size
    optimizer = torch.optim.AdamW(parameter_groups(model, plan.weight_decay), lr=plan.learning_rate)
    total = steps_an_epoch * plan.epochs
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(plan.warmup * total), total)
    ema = ExponentialMovingAverage(plan.ema_decay) if plan.ema_decay else None
    history = []
    begin = time.perf_counter()
    for epoch in range(plan.epochs):
        steps = []
        for loss in losses():
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update(model)
            steps.append(loss.detach())
        mean = float(torch.stack(steps).mean())
        require_finite(mean, (epoch + 1) * steps_an_epoch)
        history.append({"loss": mean, "seconds": round(time.perf_counter() - begin, 1)})
    if ema is not None and ema.average is not None:
        model.load_state_dict(ema.average.module.state_dict())
    model.eval()
    return history


def batches(
    examples: Examples, config: FocusViTConfig, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch: augmented images in 8 bits `(batch_size, 3, height, width)`, and classes or probabilities."""
    augmentation = recipe.augmentation()
    order = torch.randperm(len(examples), generator=generator)
    for index in order.split(recipe.batch_size):
        if len(index) < recipe.batch_size:
            return
        # Rounded to 8 bits once, at the end.
        images, labels = examples.images[index].float().div_(255), examples.labels[index]
        size = config.image_height_and_width
        images = random_resized_crop(images, size, augmentation.crop_scale, augmentation.crop_ratio, generator)
        images = random_horizontal_flip(images, augmentation.horizontal_flip, generator)
        images = color_jitter(images, recipe.jitter, recipe.jitter, recipe.jitter, generator)
        if recipe.mixup_alpha > 0 or recipe.cutmix_alpha > 0:
            targets = soft_targets(labels, config.num_labels or 0)
            images, labels = random_mix(images, targets, augmentation, generator)
        yield images.mul_(255).round_().to(torch.uint8), labels


@contextmanager
def drawn_superpixels(config: FocusViTConfig, recipe: Recipe, generator: torch.Generator) -> Iterator[None]:
    """Within this context the configuration holds the K and the compactness drawn for one batch."""
    kept = config.num_superpixels, config.superpixel_compactness
    if recipe.train_num_superpixels:
        number = int(torch.randint(len(recipe.train_num_superpixels), (), generator=generator))
        config.num_superpixels = recipe.train_num_superpixels[number]
    if recipe.train_compactness:
        low, high = recipe.train_compactness
        config.superpixel_compactness = low * (high / low) ** float(torch.rand((), generator=generator))
    try:
        yield
    finally:
        config.num_superpixels, config.superpixel_compactness = kept


def model_inputs(
    config: FocusViTConfig,
    images: torch.Tensor,
    regions: str = "superpixel",
    generator: torch.Generator | None = None,
) -> dict[str, torch.Tensor]:
    """
    What a model takes for images in 8 bits: normalised pixels, and the map where it pools over one.

    Args:
        config ([`FocusViTConfig`]): The model's.
        images (`torch.ByteTensor` of shape `(batch_size, 3, height, width)`): 8-bit levels.
        regions (`str`), generator (`torch.Generator`, *optional*): See [`region_ids`].
    """
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (config.image_mean, config.image_std))
    pixel_values = images.float().mul_(1 / (255 * std)).sub_(mean / std)
    if config.patch_pooling != "superpixel":
        return {"pixel_values": pixel_values}
    ids = region_ids(
        images,
        regions,
        config.num_superpixels,
        config.superpixel_compactness,
        config.superpixel_iterations,
        config.cell_size,
        generator,
    )
    return {"pixel_values": pixel_values, "superpixel_ids": ids}


@torch.no_grad()
def predict(
    model: Any,
    images: torch.Tensor,
    regions: str = "superpixel",
    seed: int = 0,
    config: FocusViTConfig | None = None,
) -> torch.Tensor:
    """
    Logits `(count, num_labels)` of images in 8 bits `(count, 3, height, width)`, in float32; `config` says what a
    model is fed with that is no FocusViT.
    """
    model.eval()
    config = config or model.config
    generator = torch.Generator().manual_seed(seed)
    parts = images.split(max(1, _EVALUATION_PIXELS // images[0, 0].numel()))
    return torch.cat([model(**model_inputs(config, part, regions, generator)).logits for part in parts])


def outcomes(run: Run, examples: Examples) -> tuple[np.ndarray, float]:
    """Whether each image is classified correctly, `(count,)` bool, and the mean cross entropy in nats."""
    logits = predict(run.model, examples.images, run.recipe.regions)
    loss = torch.nn.functional.cross_entropy(logits, examples.labels)
    return (logits.argmax(dim=1) == examples.labels).numpy(), float(loss)


def save_model(model: FocusViTForImageClassification, folder: Path) -> None:
    """Writes weights in fp16 and the configuration, which asks for them in fp32."""
    model.config.dtype = torch.float32
    halved = ((name, v.half() if v.is_floating_point() else v) for name, v in model.state_dict().items())
    state = {name: value.contiguous() for name, value in halved}
    model.save_pretrained(folder, state_dict=state)


def load_model(folder: Path) -> FocusViTForImageClassification:
    """The model that [`save_model`] wrote, in fp32 and evaluation mode."""
    return FocusViTForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
