"""
What `focusvit benchmark` can measure: models with their processors, and images.

[`FocusViTImageProcessor`] prepares the images of every subject, so that their ways from an image to its class
differ in what the models need and not in whose code resizes. Peers get the size, crop, filter, mean and standard
deviation of their own processor in transformers, whose resize is PIL's and slower, and no superpixels.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import skimage.data
from huggingface_hub.errors import StrictDataclassError
from PIL import Image, ImageOps
from transformers import (
    ConvNextImageProcessorPil,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    LevitConfig,
    LevitForImageClassification,
    LevitImageProcessorPil,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ImageProcessorPil,
    PreTrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)
from transformers.image_processing_utils import BaseImageProcessor

from ..configuration_focusvit import FocusViTConfig
from ..image_processing_focusvit import FocusViTImageProcessor
from ..images import decode_image
from ..modeling_focusvit import FocusViTForImageClassification
from ..selection_options import SELECT_PACK
from ..utils.files import read_json


NUM_LABELS = 1000
FOCUSVIT_SIZES = ("nano", "tiny", "small", "base")
# All full; full in the first half and latent in the second; all latent.
FOCUSVIT_LAYERS = ("full", "mixed", "latent")
FOCUSVIT_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "patch": {"embedding_type": "patch"},
    "grid": {"patch_pooling": "grid"},
    "skimage": {"superpixel_method": "skimage"},
}
# Tokens leave at a quarter, a half and three quarters of the layers, or are merged before all but the first.
FOCUSVIT_SPARSE: dict[str, dict[str, Any]] = {
    "spot": {"sparsification_relevance": "learned"},
    "drop": {},
    "fuse": {"sparsification_mode": "fuse"},
    "merge": {"sparsification_mode": "merge"},
}
# The share of the tokens that layers of select-and-pack attention select.
SELECTED = 0.3
_VIT_FIELDS = ("hidden_size", "num_attention_heads", "intermediate_size")
# What a user of a pretrained model would resize to before the crop, for every 224 pixels of input.
_RESIZED = 256 / 224
# From here on ConvNeXt's processor resizes without a crop.
_UNCROPPED = 384


@dataclass(frozen=True)
class Subject:
    """
    Something to measure. Models have random weights: time and memory do not depend on them. It can be pickled.

    Args:
        name (`str`): By which results name it.
        configure (callable from `int`): The configuration for a resolution in pixels; ValueError where it fits none.
        model_class (callable from a configuration): The classifier.
        process (callable from a configuration and `int`): The image processor of the classifier for a resolution.
    """

    name: str
    configure: Callable[[int], PreTrainedConfig]
    model_class: Callable[[Any], Any]
    process: Callable[[Any, int], BaseImageProcessor]

    def build(self, resolution: int) -> tuple[Any, BaseImageProcessor]:
        """Model and image processor for images of `resolution` x `resolution` pixels."""
        config = self.configure(resolution)
        return self.model_class(config), self.process(config, resolution)


def find_subject(name: str) -> Subject:
    """
    The subject of a name, or of a FocusViT's configuration: a preset's JSON file, or a checkpoint's folder.

    Raises:
        ValueError: when there is none, with the known names.
    """
    if name in SUBJECTS:
        return SUBJECTS[name]
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if file.is_file() and file.suffix == ".json":
        fields = read_json(file)
        kind = fields.get("model_type", FocusViTConfig.model_type)
        if kind != FocusViTConfig.model_type:
            raise ValueError(f"Expected the configuration of a FocusViT in {file}, got model_type {kind!r}.")
        if "id2label" not in fields:
            fields.setdefault("num_labels", NUM_LABELS)
        return _focusvit(path.resolve().name if path.is_dir() else path.stem, partial(FocusViTConfig, **fields))
    raise ValueError(
        f"Expected a subject from {', '.join(known_subjects())}, a preset's JSON file or a checkpoint's folder, "
        f"got {name!r}."
    )


def known_subjects() -> tuple[str, ...]:
    """The names of [`SUBJECTS`], alternatives in braces, what may be left out in brackets."""
    sizes, layers = (f"{{{','.join(names)}}}" for names in (FOCUSVIT_SIZES, FOCUSVIT_LAYERS))
    variants = f"[-{{{','.join(name for name in FOCUSVIT_VARIANTS if name)}}}]"
    sparse = f"[-{{{','.join((*FOCUSVIT_SPARSE, 'spa'))}}}]"
    peers = (name for name in SUBJECTS if not name.startswith("focusvit-"))
    return (*peers, f"focusvit-{sizes}-{layers}{variants}", f"focusvit-{sizes}-{{full,dense}}{sparse}")


def _focusvit(name: str, make_config: Callable[..., FocusViTConfig]) -> Subject:
    return Subject(
        name, partial(_focusvit_config, name, make_config), FocusViTForImageClassification, _focusvit_processor
    )


def _focusvit_config(name: str, make_config: Callable[..., FocusViTConfig], resolution: int) -> FocusViTConfig:
    try:
        return make_config(image_size=resolution)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{name} does not work at {resolution} pixels: {error}") from error


def _preset_config(preset: str, layers: str, **fields: Any) -> FocusViTConfig:
    """A preset with one of the stacks of [`FOCUSVIT_LAYERS`] and other fields."""
    number = FocusViTConfig.from_preset(preset).num_hidden_layers
    full = {"full": number, "mixed": number // 2, "latent": 0}[layers]
    layer_types = ["full_attention"] * full + ["latent_attention"] * (number - full)
    return FocusViTConfig.from_preset(preset, layer_types=layer_types, num_labels=NUM_LABELS, **fields)


def _sparse_config(preset: str, way: str, **fields: Any) -> FocusViTConfig:
    """A preset with full attention whose tokens leave in one of the ways of [`FOCUSVIT_SPARSE`], to 0.7³ of them."""
    depth = FocusViTConfig.from_preset(preset).num_hidden_layers
    fields |= {**FOCUSVIT_SPARSE[way], "sparsification_layers": [depth * quarter // 4 for quarter in (1, 2, 3)]}
    if way == "merge":
        last = 0.7**3
        fields |= {"sparsification_layers": list(range(1, depth))}
        fields |= {"keep_ratio": [1 - (1 - last) * layer / (depth - 1) for layer in range(1, depth)]}
    return _preset_config(preset, "full", **fields)


def _selecting_config(preset: str, **fields: Any) -> FocusViTConfig:
    """A preset with full attention whose second half of the layers selects [`SELECTED`] of the tokens."""
    half = FocusViTConfig.from_preset(preset).num_hidden_layers // 2
    layer_types = ["full_attention"] * half + [SELECT_PACK] * half
    fields |= {"layer_types": layer_types, "select_budget": SELECTED, "num_labels": NUM_LABELS}
    return FocusViTConfig.from_preset(preset, **fields)


def _focusvit_processor(config: FocusViTConfig, resolution: int) -> BaseImageProcessor:
    return FocusViTImageProcessor.from_model_config(config)


def _vit(name: str, patch_size: int) -> Subject:
    return Subject(name, partial(_vit_config, name, patch_size), ViTForImageClassification, _vit_processor)


def _vit_config(name: str, patch_size: int, resolution: int) -> PreTrainedConfig:
    if resolution % patch_size:
        raise ValueError(f"{name} does not work at {resolution} pixels: expected a multiple of {patch_size}.")
    tiny = FocusViTConfig.from_preset("focusvit-tiny")
    shape = {field: getattr(tiny, field) for field in _VIT_FIELDS}
    return _sized(ViTConfig, {**shape, "patch_size": patch_size}, resolution)


def _vit_processor(config: ViTConfig, resolution: int) -> BaseImageProcessor:
    return _prepares_like(ViTImageProcessorPil, resolution)


def _convolutional(name: str, config_class: Any, model_class: Any, process: Any, **shape: Any) -> Subject:
    """A model that takes any resolution; what it is called on the Hub stands beside it below."""
    return Subject(name, partial(_sized, config_class, shape), model_class, process)


def _sized(config_class: Any, shape: Mapping[str, Any], resolution: int) -> PreTrainedConfig:
    return config_class(image_size=resolution, num_labels=NUM_LABELS, **shape)


def _levit_processor(config: LevitConfig, resolution: int) -> BaseImageProcessor:
    return _prepares_like(LevitImageProcessorPil, resolution, int(resolution * _RESIZED))


def _mobilenet_processor(config: MobileNetV2Config, resolution: int) -> BaseImageProcessor:
    return _prepares_like(MobileNetV2ImageProcessorPil, resolution, round(resolution * _RESIZED))


def _convnext_processor(config: PreTrainedConfig, resolution: int) -> BaseImageProcessor:
    edge = int(resolution * _RESIZED) if resolution < _UNCROPPED else None
    return _prepares_like(ConvNextImageProcessorPil, resolution, edge)


def _prepares_like(theirs: Any, resolution: int, edge: int | None = None) -> FocusViTImageProcessor:
    """Resizes to a square, or the shortest edge to `edge` before a crop; filter and normalisation are `theirs`."""
    square = {"height": resolution, "width": resolution}
    return FocusViTImageProcessor(
        size=square if edge is None else {"shortest_edge": edge},
        do_center_crop=edge is not None,
        crop_size=square,
        resample=theirs.resample,
        image_mean=theirs.image_mean,
        image_std=theirs.image_std,
        do_superpixels=False,
    )


def _focusvit_family() -> Iterator[Subject]:
    for size in FOCUSVIT_SIZES:
        preset = f"focusvit-{size}"
        for layers in FOCUSVIT_LAYERS:
            for variant, fields in FOCUSVIT_VARIANTS.items():
                name = "-".join(part for part in (preset, layers, variant) if part)
                yield _focusvit(name, partial(_preset_config, preset, layers, **fields))
        yield _focusvit(f"{preset}-dense", partial(_preset_config, f"{preset}-dense", "full"))
        for way in FOCUSVIT_SPARSE:
            yield _focusvit(f"{preset}-full-{way}", partial(_sparse_config, preset, way))
            yield _focusvit(f"{preset}-dense-{way}", partial(_sparse_config, f"{preset}-dense", way))
        yield _focusvit(f"{preset}-full-spa", partial(_selecting_config, preset))
        yield _focusvit(f"{preset}-dense-spa", partial(_selecting_config, f"{preset}-dense"))


SUBJECTS: dict[str, Subject] = {
    subject.name: subject
    for subject in (
        _vit("ViT-Ti/16", 16),
        _vit("ViT-Ti/32", 32),
        # facebook/levit-128S
        _convolutional(
            "LeViT-128S",
            LevitConfig,
            LevitForImageClassification,
            _levit_processor,
            depths=[2, 3, 4],
            hidden_sizes=[128, 256, 384],
            num_attention_heads=[4, 6, 8],
            key_dim=[16, 16, 16],
        ),
        # google/mobilenet_v2_1.0_224
        _convolutional("MobileNetV2", MobileNetV2Config, MobileNetV2ForImageClassification, _mobilenet_processor),
        # facebook/convnextv2-atto-1k-224
        _convolutional(
            "ConvNeXtV2-atto",
            ConvNextV2Config,
            ConvNextV2ForImageClassification,
            _convnext_processor,
            depths=[2, 2, 6, 2],
            hidden_sizes=[40, 80, 160, 320],
        ),
        # microsoft/resnet-18
        _convolutional(
            "ResNet-18",
            ResNetConfig,
            ResNetForImageClassification,
            _convnext_processor,
            layer_type="basic",
            depths=[2, 2, 2, 2],
            hidden_sizes=[64, 128, 256, 512],
        ),
        *_focusvit_family(),
    )
}


def sample_images() -> list[bytes]:
    """Four photographs that come with scikit-image, as JPEG files of 500 x 375 pixels, the commonest of ImageNet."""
    files = []
    for photograph in (skimage.data.chelsea, skimage.data.coffee, skimage.data.astronaut, skimage.data.rocket):
        buffer = io.BytesIO()
        ImageOps.fit(Image.fromarray(photograph()), (500, 375)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def read_images(folder: Path) -> list[bytes]:
    """
    The JPEG files of a folder, in the order of their names.

    Raises:
        ValueError: when there is none, or one that is no image.
    """
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of JPEG files, got {folder}.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise ValueError(f"Expected JPEG files in {folder}, got none.")
    for path in paths:
        try:
            decode_image(path)
        except ValueError as error:
            raise ValueError(f"Expected images in {folder}, got {error}") from error
    return [path.read_bytes() for path in paths]


def batch_of(images: Sequence[bytes], size: int) -> list[bytes]:
    """`size` images, from the first on, again and again."""
    return [images[index % len(images)] for index in range(size)]
