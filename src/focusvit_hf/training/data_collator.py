"""Batches of examples for training: images augmented, then cut into superpixels."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from transformers import TrainerCallback
from transformers.image_utils import SizeDict

from ..image_processing_focusvit import FocusViTImageProcessor
from ..image_sizes import Needed, channels_first, fixed_size, needed_by
from ..images import decode_image, naming_image
from .augmentation import (
    AugmentationConfig,
    as_floats,
    color_jitter,
    crop_with_masks,
    random_crop_boxes,
    random_crop_with_padding,
    random_horizontal_flip,
    random_mix,
    soft_targets,
)
from .selection import SelectionColumn, masks_of, prepared_levels


# Arrays that [`decode_image`] returned.
_DECODED = {"input_data_format": "channels_first"}
Collator = Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]


class FocusViTDataCollator:
    """
    Makes a batch of examples: images augmented, then cut into superpixels, rescaled and normalised by the processor.

    Without `augmentation` the images go through the processor and nothing else. With it they are brought to the
    processor's size by the augmentation's crop, and superpixels come from the augmented image in 8 bits.

    Superpixels belong to the pixels that they were computed from. Transforms of your own that move pixels (a flip, a
    crop, a rotation) have to come before this collator, on the images: where `pixel_values` are flipped and
    `superpixel_ids` are not, a model reads other regions than those of the image (0.80 became 0.68 of accuracy in one
    case). Or drop `superpixel_ids` from the batch after such a transform, and the model computes them anew.

    A `Trainer` needs `TrainingArguments(remove_unused_columns=False)`: by default it removes the column of images.

    Args:
        image_processor ([`FocusViTImageProcessor`]): Its options say what comes out.
        augmentation ([`AugmentationConfig`], *optional*): What is done to training images; leave out to evaluate.
        num_labels (`int`, *optional*): Number of classes; needed where labels become probabilities.
        image_column (`str`, *optional*, defaults to `"image"`):
            Key of the image: what the processor takes (with augmentation, arrays and tensors of 8 bits), including
            undecoded `{"bytes": ..., "path": ...}`.
        label_column (`str`, *optional*, defaults to `"label"`):
            Key of the class, an integer. Without augmentation it may be absent from all examples.
        generator (`torch.Generator`, *optional*):
            What augmentation draws from. By default torch's global generator, which `Trainer` saves and data loaders
            seed anew for each worker; a generator given here would be copied, and so repeat itself, in each of them.

        selection ([`~selection.SelectionColumn`], *optional*):
            Where the masks of what matters come from. They go through the same crop, shift and flip as the images, are
            blended by mixup and pasted by cutmix, and become `selection_masks`.

    Raises:
        ValueError: when labels shall become probabilities but `num_labels` is not given.

    Example:

    ```python
    >>> from focusvit_hf import FocusViTImageProcessor
    >>> from focusvit_hf.training.augmentation import AugmentationConfig
    >>> from focusvit_hf.training.data_collator import FocusViTDataCollator
    >>> from skimage.data import chelsea

    >>> collator = FocusViTDataCollator(FocusViTImageProcessor(), AugmentationConfig(cutmix_alpha=1.0), num_labels=10)
    >>> batch = collator([{"image": chelsea(), "label": 3}, {"image": chelsea(), "label": 5}])
    >>> {name: tuple(values.shape) for name, values in batch.items()}
    {'pixel_values': (2, 3, 224, 224), 'superpixel_ids': (2, 56, 56), 'labels': (2, 10)}
    ```"""

    def __init__(
        self,
        image_processor: FocusViTImageProcessor,
        augmentation: AugmentationConfig | None = None,
        num_labels: int | None = None,
        image_column: str = "image",
        label_column: str = "label",
        generator: Generator | None = None,
        selection: SelectionColumn | None = None,
    ):
        if num_labels is not None and num_labels < 1:
            raise ValueError(f"Expected num_labels >= 1, got {num_labels}.")
        if augmentation is not None and augmentation.makes_soft_targets and num_labels is None:
            raise ValueError("Expected num_labels for mixup and cutmix, got None.")
        # A processor's call takes more options than the base class declares.
        self.image_processor: Any = image_processor
        self.augmentation = augmentation
        self.num_labels = num_labels
        self.image_column = image_column
        self.label_column = label_column
        self.generator = generator
        self.selection = selection
        # A mask has the size of the whole image, so that no fraction of it will do.
        self.needed = None if selection is not None else needed_for_training(image_processor, augmentation)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """
        Args:
            examples (`list[dict]`): One or more, each with an image and a class.

        Returns:
            `dict[str, torch.Tensor]`: `pixel_values` (B, 3, H, W) float32, `superpixel_ids` (B, H / cell, W / cell)
            int64 where the processor makes them, and `labels`: (B,) int64, or (B, num_labels) float32 where they are
            probabilities; `selection_masks` (B, H, W) float32 in [0, 1] where there is a `selection`.

        Raises:
            ValueError: for no examples, a missing column, a label that is no class, and images that cannot be used;
                the example's number in the batch, from 0, is named.
        """
        if not examples:
            raise ValueError("Expected at least one example, got none.")
        config, processor = self.augmentation, self.image_processor
        images = [self._image(index, example) for index, example in enumerate(examples)]
        masks = self._masks(examples, images)
        if config is None:
            batch = dict(processor(images, return_tensors="pt", **_DECODED))
            if masks is not None:
                batch["selection_masks"] = masks_of(prepared_levels(masks, processor))
            if not any(self.label_column in example for example in examples):
                return batch
        labels = torch.tensor([self._label(index, example) for index, example in enumerate(examples)])
        if config is not None:
            augmented, labels = self._augmented(self._cropped(images, masks, config), labels, config)
            # Whole levels stay in floating point, which is what the processor makes of them anyway.
            batch = dict(processor.process_levels(augmented[:, :3].mul_(255).round_()))
            if masks is not None:
                batch["selection_masks"] = augmented[:, 3].clamp(0, 1)
        return {**batch, "labels": labels}

    def _image(self, index: int, example: Mapping[str, Any]) -> Any:
        if self.image_column not in example:
            raise ValueError(
                f"Expected an image in column {self.image_column!r} of example {index} of the batch, got the columns "
                f"{sorted(example)}. Trainer removes it unless TrainingArguments has remove_unused_columns=False."
            )
        with naming_image(index):
            do_convert_rgb = self.augmentation is not None or self.image_processor.do_convert_rgb
            return decode_image(example[self.image_column], do_convert_rgb, needed=self.needed)

    def _masks(self, examples: Sequence[Mapping[str, Any]], images: Sequence[Any]) -> list[np.ndarray] | None:
        """The mask of each image in 8-bit levels; None where there is no column of them."""
        if self.selection is None:
            return None
        sizes = [image.size[::-1] if isinstance(image, Image.Image) else image.shape[1:] for image in images]
        return self.selection.levels_of_batch(examples, sizes)

    def _label(self, index: int, example: Mapping[str, Any]) -> int:
        if self.label_column not in example:
            raise ValueError(
                f"Expected a class in column {self.label_column!r} of example {index} of the batch, got the columns "
                f"{sorted(example)}."
            )
        label = example[self.label_column]
        if isinstance(label, (Tensor, np.ndarray)) and label.ndim == 0:
            label = label.item()
        if not isinstance(label, (int, np.integer)) or isinstance(label, bool):
            raise ValueError(f"Expected an integer as label of example {index} of the batch, got {label!r}.")
        if label < 0 or (self.num_labels is not None and label >= self.num_labels):
            limit = "" if self.num_labels is None else f" and < {self.num_labels}"
            raise ValueError(f"Expected a label >= 0{limit} for example {index} of the batch, got {label}.")
        return int(label)

    def _cropped(
        self, images: Sequence[Any], masks: Sequence[np.ndarray] | None, config: AugmentationConfig
    ) -> Tensor:
        """The images as one batch of the processor's size, float32 in 0..1, with their masks as a fourth channel."""
        arrays = [self._array(index, image) for index, image in enumerate(images)]
        size, processor = fixed_size(self.image_processor), self.image_processor
        # An image of the size wanted is left as it is, unless it would be resized and then cropped.
        twice = processor.do_resize and processor.do_center_crop
        if config.crop != "random_resized" and (twice or any(array.shape[1:] != size for array in arrays)):
            arrays = processor.to_levels(arrays, **_DECODED)
            masks = None if masks is None else prepared_levels(masks, processor)
        if size is None:
            size = arrays[0].shape[1:]
            if any(array.shape[1:] != size for array in arrays):
                raise ValueError(
                    "Expected images of one size, or an image processor whose size or crop_size fixes height and "
                    f"width, got {sorted({array.shape[1:] for array in arrays})}."
                )
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, array in enumerate(arrays):
            groups.setdefault(array.shape, []).append(index)
        batch = torch.empty(len(arrays), 3 if masks is None else 4, *size)
        for members in groups.values():
            group, chosen = torch.from_numpy(np.stack([arrays[index] for index in members])), None
            if masks is not None:
                chosen = torch.from_numpy(np.stack([masks[index] for index in members]))[:, None]
            if config.crop == "random_resized":
                shape = config.crop_scale, config.crop_ratio
                boxes = random_crop_boxes(len(group), (group.shape[2], group.shape[3]), *shape, self.generator)
                group = crop_with_masks(group, chosen, boxes, size)
                group[:, 3:] /= 255
            else:
                group = group if chosen is None else torch.cat((group, chosen), dim=1)
                group = as_floats(random_crop_with_padding(group, config.crop_padding or 0, self.generator))
            batch[members] = group
        return batch

    def _array(self, index: int, image: Any) -> np.ndarray:
        """(3, height, width) uint8."""
        with naming_image(index):
            array = channels_first(image) if isinstance(image, Image.Image) else image
            if array.dtype != np.uint8 or len(array) != 3:
                raise ValueError(
                    "expected a file, a PIL image or a uint8 array with 1, 3 or 4 channels to augment, got "
                    f"{array.dtype} {array.shape}"
                )
        return array

    def _augmented(self, images: Tensor, labels: Tensor, config: AugmentationConfig) -> tuple[Tensor, Tensor]:
        images = random_horizontal_flip(images, config.horizontal_flip, self.generator)
        strengths = config.brightness, config.contrast, config.saturation
        coloured = color_jitter(images[:, :3], *strengths, generator=self.generator)
        images = coloured if images.shape[1] == 3 else torch.cat((coloured, images[:, 3:]), dim=1)
        if not config.makes_soft_targets or self.num_labels is None:
            return images, labels
        targets = soft_targets(labels, self.num_labels)
        return random_mix(images, targets, config, self.generator)


def needed_for_training(processor: Any, augmentation: AugmentationConfig | None) -> Needed | None:
    """
    What is needed of images that are augmented, see [`~image_sizes.needed_by`]: so many pixels that the smallest crop
    still has those of the processor's size.
    """
    if augmentation is None or augmentation.crop != "random_resized":
        return needed_by(processor)
    size = fixed_size(processor)
    if size is None:
        return None
    # The aspect makes one side of a crop shorter than its area says.
    smallest = math.sqrt(augmentation.crop_scale[0] / max(augmentation.crop_ratio[1], 1 / augmentation.crop_ratio[0]))
    if not smallest > 0:
        return None
    height, width = (math.ceil(side / smallest) for side in size)
    return Needed(SizeDict(height=height, width=width))


class SeededCollator:
    """
    Makes the randomness of a collator a function of the seed, the epoch and the images of the batch alone.

    The draws then depend neither on the number of workers, nor on prefetching, nor on where a run was interrupted: a
    resumed run sees the images the uninterrupted one sees.

    With `num_views` they do not even depend on the batch: every image goes through the collator alone, and what is
    drawn for it in epoch e is a function of the seed, its number and the view e mod `num_views`. The same views then
    come again and again, so that a [`~teacher_bank.TeacherBank`] can keep what a teacher answers for them. Mixup and
    cutmix, which need a second image, do nothing there.

    Args:
        collator (`Callable`): Takes a list of dicts, returns the batch; draws from torch's global generator.
        seed (`int`): Seed of the run.
        num_views (`int`, *optional*): Views of each image; by default every epoch draws new ones.
    """

    def __init__(self, collator: Collator, seed: int, num_views: int | None = None):
        if num_views is not None and num_views < 1:
            raise ValueError(f"expected at least one view of each image, got {num_views}")
        self.collator = collator
        self.seed = seed
        self.num_views = num_views
        # Shared, so that workers that live on from epoch to epoch see it change.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            features (`list[dict]`): Images, each with its number in the data set under `"index"`.

        Returns:
            `dict[str, torch.Tensor]`: What the wrapped collator returns; with `num_views` beside it `image_indices`
            and `views`, int64 of shape `(batch_size,)`, which say what each image is.
        """
        indices = [int(feature["index"]) for feature in features]
        features = [{key: value for key, value in feature.items() if key != "index"} for feature in features]
        if self.num_views is None:
            return self._seeded(features, int(self.epoch), *indices)
        view = int(self.epoch) % self.num_views
        parts = [self._seeded([feature], view, index) for feature, index in zip(features, indices, strict=True)]
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        numbers = torch.tensor(indices)
        return {**batch, "image_indices": numbers, "views": torch.full_like(numbers, view)}

    def _seeded(self, features: list[dict[str, Any]], *entropy: int) -> dict[str, torch.Tensor]:
        seed = np.random.SeedSequence([self.seed, *entropy]).generate_state(1, np.uint32)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            return self.collator(features)


def view_of(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Takes what says which view of which image a batch holds out of it: the model does not know these keys."""
    return {name: batch.pop(name) for name in ("image_indices", "views") if name in batch}


class EpochCallback(TrainerCallback):
    """Tells a [`SeededCollator`] which epoch has begun."""

    def __init__(self, collator: SeededCollator):
        self.collator = collator

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts counting at the epoch that training resumes in, or at 0."""
        self.collator.epoch.fill_(int(state.epoch or 0) - 1)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts on. The trainer's own count is of no use here: it stands still over a stream read again."""
        self.collator.epoch.add_(1)
