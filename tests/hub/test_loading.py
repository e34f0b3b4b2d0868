"""Checked loading: what is wrong with which file, in one line, before anything large is built."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.hub.checkpoints import load_checkpoint
from focusvit_hf.hub.loading import load_model, shapes_of_weights
from pickles import PICKLE_NAMES, Planted
from saved import save_with_processor


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    return save_with_processor(tiny_model(), tmp_path_factory.mktemp("saved"))


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder):
    """The message of a checkpoint that has to be refused, which is one line."""
    with pytest.raises(ValueError, match="expected a FocusViT checkpoint in safetensors") as raised:
        load_checkpoint(str(folder))
    message = str(raised.value)
    assert "\n" not in message and len(message) < 1500
    return message


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_file_that_is_missing_or_no_file_is_named(checkpoint, file):
    path = checkpoint / file
    path.unlink()
    assert f"expected {'' if file.startswith('model') else 'a '}{file}, got none" in refused(checkpoint)
    path.mkdir()
    assert f"{file}: expected a file, got a folder" in refused(checkpoint)
    path.rmdir()
    path.symlink_to("nowhere")
    assert f"{file}: expected a file, got a link to nowhere, which is not there" in refused(checkpoint)
    path.unlink()
    # Nobody writes into it: a program that opened it would wait for ever.
    os.mkfifo(path)
    assert f"{file}: expected a file, got a device" in refused(checkpoint)


def test_what_is_no_folder_is_told_apart_from_a_name(checkpoint, tmp_path):
    assert "expected a folder, got a file" in refused(checkpoint / "config.json")
    assert "there is no such folder" in refused(tmp_path / "nothing")
    assert "no such folder" in refused("no\0where")


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [b"null", b"[]", b"{", b"", b"\xff", b"[" * 100_000, b'"text"', b"NaN"])
def test_json_that_is_none_is_named(checkpoint, name, content):
    (checkpoint / name).write_bytes(content)
    assert name in refused(checkpoint)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"id2label": ["cat", "dog"]}, "id2label"),
        ({"id2label": {"0": "cat", "-1": "dog"}}, "id2label"),
        ({"id2label": 5}, "id2label"),
        ({"label2id": [1]}, "label2id"),
        ({"dtype": "bogus"}, "bogus"),
        ({"num_tokens": 3}, "expected settings, got 'num_tokens', which FocusViTConfig keeps for itself"),
        ({"to_dict": None}, "expected settings, got 'to_dict'"),
        ({"__class__": []}, "expected settings, got '__class__'"),
        ({"model_type": None}, "expected a model_type of focusvit, got None"),
        ({"model_type": ["focusvit"]}, "expected a model_type of focusvit, got ['focusvit']"),
        ({"hidden_size": None}, "hidden_size"),
        ({"layer_types": "full_attention"}, "layer_types"),
        ({"image_size": []}, "image_size"),
    ],
    ids=str,
)
def test_a_configuration_that_is_corrupt_is_named(checkpoint, values, message):
    change_json(checkpoint / "config.json", **values)
    found = refused(checkpoint)
    assert message in found and any(file in found for file in ("config.json: ", "model.safetensors: "))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": {"height": "a", "width": 3}}, "size"),
        ({"resample": "bogus"}, "Resampling"),
        ({"image_mean": [None]}, "image_mean"),
        ({"preprocess": 1}, "expected settings, got 'preprocess', which FocusViTImageProcessor keeps for itself"),
        ({"do_center_crop": True, "crop_size": 2**20}, "got 1048576 x 1048576"),
    ],
    ids=str,
)
def test_an_image_processor_that_is_corrupt_is_named(checkpoint, values, message):
    change_json(checkpoint / "preprocessor_config.json", **values)
    found = refused(checkpoint)
    assert message in found and "preprocessor_config.json: " in found


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 100_000, "layer_types": None, "hidden_size": 4}, "got 100000."),
        ({"hidden_size": 8000}, "numbers that the weights hold, got one of"),
        ({"intermediate_size": 2**20, "hidden_size": 2048}, "numbers that the weights hold, got one of"),
    ],
)
def test_a_configuration_far_larger_than_its_file_is_refused_before_it_is_built(
    checkpoint, values, message, monkeypatch
):
    monkeypatch.setattr(FocusViTForImageClassification, "from_pretrained", None)
    change_json(checkpoint / "config.json", **values)
    assert message in refused(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named(checkpoint, value):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["classifier.weight"][1, 2] = value
    save_file(tensors, path, {"format": "pt"})
    assert "expected finite weights, got NaN or infinity in classifier.weight" in refused(checkpoint)


def test_adapters_are_not_taken_for_a_model(checkpoint):
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    assert "got adapters (adapter_config.json)" in refused(checkpoint)


def test_weights_in_several_files_load_and_an_index_leads_nowhere_else(saved, checkpoint, tiny_model):
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    (checkpoint / "model.safetensors").unlink()
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, checkpoint / part, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: part for part, held in parts.items() for name in held}}
    path = checkpoint / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    state = load_checkpoint(str(checkpoint))[0].state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny_model().state_dict().items())
    assert shapes_of_weights(checkpoint) == shapes_of_weights(saved)
    (checkpoint / "c.bin").write_bytes(b"no pickle")
    for part in ("../saved/model.safetensors", "c.bin", "", str(saved / "model.safetensors")):
        path.write_text(json.dumps({"weight_map": dict.fromkeys(names, part)}))
        assert "expected names of safetensors beside it" in refused(checkpoint)
    path.write_text(json.dumps({"weight_map": {names[0]: "absent.safetensors"}}))
    assert "expected absent.safetensors, which model.safetensors.index.json names, got none" in refused(checkpoint)
    for weight_map in (None, [], {}, {"a": 1}):
        path.write_text(json.dumps({"weight_map": weight_map}))
        assert "expected a weight_map" in refused(checkpoint)


@pytest.mark.parametrize("whole", [True, False])
def test_no_pickle_in_a_checkpoint_is_ever_run(checkpoint, tmp_path, whole):
    mark = tmp_path / "mark"
    for name in PICKLE_NAMES:
        (checkpoint / name).write_bytes(pickle.dumps(Planted(mark)))
    if whole:
        load_checkpoint(str(checkpoint))
    else:
        (checkpoint / "model.safetensors").unlink()
        assert "got a pickle" in refused(checkpoint)
        change_json(checkpoint / "config.json", transformers_weights="adapter_model.bin")
        refused(checkpoint)
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        (checkpoint / name).write_bytes(pickle.dumps(Planted(mark)))
        refused(checkpoint)
    assert not mark.exists()
    pickle.loads((checkpoint / "optimizer.pt").read_bytes())
    assert mark.exists()


def test_the_library_is_told_which_file_to_take(checkpoint):
    change_json(checkpoint / "config.json", transformers_weights="adapter_model.bin")
    assert "expected no transformers_weights, got 'adapter_model.bin'" in refused(checkpoint)


def test_tensors_of_new_shapes_are_for_those_who_ask(checkpoint, tiny_config):
    kind, config = AutoModelForImageClassification, tiny_config(num_labels=3)
    with pytest.raises(ValueError, match=r"classifier.bias has shape \(5,\) instead of \(3,\)"):
        load_model(kind, checkpoint, config)
    model, spare = load_model(kind, checkpoint, config, new_shapes=True)
    assert model.config.num_labels == 3 and spare == {} and not model.training


def test_a_processor_that_resizes_nothing_is_tried_out_at_the_models_own_size(checkpoint, saved):
    FocusViTImageProcessor.from_pretrained(saved, do_resize=False).save_pretrained(checkpoint)
    assert not load_checkpoint(str(checkpoint))[1].do_resize


@pytest.mark.parametrize("channels", [1, 2])
def test_models_of_other_images_than_colour_load(tiny_model, tmp_path, channels):
    model = tiny_model(num_channels=channels, patch_pooling="grid")
    model.save_pretrained(tmp_path)
    FocusViTImageProcessor.from_model_config(model.config).save_pretrained(tmp_path)
    assert load_checkpoint(str(tmp_path))[0].config.num_channels == channels
