"""Arguments that no run can be meant with are refused before anything is loaded."""

import json

import pytest

from blobs import ROOT
from focusvit_hf import FocusViTConfig
from focusvit_hf.training.arguments import DataTrainingArguments, ModelArguments, json_object, parse_arguments
from focusvit_hf.training.model import load_model
from focusvit_hf.training.output_folder import prepare_output_dir
from focusvit_hf.training.segmentation_data import SegmentationDataArguments
from focusvit_hf.training.setup import augmentation_config


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("num_train_epochs", "-1", r"--num_train_epochs above 0 or --max_steps of at least 1 to train, got -1 and -1"),
        ("num_train_epochs", "0", "got 0 and -1"),
        ("num_train_epochs", "nan", "got nan and -1"),
        ("gradient_accumulation_steps", "0", "--gradient_accumulation_steps of at least 1, got 0"),
        ("per_device_train_batch_size", "0", "--per_device_train_batch_size of at least 1, got 0"),
        ("per_device_eval_batch_size", "-2", "--per_device_eval_batch_size of at least 1, got -2"),
        ("learning_rate", "-0.001", "--learning_rate of at least 0, got -0.001"),
        ("learning_rate", "inf", "--learning_rate of at least 0, got inf"),
        ("max_train_samples", "0", "--max_train_samples of at least 1, got 0"),
        ("train_val_split", "1.5", "--train_val_split below 1, got 1.5"),
        ("label_smoothing_factor", "-0.1", "--label_smoothing_factor of at least 0, got -0.1"),
        ("save_total_limit", "0", "--save_total_limit of at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(tmp_path, flag, value, message):
    command = ["--output_dir", str(tmp_path), "--use_cpu", "--do_train", f"--{flag}", value]
    with pytest.raises(ValueError, match=message):
        parse_arguments(command)


def test_fields_that_a_configuration_does_not_have():
    for overrides, unknown in (
        ('{"foo_bar": 1}', "foo_bar"),
        ({"num_latents": 4, "from_preset": 1}, "from_preset"),
        ({"id2label": {}, "num_labels": 3}, "id2label', 'num_labels"),
    ):
        arguments = ModelArguments(preset="focusvit-nano", config_overrides=overrides)
        with pytest.raises(
            ValueError, match=rf"expected fields of a configuration in --config_overrides, got \['{unknown}"
        ):
            load_model(arguments, ["a", "b"])


@pytest.mark.parametrize("place", ["file", "file/run", "below/file/run"])
def test_an_output_folder_that_cannot_be_written_is_known_at_once(tmp_path, place):
    (tmp_path / "below").mkdir()
    for file in (tmp_path / "file", tmp_path / "below" / "file"):
        file.write_text("in the way")
    _, _, args = parse_arguments(["--output_dir", str(tmp_path / place), "--use_cpu", "--do_train"])
    with pytest.raises(ValueError, match=r"expected a folder to write to as --output_dir, got .*file"):
        prepare_output_dir(args)


def test_an_output_folder_that_is_read_only_is_known_at_once(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    _, _, args = parse_arguments(["--output_dir", str(tmp_path / "new"), "--use_cpu", "--do_train"])
    with pytest.raises(ValueError, match=r"expected a folder to write to .*Permission denied"):
        prepare_output_dir(args)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("recipe", sorted((ROOT / "configuration" / "recipes").glob("*.json")), ids=lambda p: p.stem)
def test_recipes_are_accepted_and_flags_override_them(recipe, tmp_path):
    options = json.loads(recipe.read_text())
    # Only segmentation has a loss of the overlap.
    kind = SegmentationDataArguments if "overlap_loss_weight" in options else DataTrainingArguments
    command = ["--output_dir", str(tmp_path), "--use_cpu", "--learning_rate", "0.5", "--max_train_samples", "7"]
    model_args, data_args, args = parse_arguments([str(recipe), *command], data_arguments=kind)
    # A fine-tune begins with a checkpoint.
    assert (model_args.preset is None) != (model_args.model_name_or_path is None)
    # It is one that ships, but for what `focusvit convert` writes first (docs/guides/sparsify.md and select.md).
    ships = model_args.model_name_or_path is not None and (ROOT / model_args.model_name_or_path).is_dir()
    converted = recipe.stem in ("imagenette-spot-vit-tiny", "imagenette-spa-vit-tiny")
    assert model_args.preset is not None or ships or converted
    if model_args.preset is not None:
        FocusViTConfig.from_preset(model_args.preset, **json_object("", model_args.config_overrides))
    augmentation_config(data_args)
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
        parse_arguments([str(recipe)])
    recipe.write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        parse_arguments([str(recipe)])
    _, data_args, _ = parse_arguments(["--augmentation", '{"mixupp": 1}', "--use_cpu"])
    with pytest.raises(ValueError, match="mixupp"):
        augmentation_config(data_args)
