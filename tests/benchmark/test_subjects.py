import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    ConvNextImageProcessorPil,
    LevitImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    ViTImageProcessorPil,
)

from focusvit_hf import FocusViTConfig, FocusViTImageProcessor
from focusvit_hf.benchmark.subjects import (
    FOCUSVIT_SIZES,
    FOCUSVIT_SPARSE,
    SUBJECTS,
    batch_of,
    find_subject,
    known_subjects,
    read_images,
    sample_images,
)


PRESETS = Path(__file__).resolve().parents[2] / "src" / "focusvit_hf" / "presets"
PEERS = ["ViT-Ti/16", "ViT-Ti/32", "LeViT-128S", "MobileNetV2", "ConvNeXtV2-atto", "ResNet-18"]
# Of the checkpoints on the Hub, with a head of 1,000 classes; LeViT without the head of its teacher.
MILLIONS = {"ViT-Ti/16": 5.7, "LeViT-128S": 7.4, "MobileNetV2": 3.5, "ConvNeXtV2-atto": 3.7, "ResNet-18": 11.7}


@pytest.mark.parametrize("name", PEERS)
def test_peers_take_what_their_processor_makes(name):
    subject = pickle.loads(pickle.dumps(find_subject(name)))
    model, processor = subject.build(64)
    assert isinstance(processor, FocusViTImageProcessor) and not processor.do_superpixels
    inputs = processor([Image.open(io.BytesIO(file)) for file in sample_images()[:2]], return_tensors="pt")
    assert list(inputs) == ["pixel_values"] and inputs["pixel_values"].shape == (2, 3, 64, 64)
    with torch.no_grad():
        assert model.eval()(**inputs).logits.shape == (2, 1000)


@pytest.mark.parametrize("resolution", [224, 448])
@pytest.mark.parametrize("name", PEERS)
def test_peers_see_what_their_processor_in_transformers_makes(name, resolution):
    square = {"height": resolution, "width": resolution}
    edge = round(resolution * 256 / 224)
    theirs = {
        "ViT-Ti/16": lambda: ViTImageProcessorPil(size=square),
        "ViT-Ti/32": lambda: ViTImageProcessorPil(size=square),
        "LeViT-128S": lambda: LevitImageProcessorPil(size={"shortest_edge": resolution}, crop_size=square),
        "MobileNetV2": lambda: MobileNetV2ImageProcessorPil(size={"shortest_edge": edge}, crop_size=square),
        "ConvNeXtV2-atto": lambda: ConvNextImageProcessorPil(size={"shortest_edge": resolution}),
        "ResNet-18": lambda: ConvNextImageProcessorPil(size={"shortest_edge": resolution}),
    }[name]()
    subject = find_subject(name)
    ours = subject.process(subject.configure(resolution), resolution)
    images = [Image.open(io.BytesIO(file)) for file in sample_images()[:2]]
    # The other edge is the shortest.
    images[1] = images[1].transpose(Image.Transpose.ROTATE_90).resize((750, 1000))
    found, expected = (processor(images, return_tensors="pt")["pixel_values"] for processor in (ours, theirs))
    std = torch.tensor(theirs.image_std)[:, None, None]
    # Within a grey level or two of 255.
    torch.testing.assert_close(found * std, expected * std, rtol=0, atol=2.01 / 255)
    assert ((found - expected) * std).abs().mean() < 0.05 / 255


@pytest.mark.parametrize("name", MILLIONS)
def test_peers_have_the_published_number_of_parameters(name):
    subject = find_subject(name)
    with torch.device("meta"):
        model = subject.model_class(subject.configure(224))
    assert model.num_parameters() / 1e6 == pytest.approx(MILLIONS[name], abs=0.05)


@pytest.mark.parametrize("size", FOCUSVIT_SIZES)
@pytest.mark.parametrize("preset", ["", "-grid", "-dense"])
def test_sizes_are_those_of_the_presets(size, preset):
    expected = json.loads((PRESETS / f"focusvit-{size}{preset}.json").read_text())
    name = f"focusvit-{size}-dense" if preset == "-dense" else f"focusvit-{size}-latent{preset}"
    config = find_subject(name).configure(expected["image_size"])
    assert config.cell_size == expected.pop("superpixel_cell_size")
    assert {key: getattr(config, key) for key in expected} == expected


@pytest.mark.parametrize(("kind", "full"), [("full", 12), ("mixed", 6), ("latent", 0)])
def test_stacks_of_layers(kind, full):
    layers = find_subject(f"focusvit-tiny-{kind}").configure(224).layer_types
    assert layers == ["full_attention"] * full + ["latent_attention"] * (12 - full)


def test_variants_differ_in_one_thing():
    plain = find_subject("focusvit-tiny-full").configure(448).to_diff_dict()
    assert plain["image_size"] == 448
    for variant, change in {
        "patch": {"embedding_type": "patch"},
        "grid": {"patch_pooling": "grid"},
        "skimage": {"superpixel_method": "skimage"},
    }.items():
        config = find_subject(f"focusvit-tiny-full-{variant}").configure(448)
        assert config.to_diff_dict() == {**plain, **change}


@pytest.mark.parametrize("way", FOCUSVIT_SPARSE)
@pytest.mark.parametrize("kind", ["full", "dense"])
def test_sparse_variants_end_at_a_third_of_the_tokens(kind, way):
    plain = find_subject(f"focusvit-tiny-{kind}").configure(224)
    config = find_subject(f"focusvit-tiny-{kind}-{way}").configure(224)
    changed = {key for key, value in config.to_diff_dict().items() if plain.to_diff_dict().get(key) != value}
    assert changed <= {"sparsification_layers", "sparsification_relevance", "sparsification_mode", "keep_ratio"}
    counts = config.kept_counts(config.num_tokens)
    assert counts[-1] == int(config.num_tokens * 0.343 + 1e-6)
    assert len(counts) == (11 if way == "merge" else 3)


def test_the_number_of_superpixels_is_the_same_at_every_resolution():
    subject = find_subject("focusvit-tiny-latent")
    for resolution in (224, 448, 896):
        config = subject.configure(resolution)
        processor = subject.process(config, resolution)
        assert config.num_superpixels == processor.num_superpixels == 49
        assert processor.size.height == processor.size.width == resolution


def test_a_preset_and_a_checkpoint_are_subjects(tiny_model, tmp_path):
    preset = find_subject(str(PRESETS / "focusvit-nano.json"))
    assert preset.name == "focusvit-nano" and preset.configure(32).num_labels == 1000
    tiny_model().save_pretrained(tmp_path / "mine")
    subject = find_subject(str(tmp_path / "mine"))
    model, processor = subject.build(64)
    assert subject.name == "mine" and model.num_labels == 5 and model.config.hidden_size == 32
    assert isinstance(processor, FocusViTImageProcessor) and processor.size.height == 64


@pytest.mark.parametrize("name", ["focusvit-tiny", "focusvit-tiny-dense-grid", "ViT", "", "absent.json", "README.md"])
def test_an_unknown_subject_is_told_the_known_ones(name):
    with pytest.raises(ValueError, match=r"Expected a subject from ViT-Ti/16.*focusvit-{nano,tiny,small,base}"):
        find_subject(name)


def test_known_subjects_stand_for_all_names():
    for pattern in known_subjects():
        assert pattern.split("{")[0] in "".join(name[: len(pattern.split("{")[0])] for name in SUBJECTS)
    assert len(SUBJECTS) == len(PEERS) + 4 * (3 * 4 + 1 + 2 * 5)


def test_the_configuration_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"Expected the configuration of a FocusViT.*'vit'"):
        find_subject(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "resolution", "message"),
    [
        ("focusvit-tiny-full", 102, "focusvit-tiny-full does not work at 102 pixels: Expected an image_size"),
        ("focusvit-tiny-full", 16, "focusvit-tiny-full does not work at 16 pixels: Expected num_superpixels"),
        ("ViT-Ti/32", 48, "ViT-Ti/32 does not work at 48 pixels: expected a multiple of 32"),
    ],
)
def test_a_resolution_that_does_not_fit_is_refused(name, resolution, message):
    with pytest.raises(ValueError, match=message):
        find_subject(name).configure(resolution)


def test_a_preset_with_a_misspelt_field_is_refused(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"num_superpixel": 16}))
    with pytest.raises(ValueError, match=r"mine does not work at 224 pixels: .*num_superpixels"):
        find_subject(str(tmp_path / "mine.json")).configure(224)
    (tmp_path / "mine.json").write_text(json.dumps({"hidden_size": "wide"}))
    with pytest.raises(ValueError, match="hidden_size"):
        find_subject(str(tmp_path / "mine.json")).configure(224)


def test_sample_images_are_photographs_of_one_size_always_the_same():
    files = sample_images()
    assert files == sample_images() and len(set(files)) == 4
    for file in files:
        with Image.open(io.BytesIO(file)) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")


def test_images_of_a_folder(tmp_path):
    files = sample_images()
    for name, file in zip(("b.jpg", "a.JPEG"), files, strict=False):
        (tmp_path / name).write_bytes(file)
    (tmp_path / "notes.txt").write_text("no image")
    assert read_images(tmp_path) == [files[1], files[0]]


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected a folder of JPEG files"):
        read_images(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"Expected JPEG files in .*got none"):
        read_images(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(sample_images()[0][:2000])
    with pytest.raises(ValueError, match=r"Expected images in .*broken.jpg"):
        read_images(tmp_path)


def test_a_batch_takes_images_in_turn():
    assert batch_of([b"a", b"b"], 5) == [b"a", b"b", b"a", b"b", b"a"]


def test_configurations_are_focusvits():
    assert all(
        isinstance(subject.configure(224), FocusViTConfig)
        for name, subject in SUBJECTS.items()
        if name.startswith("focusvit")
    )


@pytest.mark.parametrize("kind", ["full", "dense"])
def test_a_variant_selects_tokens_in_the_second_half_of_its_layers(kind):
    plain = find_subject(f"focusvit-tiny-{kind}").configure(224)
    config = find_subject(f"focusvit-tiny-{kind}-spa").configure(224)
    assert config.layer_types == ["full_attention"] * 6 + ["select_pack_attention"] * 6
    changed = {key for key, value in config.to_diff_dict().items() if plain.to_diff_dict().get(key) != value}
    assert changed == {"layer_types", "select_budget"}
