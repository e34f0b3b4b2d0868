"""New views of the teacher: what they show, how they are mixed, and what is learned of them."""

import json

import pytest
import torch
from torch import nn

from experiments.teacher import bank, efficientnet, mixed, train
from teaching import MIXED, RECIPE, examples


def test_a_view_is_the_same_at_every_size_and_in_every_batch():
    # Smooth, so that a smaller view is the larger one shrunk.
    ramp = torch.linspace(0, 255, 224)
    image = torch.stack([ramp.expand(224, 224), ramp.expand(224, 224).T, ramp.flip(0).expand(224, 224)]).byte()
    images = image.expand(3, -1, -1, -1)
    large, small = (bank.draw_views(images, [4, 5, 4], [0, 0, 1], size) for size in (224, 112))
    assert large.shape == (3, 3, 224, 224) and large.abs().max() <= 1
    torch.testing.assert_close(nn.functional.avg_pool2d(large, 2), small, atol=0.02, rtol=0)
    assert torch.equal(bank.draw_views(images[:1], [4], [1], 112)[0], small[2])
    assert not torch.equal(small[0], small[1]) and not torch.equal(small[0], small[2])


def test_new_views_are_drawn_and_mixed_and_the_teacher_is_asked_for_what_the_pupil_sees(stand_in):
    images = examples(None, "train", 224).images
    indices, labels = torch.tensor([3, 1, 2]), torch.tensor([3, 1, 2])
    torch.manual_seed(0)
    for share in (0.0, 1.0):
        teaching = mixed.MixedTeaching(images, train.Recipe(**MIXED | {"mix": share, "teacher_size": 224}))
        lessons = [teaching.lesson(indices, labels, 0, 224) for _ in range(4)]
        for pixels, logits, told, _ in lessons:
            assert pixels.shape == (3, 3, 224, 224) and pixels.abs().max() <= 1
            assert (told is labels) if share == 0 else (told is None)
            torch.testing.assert_close(logits, teaching.teacher(pixels), atol=0.05, rtol=0.05)
        assert not torch.equal(lessons[0][0], lessons[1][0])
    # It sees the same images at its own size.
    teaching = mixed.MixedTeaching(images, train.Recipe(**MIXED | {"mix": 0.0, "teacher_size": 112}))
    pixels, logits, *_ = teaching.lesson(indices, labels, 0, 112)
    assert pixels.shape == (3, 3, 112, 112)
    torch.testing.assert_close(logits, teaching.teacher(pixels), atol=0.05, rtol=0.05)


def test_the_recipe_says_what_of_an_image_new_views_show(stand_in):
    # A ramp from left to right shows where a view was cut out, and which way it was turned.
    ramp = torch.arange(224, dtype=torch.uint8).expand(8, 3, 224, 224)
    plain = {"mix": 0.0, "teacher_size": 224, "crop_scale": [1.0, 1.0], "jitter": [0.0, 0.0, 0.0]}
    torch.manual_seed(0)

    def views(**changes):
        pixels = mixed.MixedTeaching(ramp, train.Recipe(**MIXED | plain | changes)).lesson(
            torch.arange(8), torch.arange(8), 0, 224
        )[0]
        return (pixels + 1) * 127.5

    whole = views()
    # An aspect of 3 : 4 to 4 : 3 is drawn, too.
    assert (whole.amax((1, 2, 3)) - whole.amin((1, 2, 3)) > 160).all()
    cropped = views(crop_scale=[0.2, 0.3])
    assert (cropped.amax((1, 2, 3)) - cropped.amin((1, 2, 3)) < 150).all()
    assert not torch.equal(views(jitter=[0.5, 0.0, 0.0]).amax((1, 2, 3)), whole.amax((1, 2, 3)))
    turned = views(rotation=30)
    rise, run = (turned[:, 0].diff(dim=axis)[:, 80:140, 80:140].mean((1, 2)) for axis in (1, 2))
    angles = torch.atan(rise / run).rad2deg()
    assert angles.abs().max() <= 31 and angles.abs().max() > 10 and angles.unique().numel() == 8
    # The middle stays where it is.
    torch.testing.assert_close(turned[:, :, 111:113, 111:113].mean((1, 2, 3)), torch.full((8,), 111.5), atol=1, rtol=0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"views": 1, "mix": 0.0, "teacher_size": 224, "rotation": 10},
            "expected views = 0 with rotation, got a bank",
        ),
        ({"crop_scale": [0.5, 0.2]}, "expected crop_scale as two shares"),
        ({"crop_scale": [0.5]}, "expected crop_scale as two shares"),
        ({"jitter": [0.1, 0.2]}, "expected jitter for brightness, contrast and saturation"),
        ({"rotation": -5}, "expected rotation of 0 to 180 degrees"),
    ],
)
def test_views_that_cannot_be_drawn_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        train.Recipe(**MIXED | changes)


class Block(nn.Module):
    """As EfficientNet-lite's blocks name their modules."""

    def __init__(self):
        super().__init__()
        self._depthwise_conv, self._bn1 = nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)
        self._project_conv, self._bn2 = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, images):
        return self._bn2(self._project_conv(self._bn1(self._depthwise_conv(images)).relu()))


def test_folded_batch_norms_leave_the_answers_as_they_are():
    network = nn.Sequential(Block(), nn.ReLU(), nn.Conv2d(6, 4, 1), Block()).eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.5, 2)
    images = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        before = network(images)
        efficientnet.fold_batch_norms(network)
        torch.testing.assert_close(network(images), before, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_labels_have_no_part_in_mixed_images():
    recipe = train.Recipe(**MIXED)
    outputs = (torch.randn(4, 10), torch.randn(4, 1000), None)
    logits = torch.randn(4, 1000)
    labelled = train.losses(recipe, outputs, torch.arange(4), logits, None)
    unlabelled = train.losses(recipe, outputs, None, logits, None)
    assert unlabelled["label"] == 0 < labelled["label"]
    assert all(unlabelled[name] == labelled[name] for name in ("logits", "thousand"))


def test_images_without_labels_are_learned_from_the_teacher_alone(stand_in, tmp_path, monkeypatch):
    asked, seen = [], []

    def more(folder, split, size):
        asked.append((folder, split, size))
        return torch.full((5, 3, size, size), 255, dtype=torch.uint8)

    losses = train.losses

    def noted(recipe, outputs, labels, logits, places):
        seen.append(labels)
        return losses(recipe, outputs, labels, logits, places)

    monkeypatch.setattr(train, "load_images", more)
    monkeypatch.setattr(train, "losses", noted)
    recipe = train.Recipe(**{**MIXED, "mix": 0.0, "stages": [[112, 4]], "unlabelled": ["other/train", "more/val"]})
    train.run({tmp_path / "run": recipe}, None, "validation", every=1, data=tmp_path / "own")
    assert asked == [(tmp_path / "other", "train", 224), (tmp_path / "more", "val", 224)]
    # Twelve of the 15 labelled images are learned from, in two batches of six an epoch, the ten others among them.
    assert len(seen) == 8 and 0 < int((torch.cat(seen) == bank.UNLABELLED).sum()) < 48
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log["settings"]["recipe"]["unlabelled"] == recipe.unlabelled and 0 <= log["history"][-1]["held_out"] <= 1

    own, labels = torch.randn(4, 10, requires_grad=True), torch.tensor([3, bank.UNLABELLED, 7, bank.UNLABELLED])
    train.label_loss(own, labels).backward()
    assert own.grad[[0, 2]].abs().sum() > 0 == own.grad[[1, 3]].abs().sum()
    torch.testing.assert_close(
        train.label_loss(own, labels), nn.functional.cross_entropy(own[[0, 2]], labels[[0, 2]]) / 2
    )
    with pytest.raises(ValueError, match="expected views = 0 with unlabelled, got a bank of 1 views"):
        train.Recipe(**{**RECIPE, "unlabelled": ["other/train"]})
    with pytest.raises(ValueError, match=r"as folder/split, such as ecssd/train, got \['other'\]"):
        train.Recipe(**{**MIXED, "unlabelled": ["other"]})
