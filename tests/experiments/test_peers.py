"""Transformers' own models, trained at micro scale beside FocusViT."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from blobs import SMALLEST, write_parquet
from experiments.frontier import peers
from experiments.micro import results as results_module
from experiments.micro import run as micro
from experiments.micro import training as micro_training
from focusvit_hf.benchmark.subjects import find_subject


SMALL = {**SMALLEST, "superpixel_cell_size": 2, "num_labels": 3}
SHORT = {"epochs": 1, "batch_size": 16}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Everything at 32 pixels and three classes."""
    monkeypatch.setattr(micro_training, "BASE", {**micro_training.BASE, **SMALL})


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Blobs as a data set in files."""
    return write_parquet(tmp_path_factory.mktemp("blobs"), 32)


def test_peers_are_fed_and_trained_as_the_rows_beside_them():
    fed, recipe = peers.fed_and_recipe(epochs=7)
    assert fed.patch_pooling == "none" and fed.image_height_and_width == (32, 32)
    _, theirs = micro_training.settings({}, epochs=7)
    assert recipe == theirs


@pytest.mark.parametrize("peer", peers.PEERS)
def test_peers_are_those_of_the_benchmark_with_fewer_classes(peer):
    fed, _ = peers.fed_and_recipe()
    config, other = peers.configuration(peer, fed), find_subject(peer).configure(32)
    assert config.num_labels == 3 and other.num_labels == 1000
    other.num_labels = 3
    assert config.to_dict() == other.to_dict()
    with pytest.raises(ValueError, match=re.escape("got 'ViT-Ti/16' at 32 x 32 pixels")):
        peers.configuration("ViT-Ti/16", fed)


@pytest.mark.parametrize("peer", peers.PEERS)
def test_every_peer_is_trained_measured_and_not_run_again(peer, parquet, tmp_path):
    places = {"data": parquet, "cache": tmp_path / "cache", "results": tmp_path / "results"}
    result = peers.run(peer, 1, "test", **places, **SHORT)
    stored = json.loads((tmp_path / "results" / "peers" / f"{peer}-seed1.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["accuracy"] == results_module.unpacked(stored["correct"], 10).mean()
    assert stored["configuration"]["image_size"] == 32 and stored["recipe"]["batch_size"] == 16
    assert len(stored["history"]) == 1 and stored["environment"]["seed"] == 1 and stored["tokens"] is None
    weights = load_file(tmp_path / "cache" / "weights" / "peers" / f"{peer}-seed1" / "model.safetensors")
    floats = [value for value in weights.values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float32} and all(value.isfinite().all() for value in floats)
    # Running statistics are part of what was learnt.
    assert result["parameters"] <= sum(value.numel() for value in floats)
    assert peers.unfinished([peer], [0, 1], "test", places["results"], **SHORT) == [(peer, 0)]
    with pytest.raises(ValueError, match=re.escape("with {'epochs': 3}, got {'epochs': 1}")):
        peers.unfinished([peer], [1], "test", places["results"], epochs=3, batch_size=16)


def test_the_fields_of_micro_results_are_there(parquet, tmp_path):
    places = {"data": parquet, "cache": tmp_path / "cache", "results": tmp_path / "results"}
    theirs = micro.run("attention", "full", {"num_superpixels": 4}, 0, "test", **places, **SHORT)
    assert set(peers.run("LeViT-128S", 0, "test", **places, **SHORT)) == set(theirs)


def test_the_program_trains_what_is_left(parquet, tmp_path, monkeypatch, capsys):
    def one_by_one(todo, finished, job_of, prepare, workers):
        assert (finished, workers) == (0, 1)
        prepare()
        for peer, seed in todo:
            job = job_of(peer, seed)
            print(peer, seed, "parameters" in job.func(*job.args, **{**job.keywords, "batch_size": 16}))

    monkeypatch.setattr(peers, "side_by_side", one_by_one)
    command = ["--peers", "LeViT-128S", "--epochs", "1", "--workers", "1"]
    places = {"data": parquet, "cache": tmp_path / "cache", "results": tmp_path / "results"}
    command += [part for name, place in places.items() for part in (f"--{name}", str(place))]
    peers.main([*command, "--seeds", "0"])
    assert capsys.readouterr().out == "LeViT-128S 0 True\n"
