"""Converted folders: image processor, labels and licence come along; whole or not at all."""

import json
import re

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor, FocusViTModel, convert_vit_checkpoint
from focusvit_hf.cli.__main__ import main
from focusvit_hf.conversion.folder import convert_to_folder
from focusvit_hf.conversion.processor import convert_image_processor, load_image_processor
from focusvit_hf.hub.checkpoints import load_checkpoint
from focusvit_hf.modeling_focusvit import FocusViTForImageClassification as Classifier
from vits import make_vit


SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 32, "patch_size": 8}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# As the published checkpoints of each kind have them.
PROCESSORS = {
    "vit": ("ViTImageProcessorPil", {}),
    "deit": ("DeiTImageProcessorPil", {"image_mean": MEAN, "image_std": STD}),
    "dinov2": ("BitImageProcessorPil", {"size": {"shortest_edge": 256}, "image_mean": MEAN, "image_std": STD}),
    "no normalisation": ("ViTImageProcessorPil", {"do_normalize": False}),
    "another scale": ("ViTImageProcessorPil", {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}),
    "no resize": ("ViTImageProcessorPil", {"do_resize": False}),
    "nearest": ("ViTImageProcessorPil", {"resample": 0, "size": {"height": 64, "width": 96}}),
}


def make_processor(name, **options):
    kind, defaults = PROCESSORS[name]
    return getattr(transformers, kind)(**{**defaults, **options})


def write_source(folder, name="vit-tiny", processor="vit", card=None, labels=("cat", "dog", "ship"), **options):
    """A small dense ViT as somebody may have saved it."""
    names = dict(enumerate(labels))
    model = make_vit(
        name, id2label=names, label2id={name: number for number, name in names.items()}, **{**SMALL, **options}
    )
    model.save_pretrained(folder)
    if processor:
        make_processor(processor, size={"height": 32, "width": 32}).save_pretrained(folder)
    if card is not None:
        (folder / "README.md").write_text(card)
    return model


@pytest.fixture
def images(photographs):
    """PIL images of different sizes."""
    images = [Image.fromarray(image) for image in photographs.permute(0, 2, 3, 1).numpy()]
    return [image.resize((320 + 16 * index, 288 - 16 * index)) for index, image in enumerate(images)]


# The image processor.


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_processor_gives_the_sources_pixels(images, name):
    source = make_processor(name)
    patch = 14 if name == "dinov2" else 16
    statistics = {"image_mean": source.image_mean, "image_std": source.image_std}
    if name in ("no normalisation", "another scale"):
        statistics = {"image_mean": 0.0, "image_std": 1.0} if name == "no normalisation" else {}
    kind = ("Dinov2Model", {"patch_size": 14}) if patch == 14 else ("ViTModel", {"patch_size": 16})
    dense = make_vit(kind, False, 1, hidden_size=32, num_attention_heads=2, intermediate_size=8)
    config = convert_vit_checkpoint(dense, **statistics).config
    converted = convert_image_processor(source, config)
    assert converted.do_superpixels
    for image in images:
        inputs = converted(image, return_tensors="pt")
        expected = source(image, return_tensors="pt").pixel_values
        # Where they resize, the two round differently now and then.
        levels = ((inputs.pixel_values - expected).abs() * expected.new_tensor(config.image_std)[:, None, None]) * 255
        assert levels.max() < (2.01 if source.do_resize and source.resample else 0.01)
        assert (levels > 0.01).float().mean() < 0.03
        assert inputs.superpixel_ids.shape[1] == inputs.pixel_values.shape[2] // config.cell_size
    plain = convert_vit_checkpoint(dense, patch_pooling="none", **statistics).config
    assert not convert_image_processor(source, plain).do_superpixels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_rescale": False}, "options that FocusViT's does not have, got {'do_rescale': False}"),
        ({"size": {"height": 40, "width": 32}}, "images that patch_size=16 divides, got 40 x 32"),
        ({"image_mean": 0.3}, "does not match the model's configuration. image_mean"),
    ],
)
def test_processors_that_do_not_fit_are_refused(options, message):
    config = convert_vit_checkpoint(make_vit("vit-backbone", False, 1)).config
    with pytest.raises(ValueError, match=message):
        convert_image_processor(make_processor("vit", **options), config)


def test_an_option_that_is_not_known_is_refused():
    config = convert_vit_checkpoint(make_vit("vit-backbone", False, 1)).config
    processor = make_processor("vit")
    processor.do_flip_channel_order = True
    with pytest.raises(ValueError, match=r"does not have, got {'do_flip_channel_order': True}"):
        convert_image_processor(processor, config)


def test_overrides_of_the_processor(tmp_path):
    config = convert_vit_checkpoint(make_vit("vit-backbone", False, 1)).config
    converted = convert_image_processor(make_processor("vit"), config, size={"height": 64, "width": 64})
    assert converted.size.height == 64
    with pytest.raises(ValueError, match=r"an image processor in .*, got none"):
        convert_image_processor(tmp_path, config)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_a_processor_that_cannot_be_read_is_told_from_none(tmp_path, capsys, file):
    write_source(tmp_path / "source", processor=None)
    assert load_image_processor(tmp_path / "source") is None
    (tmp_path / "source" / file).write_text('{"size": ')
    message = r"expected an image processor in .*source: expected JSON in .*, got"
    with pytest.raises(ValueError, match=message):
        load_image_processor(tmp_path / "source")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "target")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_processor_that_cannot_be_asked_for_is_told_from_none(tmp_path):
    with pytest.raises(ValueError, match=r"expected an image processor in me/vit: "):
        load_image_processor("me/vit", cache_dir=tmp_path)
    # As the library keeps what the Hub does not have.
    repository = tmp_path / "models--me--vit"
    for path in (repository / "refs" / "main", repository / ".no_exist" / "123" / "preprocessor_config.json"):
        path.parent.mkdir(parents=True)
        path.write_text("123")
    (repository / "snapshots" / "123").mkdir(parents=True)
    assert load_image_processor("me/vit", cache_dir=tmp_path) is None
    with pytest.raises(ValueError, match=r"expected an image processor in .*nowhere: "):
        load_image_processor(tmp_path / "nowhere")


# From a folder.


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit-tiny", {}),
        ("deit-base-distilled", {}),
        ("dinov2-swiglu", {"patch_size": 14, "image_size": 56}),
        ("vit-backbone", {}),
        ("dinov2-registers-backbone", {"patch_size": 14, "image_size": 56}),
    ],
)
def test_a_folder_gives_what_its_model_gives(tmp_path, name, options):
    source = write_source(tmp_path, name, **options)
    model = convert_vit_checkpoint(str(tmp_path), patch_pooling="none")
    expected = convert_vit_checkpoint(source, patch_pooling="none")
    assert type(model) is type(expected)
    assert not model.training
    for key, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


def test_mean_std_and_number_follow_from_the_processor(tmp_path):
    write_source(tmp_path, "dinov2-swiglu", patch_size=14, image_size=140, processor=None)
    make_processor("dinov2", image_mean=[0.1, 0.2, 0.3], crop_size={"height": 112, "width": 112}).save_pretrained(
        tmp_path
    )
    config = convert_vit_checkpoint(tmp_path).config
    assert config.image_mean == [0.1, 0.2, 0.3]
    assert config.image_size == 140
    # One for each 2 x 2 patches of 112 pixels.
    assert config.num_superpixels == 16
    convert_image_processor(tmp_path, config)
    assert convert_vit_checkpoint(tmp_path, image_mean=0.5).config.image_mean == [0.5] * 3


def test_a_backbone_saved_without_its_pooling_layer(tmp_path):
    make_vit("vit-backbone", model_options={"add_pooling_layer": False}, **SMALL).save_pretrained(tmp_path)
    model = convert_vit_checkpoint(tmp_path)
    assert type(model) is FocusViTModel
    assert not model.config.add_pooling_layer
    assert not model.conversion_report.fresh


def test_a_spare_pooling_layer_is_told(tmp_path):
    write_source(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights |= {"vit.pooler.dense.weight": torch.ones(32, 32), "vit.pooler.dense.bias": torch.ones(32)}
    save_file(weights, path, metadata={"format": "pt"})
    report = convert_vit_checkpoint(tmp_path).conversion_report
    assert report.dropped == {
        f"vit.pooler.dense.{part}": "the pooling layer is no part of the class" for part in ("weight", "bias")
    }


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = change(load_file(path))
    save_file(weights, path, metadata={"format": "pt"})


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def pickle_weights(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "missing": (
        lambda folder: change_weights(folder, lambda weights: {k: weights[k] for k in weights if ".1." not in k}),
        r"tensors of ViTForImageClassification, got: vit.layers.1.\S* is missing.*; and \d+ more",
    ),
    "strange": (
        lambda folder: change_weights(folder, lambda weights: {**weights, "vit.adapter": torch.zeros(2)}),
        "adapter is not of this model",
    ),
    "shape": (
        lambda folder: change_weights(folder, lambda weights: {**weights, "classifier.bias": torch.zeros(9)}),
        r"classifier.bias has shape \(9,\)",
    ),
    "not finite": (
        lambda folder: change_weights(
            folder, lambda weights: {**weights, "classifier.bias": weights["classifier.bias"] / 0}
        ),
        "model.safetensors: expected finite weights, got NaN or infinity in classifier.bias",
    ),
    "far larger on paper": (lambda folder: change_config(folder, hidden_size=8192), "numbers that the weights hold"),
    "broken card": (
        lambda folder: (folder / "README.md").write_text("---\nlicense: [mit\n---\n"),
        "README.md: .*expected",
    ),
    "list for a card": (lambda folder: (folder / "README.md").write_text("---\n- mit\n---\n"), "README.md: "),
    "truncated": (truncate, "a ViT, DeiT or DINOv2 in safetensors"),
    "pickle": (pickle_weights, "a ViT, DeiT or DINOv2 in safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "a ViT, DeiT or DINOv2 in safetensors"),
    "other kind": (lambda folder: change_config(folder, model_type="beit"), "a model_type of vit, .*, got 'beit'"),
    "other head": (
        lambda folder: change_config(folder, architectures=["ViTForMaskedImageModeling"]),
        "one of the classes ViTModel, .*, got ViTForMaskedImageModeling",
    ),
    "no class": (lambda folder: change_config(folder, architectures=None), "one of the classes .*, got None"),
    "absurd": (
        lambda folder: change_config(folder, hidden_size=10**9),
        r"sizes up to 1048576, got {'hidden_size': 10*}",
    ),
    "absurd in all": (lambda folder: change_config(folder, hidden_size=2**19), r"at most 1e\+11 parameters"),
    "absurd list": (
        lambda folder: change_config(folder, model_type="dinov2", num_hidden_layers=10**12),
        r"sizes up to 1048576, got {'num_hidden_layers': 10*}",
    ),
    "timm's": (
        lambda folder: change_config(folder, model_type=None, architecture="vit_tiny_patch16_224"),
        "model_type",
    ),
    "own code": (
        lambda folder: change_config(folder, model_type="mine", auto_map={"AutoConfig": "evil.Config"}),
        "a model_type of vit, .*, got 'mine'",
    ),
    "option": (lambda folder: change_config(folder, head_dim=4), "got {'head_dim': 4}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_other_folders_are_refused(tmp_path, capsys, damage):
    source, target = tmp_path / "source", tmp_path / "target"
    write_source(source)
    change, message = DAMAGES[damage]
    change(source)
    with pytest.raises(ValueError, match=message):
        convert_to_folder(source, target)
    capsys.readouterr()
    assert main(["convert", str(source), str(target)]) == 2
    assert capsys.readouterr().err.startswith("focusvit: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_name_that_does_not_exist_is_refused(tmp_path):
    for name in (tmp_path / "nothing", "nobody/nothing"):
        with pytest.raises(ValueError, match=r"in safetensors, a folder or a name on the Hub, got .*nothing"):
            convert_vit_checkpoint(name)


# To a folder.


def test_the_folder_loads_and_answers_as_the_source(tmp_path, images):
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    dense = write_source(source)
    report = convert_to_folder(source, target, patch_pooling="none")
    assert sorted(path.name for path in target.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    model, processor = load_checkpoint(str(target))
    inputs = processor(images, return_tensors="pt")
    expected = transformers.ViTImageProcessorPil.from_pretrained(source)(images, return_tensors="pt")
    with torch.no_grad():
        same = dense(pixel_values=inputs.pixel_values).logits
        torch.testing.assert_close(model(**inputs).logits, same, rtol=0, atol=1e-4)
        # The source's own resize rounds some values to another grey level.
        torch.testing.assert_close(same, dense(**expected).logits, rtol=0, atol=3e-3)
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "ship"}
    assert not report.fresh


def test_with_superpixels_the_folder_goes_through_the_pipeline(tmp_path, images):
    write_source(tmp_path / "source", "deit-base-distilled", processor="deit")
    target = tmp_path / "target"
    # An empty folder may be there.
    target.mkdir()
    convert_to_folder(tmp_path / "source", target, num_superpixels=9)
    model, processor = load_checkpoint(str(target))
    assert processor.num_superpixels == model.config.num_superpixels == 9
    assert processor.crop_size.height == 224
    answer = transformers.pipeline("image-classification", str(target))(images[0])
    assert {entry["label"] for entry in answer} == {"cat", "dog", "ship"}


def test_a_backbone_goes_to_a_folder(tmp_path):
    write_source(tmp_path / "source", "dinov2-registers-backbone", patch_size=14, image_size=56, processor=None)
    report = convert_to_folder(tmp_path / "source", tmp_path / "target")
    model = transformers.AutoModel.from_pretrained(tmp_path / "target")
    assert type(model) is FocusViTModel
    processor = FocusViTImageProcessor.from_pretrained(tmp_path / "target")
    processor.validate_against_config(model.config)
    assert "image processor: the source has none" in str(report)
    assert ModelCard.load(tmp_path / "target" / "README.md").data.pipeline_tag == "image-feature-extraction"
    # A classifier on it reads what the source's reads.
    classifier = Classifier.from_pretrained(tmp_path / "target", num_labels=4)
    assert classifier.classifier.weight.shape == (4, 64)


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# A ViT\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\nbase_model: some/vit\n---\n",
            {"license": "other", "license_name": "mine", "license_link": "LICENSE", "base_model": "some/vit"},
        ),
        (
            "---\nlicense: [Apache-2.0]\nbase_model:\n- some/vit\n---\n",
            {"license": "apache-2.0", "base_model": "some/vit"},
        ),
        ("# No metadata\n", {}),
        (None, {}),
    ],
)
def test_the_licence_comes_along(tmp_path, card, expected):
    write_source(tmp_path / "source", card=card)
    report = convert_to_folder(tmp_path / "source", tmp_path / "target")
    data = ModelCard.load(tmp_path / "target" / "README.md").data.to_dict()
    keys = ("license", "license_name", "license_link", "base_model")
    assert {key: data[key] for key in keys if key in data} == expected
    assert ("licence: none is known" in str(report)) == (not expected)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: Apache 2.0", r"Expected license in .*README.md as the Hub abbreviates it, .*, got 'Apache 2.0'"),
        ("license: [mit, apache-2.0]", r"Expected license in .*, got \['mit', 'apache-2.0'\]"),
        ('license: other\nlicense_name: ""', r"Expected license_name in .* as text, got ''"),
        ("license: other", r"Expected a license_name in .* beside license: other, got none"),
        ("license_link: 3", r"Expected license_link in .* as text, got 3"),
        ("base_model: [a/b, c/d]", r"Expected base_model in .* as text, got \['a/b', 'c/d'\]"),
    ],
)
def test_what_a_card_cannot_repeat_is_left_out_with_a_warning(tmp_path, caplog, metadata, message):
    write_source(tmp_path / "source", card=f"---\n{metadata}\n---\n")
    convert_to_folder(tmp_path / "source", tmp_path / "target")
    assert re.search(message, caplog.text)
    data = ModelCard.load(tmp_path / "target" / "README.md").data.to_dict()
    assert not {"license", "license_name", "license_link", "base_model"} & data.keys()


@pytest.mark.parametrize("existing", ["a folder with something", "a file"])
def test_nothing_is_overwritten(tmp_path, capsys, existing):
    source, target = tmp_path / "source", tmp_path / "target"
    write_source(source)
    if existing == "a file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or an empty folder, got"):
        convert_to_folder(source, target)
    assert main(["convert", str(source), str(target)]) == 2
    assert (target if existing == "a file" else target / "mine").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    write_source(tmp_path / "source")

    def fail(self, folder, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(FocusViTImageProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_to_folder(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# The command.


def test_the_command_prints_where_the_tensors_come_from(tmp_path, capsys, caplog):
    write_source(tmp_path / "source", card="---\nlicense: mit\n---\n")
    target = tmp_path / "target"
    options = ["--num-superpixels", "2x4", "--latent-layers", "1", "--num-latents", "3"]
    assert main(["convert", str(tmp_path / "source"), str(target), *options]) == 0
    printed = capsys.readouterr().out
    assert "ViTForImageClassification -> FocusViTForImageClassification\n  copied: 40 tensors" in printed
    assert "derived: latents: tokens of an empty image before layer 1" in printed
    assert f"wrote {target}" in printed
    assert "Not all of the source was kept" not in caplog.text
    config = FocusViTForImageClassification.from_pretrained(target).config
    assert config.num_superpixels == [2, 4]
    assert config.layer_types == ["full_attention", "latent_attention"]
    assert config.num_latents == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latent-layers", "3"], "--latent-layers up to the source's 2, got 3"),
        (["--num-superpixels", "11"], "the nearest that can is"),
    ],
)
def test_options_that_do_not_fit_are_told(tmp_path, capsys, options, message):
    write_source(tmp_path / "source")
    assert main(["convert", str(tmp_path / "source"), str(tmp_path / "target"), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "x", "3x", "axb", "-4", "2x3x4"])
def test_numbers_that_are_none_are_told(tmp_path, capsys, number):
    with pytest.raises(SystemExit):
        main(["convert", "a", "b", f"--num-superpixels={number}"])
    assert "--num-superpixels" in capsys.readouterr().err
