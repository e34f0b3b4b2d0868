"""A teacher's answers kept on disk: each view asked for once, whatever interrupts, and never another bank's."""

import json

import numpy as np
import pytest
import torch

import run_classification
from blobs import flags, losses
from focusvit_hf import FocusViTConfig, FocusViTImageProcessor
from focusvit_hf.training.augmentation import AugmentationConfig
from focusvit_hf.training.data_collator import FocusViTDataCollator, SeededCollator, view_of
from focusvit_hf.training.distillation import Distillation, distillation_loss
from focusvit_hf.training.teacher_bank import TeacherBank


HEADER = {"teacher": "somebody", "seed": 1}


def make_bank(folder, header=HEADER, num_images=6, num_views=2, width=3):
    return TeacherBank(folder, header, num_images, num_views, width)


class Asked:
    """A teacher that remembers what it was asked: image i in view v gets 100 v + 10 i + class."""

    def __init__(self, indices, views):
        self.indices, self.views, self.calls = torch.tensor(indices), torch.tensor(views), []

    def __call__(self, places):
        self.calls.append(places.tolist())
        base = 100 * self.views[places] + 10 * self.indices[places]
        return base[:, None] + torch.arange(3.0)


def ask(bank, indices, views):
    teacher = Asked(indices, views)
    return bank.answers(torch.tensor(indices), torch.tensor(views), teacher), teacher.calls


# The bank


def test_only_what_is_missing_is_asked_for_and_it_outlives_the_process(tmp_path):
    first, calls = ask(make_bank(tmp_path / "bank"), [4, 1], [0, 1])
    assert calls == [[0, 1]]
    assert first.tolist() == [[40, 41, 42], [110, 111, 112]]
    bank = make_bank(tmp_path / "bank")
    again, calls = ask(bank, [1, 4, 4], [1, 1, 0])
    assert calls == [[1]]
    assert again.tolist() == [[110, 111, 112], [140, 141, 142], [40, 41, 42]]
    assert bank.share_done == pytest.approx(3 / 12)
    assert ask(bank, [1, 4], [1, 0])[1] == []


def test_the_size_on_disk_is_fixed_from_the_beginning(tmp_path):
    make_bank(tmp_path / "bank")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "bank").iterdir()}
    assert sizes["answers.float16"] == 2 * 6 * 2 * 3 and sizes["done.uint8"] == 6 * 2 and len(sizes) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"header": {**HEADER, "teacher": "another"}}, "teacher='another' .got 'somebody'"),
        ({"header": {**HEADER, "more": 1}}, "more=1 .got None"),
        ({"num_images": 7}, "num_images=7"),
        ({"num_views": 3}, "num_views=3"),
        ({"width": 4}, "width=4"),
    ],
)
def test_the_bank_of_another_header_is_refused(tmp_path, change, named):
    make_bank(tmp_path / "bank")
    with pytest.raises(ValueError, match=named):
        make_bank(tmp_path / "bank", **change)


def test_what_is_no_bank_is_refused_and_left_alone(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a teacher's bank or an empty folder"):
        make_bank(other)
    with pytest.raises(ValueError, match="expected a teacher's bank or an empty folder"):
        make_bank(other / "thesis.txt")
    assert (other / "thesis.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="expected num_views of a teacher's bank to be at least 1, got 0"):
        make_bank(tmp_path / "none", num_views=0)


def test_a_bank_that_was_cut_short_is_refused_and_a_beginning_is_finished(tmp_path):
    folder = tmp_path / "bank"
    make_bank(folder)
    answers = folder / "answers.float16"
    answers.write_bytes(answers.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"expected 72 bytes in .*answers\.float16, got 71"):
        make_bank(folder)
    # Killed before the header was written: nothing in it counts.
    (folder / "header.json").unlink()
    assert make_bank(folder).share_done == 0


def test_a_bank_the_disk_has_no_room_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected room for a teacher's bank"):
        make_bank(tmp_path / "bank", num_images=2**40, width=2**20)


@pytest.mark.parametrize(("indices", "views"), [([6], [0]), ([-1], [0]), ([0], [2])])
def test_numbers_out_of_range_are_refused(tmp_path, indices, views):
    with pytest.raises(ValueError, match=r"expected numbers of (images|views) in 0"):
        ask(make_bank(tmp_path / "bank"), indices, views)


@pytest.mark.parametrize("answer", [torch.full((1, 3), float("nan")), torch.full((1, 3), 1e6), torch.zeros(1, 4)])
def test_answers_that_cannot_be_kept_are_refused(tmp_path, answer):
    bank = make_bank(tmp_path / "bank")
    with pytest.raises(ValueError, match="expected finite float16 answers of shape"):
        bank.answers(torch.tensor([0]), torch.tensor([0]), lambda places: answer)
    assert bank.share_done == 0


# Views that come again


def make_collator(num_views, epoch=0):
    processor = FocusViTImageProcessor(size={"height": 16, "width": 16}, num_superpixels=4)
    collator = FocusViTDataCollator(processor, AugmentationConfig(brightness=0.5), num_labels=3)
    seeded = SeededCollator(collator, seed=3, num_views=num_views)
    seeded.epoch.fill_(epoch)
    return seeded


def make_examples(*indices):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 20, 20, 3), dtype=np.uint8)
    return [{"image": images[index], "label": index % 3, "index": index} for index in indices]


def test_a_view_hangs_on_the_image_and_its_number_alone():
    batch = make_collator(2, epoch=1)(make_examples(5, 2, 7))
    alone = make_collator(2, epoch=3)(make_examples(2))
    assert batch["image_indices"].tolist() == [5, 2, 7] and batch["views"].tolist() == [1, 1, 1]
    for name in ("pixel_values", "superpixel_ids", "labels"):
        assert torch.equal(batch[name][1], alone[name][0])
    other = make_collator(2, epoch=2)(make_examples(2))
    assert not torch.equal(other["pixel_values"], alone["pixel_values"])
    assert view_of(batch).keys() == {"image_indices", "views"}
    assert batch.keys() == {"pixel_values", "superpixel_ids", "labels"}


def test_without_views_nothing_is_added():
    assert make_collator(None)(make_examples(1, 2)).keys() == {"pixel_values", "superpixel_ids", "labels"}
    with pytest.raises(ValueError, match="expected at least one view of each image, got 0"):
        make_collator(0)


def test_a_step_with_a_bank_is_a_step_without(tmp_path):
    config = FocusViTConfig(image_size=16, patch_size=8, num_superpixels=4, num_labels=3)
    calls = []

    def teacher(images):
        calls.append(len(images))
        return images.flatten(1)[:, :3] * torch.tensor([1.0, 2.0, 3.0])

    bank = make_bank(tmp_path / "bank")
    told = Distillation(teacher, config, 0.5, 0.5, bank=bank, alpha=0.6, temperature=2.0)
    pixels, logits, loss = torch.randn(3, 3, 16, 16), torch.randn(3, 3), torch.tensor(1.5)
    view = {"image_indices": torch.tensor([3, 0, 5]), "views": torch.tensor([1, 0, 1])}
    expected = 0.4 * loss + 0.6 * distillation_loss(logits, teacher(pixels), 2.0)
    for _ in range(2):
        torch.testing.assert_close(told.mixed(loss, logits, pixels, **view), expected, atol=1e-3, rtol=1e-3)
    assert calls == [3, 3]
    with pytest.raises(ValueError, match="expected batches that say which view of which image they hold"):
        told.mixed(loss, logits, pixels)


# The scripts


def test_a_run_with_a_bank_resumes_it_and_refuses_that_of_another_seed(blob_dir, tmp_path):
    options = {
        "per_device_train_batch_size": 64,
        "do_eval": None,
        "teacher": "toy_teacher:colours",
        "teacher_bank": tmp_path / "bank",
        "teacher_views": 1,
        "augmentation": json.dumps({"crop": "pad"}),
    }

    def train(name, **changes):
        command = flags(blob_dir, tmp_path / name, **{**options, **changes})
        run_classification.main([*command, "--teacher_classes", "3", "1", "0"])

    train("first")
    header = json.loads((tmp_path / "bank" / "header.json").read_text())
    assert header["teacher"] == "toy_teacher:colours" and header["num_views"] == 1 and header["width"] == 3
    report = json.loads((tmp_path / "first" / "training_log.json").read_text())["teacher"]
    assert {"agreement", "student_accuracy", "teacher_images_per_second"} <= report.keys()
    # A full bank needs no teacher, and training on what it holds is the same training.
    train("second", final_evaluation=False)
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    with pytest.raises(ValueError, match="to have seed=7"):
        train("third", seed=7)
    with pytest.raises(ValueError, match="expected no mixup and no cutmix with --teacher_bank"):
        train("fourth", augmentation=json.dumps({"mixup_alpha": 0.2}))
