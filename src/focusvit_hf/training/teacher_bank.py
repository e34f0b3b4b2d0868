"""A bank of a teacher's answers on disk: one for each of N augmented views of each training image."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..utils.files import read_json, write_json


HEADER_FILE = "header.json"
ANSWERS_FILE = "answers.float16"
DONE_FILE = "done.uint8"


class TeacherBank:
    """
    Answers of a teacher, kept in a folder so that no view of an image is shown to the teacher twice.

    View v of image i is what the augmentation makes of it with the seed (seed, v, i), see
    [`~data_collator.SeededCollator`]; it depends neither on the batch nor on the epoch. The bank therefore keeps
    answers only, no images: `num_views` × `num_images` × `width` numbers of float16, and a flag for each view that
    says whether its answer is there. It fills as training goes, and a run that was interrupted goes on with what it
    holds. The size of the files is fixed from the beginning.

    Args:
        folder (`Path`): Where the bank lies; it is made where it is missing.
        header (`dict`): What the answers depend on: teacher, augmentation, data and seed, as JSON knows them.
        num_images (`int`): Training images, at least 1.
        num_views (`int`): Views of each, at least 1.
        width (`int`): Numbers of an answer, such as the classes.

    Raises:
        ValueError: If a number is out of range, if the disk has no room for the bank, if the folder holds the bank of
            another header or other files, or if a file of the bank has another size than its header says.
    """

    def __init__(self, folder: str | Path, header: Mapping[str, Any], num_images: int, num_views: int, width: int):
        sizes = {"num_images": num_images, "num_views": num_views, "width": width}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"expected {name} of a teacher's bank to be at least 1, got {value}")
        self.folder = Path(folder)
        self.num_images, self.num_views, self.width = num_images, num_views, width
        self._open_or_make({**header, **sizes})
        shape = (num_views, num_images, width)
        self._answers = np.memmap(self.folder / ANSWERS_FILE, np.float16, "r+", shape=shape)
        self._done = np.memmap(self.folder / DONE_FILE, np.uint8, "r+", shape=shape[:2])

    def _open_or_make(self, header: dict[str, Any]) -> None:
        files = {
            ANSWERS_FILE: 2 * self.num_views * self.num_images * self.width,
            DONE_FILE: self.num_views * self.num_images,
        }
        path = self.folder / HEADER_FILE
        if path.is_file():
            found = read_json(path)
            different = sorted(name for name in found.keys() | header.keys() if found.get(name) != header.get(name))
            if different:
                told = ", ".join(f"{name}={header.get(name)!r} (got {found.get(name)!r})" for name in different)
                raise ValueError(f"expected the teacher's bank in {self.folder} to have {told}; choose another folder")
            for name, size in files.items():
                there = (self.folder / name).stat().st_size if (self.folder / name).is_file() else None
                if there != size:
                    raise ValueError(f"expected {size} bytes in {self.folder / name}, got {there}")
            return
        # The header is written last: a folder with nothing but these files is what an interrupted beginning left.
        if self.folder.exists() and not (
            self.folder.is_dir()
            and all(item.name in files or item.suffix == ".incomplete" for item in self.folder.iterdir())
        ):
            raise ValueError(f"expected a teacher's bank or an empty folder, got {self.folder}")
        self.folder.mkdir(parents=True, exist_ok=True)
        free, needed = shutil.disk_usage(self.folder).free, sum(files.values())
        if needed > free:
            raise ValueError(
                f"expected room for a teacher's bank of {needed} bytes in {self.folder}, got {free} bytes; "
                "fewer --teacher_views need less"
            )
        for name, size in files.items():
            with (self.folder / name).open("wb") as file:
                file.truncate(size)
        write_json(path, header)

    @property
    def share_done(self) -> float:
        """Share of the answers that are there, in 0..1."""
        return float(self._done.astype(bool).mean())

    def missing(self, indices: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """Which of the views have no answer yet: bool of shape `(batch_size,)`; see [`answers`] for the arguments."""
        self._check(indices, views)
        return torch.from_numpy(self._done[views.numpy(), indices.numpy()] == 0)

    def answers(
        self, indices: torch.Tensor, views: torch.Tensor, teacher: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """
        The answers for a batch of views; those that are not there yet are asked of the teacher and kept.

        Args:
            indices (`torch.LongTensor` of shape `(batch_size,)`): Numbers of the images in the data set, on the CPU.
            views (`torch.LongTensor` of shape `(batch_size,)`): Which view of each, in 0..num_views - 1.
            teacher (`Callable`):
                From the places in the batch, int64 of shape `(n,)`, to the teacher's answers `(n, width)`; called at
                most once.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, width)`, as float16 keeps them, asked for just now or before.

        Raises:
            ValueError: If an index or a view is out of range, or if the teacher's answers are not finite in float16 or
                of another shape.
        """
        absent = self.missing(indices, views).nonzero().flatten()
        if len(absent):
            told = teacher(absent).detach().cpu().to(torch.float16)
            if told.shape != (len(absent), self.width) or not told.isfinite().all():
                raise ValueError(
                    f"expected finite float16 answers of shape {(len(absent), self.width)} from the teacher, got "
                    f"{tuple(told.shape)}, finite: {bool(told.isfinite().all())}"
                )
            place = views[absent].numpy(), indices[absent].numpy()
            self._answers[place] = told.numpy()
            self._done[place] = 1
        return torch.from_numpy(self._answers[views.numpy(), indices.numpy()]).float()

    def flush(self) -> None:
        """Brings everything to the disk, the answers before the flags that vouch for them."""
        self._answers.flush()
        self._done.flush()

    def _check(self, indices: torch.Tensor, views: torch.Tensor) -> None:
        for name, values, limit in (("images", indices, self.num_images), ("views", views, self.num_views)):
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < limit:
                raise ValueError(f"expected numbers of {name} in 0..{limit - 1}, got {values.tolist()}")
