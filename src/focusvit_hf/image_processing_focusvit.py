"""Image processor of FocusViT: images to `pixel_values` and `superpixel_ids`."""

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import PreTrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType, logging

from .errors import refuse_misspelt
from .image_sizes import channels_first, check_area, fixed_size, needed_by, resize
from .images import decode_image, flat_images, levels_of_floats, naming_image
from .pipeline_maps import left_to_model
from .segmentation_maps import SegmentationPostProcessing, labels_of
from .superpixel_maps import superpixel_map
from .superpixel_options import (
    SHARED_FIELDS,
    SuperpixelOptions,
    check_options,
    default_cell_size,
    shared_values,
    superpixel_count,
    superpixel_layout,
)


logger = logging.get_logger(__name__)


class FocusViTImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of [`FocusViTImageProcessor`], described there, beside those of all image processors."""

    do_superpixels: bool
    num_superpixels: int | list[int] | tuple[int, int]
    superpixel_compactness: float | int
    superpixel_iterations: int
    superpixel_cell_size: int | None
    superpixel_method: str
    patch_size: int
    do_reduce_labels: bool


_OWN_OPTIONS = tuple(
    name for name in FocusViTImageProcessorKwargs.__annotations__ if name not in ImagesKwargs.__annotations__
)


class _Prepared(NamedTuple):
    """An image after resize and crop. Images that agree in all but the values are finished together."""

    array: np.ndarray  # (channels, height, width): 8-bit levels in uint8, or floats that are neither resized nor cut
    divisor: float  # what rescales the array: rescaled = array / divisor


def _refuse_misspelt(options: Iterable[str]) -> None:
    known = FocusViTImageProcessorKwargs.__annotations__
    refuse_misspelt(options, _OWN_OPTIONS, "option of the image processor", known)


def _per_channel(name: str, values: float | tuple[float, ...] | list[float], channels: int) -> torch.Tensor:
    """(channels, 1, 1) float32."""
    listed = [float(values)] * channels if isinstance(values, (int, float)) else [float(value) for value in values]
    if len(listed) != channels:
        raise ValueError(f"Expected {name} with one value for each of the {channels} channels, got {listed}.")
    return torch.tensor(listed)[:, None, None]


class FocusViTImageProcessor(SegmentationPostProcessing, PilBackend):
    r"""
    Prepares images for FocusViT: resize, crop, superpixels, rescale, normalise. Runs without torchvision.

    `size`, `crop_size`, `resample`, `rescale_factor`, `image_mean` and `image_std` mean what they mean in ViT's
    processor, and the `pixel_values` of 8-bit images equal ViT's within a grey level. Superpixels are computed on
    the image in 8 bits after resize and crop, for the whole batch at once. All options can be given here, to
    `from_pretrained` and with each call, and are saved.

    Images: paths, URLs, bytes, open files and PIL of any mode (made upright; transparency is laid over white; 16-bit
    values are scaled to 8 bits), arrays and tensors, channels first or last or without channels; one, or a list, or a
    batch. A large photograph is best given as a file: of a JPEG four times larger than `size` only a fraction is
    decoded. Integers above 255 count as 16-bit. Floats are in 0..1 with `do_rescale=False` and in 0..255 otherwise;
    resizing and superpixels round them to 8 bits.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`): Whether to resize.
        size (`dict[str, int]`, *optional*, defaults to `{"height": 224, "width": 224}`):
            Size after resizing; `{"shortest_edge": n}` keeps the aspect.
        resample (`PIL.Image.Resampling`, *optional*, defaults to bilinear): Filter of the resize.
        do_center_crop (`bool`, *optional*, defaults to `False`): Whether to crop the middle after resizing.
        crop_size (`dict[str, int]`, *optional*): Size of the crop; a smaller image is padded with black.
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to 1/255): Factor of the rescaling.
        do_normalize (`bool`, *optional*, defaults to `True`): Whether to normalise.
        image_mean, image_std (`float` or `list[float]`, *optional*, default to 0.5): Statistics for white = 1.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): Whether to convert to three channels.
        do_superpixels (`bool`, *optional*, defaults to `True`): Whether to return `superpixel_ids`.
        num_superpixels (`int` or (rows, columns), *optional*, defaults to 49): K, the same for every image.
        superpixel_compactness (`float`, *optional*, defaults to 10.0): m of SLIC: larger is squarer.
        superpixel_iterations (`int`, *optional*, defaults to 5): Rounds of SLIC.
        superpixel_cell_size (`int`, *optional*):
            Side in pixels of the cells superpixels are made of; divides patch, height and width. Defaults to the
            largest divisor of the patch that is at most a quarter of it.
        superpixel_method (`str`, *optional*, defaults to `"torch"`):
            `"torch"` (see [`~superpixels.slic`]) or `"skimage"`: scikit-image's `slic` an image at a time, its map
            reduced to cells by majority and repaired to K by splitting the largest segments or merging the smallest.
        patch_size (`int`, *optional*, defaults to 16): The model's patch, from which the cell's default follows.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether masks lose their class 0, the background: 0 becomes 255, which does not count, and k becomes k - 1.

    Masks: `segmentation_maps` of a call, one of each image and of its size, with the numbers of the classes: images of
    one channel (of a palette the indices count) or arrays of integers. They are resized to the nearest pixel.

    Returns of a call:
        [`BatchFeature`] with `pixel_values` of shape `(batch_size, 3, height, width)`, float32, and `superpixel_ids`
        of shape `(batch_size, height / cell, width / cell)`, int64 in [0, K), every id present in every image.
        Lists of arrays without `return_tensors`. With `segmentation_maps` also `labels` of shape
        `(batch_size, height, width)`, int64, 255 where a crop reaches beyond the image.

    Raises:
        ValueError:
            On options out of range; on an image that is empty, holds NaN or infinity, cannot be decoded or is larger
            than `PIL.Image.MAX_IMAGE_PIXELS` (its number in the batch, from 0, is named); when cell or K do not fit;
            on masks of colours or floats, of another size than their image, or of another number.

    Example:

    ```python
    >>> from focusvit_hf import FocusViTImageProcessor
    >>> from skimage.data import chelsea

    >>> processor = FocusViTImageProcessor(num_superpixels=36)
    >>> inputs = processor(chelsea(), return_tensors="pt")
    >>> inputs.pixel_values.shape, inputs.superpixel_ids.shape
    (torch.Size([1, 3, 224, 224]), torch.Size([1, 56, 56]))
    ```"""

    valid_kwargs = FocusViTImageProcessorKwargs
    model_input_names = ["pixel_values", "superpixel_ids"]

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_superpixels = True
    num_superpixels = 49
    superpixel_compactness = 10.0
    superpixel_iterations = 5
    superpixel_cell_size = None
    superpixel_method = "torch"
    patch_size = 16
    do_reduce_labels = False
    # Whether a call returns maps only if it is asked for them, see `from_pretrained`.
    leaves_maps = False

    def __init__(self, **kwargs: Unpack[FocusViTImageProcessorKwargs]):
        _refuse_misspelt(kwargs)
        # Unlike a call's, the library does not look at the types of these.
        own = {name: kwargs[name] for name in _OWN_OPTIONS if kwargs.get(name) is not None}  # type: ignore[literal-required]
        try:
            validate_typed_dict(cast(Any, self.valid_kwargs), own)
        except StrictDataclassError as error:
            raise ValueError(str(error)) from error
        super().__init__(**kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """
        As in the base class. A processor that `pipeline` loads by the name of a checkpoint leaves the superpixels to
        the model where that computes the same, see [`~pipeline_maps.left_to_model`]: a pipeline prepares images one by
        one, and the model sees a batch. A call with `do_superpixels=True` returns them all the same.
        """
        # The one word by which a pipeline makes itself known to what it loads; the library removes it nowhere.
        for_pipeline = kwargs.pop("_from_pipeline", None) is not None
        options = dict(kwargs)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        if for_pipeline and isinstance(loaded, cls):
            loaded.leaves_maps = left_to_model(loaded, pretrained_model_name_or_path, options)
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """As in the base class; that a pipeline loaded the processor is not saved."""
        fields = super().to_dict()
        fields.pop("leaves_maps", None)
        return fields

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the base class, but options given beside the dictionary are checked like those in it."""
        _refuse_misspelt(kwargs)
        return super().from_dict(image_processor_dict, **kwargs)

    def preprocess(self, images: ImageInput, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """
        What a call does, see the class.

        Args:
            images: One image or several.
            segmentation_maps (*optional*): The mask of each image, for training.
            kwargs: Options, instead of the processor's own, and `return_tensors`.
        """
        if self.leaves_maps:
            kwargs.setdefault("do_superpixels", False)
        return super().preprocess(images, segmentation_maps, **kwargs)

    def _standardize_kwargs(self, *args: Any, **kwargs: Any) -> dict:
        kwargs = super()._standardize_kwargs(*args, **kwargs)
        if isinstance(kwargs["num_superpixels"], list):
            kwargs["num_superpixels"] = tuple(kwargs["num_superpixels"])
        check_options(kwargs)
        for name in ("size", "crop_size"):
            length = kwargs.get(name)
            edges = {edge: value for edge, value in dict(length or {}).items() if value is not None}
            if not all(isinstance(value, int) and not isinstance(value, bool) for value in edges.values()):
                raise ValueError(f"Expected whole numbers of pixels in {name}, got {edges}.")
            if length is not None and length.height and length.width:
                try:
                    check_area(length.height, length.width)
                except ValueError as error:
                    raise ValueError(f"Expected another {name}: {error}.") from error
        return kwargs

    def _validate_preprocess_kwargs(self, *args: Any, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(*args, **kwargs)
        if kwargs["do_pad"]:
            raise ValueError(
                "Expected do_pad=False: a padded border would get superpixels of its own. Resize or crop."
            )
        if kwargs["data_format"] not in (None, *ChannelDimension):
            raise ValueError(
                f"Expected data_format 'channels_first' or 'channels_last', got {kwargs['data_format']!r}."
            )
        size = fixed_size(kwargs)
        # Where the options fix the size, a misfit shows before any image is decoded.
        if kwargs["do_superpixels"] and size is not None:
            self._check_superpixels(*size, **kwargs)

    @staticmethod
    def _check_superpixels(
        height: int,
        width: int,
        *,
        num_superpixels: int | tuple[int, int],
        superpixel_cell_size: int | None,
        superpixel_method: str,
        patch_size: int,
        **kwargs: Any,
    ) -> None:
        """ValueError when cells or superpixels do not fit an image of height x width pixels."""
        cell = default_cell_size(patch_size) if superpixel_cell_size is None else superpixel_cell_size
        if height % cell or width % cell:
            raise ValueError(
                f"Expected images whose height and width the superpixel cell of {cell} pixels divides, got "
                f"{height} x {width} after resize and crop. Change size, crop_size or superpixel_cell_size, or pass "
                "do_superpixels=False."
            )
        rows, columns = height // cell, width // cell
        if superpixel_method == "torch":
            superpixel_layout(num_superpixels, rows, columns)
        elif superpixel_count(num_superpixels) > rows * columns:
            raise ValueError(
                f"Expected num_superpixels up to the {rows * columns} cells of the image, got {num_superpixels}."
            )

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """
        Images of files, URLs and bytes, see [`~images.decode_image`], in the nested lists they came in; images that
        are decoded already are returned as they are.

        Raises:
            ValueError: when an image cannot be read.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (Image.Image, np.ndarray, torch.Tensor)):
            return image_url_or_urls
        return decode_image(image_url_or_urls, self.do_convert_rgb)

    def process_image(
        self,
        image: ImageInput,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """
        One image, see [`~images.decode_image`], as array (channels, height, width): uint8, or float32 from floats.

        Raises:
            ValueError: on images that cannot be used.
        """
        decoded = decode_image(image, do_convert_rgb, input_data_format)
        return channels_first(decoded) if isinstance(decoded, Image.Image) else decoded

    def _prepare_image_like_inputs(
        self,
        images: ImageInput,
        *args: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        whole: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        # PIL images stay what they are: an array would cost a large photograph two copies before it is shrunk.
        prepared: list[Image.Image | np.ndarray] = []
        needed = None if whole else needed_by(kwargs)
        for index, image in enumerate(flat_images(images)):
            with naming_image(index):
                prepared.append(decode_image(image, do_convert_rgb, input_data_format, needed))
        if not prepared:
            raise ValueError(f"Expected at least one image, got {images!r}.")
        return prepared

    def _preprocess_image_like_inputs(
        self, images: ImageInput, segmentation_maps: Any = None, *args: Any, **kwargs: Any
    ) -> BatchFeature:
        if segmentation_maps is None:
            return super()._preprocess_image_like_inputs(images, *args, **kwargs)
        # Masks have to be of the size of the files.
        prepared = self._prepare_image_like_inputs(images, *args, whole=True, **kwargs)
        sizes = [one.size[::-1] if isinstance(one, Image.Image) else one.shape[1:] for one in prepared]
        labels: Any = labels_of(segmentation_maps, sizes, **kwargs)
        batch = self._preprocess(prepared, *args, **kwargs)
        batch.update(BatchFeature(data={"labels": labels}, tensor_type=kwargs.get("return_tensors")))
        if kwargs.get("device") is not None:
            batch.to(kwargs["device"])
        return batch

    def _resize_and_crop(
        self,
        image: Image.Image | np.ndarray,
        *,
        do_resize: bool,
        size: SizeDict,
        resample: int,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_superpixels: bool,
        as_levels: bool = False,
        **kwargs: Any,
    ) -> _Prepared:
        divisor = 1 / rescale_factor if do_rescale else 1.0
        if isinstance(image, np.ndarray) and image.dtype == np.float32:
            if do_rescale and 0 < float(image.max()) <= 1 < divisor:
                logger.warning_once(
                    "The values of an image lie in 0..1 already and are rescaled again: pass do_rescale=False."
                )
            if do_resize or do_superpixels or as_levels:
                white = divisor if do_rescale else 1.0 if float(image.max()) <= 1 else 255.0
                image = levels_of_floats(image, white)
                divisor *= 255 / white
        if do_resize:
            image = resize(image, size, resample)
        elif isinstance(image, Image.Image):
            image = channels_first(image)
        if do_center_crop:
            image = self.center_crop(image, crop_size)
        return _Prepared(image, divisor)

    def _preprocess(
        self,
        images: list[Any],
        *args: Any,
        return_tensors: str | TensorType | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> BatchFeature:
        if device is not None and return_tensors != TensorType.PYTORCH:
            raise ValueError(f"Expected return_tensors='pt' with device={str(device)!r}, got {return_tensors!r}.")
        groups: dict[tuple, list[int]] = {}
        prepared = []
        for index, image in enumerate(images):
            with naming_image(index):
                one = self._resize_and_crop(image, **options)
            groups.setdefault((one.array.shape, one.array.dtype, one.divisor), []).append(index)
            prepared.append(one)

        finished: dict[str, list[Any]] = {}
        for members in groups.values():
            stack = torch.from_numpy(np.stack([prepared[index].array for index in members])).to(device or "cpu")
            with naming_image(members[0]):
                batch = self._finish(stack, prepared[members[0]].divisor, **options)
            if return_tensors is not None and len(groups) == 1:
                return BatchFeature(data=batch, tensor_type=return_tensors)
            for name, values in batch.items():
                rows = finished.setdefault(name, [None] * len(prepared))
                for index, value in zip(members, values.cpu().numpy(), strict=True):
                    rows[index] = value
        result = BatchFeature(data=finished, tensor_type=return_tensors)
        if device is not None:
            result.to(device)
        return result

    def to_levels(self, images: ImageInput, **options: Any) -> list[np.ndarray]:
        """
        The first half of a call: images as 8-bit levels, resized and cropped.

        Args:
            images: What a call takes; floating point has to be in the range that `do_rescale` says.
            options: Those of a call.

        Returns:
            `list[np.ndarray]`: uint8 of shape `(channels, height, width)` for each image.

        Raises:
            ValueError: as a call.
        """
        options = self._resolved(options, do_superpixels=False)
        levels = []
        for index, image in enumerate(self._prepare_image_like_inputs(images, **options)):
            with naming_image(index):
                levels.append(self._resize_and_crop(image, as_levels=True, **options).array)
        return levels

    def process_levels(self, levels: torch.Tensor, **options: Any) -> BatchFeature:
        """
        The second half of a call: a batch of 8-bit levels to what the model takes.

        Args:
            levels (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
                0..255, uint8 or whole numbers in floating point, of the size that the model shall see.
            options: Those of a call; resize, crop and conversions of channels have no part in this half.

        Returns:
            [`BatchFeature`] of tensors on the device of `levels`: `pixel_values` and, with `do_superpixels`,
            `superpixel_ids`, bit for bit those of a call on the same levels.

        Raises:
            ValueError: on levels of another shape or type, and as a call.
        """
        if levels.ndim != 4 or not (levels.dtype == torch.uint8 or levels.is_floating_point()):
            raise ValueError(
                "Expected levels of shape (batch, channels, height, width), uint8 or whole numbers in floating point, "
                f"got {levels.dtype} {tuple(levels.shape)}."
            )
        options = self._resolved(options, do_resize=False, do_center_crop=False)
        divisor = 1 / options["rescale_factor"] if options["do_rescale"] else 1.0
        return BatchFeature(data=self._finish(levels, divisor, **options))

    def _resolved(self, options: dict[str, Any], **fixed: Any) -> dict[str, Any]:
        """The options of a call, checked: those given, and else the processor's own."""
        validate_typed_dict(cast(Any, self.valid_kwargs), options)
        own = {name: getattr(self, name, None) for name in FocusViTImageProcessorKwargs.__annotations__}
        resolved = self._standardize_kwargs(**{**own, **options, **fixed})
        self._validate_preprocess_kwargs(**resolved)
        return resolved

    def _finish(
        self,
        levels: torch.Tensor,
        divisor: float,
        *,
        do_normalize: bool,
        image_mean: float | tuple[float, ...],
        image_std: float | tuple[float, ...],
        do_superpixels: bool,
        data_format: str | ChannelDimension | None = None,
        **options: Any,
    ) -> dict[str, torch.Tensor]:
        """(batch_size, channels, height, width) levels to tensors: rescaled, normalised, cut into superpixels."""
        pixel_values = levels.to(torch.float32, copy=True).div_(divisor)
        if do_normalize:
            channels = levels.shape[1]
            pixel_values.sub_(_per_channel("image_mean", image_mean, channels).to(levels.device))
            pixel_values.div_(_per_channel("image_std", image_std, channels).to(levels.device))
        if data_format == ChannelDimension.LAST:
            pixel_values = pixel_values.movedim(1, -1)
        if not do_superpixels:
            return {"pixel_values": pixel_values}
        self._check_superpixels(*levels.shape[-2:], **options)
        ids = superpixel_map(levels, SuperpixelOptions.of(SimpleNamespace(**options)))
        return {"pixel_values": pixel_values, "superpixel_ids": ids}

    @classmethod
    def from_model_config(cls, config: PreTrainedConfig, **overrides: Any) -> "FocusViTImageProcessor":
        """
        The processor that prepares images for models of this configuration.

        Args:
            config ([`FocusViTConfig`]): The model's configuration.
            overrides: Options of the processor, instead of what follows from the configuration.

        Returns:
            [`FocusViTImageProcessor`]. It computes no superpixels unless `config.patch_pooling` is `"superpixel"`, and
            leaves images in their channels when the model does not take three.
        """
        height, width = config.image_height_and_width
        options = {
            "size": {"height": height, "width": width},
            "patch_size": config.patch_size,
            "do_convert_rgb": config.num_channels == 3,
            "do_superpixels": config.patch_pooling == "superpixel",
            **{name: getattr(config, name) for name in SHARED_FIELDS},
        }
        return cls(**{**options, **overrides})

    def validate_against_config(self, config: PreTrainedConfig) -> None:
        """
        Checks that this processor prepares images as models of the configuration expect them.

        Args:
            config ([`FocusViTConfig`]): The model's configuration.

        Raises:
            ValueError: naming each field of [`SHARED_FIELDS`] that disagrees; `superpixel_cell_size=None` counts as
                the size it stands for. Also when the model takes no superpixels but the processor computes them, and
                when 8-bit images are not rescaled to 0..1 and normalised.
        """
        expected, got = (shared_values(owner, config.num_channels) for owner in (config, self))
        problems = [
            f"{name}: expected {expected[name]!r}, got {got[name]!r}"
            for name in SHARED_FIELDS
            if expected[name] != got[name]
        ]
        if self.do_superpixels and config.patch_pooling != "superpixel":
            problems.append(f"do_superpixels: expected False for patch_pooling={config.patch_pooling!r}, got True")
        problems += [
            f"{name}: expected True, got False" for name in ("do_rescale", "do_normalize") if not getattr(self, name)
        ]
        if not math.isclose(self.rescale_factor, 1 / 255, rel_tol=1e-3):
            problems.append(f"rescale_factor: expected 1/255 = {1 / 255:.6g}, got {self.rescale_factor:.6g}")
        if problems:
            raise ValueError(f"The image processor does not match the model's configuration. {'; '.join(problems)}.")


__all__ = ["FocusViTImageProcessor", "FocusViTImageProcessorKwargs"]
