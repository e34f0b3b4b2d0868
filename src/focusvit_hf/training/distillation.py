"""Knowledge distillation: a student that also learns what a teacher, such as the dense ViT it was made of, answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..configuration_focusvit import FocusViTConfig
from ..images import fixed_size


DISTILLATION_TYPES = ("soft", "hard")


def distillation_loss(
    logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0, kind: str = "soft"
) -> torch.Tensor:
    """
    How far a student's answers are from a teacher's, in fp32.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The student's scores before the softmax.
        teacher_logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): The teacher's.
        temperature (`float`, *optional*, defaults to 1.0): T, above 0; has no part in `"hard"`.
        kind (`str`, *optional*, defaults to `"soft"`):
            `"soft"`: T² KL(softmax(teacher / T) || softmax(student / T)), whose gradients keep their size whatever T
            is (Hinton et al. 2015, section 2.1); `"hard"`: cross entropy with the teacher's first choice (Touvron et
            al. 2021, equation 3).

    Returns:
        `torch.FloatTensor`: The mean over the batch, a scalar; gradients flow to the student alone.

    Raises:
        ValueError: If the shapes differ, or on another `kind`.
    """
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"expected logits of a student and a teacher alike, got {tuple(logits.shape)} and "
            f"{tuple(teacher_logits.shape)}"
        )
    if kind not in DISTILLATION_TYPES:
        raise ValueError(f"expected distillation_type to be one of {DISTILLATION_TYPES}, got {kind!r}")
    teacher_logits = teacher_logits.detach().float()
    if kind == "hard":
        return F.cross_entropy(logits.float(), teacher_logits.argmax(dim=-1))
    student, teacher = (F.log_softmax(scores.float() / temperature, dim=-1) for scores in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Distillation:
    """
    A teacher, and how much a student listens to it: (1 - alpha) loss + alpha [`distillation_loss`].

    The teacher answers for the very pictures that the student sees, mixed ones too, with its own normalisation and,
    where its size differs, resized. Gradients and dropout are off in it, and it follows its pictures to their device.

    Args:
        teacher ([`PreTrainedModel`]): A classifier that takes `pixel_values`. It is put in evaluation mode.
        config ([`FocusViTConfig`]): The student's: normalisation of its pictures, and labels.
        image_mean, image_std (`float` or sequence of `float`):
            What the teacher's pictures are normalised with, in units in which a pixel is in 0..1.
        size (pair of `int`, *optional*): Height and width of the teacher's pictures; by default the student's.
        alpha (`float`, *optional*, defaults to 0.5): The teacher's share of the loss, in 0..1.
        temperature (`float`, *optional*, defaults to 3.0): See [`distillation_loss`].
        kind (`str`, *optional*, defaults to `"soft"`): See [`distillation_loss`].

    Raises:
        ValueError: If a number is out of range, and where teacher and student do not name the same classes in the
            same order.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        config: FocusViTConfig,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        size: tuple[int, int] | None = None,
        alpha: float = 0.5,
        temperature: float = 3.0,
        kind: str = "soft",
    ):
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"expected 0 <= distillation_alpha <= 1, got {alpha}")
        if not (0.0 < temperature < math.inf):
            raise ValueError(f"expected a distillation_temperature above 0, got {temperature}")
        if kind not in DISTILLATION_TYPES:
            raise ValueError(f"expected distillation_type to be one of {DISTILLATION_TYPES}, got {kind!r}")
        _check_labels(teacher.config.id2label or {}, config.id2label or {})
        self.teacher = teacher.eval().requires_grad_(False)
        self.size = size
        self.alpha, self.temperature, self.kind = alpha, temperature, kind
        own_mean, own_std, mean, std = (
            torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1)
            for values in (config.image_mean, config.image_std, image_mean, image_std)
        )
        # (x - mean) / std of x = own_std pixels + own_mean
        self._scale, self._shift = own_std / std, (own_mean - mean) / std

    @torch.no_grad()
    def teacher_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        What the teacher answers, `(batch_size, num_labels)`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Pictures as the student takes them.
        """
        device = pixel_values.device
        self.teacher.to(device)
        pixels = pixel_values.float() * self._scale.to(device) + self._shift.to(device)
        if self.size is not None and tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        return self.teacher(pixel_values=pixels.to(self.teacher.dtype)).logits

    def mixed(self, loss: torch.Tensor, logits: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        The loss of a training step.

        Args:
            loss (`torch.FloatTensor`): The student's own, a mean over the batch.
            logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): What the student answers.
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): What it sees.
        """
        told = distillation_loss(logits, self.teacher_logits(pixel_values), self.temperature, self.kind)
        return (1 - self.alpha) * loss + self.alpha * told


def load_distillation(
    name: str,
    config: FocusViTConfig,
    alpha: float = 0.5,
    temperature: float = 3.0,
    kind: str = "soft",
    dtype: torch.dtype = torch.float32,
    **hub: Any,
) -> Distillation:
    """
    Loads a teacher with its image processor, from safetensors only.

    Args:
        name (`str`): An image classifier, a folder or a name on the Hub.
        config ([`FocusViTConfig`]): The student's.
        alpha, temperature, kind: See [`Distillation`].
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): What the teacher computes in.
        hub: Options of `from_pretrained`, such as `token`.

    Raises:
        ValueError: when there is no such classifier, when its weights are not exactly those of its class, when its
            processor does not scale pictures to 0..1 before it normalises them, and as [`Distillation`].
    """
    try:
        processor: Any = AutoImageProcessor.from_pretrained(name, **hub)
        loaded: Any = AutoModelForImageClassification.from_pretrained(
            name, dtype=dtype, use_safetensors=True, output_loading_info=True, **hub
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            "expected an image classifier in safetensors with its image processor as --teacher_model_name_or_path, a "
            f"folder or a name on the Hub, got {name}: {error}"
        ) from error
    teacher, report = loaded
    problems = [*sorted(report["missing_keys"]), *sorted(report["mismatched_keys"])]
    if problems:
        raise ValueError(f"expected all weights of the teacher in {name}, got none that fit for {problems[:4]}")
    mean, std = _normalisation(processor)
    return Distillation(teacher, config, mean, std, _size(processor, teacher), alpha, temperature, kind)


def _check_labels(teacher: Mapping[Any, str], student: Mapping[Any, str]) -> None:
    if teacher == student:
        return
    if len(teacher) != len(student):
        raise ValueError(f"expected a teacher of the student's {len(student)} classes, got one of {len(teacher)}")
    index = next(index for index in student if teacher.get(index) != student[index])
    raise ValueError(
        "expected a teacher with the student's id2label, got one whose class "
        f"{index} is {teacher.get(index)!r} instead of {student[index]!r}"
    )


def _normalisation(processor: BaseImageProcessor) -> tuple[Any, Any]:
    """Mean and standard deviation of the pictures in 0..1 that a processor makes."""
    options = processor.to_dict()
    if not options.get("do_rescale") or not math.isclose(options["rescale_factor"], 1 / 255):
        raise ValueError(
            "expected a teacher whose image processor rescales by 1 / 255, got "
            f"do_rescale={options.get('do_rescale')}, rescale_factor={options.get('rescale_factor')}"
        )
    return (options["image_mean"], options["image_std"]) if options.get("do_normalize") else (0.0, 1.0)


def _size(processor: BaseImageProcessor, teacher: PreTrainedModel) -> tuple[int, int] | None:
    """Height and width of the pictures that a teacher takes, as far as they are fixed."""
    size = fixed_size(processor)
    if size is not None:
        return size
    own = getattr(teacher.config, "image_size", None)
    return (own, own) if isinstance(own, int) else tuple(own) if own else None
