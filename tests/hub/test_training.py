"""What training leaves for the Hub: the card of the run, the model with its code, and nowhere the token."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import run_classification
import run_classification_no_trainer
from blobs import flags
from cards import PATTERN
from focusvit_hf.hub.folder import code_files
from hub_stand_in import TOKEN, taken_for_the_hub


@pytest.mark.parametrize("script", [run_classification, run_classification_no_trainer])
def test_a_run_is_pushed_with_its_card_and_its_code(blob_dir, tmp_path, monkeypatch, capfd, caplog, script):
    caplog.set_level("DEBUG")
    output_dir = tmp_path / "mine"
    saving = {"save_strategy": "steps", "save_steps": 3, "hub_strategy": "end"}
    pushing = {"push_to_hub": True, "hub_model_id": "me/mine", "hub_token": TOKEN}
    argv = flags(blob_dir, output_dir, max_steps=3, license="mit", **saving, **pushing)
    with taken_for_the_hub(monkeypatch, tmp_path / "cache") as hub:
        monkeypatch.delenv("HF_TOKEN")
        figures = script.main(argv)
    text = (output_dir / "README.md").read_text()
    card = ModelCard(text)
    match = PATTERN.match(text)
    assert match["name"] == "mine" and match["location"] == output_dir.as_posix()
    assert card.data.license == "mit" and card.data.datasets is None
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"Accuracy": pytest.approx(figures["test_accuracy"], abs=1e-4)}
    assert {result.dataset_name for result in card.data.eval_results} == {blob_dir.name}
    assert f"python examples/{Path(script.__file__).name} --preset focusvit-nano" in text
    assert "--hub_token TOKEN" in text and "132 images" in text and "| `max_steps` | 3 |" in text

    uploaded = hub.files["me/mine"]
    name, _, files = hub.commits[-1]
    log = json.loads((output_dir / "training_log.json").read_text())
    assert name == "me/mine" and json.loads(uploaded["training_log.json"]) == log
    expected = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_log.json"}
    assert set(files) == expected | {path.name for path in code_files()}
    assert PATTERN.match(uploaded["README.md"].decode())["location"] == "me/mine"

    written = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert written == []
    assert not any(TOKEN.encode() in body for body in hub.bodies)
    printed = capfd.readouterr()
    assert TOKEN not in printed.out + printed.err + caplog.text


def test_a_fine_tuned_model_keeps_the_licence_of_its_base(blob_dir, tmp_path):
    base = tmp_path / "base"
    short = {"max_steps": 1, "do_eval": None, "final_evaluation": False}
    run_classification.main(flags(blob_dir, base, **short, license="cc-by-4.0"))
    argv = flags(blob_dir, tmp_path / "tuned", **short, preset=None, config_overrides=None, model_name_or_path=base)
    run_classification.main(argv)
    card = ModelCard.load(tmp_path / "tuned" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.base_model is None
    assert "| began from | base |" in card.text and "Not measured" in card.text
    with pytest.raises(ValueError, match=r"expected --license as the Hub .* such as apache-2.0, got 'My'"):
        run_classification.main([*flags(blob_dir, tmp_path / "refused"), "--license", "My"])
    assert not (tmp_path / "refused").exists()
