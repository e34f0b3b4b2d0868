"""Knowledge distillation: a student that also learns what a teacher answers: any module from images to logits."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..configuration_focusvit import FocusViTConfig
from ..image_sizes import fixed_size
from .selection_teacher import attended_masks
from .sparsification import token_distillation_loss
from .teacher_bank import TeacherBank


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


class Teacher(NamedTuple):
    """
    What the function that `--teacher package.module:function` names returns, as such or as a plain tuple.

    Args:
        module (`torch.nn.Module` or `Callable`):
            From images `(batch_size, num_channels, height, width)` to logits `(batch_size, num_classes)`.
        image_mean, image_std (`float` or sequence of `float`, *optional*, default to 0 and 1):
            What its images are normalised with, in units in which a pixel is in 0..1.
        size (`int` or (height, width), *optional*): Of its images in pixels; by default the student's.
    """

    module: Callable[[torch.Tensor], Any]
    image_mean: float | Sequence[float] = 0.0
    image_std: float | Sequence[float] = 1.0
    size: int | tuple[int, int] | None = None


class Distillation:
    """
    A teacher, and how much a student listens to it: (1 - alpha) loss + alpha [`distillation_loss`].

    The teacher answers for the very images that the student sees, mixed ones too, with its own normalisation and,
    where its size differs, resized. Gradients and dropout are off in it, and it follows its images to their device.

    Args:
        teacher (`torch.nn.Module` or `Callable`):
            From normalised images to logits `(batch_size, num_classes)`, or to an output that has them as `logits`, as
            the classifiers of Transformers, which are called with `pixel_values`. A module is put in evaluation mode.
        config ([`FocusViTConfig`]): The student's: normalisation of its images, and labels.
        image_mean, image_std (`float` or sequence of `float`):
            What the teacher's images are normalised with, in units in which a pixel is in 0..1.
        size (`int` or (height, width), *optional*): Of the teacher's images in pixels; by default the student's.
        alpha (`float`, *optional*, defaults to 0.5): The teacher's share of the loss, in 0..1.
        temperature (`float`, *optional*, defaults to 3.0): See [`distillation_loss`].
        kind (`str`, *optional*, defaults to `"soft"`): See [`distillation_loss`].
        classes (sequence of `int`, *optional*):
            The teacher's number of each of the student's classes, in the student's order, where the teacher knows more
            classes or has them in another order. Without it both have to know the same classes in the same order,
            which is checked by their names where the teacher is a model of Transformers.
        bank ([`~teacher_bank.TeacherBank`], *optional*): Where the answers for views that come again are kept.
        token_weight (`float`, *optional*, defaults to 0.0):
            Of [`~sparsification.token_distillation_loss`], which is added where the student's tokens leave on the way
            and the teacher is a dense ViT of as many tokens and channels.

    Raises:
        ValueError: If a number is out of range, if a class is named twice or not known to the teacher, where
            teacher and student do not name the same classes in the same order, and where tokens are to be compared
            that one of both does not have.
    """

    def __init__(
        self,
        teacher: Callable[..., Any],
        config: FocusViTConfig,
        image_mean: float | Sequence[float],
        image_std: float | Sequence[float],
        size: int | tuple[int, int] | None = None,
        alpha: float = 0.5,
        temperature: float = 3.0,
        kind: str = "soft",
        classes: Sequence[int] | None = None,
        bank: TeacherBank | None = None,
        token_weight: float = 0.0,
    ):
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"expected 0 <= distillation_alpha <= 1, got {alpha}")
        if not (0.0 < temperature < math.inf):
            raise ValueError(f"expected a distillation_temperature above 0, got {temperature}")
        if kind not in DISTILLATION_TYPES:
            raise ValueError(f"expected distillation_type to be one of {DISTILLATION_TYPES}, got {kind!r}")
        if not 0.0 <= token_weight < math.inf:
            raise ValueError(f"expected a distillation_token_weight of at least 0, got {token_weight}")
        if token_weight:
            _check_tokens(teacher, config)
        self.token_weight, self._num_tokens = token_weight, config.num_tokens
        self._selected = config.select_budget if config.select_supervision == "teacher" else None
        self.num_labels = len(config.id2label or {})
        self.classes = None if classes is None else _checked_classes(classes, self.num_labels)
        if isinstance(teacher, PreTrainedModel):
            own = teacher.config.id2label or {}
            if self.classes is None:
                _check_labels(own, config.id2label or {})
            elif max(self.classes) >= len(own):
                raise ValueError(f"expected --teacher_classes below the teacher's {len(own)}, got {max(self.classes)}")
        self.teacher = teacher.eval().requires_grad_(False) if isinstance(teacher, nn.Module) else teacher
        self.size = _checked_size(size)
        self.alpha, self.temperature, self.kind = alpha, temperature, kind
        self.bank = bank
        self._kept: tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor | None]] | None = None
        own_mean, own_std, mean, std = (
            torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1)
            for values in (config.image_mean, config.image_std, image_mean, image_std)
        )
        if not bool((std > 0).all()) or not bool(torch.isfinite(mean / std).all()):
            raise ValueError(
                f"expected a teacher's finite image_mean and image_std > 0, got {image_mean}, {image_std}"
            )
        # (x - mean) / std of x = own_std pixels + own_mean
        self._scale, self._shift = own_std / std, (own_mean - mean) / std

    def teacher_logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        What the teacher answers, `(batch_size, num_labels)`.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images as the student takes them.

        Raises:
            ValueError: If the answers are no logits of the classes that the student knows.
        """
        return self._told(pixel_values)[0]

    @torch.no_grad()
    def _told(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The teacher's logits, and where they have a weight its tokens behind class token and registers."""
        kept, self._kept = self._kept, None
        if kept is not None and kept[0] is pixel_values:
            return kept[1]
        pixels = self._prepared(pixel_values)
        named = isinstance(self.teacher, PreTrainedModel)
        with self._watched() as tokens:
            answer = self.teacher(pixel_values=pixels) if named else self.teacher(pixels)
        return self._checked(answer, len(pixels), tokens)

    def _checked(
        self, answer: Any, count: int, tokens: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What [`_told`] gives, of what the teacher answered for `count` images and the tokens watched meanwhile."""
        logits = getattr(answer, "logits", answer)
        least = self.num_labels if self.classes is None else max(self.classes) + 1
        fits = isinstance(logits, torch.Tensor) and logits.ndim == 2 and len(logits) == count
        if not fits or logits.shape[1] < least or (self.classes is None and logits.shape[1] > least):
            expected = f"({count}, {least}{'' if self.classes is None else ' or more'})"
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ValueError(
                f"expected logits of shape {expected} from the teacher, got {got}; "
                "--teacher_classes chooses among a teacher's classes"
            )
        return logits if self.classes is None else logits[:, self.classes], tokens[0] if tokens else None

    def _prepared(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The student's images as the teacher takes them, which follows them to their device."""
        device = pixel_values.device
        pixels = pixel_values.float() * self._scale.to(device) + self._shift.to(device)
        if self.size is not None and tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=True)
        if isinstance(self.teacher, nn.Module):
            self.teacher.to(device)
            # A module without parameters takes what it is given.
            pixels = pixels.to(next(self.teacher.parameters(), pixels).dtype)
        return pixels

    def with_selection(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """
        What the student is given, with `selection_masks` of what the teacher looks at where its configuration has
        `select_supervision="teacher"` and there are none, see [`~selection_teacher.attended_masks`].
        """
        if self._selected is None or "selection_masks" in inputs:
            return dict(inputs)
        pixel_values = inputs["pixel_values"]
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        with self._watched() as tokens:
            masks, answer = attended_masks(self.teacher, self._prepared(pixel_values), self._selected, size)
        # The loss asks for the answer to the same images next.
        self._kept = pixel_values, self._checked(answer, len(masks), tokens)
        return {**inputs, "selection_masks": masks}

    @contextlib.contextmanager
    def _watched(self) -> Iterator[list[torch.Tensor]]:
        """A list that meanwhile takes the teacher's final states of its tokens, where they have a weight."""
        tokens: list[torch.Tensor] = []
        if not self.token_weight:
            yield tokens
            return

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            tokens.append(output.last_hidden_state[:, -self._num_tokens :])

        handle = cast(PreTrainedModel, self.teacher).base_model.register_forward_hook(keep)
        try:
            yield tokens
        finally:
            handle.remove()

    def _answers(
        self, pixel_values: torch.Tensor, image_indices: torch.Tensor | None, views: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What [`_told`] gives, or logits from the bank as far as it holds them; see [`mixed`] for the arguments."""
        if self.bank is None:
            return self._told(pixel_values)
        if image_indices is None or views is None:
            raise ValueError("expected batches that say which view of which image they hold for a teacher's bank")
        device = pixel_values.device
        told = self.bank.answers(
            image_indices.cpu(), views.cpu(), lambda absent: self.teacher_logits(pixel_values[absent.to(device)])
        )
        return told.to(device), None

    def mixed(
        self,
        loss: torch.Tensor,
        logits: torch.Tensor,
        pixel_values: torch.Tensor,
        image_indices: torch.Tensor | None = None,
        views: torch.Tensor | None = None,
        outputs: Any = None,
    ) -> torch.Tensor:
        """
        The loss of a training step.

        Args:
            loss (`torch.FloatTensor`): The student's own, a mean over the batch.
            logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`): What the student answers.
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): What it sees.
            image_indices, views (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Which view of which training image each is; needed where there is a bank.
            outputs (`FocusViTForImageClassificationOutput`, *optional*):
                All that the student answers; needed with a `token_weight`.
        """
        answers, tokens = self._answers(pixel_values, image_indices, views)
        told = distillation_loss(logits, answers, self.temperature, self.kind)
        mixed = (1 - self.alpha) * loss + self.alpha * told
        return mixed if tokens is None else mixed + self.token_weight * token_distillation_loss(outputs, tokens)


def load_teacher_function(path: str, config: FocusViTConfig, **options: Any) -> Distillation:
    """
    Asks a function for a teacher.

    Args:
        path (`str`):
            `package.module:function`, found on Python's path or in the current folder; the function takes no arguments
            and returns a [`Teacher`] or such a tuple.
        config ([`FocusViTConfig`]): The student's.
        options: See [`Distillation`].

    Raises:
        ValueError: when there is no such function, when it returns something else, and as [`Distillation`].
    """
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"expected --teacher as package.module:function, got {path!r}")
    try:
        # A script's own folder is on the path, but not the folder in which the command is given. That one is searched
        # last, so that no file in it can stand for a library.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"expected a function {path} that can be imported as --teacher, got: {error}") from error
    answer = function()
    if not isinstance(answer, tuple) or not 1 <= len(answer) <= 4 or not callable(answer[0]):
        raise ValueError(f"expected (module, image_mean, image_std, size) from {path}, got {answer!r:.80}")
    teacher = Teacher(*answer)
    return Distillation(teacher.module, config, teacher.image_mean, teacher.image_std, teacher.size, **options)


def load_distillation(
    name: str,
    config: FocusViTConfig,
    alpha: float = 0.5,
    temperature: float = 3.0,
    kind: str = "soft",
    dtype: torch.dtype = torch.float32,
    classes: Sequence[int] | None = None,
    token_weight: float = 0.0,
    **hub: Any,
) -> Distillation:
    """
    Loads a teacher with its image processor, from safetensors only.

    Args:
        name (`str`): An image classifier, a folder or a name on the Hub.
        config ([`FocusViTConfig`]): The student's.
        alpha, temperature, kind, classes, token_weight: See [`Distillation`].
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): What the teacher computes in.
        hub: Options of `from_pretrained`, such as `token`.

    Raises:
        ValueError: when there is no such classifier, when its weights are not exactly those of its class, when its
            processor does not scale images to 0..1 before it normalises them, and as [`Distillation`].
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
    size = _size(processor, teacher)
    options: dict[str, Any] = {"classes": classes, "token_weight": token_weight}
    return Distillation(teacher, config, mean, std, size, alpha, temperature, kind, **options)


def _checked_size(size: Any) -> tuple[int, int] | None:
    """Height and width, or None for the student's own; ValueError for what is no size."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"expected a teacher's size in pixels as a number or (height, width), got {size!r}")
    return pair


def _checked_classes(classes: Sequence[int], num_labels: int) -> list[int]:
    """The teacher's number of each of the student's classes; ValueError where they cannot be that."""
    if len(classes) != num_labels or len(set(classes)) != len(classes) or min(classes) < 0:
        raise ValueError(
            f"expected {num_labels} different numbers from 0 as --teacher_classes, one for each of the student's "
            f"classes, got {list(classes)}"
        )
    return list(classes)


def _check_tokens(teacher: Any, config: FocusViTConfig) -> None:
    """ValueError where teacher and student have no tokens that can be compared."""
    if not config.sparsification_layers:
        raise ValueError("expected a student with sparsification_layers with --distillation_token_weight, got another")
    own = getattr(getattr(teacher, "config", None), "hidden_size", None)
    if not isinstance(teacher, PreTrainedModel) or own != config.hidden_size:
        raise ValueError(
            "expected a ViT of Transformers with the student's hidden_size as the teacher with "
            f"--distillation_token_weight, {config.hidden_size}, got {type(teacher).__name__} with {own}"
        )


def _check_labels(teacher: Mapping[Any, str], student: Mapping[Any, str]) -> None:
    if teacher == student:
        return
    if len(teacher) != len(student):
        raise ValueError(
            f"expected a teacher of the student's {len(student)} classes, got one of {len(teacher)}"
            "; --teacher_classes chooses among a teacher's classes"
        )
    index = next(index for index in student if teacher.get(index) != student[index])
    raise ValueError(
        "expected a teacher with the student's id2label, got one whose class "
        f"{index} is {teacher.get(index)!r} instead of {student[index]!r}"
    )


def _normalisation(processor: BaseImageProcessor) -> tuple[Any, Any]:
    """Mean and standard deviation of the images in 0..1 that a processor makes."""
    options = processor.to_dict()
    if not options.get("do_rescale") or not math.isclose(options["rescale_factor"], 1 / 255):
        raise ValueError(
            "expected a teacher whose image processor rescales by 1 / 255, got "
            f"do_rescale={options.get('do_rescale')}, rescale_factor={options.get('rescale_factor')}"
        )
    return (options["image_mean"], options["image_std"]) if options.get("do_normalize") else (0.0, 1.0)


def _size(processor: BaseImageProcessor, teacher: PreTrainedModel) -> tuple[int, int] | None:
    """Height and width of the images that a teacher takes, as far as they are fixed."""
    size = fixed_size(processor)
    if size is not None:
        return size
    own = getattr(teacher.config, "image_size", None)
    return (own, own) if isinstance(own, int) else tuple(own) if own else None
