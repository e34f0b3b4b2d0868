"""What the training scripts are made of: loss, averaged weights, collator, presets, recipes, checks of data."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage

import run_classification
from blobs import NAMES, ROOT, TINY, blob, flags
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.training import arguments as training_arguments
from focusvit_hf.training import data as training_data
from focusvit_hf.training import setup as training_setup
from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.data_collator import SeededCollator
from focusvit_hf.training.evaluation import TopKAccuracy
from focusvit_hf.training.model import load_model
from focusvit_hf.training.objective import no_decay, soft_cross_entropy
from focusvit_hf.training.trainer import FocusViTTrainer
from focusvit_hf.utils.files import write_json


PRESETS = ROOT / "src" / "focusvit_hf" / "presets"


def test_soft_cross_entropy_against_its_definition():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    soft = torch.softmax(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), -1)
    hard = torch.tensor([0, 3, 1, 1, 2])
    log_probabilities = logits - logits.exp().sum(-1, keepdim=True).log()
    expected = -(soft * log_probabilities).sum(-1)
    torch.testing.assert_close(soft_cross_entropy(logits, soft, reduction="none"), expected)
    smooth = 0.9 * torch.nn.functional.one_hot(hard, 4) + 0.1 / 4
    expected = -(smooth * log_probabilities).sum(-1).mean()
    torch.testing.assert_close(soft_cross_entropy(logits, hard, 0.1), expected)
    torch.testing.assert_close(soft_cross_entropy(logits, torch.nn.functional.one_hot(hard, 4).float(), 0.1), expected)


@pytest.mark.parametrize("labels", [torch.zeros(4), torch.zeros(5, 4), torch.zeros(4, 3, dtype=torch.long)])
def test_soft_cross_entropy_refuses_other_labels(labels):
    with pytest.raises(ValueError, match=r"expected integer labels of shape \(4,\)"):
        soft_cross_entropy(torch.zeros(4, 3), labels)


def test_top_k_accuracy():
    ranked = [[0, 1, 2, 3, 4], [5, 1, 2, 3, 4], [5, 4, 3, 2, 1], [1, 2, 3, 4, 5]]
    result = TopKAccuracy(keep_in_memory=True).compute(predictions=ranked, references=[0, 1, 0, 1])
    assert result == {"accuracy": 0.5, "top_5_accuracy": 0.75}
    few = TopKAccuracy(keep_in_memory=True).compute(predictions=[[0, 1], [1, 0]], references=[0, 0])
    assert few == {"accuracy": 0.5}


def test_seeded_collator_depends_on_epoch_and_pictures_alone():
    collator = SeededCollator(lambda rows: {"noise": torch.rand(len(rows))}, seed=3)

    def noise(indices: list[int]) -> torch.Tensor:
        return collator([{"index": index, "image": None} for index in indices])["noise"]

    torch.manual_seed(0)
    first = noise([1, 2])
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(noise([1, 2]), first)
    assert not torch.equal(noise([2, 1]), first)
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state), "the global generator must not move"
    collator.epoch.fill_(1)
    assert not torch.equal(noise([1, 2]), first)


def test_moving_average_against_a_plain_loop(tmp_path):
    # A weight, and the statistics of a batch normalisation, which belong to it.
    model = torch.nn.BatchNorm1d(3)
    ema = ExponentialMovingAverage(0.9)
    ema.update(model)
    own = model.weight.detach(), model.running_var
    expected = [value.clone() for value in own]
    for step in range(1, 30):
        for value in own:
            value.add_(torch.rand(3))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [decay * mean + (1 - decay) * value for mean, value in zip(expected, own, strict=True)]
        ema.update(model)
    last = [value.clone() for value in own]
    with ema.applied(model):
        torch.testing.assert_close(list(own), expected)
    assert all(map(torch.equal, own, last))

    ema.save(tmp_path)
    other = ExponentialMovingAverage(0.9)
    other.load(tmp_path, model)
    assert int(other.average.n_averaged) == 30
    with other.applied(model):
        torch.testing.assert_close(list(own), expected)
    with pytest.raises(ValueError, match="expected the weights"):
        other.load(tmp_path, torch.nn.Conv2d(1, 1, 1, bias=False))
    with pytest.raises(ValueError, match="expected a moving average"):
        other.load(tmp_path / "nowhere", model)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_moving_average_refuses_a_bad_decay(decay):
    with pytest.raises(ValueError, match="0 < ema_decay < 1"):
        ExponentialMovingAverage(decay)


@pytest.mark.parametrize("position", ["dynamic", "learned"])
def test_weight_decay_spares_vectors_tokens_and_tables(tmp_path, position):
    config = FocusViTConfig(
        image_size=32, patch_size=4, num_superpixels=16, position_embedding_type=position, **TINY, num_labels=3
    )
    model = FocusViTForImageClassification(config)
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    decayed = set(FocusViTTrainer(model=model, args=args).get_decay_parameter_names(model))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    matrices = {name for name, shape in shapes.items() if name.endswith("weight") and len(shape) > 1}
    assert decayed == matrices
    spared = {name for name, parameter in model.named_parameters() if no_decay(name, parameter)}
    assert spared == shapes.keys() - decayed
    assert {"focusvit.latents", "focusvit.embeddings.cls_token"} <= spared


def test_a_failed_write_keeps_the_old_json(tmp_path):
    path = tmp_path / "log.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Circular"):
        content: dict = {}
        content["self"] = content
        write_json(path, content)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_presets_are_valid_and_their_controls_differ_in_one_thing():
    presets = {path.stem: json.loads(path.read_text()) for path in PRESETS.glob("*.json")}
    assert len(presets) == 14
    for name in ("tiny", "small"):
        added = {"sparsification_layers": [3, 6, 9], "keep_ratio": 0.7, "sparsification_relevance": "learned"}
        assert {**presets[f"focusvit-{name}-dense"], **added} == presets[f"spot-{name}"]
    for name in ("nano", "tiny", "small", "base"):
        config, grid, dense = (presets[f"focusvit-{name}{control}"] for control in ("", "-grid", "-dense"))
        assert {**config, "patch_pooling": "grid"} == grid
        layers = ["full_attention"] * config["num_hidden_layers"]
        assert {**config, "patch_pooling": "none", "layer_types": layers} == dense
        for content in (config, grid, dense):
            assert not set(content) - set(FocusViTConfig().to_dict())
            FocusViTConfig(**content)
    nano = FocusViTConfig(**presets["focusvit-nano"])
    assert (nano.image_size, nano.patch_size, nano.cell_size, nano.superpixel_count) == (32, 4, 2, 16)
    assert (nano.hidden_size, nano.num_hidden_layers, nano.num_attention_heads) == (160, 6, 5)


@pytest.mark.parametrize("recipe", sorted((ROOT / "configuration" / "recipes").glob("*.json")), ids=lambda p: p.stem)
def test_recipes_are_accepted_and_flags_override_them(recipe, tmp_path):
    model_args, data_args, args = training_arguments.parse_arguments(
        [str(recipe), "--output_dir", str(tmp_path), "--use_cpu", "--learning_rate", "0.5", "--max_train_samples", "7"]
    )
    FocusViTConfig.from_preset(model_args.preset, **training_arguments.json_object("", model_args.config_overrides))
    training_setup.augmentation_config(data_args)
    assert args.do_train
    assert (args.learning_rate, data_args.max_train_samples) == (0.5, 7)


def test_the_dense_control_is_trained_like_the_model_it_controls():
    found, control = (
        json.loads((ROOT / "configuration" / "recipes" / f"{name}.json").read_text())
        for name in ("imagenette-tiny", "imagenette-tiny-dense")
    )
    differs = {key for key in {*found, *control} if found.get(key) != control.get(key)}
    # Compared at the control's 20 epochs, which `--num_train_epochs 20` gives the other.
    assert differs == {"preset", "config_overrides", "train_num_superpixels", "num_train_epochs"}
    assert control["config_overrides"]["drop_path_rate"] == found["config_overrides"]["drop_path_rate"]


def test_a_misspelt_recipe_is_refused(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text('{"learning_rat": 1}')
    with pytest.raises(ValueError, match="learning_rat"):
        training_arguments.parse_arguments([str(recipe)])
    recipe.write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        training_arguments.parse_arguments([str(recipe)])
    _, data_args, _ = training_arguments.parse_arguments(["--augmentation", '{"mixupp": 1}', "--use_cpu"])
    with pytest.raises(ValueError, match="mixupp"):
        training_setup.augmentation_config(data_args)


def parquet(folder: Path, columns: dict, features: Features, split: str = "train") -> Path:
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_bad_data_is_refused_before_training(tmp_path):
    classes = ClassLabel(names=NAMES)
    features = Features(image=Image(), label=classes)
    run = tmp_path / "run"

    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"expected files \*\.parquet in .*empty, got none"):
        run_classification.main(flags(empty, run))
    with pytest.raises(ValueError, match="expected a folder"):
        run_classification.main(flags(tmp_path / "nowhere", run))
    with pytest.raises(ValueError, match=r"expected a folder of images for each class in .*empty, got no image"):
        run_classification.main(flags(empty, run, data_dir=None, train_dir=empty))

    data = parquet(
        tmp_path / "columns", {"picture": [blob(0)], "label": [0]}, Features(picture=Image(), label=classes)
    )
    with pytest.raises(
        ValueError, match=r"expected a column 'image' in the split 'train', got \['label', 'picture'\]"
    ):
        run_classification.main(flags(data, run))

    data = parquet(tmp_path / "none", {"image": [], "label": []}, features)
    with pytest.raises(ValueError, match=r"expected pictures and labels .* in .*none, got"):
        run_classification.main(flags(data, run))

    data = parquet(tmp_path / "labels", {"image": [blob(0), blob(1)], "label": [0, 1]}, features)
    wider = datasets.Dataset.from_parquet(str(data / "train-00000-of-00001.parquet"))
    table = wider.data.table.set_column(1, "label", [[0, 3]])
    pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow_parquet.write_table(table, data / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"expected labels in 0\.\.2 in the split 'train', got 3 in row 1"):
        run_classification.main(flags(data, run))

    assert not run.exists()


def test_a_truncated_picture_is_named(blob_dir, tmp_path):
    good = PILImage.fromarray(np.zeros((64, 64, 3), np.uint8))
    path = tmp_path / "broken.jpg"
    good.save(path)
    broken = {"bytes": path.read_bytes()[:300], "path": None}
    features = Features(image=Image(), label=ClassLabel(names=NAMES))
    rows = datasets.Dataset.from_dict({"image": [broken], "label": [0]}, features=features)
    with pytest.raises(
        ValueError, match=r"expected an image that can be decoded in row 0, got .*--skip_broken_images"
    ):
        training_data.PictureDataset(rows, "image")[0]


def test_integer_and_text_labels_become_classes(tmp_path):
    text = Features(image=Image(), label=Value("string"))
    data = parquet(tmp_path / "text", {"image": [blob(n) for n in range(4)], "label": ["b", "a", "b", "c"]}, text)
    model_args, data_args, _ = training_arguments.parse_arguments(
        ["--data_dir", str(data), "--cache_dir", str(tmp_path)]
    )
    split = training_data.load_pictures(data_args, model_args, seed=0)["train"]
    assert training_data.class_names(split, data_args) == ["a", "b", "c"]
    assert list(split["label"]) == [1, 0, 1, 2]


def test_a_part_of_the_pictures_is_drawn_from_all_of_them(blob_dir, tmp_path):
    limits = ["--max_train_samples", "12", "--max_eval_samples", "5"]
    model_args, data_args, _ = training_arguments.parse_arguments(
        ["--data_dir", str(blob_dir), "--cache_dir", str(tmp_path), *limits]
    )
    splits = training_data.load_pictures(data_args, model_args, seed=0)
    assert {name: len(split) for name, split in splits.items()} == {"train": 12, "test": 5}
    assert [label % 3 for label in range(12)] != list(splits["train"]["label"])
    again = training_data.load_pictures(data_args, model_args, seed=0)
    assert list(again["train"]["label"]) == list(splits["train"]["label"])


def test_decoded_once_equals_decoded_each_time(blob_dir, tmp_path):
    model_args, data_args, _ = training_arguments.parse_arguments(
        ["--data_dir", str(blob_dir), "--cache_dir", str(tmp_path)]
    )
    split = training_data.load_pictures(data_args, model_args, seed=0)["train"]
    plain = training_data.as_rows(split, data_args)
    data_args.decode_once = True
    decoded = training_data.as_rows(split, data_args)
    assert len(plain) == len(decoded) == 132
    for expected, row in zip(plain.__getitems__([3, 131, 0]), decoded.__getitems__([3, 131, 0]), strict=True):
        assert np.array_equal(np.asarray(expected["image"]), row["image"])
        assert (expected["label"], expected["index"]) == (row["label"], row["index"])


@pytest.fixture
def base(tmp_path):
    """A checkpoint to begin from, whose processor resizes, crops and interpolates in its own way."""
    options = {**TINY, "image_size": 32, "patch_size": 8, "num_superpixels": 16}
    names = dict(enumerate(NAMES))
    config = FocusViTConfig(**options, id2label=names, label2id={name: index for index, name in names.items()})
    FocusViTForImageClassification(config).save_pretrained(tmp_path / "base")
    own = {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    processor = FocusViTImageProcessor.from_model_config(config, **own, resample=3)
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def processor_for(base: Path, *more: str) -> dict:
    """Options of the image processor that the scripts train with when they begin from `base`."""
    model_args, _, _ = training_arguments.parse_arguments(["--model_name_or_path", str(base), "--use_cpu", *more])
    return load_model(model_args, NAMES)[1].to_dict()


def test_a_checkpoint_brings_its_image_processor(base):
    own = FocusViTImageProcessor.from_pretrained(base).to_dict()
    assert own["do_center_crop"] and own["resample"] == 3
    assert processor_for(base) == own
    fewer = processor_for(base, "--config_overrides", '{"num_superpixels": 4, "drop_path_rate": 0.1}')
    assert fewer == {**own, "num_superpixels": 4}
    dense = processor_for(base, "--config_overrides", '{"patch_pooling": "none", "layer_types": null}')
    assert dense == {**own, "do_superpixels": False}


def test_its_image_processor_follows_the_size_of_the_pictures(base):
    own = FocusViTImageProcessor.from_pretrained(base).to_dict()
    larger = processor_for(base, "--config_overrides", '{"image_size": 64}')
    assert larger == {**own, "size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}}
    wide = processor_for(base, "--config_overrides", '{"image_size": [32, 64], "num_superpixels": [2, 4]}')
    sizes = {"size": {"shortest_edge": 80}, "crop_size": {"height": 32, "width": 64}}
    assert wide == {**own, **sizes, "num_superpixels": (2, 4)}
    assert processor_for(base, "--config_overrides", '{"image_size": [32, 32]}') == own


def test_a_checkpoint_without_an_image_processor_gets_the_one_of_its_configuration(base):
    (base / "preprocessor_config.json").unlink()
    config = FocusViTConfig.from_pretrained(base)
    assert processor_for(base) == FocusViTImageProcessor.from_model_config(config).to_dict()


def test_an_image_processor_that_is_named_comes_first(base, tmp_path):
    config = FocusViTConfig.from_pretrained(base)
    FocusViTImageProcessor.from_model_config(config, resample=0).save_pretrained(tmp_path / "named")
    config.save_pretrained(tmp_path / "named")
    named = processor_for(base, "--image_processor_name", str(tmp_path / "named"))
    assert named["resample"] == 0 and not named.get("do_center_crop")


def test_an_image_processor_that_cannot_serve_is_refused(base):
    path = base / "preprocessor_config.json"
    options = json.loads(path.read_text())
    path.write_text(json.dumps({**options, "superpixel_compactness": 3.0}))
    with pytest.raises(ValueError, match=r"superpixel_compactness: expected 10\.0, got 3\.0"):
        processor_for(base)
    assert processor_for(base, "--config_overrides", '{"superpixel_compactness": 10.0}')["num_superpixels"] == 16
    path.write_text("{")
    with pytest.raises(ValueError, match=r"expected an image processor in .*base: expected JSON in "):
        processor_for(base)
