"""Pushing, against a stand-in for the Hub: what goes there, what breaks on the way, and where the token is."""

import json
import logging
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from focusvit_hf import (
    FocusViTBackbone,
    FocusViTForImageClassification,
    FocusViTForSemanticSegmentation,
    FocusViTImageProcessor,
    FocusViTModel,
)
from focusvit_hf.cli.__main__ import main
from focusvit_hf.hub.folder import code_files, save_for_hub
from focusvit_hf.hub.push import push_to_hub
from hub_stand_in import TOKEN, taken_for_the_hub
from pickles import PICKLE_NAMES, Planted
from saved import save_with_processor


FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_log.json"}
EVERY_FILE = FILES | {path.name for path in code_files()}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with taken_for_the_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.fixture
def saved(tiny_model, tmp_path):
    model = tiny_model()
    image_processor = FocusViTImageProcessor.from_model_config(model.config)
    return save_for_hub(model, image_processor, tmp_path / "saved", training_log={"figures": {"eval_accuracy": 0.5}})


@pytest.mark.parametrize(
    "kind",
    [FocusViTModel, FocusViTForImageClassification, FocusViTForSemanticSegmentation, FocusViTBackbone],
    ids=lambda kind: kind.__name__,
)
def test_models_of_every_class_are_pushed(tiny_config, tmp_path, kind):
    model = kind(tiny_config())
    plain = save_with_processor(model, tmp_path / "plain")
    whole = save_for_hub(model, FocusViTImageProcessor.from_pretrained(plain), tmp_path / "whole")
    for folder in (plain, whole):
        files = push_to_hub(folder, "me/mine", dry_run=True).files
        assert files.keys() == EVERY_FILE - {"training_log.json"}


@pytest.fixture
def checkpoint(tiny_model, tmp_path):
    """As a Trainer leaves it: the model, the processor, a pickle, a log."""
    folder = tmp_path / "run"
    model = tiny_model()
    model.save_pretrained(folder)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(folder)
    torch.save({"anything": 1}, folder / "training_args.bin")
    (folder / "training_log.json").write_text(json.dumps({"figures": {"test_accuracy": 0.25}}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_location(card: bytes) -> str:
    return re.sub(r'^name = ".*"$', "", card.decode(), flags=re.MULTILINE)


def test_what_is_uploaded_is_exactly_the_folder(hub, saved):
    (saved / "pictures").mkdir()
    (saved / "pictures" / "regions.png").write_bytes(b"no picture")
    before = contents(saved)
    pushed = push_to_hub(saved, "me/mine", private=True, message="First")
    assert hub.commits == [("me/mine", "main", sorted(before))]
    assert sorted(pushed.files) == sorted(before) and pushed.url == f"{hub.url}/me/mine"
    uploaded = hub.files["me/mine"]
    assert 'name = "me/mine"' in uploaded["README.md"].decode()
    assert without_location(uploaded.pop("README.md")) == without_location(before.pop("README.md"))
    assert uploaded == before
    assert hub.created[0]["visibility"] == "private"
    assert b'"summary": "First"' in hub.bodies[-1]


def test_of_a_checkpoint_only_what_belongs_on_the_hub_is_uploaded(hub, checkpoint):
    before = contents(checkpoint)
    push_to_hub(checkpoint, "me/mine")
    assert set(hub.files["me/mine"]) == EVERY_FILE
    assert contents(checkpoint) == before
    card = hub.files["me/mine"]["README.md"].decode()
    assert "| Accuracy | test |  | 0.2500 |" in card and 'name = "me/mine"' in card


def test_a_card_edited_by_hand_is_kept_but_for_the_place_it_names(hub, checkpoint):
    card = "---\nlicense: mit   # by hand\n---\n# Mine\n\n## Use\n\nold\n\n## Limits\n\nSees no dogs.\n"
    (checkpoint / "README.md").write_text(card)
    push_to_hub(checkpoint, "me/mine")
    uploaded = hub.files["me/mine"]["README.md"].decode()
    head, _, rest = card.partition("## Use\n\nold\n\n")
    assert uploaded.startswith(head) and uploaded.endswith(rest) and 'name = "me/mine"' in uploaded


def test_a_copy_of_a_name_on_the_hub_keeps_its_card_and_log(hub, checkpoint):
    card = "---\nlicense: mit\n---\n# Mine\n\n## Use\n\nold\n\n## Limits\n\nSees no dogs.\n"
    (checkpoint / "README.md").write_text(card)
    push_to_hub(checkpoint, "me/mine")
    push_to_hub("me/mine", "me/copy")
    mine, copy = (hub.files[name] for name in ("me/mine", "me/copy"))
    assert b"license: mit" in copy["README.md"] and b"Sees no dogs." in copy["README.md"]
    assert json.loads(copy["training_log.json"]) == json.loads(mine["training_log.json"])


def test_a_repository_without_owner_and_a_branch(hub, saved):
    pushed = push_to_hub(saved, "mine", revision="v1")
    assert pushed.url == f"{hub.url}/me/mine"
    assert ("POST", "/api/models/me/mine/branch/v1") in hub.requests and hub.commits[0][1] == "v1"
    assert 'name = "me/mine"' in hub.files["me/mine"]["README.md"].decode()


@pytest.mark.parametrize("broken", ["repos/create", "validate-yaml", "preupload", "/large/", "/commit/"])
@pytest.mark.parametrize("source", ["saved", "checkpoint"])
def test_a_broken_connection_leaves_the_folder_and_the_next_push_succeeds(hub, source, broken, request):
    folder = request.getfixturevalue(source)
    before = contents(folder.parent)
    hub.broken = broken
    with pytest.raises(OSError, match="pushing again goes on from there"):
        push_to_hub(folder, "me/mine")
    assert contents(folder.parent) == before
    assert hub.commits == []
    hub.broken = None
    pushed = push_to_hub(folder, "me/mine")
    assert hub.commits == [("me/mine", "main", sorted(pushed.files))]
    assert contents(folder.parent) == before


def test_a_dry_run_uses_no_network(hub, saved):
    pushed = push_to_hub(saved, "me/mine", dry_run=True)
    assert hub.requests == [] and sorted(pushed.files) == sorted(contents(saved))


def test_the_token_is_neither_printed_nor_written(hub, saved, checkpoint, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    for broken in ("/commit/", None):
        hub.broken = broken
        for folder in (saved, checkpoint):
            try:
                push_to_hub(folder, f"me/{folder.name}")
            except OSError as error:
                assert broken and TOKEN not in str(error)
    assert len(hub.commits) == 2
    # Where large files go was told by a request that had it.
    assert hub.secrets == {f"Bearer {TOKEN}", None}
    assert not [path for path, content in contents(tmp_path).items() if TOKEN.encode() in content]
    assert not any(TOKEN.encode() in body for body in hub.bodies)
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err + caplog.text


def test_a_folder_that_holds_the_token_is_refused(hub, saved):
    (saved / "LICENSE").write_text(f"my token is {TOKEN}")
    with pytest.raises(ValueError, match=r"expected no access token .* got yours in LICENSE"):
        push_to_hub(saved, "me/mine")
    assert hub.requests == []


def test_the_command_lists_and_pushes(hub, saved, capsys):
    assert main(["push", str(saved), "me/mine", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "model.safetensors" in dry and "would go to" in dry and hub.requests == []
    assert main(["push", str(saved), "me/mine", "--private", "--message", "By command"]) == 0
    assert "went to" in capsys.readouterr().out and len(hub.commits) == 1
    hub.broken = "/commit/"
    assert main(["push", str(saved), "me/mine"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("focusvit: error: ") and "pushing again" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["", "me//mine", "a/b/c", "me/-mine"])
def test_a_bad_name_is_refused_before_anything_is_loaded(hub, name, tmp_path):
    with pytest.raises(ValueError, match=r"(?i)repo id|repo_id"):
        push_to_hub(tmp_path / "nowhere", name)
    assert hub.requests == []


def spoilt(saved, name):
    if name == "card":
        (saved / "README.md").write_text("---\nlicense: My Own Licence\n---\ntext")
    elif name == "yaml":
        (saved / "README.md").write_text("---\nlicense: [mit\n---\ntext")
    elif name == "no text":
        (saved / "README.md").write_bytes(b"\xff\xfe")
    elif name == "foreign":
        config = json.loads((saved / "config.json").read_text())
        (saved / "config.json").write_text(json.dumps({**config, "model_type": "mine"}))
    elif name == "broken":
        (saved / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:-10])
    else:
        (saved / name).unlink()
    return saved


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("card", "expected license as the Hub"),
        ("yaml", "README.md: .*expected"),
        ("no text", "README.md: .*utf-8"),
        ("foreign", "config.json: expected a model_type of focusvit, got 'mine'"),
        ("broken", "model.safetensors: SafetensorError"),
        ("README.md", "without README.md"),
        ("model.safetensors", "expected model.safetensors, got none"),
        ("preprocessor_config.json", "expected a preprocessor_config.json, got none"),
        ("config.json", "expected a FocusViT checkpoint"),
    ],
)
def test_what_is_no_folder_for_the_hub_is_refused(hub, saved, name, message):
    with pytest.raises(ValueError, match=message):
        push_to_hub(spoilt(saved, name), "me/mine")
    assert hub.requests == []


# What nobody means to publish, and what can run code.
FOREIGN = [
    ".env",
    ".git/config",
    ".git/objects/00/11.png",
    "checkpoint-3/optimizer.pt",
    "checkpoint-3/model.safetensors",
    "data/rows.csv",
    "notes.txt",
    "other.safetensors",
    "pictures/plan.docx",
    "steal.py",
    "training_args.bin",
    "weights.BIN",
    "x.joblib",
    "x.pkl",
]


@pytest.mark.parametrize("source", ["saved", "checkpoint"])
def test_what_is_no_part_of_a_checkpoint_is_left_out_and_named(hub, source, request, capsys):
    folder = request.getfixturevalue(source)
    own = {name for name in contents(folder) if name not in FOREIGN}
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"private")
    (folder / "pictures" / "regions.png").write_bytes(b"no image")
    (folder / "linked").symlink_to(folder.parent)
    pushed = push_to_hub(folder, "me/mine")
    images = {"pictures/regions.png"} if source == "saved" else set()
    assert set(hub.files["me/mine"]) == set(pushed.files) == own | images | EVERY_FILE
    assert not any(b"private" in content for content in hub.files["me/mine"].values())
    left_out = {".env", ".git/", "checkpoint-3/", "data/", "linked", "notes.txt", "other.safetensors", "steal.py"}
    left_out |= {"training_args.bin", "weights.BIN", "x.joblib", "x.pkl"}
    left_out |= {"pictures/plan.docx"} if source == "saved" else {"pictures/"}
    assert set(pushed.left_out) == left_out
    capsys.readouterr()
    assert main(["push", str(folder), "me/mine", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "left out, as no part of a checkpoint: .env, .git/, checkpoint-3/" in printed


@pytest.mark.parametrize(
    "name", ["regions.png", "LICENSE", "README.md", "training_log.json", "model.safetensors", "errors.py"]
)
def test_a_link_that_leads_outside_is_refused(hub, saved, tmp_path, name):
    target = tmp_path / "outside"
    (saved / name).rename(target) if (saved / name).exists() else target.write_bytes(b"private")
    (saved / name).symlink_to(target)
    with pytest.raises(ValueError, match=rf"got a link: {name} leads to .*outside"):
        push_to_hub(saved, "me/mine")
    assert hub.requests == []
    (saved / name).unlink()
    (saved / name).symlink_to(name)
    with pytest.raises(ValueError, match=name):
        push_to_hub(saved, "me/mine")
    # Within the folder it is a file like another.
    (saved / name).unlink()
    target.rename(saved / "inner.txt")
    (saved / name).symlink_to("inner.txt")
    assert name in push_to_hub(saved, "me/mine", dry_run=True).files


@pytest.mark.parametrize("auto_map", [[], "x", {"AutoModel": 1}, {"AutoModel": ["a.B", None]}, {"": "../a.B"}])
def test_an_auto_map_that_is_none_is_refused_or_means_no_code(hub, saved, auto_map):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    try:
        pushed = push_to_hub(saved, "me/mine", dry_run=True)
    except ValueError as error:
        assert "expected an auto_map from classes to module.Class" in str(error)
    else:
        assert set(pushed.files) == EVERY_FILE


@pytest.mark.parametrize("source", ["saved", "checkpoint"])
def test_no_pickle_is_run_by_a_push(hub, source, request, tmp_path):
    folder, mark = request.getfixturevalue(source), tmp_path / "mark"
    for name in PICKLE_NAMES:
        (folder / name).write_bytes(pickle.dumps(Planted(mark)))
    assert not set(PICKLE_NAMES) & set(push_to_hub(folder, "me/mine").files)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Planted(mark)))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        push_to_hub(folder, "me/mine")
    assert not mark.exists()


def test_a_backbone_is_pushed(hub, tiny_model, tmp_path):
    model = tiny_model().focusvit
    folder = save_for_hub(model, FocusViTImageProcessor.from_model_config(model.config), tmp_path / "backbone")
    assert set(push_to_hub(folder, "me/backbone", dry_run=True).files) == set(contents(folder))


def test_a_pickle_is_no_checkpoint(hub, checkpoint):
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected model.safetensors, got a pickle \(pytorch_model.bin\)"):
        push_to_hub(checkpoint, "me/mine")
    assert hub.requests == []


def test_a_model_loaded_with_its_code_and_saved_without_is_given_its_code_again(hub, saved, tmp_path):
    model = FocusViTForImageClassification.from_pretrained(saved)
    model.save_pretrained(tmp_path / "again")
    FocusViTImageProcessor.from_pretrained(saved).save_pretrained(tmp_path / "again")
    push_to_hub(tmp_path / "again", "me/mine")
    assert {path.name for path in code_files()} < set(hub.files["me/mine"])


def test_the_librarys_own_push_takes_our_classes(hub, tiny_model, tmp_path):
    model = tiny_model()
    image_processor = FocusViTImageProcessor.from_model_config(model.config)
    model.push_to_hub("me/plain")
    image_processor.push_to_hub("me/plain")
    model.config.push_to_hub("me/config")
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    loaded = FocusViTForImageClassification.from_pretrained("me/plain")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert FocusViTModel.from_pretrained("me/plain").config.num_superpixels == 16
    FocusViTImageProcessor.from_pretrained("me/plain").validate_against_config(loaded.config)
