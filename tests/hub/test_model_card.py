"""Model cards: what stands in them, what does not, and which the Hub would refuse."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from transformers import ViTConfig, ViTForImageClassification

from cards import PATTERN
from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.hub.model_card import check_card, model_card, relocated
from focusvit_hf.hub.training_record import TrainingRecord
from focusvit_hf.training.trainer import FocusViTTrainer
from focusvit_hf.utils.files import read_json
from focusvit_hf.utils.names import hub_name


CARDS = Path(__file__).resolve().parents[2] / "model_cards"
LOG = {
    "arguments": {
        "preset": "focusvit-nano",
        "config_overrides": '{"num_latents": 4}',
        "dataset_name": "uoft-cs/cifar10",
        "model_name_or_path": "someone/focusvit",
        "license": "apache-2.0",
        "num_train_epochs": 3.0,
        "max_steps": -1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "augmentation": {"mixup_alpha": 0.2},
        "ema_decay": None,
        "bf16": False,
        "seed": 42,
        "output_dir": "runs/mine",
    },
    "command": "python examples/run_classification.py --preset focusvit-nano --output_dir runs/mine",
    "figures": {"eval_accuracy": 0.61239, "test_accuracy": 0.5987654, "test_top_5_accuracy": 0.9, "eval_loss": 1.0},
    "evaluation_split": "validation",
    "images": {"train": 50000, "validation": 5000, "test": 10000},
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "wall_time_seconds": 90.0,
}


@pytest.fixture
def model(tiny_model):
    return tiny_model(id2label={0: "cat", 1: "dog", 2: "cup", 3: "a|b", 4: "other"})


def rows(card: ModelCard) -> dict[str, str]:
    """The tables of two columns."""
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", card.text, re.MULTILINE))


def test_a_card_tells_what_the_training_knows(model):
    card = model_card(model, "mine", location="me/mine", record=TrainingRecord.from_log(LOG), remote_code=True)
    match = PATTERN.match(str(card))
    assert match and match["name"] == "mine" and match["location"] == "me/mine"
    assert "trust_remote_code=True)" in card.text

    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "image-classification",
    )
    assert data.datasets == ["uoft-cs/cifar10"] and data.base_model == "someone/focusvit"
    assert {"focusvit", "superpixels"} <= set(data.tags)
    results = [(result.metric_name, result.metric_value, result.dataset_split) for result in data.eval_results]
    assert results == [("Accuracy", 0.5988, "test"), ("Top-5 accuracy", 0.9, "test")]
    assert {result.dataset_type for result in data.eval_results} == {"uoft-cs/cifar10"}
    assert "| Accuracy | test | 10,000 | 0.5988 |" in card.text
    assert "| Accuracy | validation | 5,000 | 0.6124 |" in card.text

    table = rows(card)
    assert f"```bash\n{LOG['command']}\n```" in card.text
    assert table["data"] == "uoft-cs/cifar10, 50,000 images" and table["began from"] == "someone/focusvit"
    assert table["`learning_rate`"] == "0.001" and table["`seed`"] == "42" and table["`num_train_epochs`"] == "3.0"
    assert table["`augmentation`"] == '`{"mixup_alpha": 0.2}`' and table["wall time"] == "1.5 minutes"
    assert not {"`bf16`", "`ema_decay`", "`max_steps`", "`output_dir`"} & table.keys()
    assert table["versions"] == "torch 2.13.0, transformers 5.23.0"
    assert table["superpixels"] == (
        'K = 16, compactness 10, 5 iterations, cells of 2 pixels, `superpixel_method="torch"`'
    )
    assert table["parameters"] == f"{model.num_parameters():,}"
    assert "| classes | 5: cat, dog, cup, a\\|b, other |" in card.text


def test_a_licence_the_hub_has_no_name_for(model):
    known = {"license": "other", "license_name": "our-licence", "license_link": "LICENSE"}
    card = model_card(model, "mine", record=TrainingRecord.from_log(known))
    assert (card.data.license, card.data.license_name, card.data.license_link) == tuple(known.values())
    assert "Weights: our-licence." in card.text


def test_what_is_not_known_is_not_told(model):
    card = model_card(model, "mine")
    assert PATTERN.match(str(card))
    assert card.data.license is None and card.data.eval_results is None and card.data.datasets is None
    assert "Not measured" in card.text and "licence of the weights is not stated" in card.text
    assert "trust_remote_code" not in card.text and "import focusvit_hf" in card.text
    assert not {"data", "versions", "wall time"} & rows(card).keys()


@pytest.mark.parametrize("pooling", ["superpixel", "grid", "none"])
def test_the_controls_are_told_apart(tiny_model, pooling):
    layers = ["full_attention", "latent_attention"]
    card = model_card(tiny_model(patch_pooling=pooling, layer_types=layers), "mine")
    table = rows(card)
    assert f'patch_pooling="{pooling}"' in table["tokens"]
    assert ("superpixels" in table) == (pooling == "superpixel")
    assert table["layers"] == "1 of full attention, 1 of latent attention"


def test_a_number_of_steps_overrides_one_of_epochs(model):
    arguments = {**LOG["arguments"], "max_steps": 60}
    table = rows(model_card(model, "mine", record=TrainingRecord.from_log({"arguments": arguments})))
    assert table["`max_steps`"] == "60" and "`num_train_epochs`" not in table


def test_folders_are_no_names_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "images").mkdir(parents=True)
    log = {"arguments": {"dataset_name": "mine/images", "model_name_or_path": str(tmp_path / "mine")}}
    record = TrainingRecord.from_log(log)
    assert record.dataset_id is None and record.dataset == "images"
    assert [hub_name(name) for name in (None, "", "/a/b", "../a", "a/b", "mine/images")] == [None] * 4 + [
        "a/b",
        None,
    ]


def test_a_folder_that_training_began_from_is_named_without_those_above_it(model, tmp_path):
    record = TrainingRecord(base_model=str(tmp_path))
    card = model_card(model, "mine", record=record)
    assert card.data.base_model is None and rows(card)["began from"] == tmp_path.name


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: Apache 2.0", "expected license as the Hub"),
        ("license: other", "expected a license_name"),
        ("pipeline_tag: Image Classification", "expected pipeline_tag"),
        ("datasets: [my data]", "expected names on the Hub under datasets"),
        ("base_model: /home/me/model", "expected names on the Hub under base_model"),
        ("tags: [1]", "expected tags in the card as a list of words"),
        ("model-index: [{name: a}]", "Invalid `model_index`"),
        ("[a, b]", "should be a dict"),
    ],
)
def test_cards_the_hub_refuses_are_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        check_card(ModelCard(f"---\n{metadata}\n---\ntext"))


def test_a_figure_that_is_none_and_a_card_without_text_are_refused(model):
    with pytest.raises(ValueError, match="expected a finite accuracy in the card, got nan"):
        model_card(model, "mine", record=TrainingRecord(figures={"test_accuracy": float("nan")}))
    with pytest.raises(ValueError, match="expected text in the card"):
        check_card(ModelCard("---\nlicense: mit\n---\n\n"))


def test_a_moved_card_is_as_it_was_but_for_the_place(model):
    text = str(model_card(model, "mine", location="runs/mine", record=TrainingRecord.from_log(LOG)))
    edited = text.replace("## Limits\n", "## Limits\n\nSees no dogs.\n").replace("license: apache-2.0", "license: mit")
    moved = relocated(edited, "me/mine")
    assert 'name = "me/mine"' in moved and "runs/mine" not in moved.replace(LOG["command"], "")
    for heading in ("Results", "Model", "Training", "Limits", "Licence"):
        section = re.compile(rf"^## {heading}\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
        assert section.search(moved)[0] == section.search(edited)[0]
    assert moved.partition("## Use")[0] == edited.partition("## Use")[0]
    assert relocated(moved, "me/mine") == moved
    assert relocated("---\nlicense: mit\n---\nNo such section.", "me/mine").endswith("No such section.")


def test_the_card_of_a_trainer(model, tmp_path):
    image_processor = FocusViTImageProcessor.from_model_config(model.config)
    args = transformers.TrainingArguments(
        str(tmp_path / "mine"), use_cpu=True, report_to="none", seed=7, hub_token="hf_secret"
    )
    rows_of = [{"pixel_values": torch.zeros(3, 32, 32), "labels": 0}] * 4
    trainer = FocusViTTrainer(
        model=model, args=args, train_dataset=rows_of, eval_dataset=rows_of, processing_class=image_processor
    )
    trainer.state.log_history = [{"eval_loss": 2.0, "eval_accuracy": 0.1}, {"eval_loss": 1.0, "eval_accuracy": 0.75}]
    options = {"license": "mit", "dataset": "My images", "dataset_tags": ["me/images"], "tags": "mine"}
    trainer.create_model_card(**options, language="en", tasks="image-classification")
    text = (tmp_path / "mine" / "README.md").read_text()
    card = ModelCard(text)
    assert PATTERN.match(text)["name"] == "mine" and "hf_secret" not in text
    assert card.data.license == "mit" and card.data.datasets == ["me/images"] and "mine" in card.data.tags
    assert [result.metric_value for result in card.data.eval_results] == [0.75]
    assert rows(card)["`seed`"] == "7" and rows(card)["data"] == "me/images, 4 images"


def test_another_model_gets_the_librarys_draft(tmp_path):
    config = ViTConfig(image_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    FocusViTTrainer(model=ViTForImageClassification(config), args=args).create_model_card(license="mit")
    text = (tmp_path / "README.md").read_text()
    assert "generated_from_trainer" in text and not PATTERN.match(text)


@pytest.mark.parametrize("name", ["focusvit-nano-cifar10", "focusvit-tiny-imagenette"])
def test_the_shipped_cards(name):
    text = (CARDS / name / "README.md").read_text(encoding="utf-8")
    assert PATTERN.match(text)["location"] == f"model_cards/{name}"
    card = ModelCard(text)
    check_card(card)
    figures = read_json(CARDS / name / "training_log.json")["figures"]
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results == {"Accuracy": figures["test_accuracy"], "Top-5 accuracy": figures["test_top_5_accuracy"]}


def test_the_shipped_card_of_a_segmenter():
    folder = CARDS / "focusvit-tiny-ecssd"
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert PATTERN.match(text)["location"] == "model_cards/focusvit-tiny-ecssd"
    check_card(ModelCard(text))
    figures = read_json(folder / "training_log.json")["figures"]
    results = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results}
    for name, figure in (("Mean IoU", "mean_iou"), ("IoU of figure, mean over images", "image_iou_figure")):
        assert results[name] == round(figures[f"test_{figure}"], 4)
