"""Pupils of the ImageNet teacher, with a stand-in for it: views, what is learned of them, and runs that go on."""

import json
from dataclasses import asdict

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import ViTForImageClassification

from cards import PATTERN
from experiments.micro.data import Pictures
from experiments.micro.results import unpacked
from experiments.teacher import bank, efficientnet, keep, mixed, table, train
from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.hub.model_card import check_card
from focusvit_hf.utils.files import write_json


CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "embedding_type": "patch",
    "patch_pooling": "none",
    "position_embedding_type": "learned",
    "layer_types": ["full_attention"] * 2,
}
RECIPE = {"config": CONFIG, "stages": [[112, 1], [224, 1]], "batch_size": 6, "warmup_epochs": 0.5, "views": 1}
RECIPE |= {"guided_layer": 1}


class StandIn(nn.Module):
    """Brightness of 7 × 7 places in 96 channels, and 1,000 logits of their means."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("channels", torch.randn(3, 96, generator=generator))
        self.register_buffer("weight", torch.randn(96, 1000, generator=generator) / 96)

    def feature_map(self, images):
        return torch.einsum("bchw,cd->bdhw", nn.functional.adaptive_avg_pool2d(images, 7), self.channels)

    def classify(self, maps):
        return maps.mean(dim=(2, 3)) @ self.weight

    def forward(self, images):
        return self.classify(self.feature_map(images))


def pictures(folder, split, size):
    generator = torch.Generator().manual_seed(len(split))
    count = 15 if split == "train" else 7
    return Pictures(
        torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator),
        torch.arange(count) % 10,
    )


@pytest.fixture
def stand_in(monkeypatch):
    for module in (bank, mixed):
        monkeypatch.setattr(module, "EfficientNetLite0", StandIn)
    for module in (bank, train):
        monkeypatch.setattr(module, "load_pictures", pictures)


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


def test_the_rate_rises_and_falls_and_the_size_grows():
    recipe = train.Recipe({}, [[112, 8], [224, 2]], learning_rate=1.0, warmup_epochs=2.0)
    assert [train.rate(recipe, epoch) for epoch in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [recipe.size(epoch) for epoch in (0, 7, 8, 9)] == [112, 112, 224, 224]
    assert recipe.epochs == 10


def test_the_recipes_are_read_and_misspelt_ones_refused(tmp_path):
    folder = bank.Path(train.__file__).parent
    paths = sorted(folder.glob("*.json"))
    for name, count in (("dense_controls", 3), ("frontier", 6)):
        recipes = [train.Recipe.read(path) for path in (folder / name).glob("*.json")]
        plans = [{**asdict(recipe), "config": None, "peer": None} for recipe in recipes]
        assert len(plans) == count and all(plan == plans[0] for plan in plans)
    assert {path.stem: train.Recipe.read(path).views for path in paths} == {
        "focusvit-tiny": 16,
        "focusvit-tiny-deep": 0,
        "focusvit-tiny-mixed": 0,
        "focusvit-tiny-varied": 0,
        "vit-tiny": 16,
    }
    (tmp_path / "recipe.json").write_text(json.dumps({**RECIPE, "epochs": 3}))
    with pytest.raises(ValueError, match=r"expected fields of a recipe in .*, got \['epochs'\]"):
        train.Recipe.read(tmp_path / "recipe.json")


def test_tokens_are_guided_at_the_places_of_the_teachers_map():
    torch.manual_seed(0)
    pupil = train.Pupil(train.Recipe(**RECIPE)).eval()
    pixels = torch.randn(2, 3, 224, 224)
    logits, thousand, guided = pupil(pixels)
    hidden = pupil.model(pixels, output_hidden_states=True).hidden_states[1][:, 1:]
    # Place (2, 3) of 7 × 7 stands over the rows 4 and 5 and the columns 6 and 7 of 14 × 14 tokens.
    block = hidden.unflatten(1, (14, 14))[:, 4:6, 6:8].mean(dim=(1, 2))
    torch.testing.assert_close(guided[:, 2 * 7 + 3], pupil.guided(block))
    torch.testing.assert_close(logits, pupil.model(pixels).logits)
    assert thousand.shape == (2, 1000) and guided.shape == (2, 49, 64)
    assert pupil(pixels[..., :112, :112])[2].shape == (2, 49, 64)
    unguided = train.Pupil(train.Recipe(**RECIPE, guidance=0))
    assert unguided(pixels)[2] is None


def test_an_interrupted_run_ends_as_one_that_was_not(stand_in, tmp_path, monkeypatch):
    recipe = train.Recipe(**RECIPE)
    (figures,) = train.run({tmp_path / "whole": recipe}, tmp_path / "bank", "test", every=1).values()
    assert {"test_accuracy", "teacher_accuracy", "agreement"} == figures.keys()

    whole_epoch = train.train_epoch

    def killed(states, *rest):
        if states[0].epoch == 1:
            raise KeyboardInterrupt
        whole_epoch(states, *rest)

    monkeypatch.setattr(train, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train.run({tmp_path / "killed": recipe}, tmp_path / "bank", "test", every=1)
    monkeypatch.setattr(train, "train_epoch", whole_epoch)
    # The bank is full: the teacher is asked for the test images alone.
    log = json.loads((tmp_path / "killed" / "log.json").read_text())
    # A run of a version that knew of no peers goes on.
    assert log["settings"]["recipe"].pop("peer") == ""
    write_json(tmp_path / "killed" / "log.json", log)
    killed_run = train.run({tmp_path / "killed": recipe}, tmp_path / "bank", "test", every=1)
    assert killed_run == {tmp_path / "killed": figures}
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    model = FocusViTForImageClassification.from_pretrained(tmp_path / "killed")
    assert model.config.id2label[9] == "parachute"
    log = json.loads((tmp_path / "killed" / "log.json").read_text())
    assert [entry["size"] for entry in log["history"]] == [112, 224]
    with pytest.raises(ValueError, match="expected the recipe of"):
        train.run({tmp_path / "killed": train.Recipe(**RECIPE, seed=1)}, tmp_path / "bank", "test", every=1)


def test_the_dense_pupil_is_kept_as_a_plain_vit(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "load_pictures", pictures)
    recipe = train.Recipe(**{**RECIPE, "stages": [[112, 1]]})
    train.run({tmp_path / "run": recipe}, tmp_path / "bank", "test", every=1)
    pupil = FocusViTForImageClassification.from_pretrained(tmp_path / "run").eval()
    accuracy = keep.keep(tmp_path / "run", tmp_path / "vit-tiny")
    kept = ViTForImageClassification.from_pretrained(tmp_path / "vit-tiny").eval()
    assert kept.dtype == torch.float32 and kept.config.id2label[0] == "tench"
    assert all(
        tensor.dtype == torch.float16 for tensor in load_file(tmp_path / "vit-tiny" / "model.safetensors").values()
    )
    pixels = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(kept(pixels).logits, pupil(pixels).logits, atol=5e-3, rtol=5e-3)
    card = (tmp_path / "vit-tiny" / "README.md").read_text()
    assert f"accuracy: {accuracy:.4f}" in card and "Taught, not trained from scratch" in card
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        keep.keep(tmp_path / "run", tmp_path / "vit-tiny")


def test_a_pupil_of_superpixels_is_kept_with_a_card_that_names_its_teacher(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(keep, "load_pictures", pictures)
    changes = {"embedding_type": "conv", "patch_pooling": "superpixel", "position_embedding_type": "dynamic"}
    config = {**CONFIG, **changes, "num_superpixels": 9}
    recipe = train.Recipe(**{**RECIPE, "config": config, "stages": [[224, 1]], "guidance": 0})
    train.run({tmp_path / "run": recipe}, tmp_path / "bank", "test", every=1)
    accuracy = keep.keep(tmp_path / "run", tmp_path / "focusvit-mine")
    kept = load_file(tmp_path / "focusvit-mine" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in kept.values()} == {"torch.float16", "torch.int64"}
    text = (tmp_path / "focusvit-mine" / "README.md").read_text()
    assert PATTERN.match(text)["location"] == "model_cards/focusvit-mine"
    check_card(ModelCard(text))
    assert f"accuracy: {accuracy:.4f}" in text and "Taught, not trained from scratch" in text
    log = json.loads((tmp_path / "focusvit-mine" / "training_log.json").read_text())
    assert log["figures"]["test_accuracy"] == accuracy <= log["figures"]["test_top_5_accuracy"]
    processor = FocusViTImageProcessor.from_pretrained(tmp_path / "focusvit-mine")
    assert processor.num_superpixels == 9
    model = FocusViTForImageClassification.from_pretrained(tmp_path / "focusvit-mine")
    log["settings"]["recipe"] |= {"views": 0, "mix": 0.7}
    told = "views drawn anew at every step, 70% of the batches mixed by mixup or cutmix, after 1 epochs on fixed views"
    mixed = "focusvit-tiny-mixed.json --begin runs"
    change = "--change stages=[[224,1]] ema_decay=0.998 --out runs"
    commands = [
        f"{mixed}/focusvit-tiny --out runs/mixed",
        f"{mixed}/mixed {change}/mixed-2",
        f"{mixed}/mixed-2 {change}/mixed-3",
    ]
    earlier = log["history"]
    for rounds in (1, 2, 3):
        card = " ".join(keep.pooled_card(model, "focusvit-mine", {**log, "earlier": earlier}, 7).split())
        assert told in card
        assert [command in card for command in commands] == [rounds > number for number in range(3)]
        assert (f"and {rounds - 1} more on new ones" in card) == (rounds > 1)
        assert ("before, after 1 and 2 epochs on new views" in card) == (rounds == 3)
        earlier = [*earlier, {**earlier[0], "views": 0}]
    log["settings"]["recipe"] |= {"config": {**config, "stem_blocks": 1}, "num_superpixels": [4, 9]}
    card = " ".join(keep.pooled_card(model, "focusvit-mine", {**log, "earlier": earlier}, 7).split())
    assert commands[2] in card and "focusvit-tiny-deep.json --begin runs/mixed-3 --out runs/deep" in card
    assert "was drawn from 4, 9 for each batch of the training" in card


MIXED = {**RECIPE, "stages": [[112, 2]], "views": 0, "mix": 0.5, "teacher_size": 96, "guidance": 0}


def test_new_views_are_drawn_and_mixed_and_the_teacher_is_asked_for_what_the_pupil_sees(stand_in):
    images = pictures(None, "train", 224).images
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


def test_a_run_on_mixed_images_begins_from_another_and_ends_as_if_it_was_not_interrupted(
    stand_in, tmp_path, monkeypatch
):
    taught = {**RECIPE, "stages": [[112, 1]], "guidance": 0}
    train.run({tmp_path / "bank-run": train.Recipe(**taught)}, tmp_path / "bank", "test", every=1)
    recipe = train.Recipe(**MIXED)
    (figures,) = train.run({tmp_path / "whole": recipe}, None, "test", 1, begin=tmp_path / "bank-run").values()

    whole_epoch = train.train_epoch

    def killed(states, *rest):
        (state,) = states
        if state.epoch == 0:
            begun = load_file(tmp_path / "bank-run" / "model.safetensors")
            own = state.pupil.model.state_dict()
            assert all(torch.equal(own[name], begun[name]) for name in begun)
        if state.epoch == 1:
            raise KeyboardInterrupt
        whole_epoch(states, *rest)

    monkeypatch.setattr(train, "train_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train.run({tmp_path / "killed": recipe}, None, "test", 1, begin=tmp_path / "bank-run")
    monkeypatch.setattr(train, "train_epoch", whole_epoch)
    assert train.run({tmp_path / "killed": recipe}, None, "test", 1) == {tmp_path / "killed": figures}
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    log = json.loads((tmp_path / "killed" / "log.json").read_text())
    assert [[entry["views"] for entry in log[part]] for part in ("earlier", "history")] == [[1], [0, 0]]
    # A further round knows of all before it, and fields are changed in JSON.
    write_json(tmp_path / "recipe.json", MIXED)
    command = [str(tmp_path / "recipe.json"), "--begin", str(tmp_path / "killed"), "--out", str(tmp_path / "again")]
    train.main([*command, "--change", "stages=[[112,1]]", "ema_decay=0.5"])
    log = json.loads((tmp_path / "again" / "log.json").read_text())
    assert [[entry["views"] for entry in log[part]] for part in ("earlier", "history")] == [[1, 0, 0], [0]]
    assert (log["settings"]["recipe"]["stages"], log["settings"]["recipe"]["ema_decay"]) == ([[112, 1]], 0.5)


POOLED = {**CONFIG, "embedding_type": "conv", "patch_pooling": "superpixel", "position_embedding_type": "dynamic"}
POOLED |= {"num_superpixels": 9}


def test_a_run_begins_from_a_checkpoint_to_whose_stem_it_may_add_blocks(stand_in, tmp_path):
    recipe = train.Recipe(**{**MIXED, "config": {**POOLED, "stem_blocks": 1}, "stages": [[112, 1]]})
    shipped = train.Pupil(train.Recipe(**{**MIXED, "config": POOLED})).model.eval()
    shipped.save_pretrained(tmp_path / "shipped")
    pupil = train.Pupil(recipe)
    train.begin_from(tmp_path / "shipped", pupil)
    learned = shipped.state_dict()
    assert all(torch.equal(tensor, learned.get(name, tensor)) for name, tensor in pupil.model.state_dict().items())
    train.run({tmp_path / "run": recipe}, None, "test", 1, begin=tmp_path / "shipped")
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert log["earlier"] == [] and len(log["history"]) == 1
    # A run with the block is no beginning for a model without it, and neither is another model.
    for config in (POOLED, {**POOLED, "stem_blocks": 1, "intermediate_size": 48}):
        other = train.Recipe(**{**MIXED, "config": config})
        with pytest.raises(ValueError, match=r"expected weights of the recipe's model in .*run, got others: \["):
            train.begin_from(tmp_path / "run", train.Pupil(other))


def test_the_number_of_superpixels_is_drawn_for_each_batch(stand_in, tmp_path, monkeypatch):
    seen = []
    forward = train.Pupil.forward

    def counted(pupil, pixels):
        seen.append(pupil.model.config.num_superpixels)
        return forward(pupil, pixels)

    monkeypatch.setattr(train.Pupil, "forward", counted)
    recipe = train.Recipe(**{**MIXED, "config": POOLED, "stages": [[112, 6]], "num_superpixels": [4, 16]})
    train.run({tmp_path / "run": recipe}, None, "test", 1)
    assert len(seen) == 12 and set(seen) == {4, 16}
    assert FocusViTForImageClassification.from_pretrained(tmp_path / "run").config.num_superpixels == 9


def test_a_bank_is_named_with_views_and_only_then(stand_in, tmp_path):
    with pytest.raises(ValueError, match="expected --bank with views > 0 and only then, got None and 1 views"):
        train.run({tmp_path / "run": train.Recipe(**RECIPE)}, None, "test", every=1)
    with pytest.raises(ValueError, match=r"expected --bank with views > 0 and only then, got .* and 0 views"):
        train.run({tmp_path / "run": train.Recipe(**MIXED)}, tmp_path / "bank", "test", every=1)
    with pytest.raises(ValueError, match="expected views = 0 with mix, got a bank of 1 views"):
        train.Recipe(**{**RECIPE, "mix": 0.5})
    with pytest.raises(ValueError, match="expected guidance = 0 with views = 0"):
        train.Recipe(**{**MIXED, "guidance": 2.0})
    assert not (tmp_path / "run").exists()


def test_choices_are_made_on_images_that_are_held_out(stand_in, tmp_path):
    recipe = train.Recipe(**{**RECIPE, "stages": [[112, 1]]})
    assert train.run({tmp_path / "run": recipe}, tmp_path / "bank", "validation", every=1) == {tmp_path / "run": {}}
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert 0 <= log["history"][0]["held_out"] <= 1
    teaching = bank.Teaching(tmp_path / "bank", pictures(None, "train", 224).images, 1)
    # Images 0, 5 and 10 were held out; of the other twelve, two batches of six were learned from.
    missing = teaching.bank.missing(torch.arange(15), torch.zeros(15, dtype=torch.long))
    assert missing.nonzero().flatten().tolist() == [0, 5, 10]


PEER = {**MIXED, "config": {}, "peer": "MobileNetV2"}


def test_pupils_side_by_side_see_the_same_views_and_one_that_is_behind_catches_up(stand_in, tmp_path, monkeypatch):
    seen = {}
    forward = {kind: kind.forward for kind in (train.Pupil, train.Peer)}
    for kind in forward:

        def noted(pupil, pixels, kind=kind):
            seen.setdefault(kind, []).append(pixels)
            return forward[kind](pupil, pixels)

        monkeypatch.setattr(kind, "forward", noted)
    for name, recipe in (("ours", MIXED), ("theirs", PEER)):
        write_json(tmp_path / f"{name}.json", recipe)
    command = [str(tmp_path / "ours.json"), str(tmp_path / "theirs.json"), "--out", str(tmp_path / "runs")]
    save = train.State.save

    def interrupted(state, path):
        if state.out.name == "theirs":
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(train.State, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(command)
    monkeypatch.setattr(train.State, "save", save)
    (ours, theirs) = seen.values()
    assert len(ours) == 2 and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
    # The first epoch of ours alone was saved: theirs makes up for it before both go on.
    train.main(command)
    assert [len(views) for views in seen.values()] == [4, 6]
    for name in ("ours", "theirs"):
        log = json.loads((tmp_path / "runs" / name / "log.json").read_text())
        assert [entry["epoch"] for entry in log["history"]] == [1, 2]
        right = unpacked(log["correct"], 7)
        assert log["figures"]["test_accuracy"] == pytest.approx(right.mean())

    monkeypatch.setattr(table, "load_pictures", pictures)
    threads = torch.get_num_threads()
    known = [{"name": "Theirs", "accuracy": {"mean": 0.25}}, {"name": "another", "accuracy": {"mean": 0.5}}]
    write_json(tmp_path / "frontier.json", {"rows": known})
    extra = ["--scratch", str(tmp_path / "frontier.json"), "--plot", str(tmp_path / "taught.png")]
    options = [
        *extra,
        "--name",
        "taught",
        "--repeats",
        "1",
        "--tables",
        str(tmp_path),
        "--results",
        str(tmp_path / "results"),
    ]
    table.main([str(tmp_path / "runs"), "--subject", "theirs", *options])
    torch.set_num_threads(threads)
    first, second = json.loads((tmp_path / "taught.json").read_text())["rows"]
    assert (first["pupil"], second["pupil"]) == ("theirs", "ours") and "difference" not in first
    log = json.loads((tmp_path / "results" / "taught" / "ours.json").read_text())
    assert second["accuracy"]["mean"] == pytest.approx(log["figures"]["test_accuracy"])
    apart = first["accuracy"]["mean"] - second["accuracy"]["mean"]
    assert second["difference"]["mean"] == pytest.approx(apart)
    model = FocusViTForImageClassification.from_pretrained(tmp_path / "runs" / "ours")
    assert second["parameters"] == model.num_parameters() and second["batch_32"]["median_ms"] > 0
    lines = (tmp_path / "taught.md").read_text().splitlines()
    assert len(lines) == 4 and lines[2].startswith("| theirs | ") and "(1.00 times)" in lines[2]
    assert first["scratch"] == 0.25 and "scratch" not in second and "| 25.0 |" in lines[2] and "|  |" in lines[3]
    with Image.open(tmp_path / "taught.png") as drawn:
        assert drawn.size == (1350, 630)
    with pytest.raises(ValueError, match=r"Expected --subject to be one of \['ours', 'theirs'\], got 'others'"):
        table.main([str(tmp_path / "runs"), "--subject", "others", *options])
    with pytest.raises(ValueError, match=r"Expected runs in .*results that ended with the test images, got none"):
        table.main([str(tmp_path / "results"), "--subject", "ours", *options])


def test_pupils_side_by_side_differ_in_themselves_alone(stand_in, tmp_path):
    longer = train.Recipe(**{**PEER, "stages": [[112, 3]]})
    with pytest.raises(ValueError, match=r"differ in config and peer alone, got \['config', 'stages', 'peer'\] in"):
        train.run({tmp_path / "ours": train.Recipe(**MIXED), tmp_path / "theirs": longer}, None, "test", 1)
    with pytest.raises(ValueError, match="expected no config, guidance = 0 and no num_superpixels for"):
        train.Recipe(**{**PEER, "num_superpixels": [4]})
    with pytest.raises(ValueError, match="expected no --begin for MobileNetV2"):
        train.run({tmp_path / "theirs": train.Recipe(**PEER)}, None, "test", 1, begin=tmp_path)
    write_json(tmp_path / "ours.json", MIXED)
    for command in (["--begin", "runs"], []):
        with pytest.raises(SystemExit):
            train.main([*[str(tmp_path / "ours.json")] * 2, "--out", str(tmp_path / "runs"), *command])
    assert not (tmp_path / "runs").exists()


def test_the_normalisation_of_a_peer_follows_more_than_its_last_batch():
    peer = train.Peer(train.Recipe(**PEER))
    moments = {norm.momentum for norm in peer.modules() if isinstance(norm, nn.BatchNorm2d)}
    assert moments == {0.1}
    logits, thousand, none = peer.eval()(torch.randn(2, 3, 112, 112))
    assert logits.shape == (2, 10) and thousand.shape == (2, 1000) and none is None
