"""Pupils of the ImageNet teacher, with a stand-in for it: recipes, and runs that go on."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load_file

from experiments.teacher import bank, train
from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.utils.files import write_json
from teaching import MIXED, POOLED, RECIPE, examples


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
    assert [entry["recipe"]["stages"] for entry in log["rounds"]] == [[[112, 1]], [[112, 2]], [[112, 1]]]
    assert log["rounds"][-1]["command"] == (
        "python -m experiments.teacher.train runs/recipe.json --begin runs/killed --out runs/again "
        "--change 'stages=[[112,1]]' ema_decay=0.5"
    )


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
    # What was kept of a run is a beginning, too, and brings its log; that of another program says nothing of epochs.
    write_json(tmp_path / "shipped" / "training_log.json", {"arguments": {}})
    train.run({tmp_path / "other": recipe}, None, "test", 1, begin=tmp_path / "shipped")
    assert json.loads((tmp_path / "other" / "log.json").read_text())["earlier"] == []
    write_json(tmp_path / "shipped" / "training_log.json", {"history": log["history"], "rounds": log["rounds"]})
    train.run({tmp_path / "third": recipe}, None, "test", 1, begin=tmp_path / "shipped")
    third = json.loads((tmp_path / "third" / "log.json").read_text())
    assert third["earlier"] == log["history"] and len(third["rounds"]) == 2
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
    teaching = bank.Teaching(tmp_path / "bank", examples(None, "train", 224).images, 1)
    # Images 0, 5 and 10 were held out; of the other twelve, two batches of six were learned from.
    missing = teaching.bank.missing(torch.arange(15), torch.zeros(15, dtype=torch.long))
    assert missing.nonzero().flatten().tolist() == [0, 5, 10]
