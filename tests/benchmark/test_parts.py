import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from focusvit_hf import FocusViTImageProcessor, superpixel_maps
from focusvit_hf.benchmark import parts as benchmark_parts
from focusvit_hf.benchmark.parts import forward_pass, split_subjects, time_split, training_step


@pytest.fixture
def systems(tiny_model):
    focusvit = tiny_model()
    dense = ViTForImageClassification(
        ViTConfig(image_size=32, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    processors = FocusViTImageProcessor.from_model_config(focusvit.config), ViTImageProcessorPil(size=32)
    return {"focusvit": (focusvit, processors[0]), "dense": (dense.eval(), processors[1])}


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def test_parts_compute_what_the_whole_path_computes(systems):
    images = [Image.fromarray(chelsea()), Image.new("RGB", (50, 40), (200, 30, 30))]
    model, processor = systems["focusvit"]
    subjects = split_subjects(model, processor, images)
    assert list(subjects) == ["processor", "superpixels", "model", "pixels_to_logits", "whole_path"]
    inputs = processor(images, return_tensors="pt")
    assert torch.equal(subjects["superpixels"](), inputs["superpixel_ids"])
    assert list(subjects["processor"]()) == ["pixel_values"]
    expected = subjects["pixels_to_logits"]()
    assert expected.shape == (2, 5) and not expected.requires_grad
    assert torch.equal(subjects["model"](), expected)
    assert torch.equal(subjects["whole_path"](), expected.argmax(-1))


@pytest.mark.parametrize("pooling", ["grid", "none"])
def test_controls_have_no_superpixels_to_time(pooling, tiny_model):
    model = tiny_model(patch_pooling=pooling)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    subjects = split_subjects(model, processor, [Image.new("RGB", (40, 40))])
    assert list(subjects) == ["processor", "pixels_to_logits", "whole_path"]
    assert torch.equal(subjects["whole_path"](), subjects["pixels_to_logits"]().argmax(-1))


def test_time_split_of_two_systems_is_milliseconds_an_image(systems, monkeypatch):
    seconds = {}

    def fixed(subjects, repeats, warmup, device):
        assert (repeats, warmup, device) == (4, 1, torch.device("cpu"))
        seconds.update({name: [0.02 * (1 + number)] * repeats for number, name in enumerate(subjects)})
        return seconds

    monkeypatch.setattr(benchmark_parts, "interleaved", fixed)
    split = time_split(systems, [Image.new("RGB", (40, 40))] * 2, repeats=4, warmup=1)
    assert len(seconds) == 5 + 3
    assert list(split) == ["focusvit", "dense"] and list(split["dense"]) == [
        "processor",
        "pixels_to_logits",
        "whole_path",
    ]
    assert split["focusvit"]["processor"]["median_ms"] == pytest.approx(10)
    assert split["dense"]["whole_path"]["median_ms"] == pytest.approx(80)


def test_time_split_measures(systems):
    split = time_split(systems, [Image.new("RGB", (40, 40))], repeats=2, warmup=0)
    assert all(times["median_ms"] > 0 for parts in split.values() for times in parts.values())


def test_encoded_images_are_decoded_on_the_path(systems):
    model, processor = systems["focusvit"]
    files = [jpeg(Image.fromarray(chelsea())), jpeg(Image.fromarray(chelsea()[:, ::-1]).convert("L"))]
    subjects = split_subjects(model, processor, files)
    assert list(subjects) == list(benchmark_parts.PARTS)
    subjects["decode"]()
    images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
    decoded = split_subjects(model, processor, images)
    for part in ("superpixels", "pixels_to_logits", "whole_path"):
        assert torch.equal(subjects[part](), decoded[part]()), part


def test_decoding_is_no_part_of_the_processor(systems, monkeypatch):
    """A processor may ask PIL to decode at a smaller size, which only works on what is not decoded yet."""
    model, processor = systems["dense"]
    subjects = split_subjects(model, processor, [jpeg(Image.fromarray(chelsea()))])
    monkeypatch.setattr(Image, "open", lambda *args: pytest.fail("an image was opened"))
    subjects["processor"]()


def test_the_method_as_published_is_timed_with_its_own_superpixels(tiny_model):
    model = tiny_model(superpixel_method="skimage")
    processor = FocusViTImageProcessor.from_model_config(model.config)
    image = Image.fromarray(chelsea())
    subjects = split_subjects(model, processor, [image])
    assert list(subjects) == ["processor", "superpixels", "model", "pixels_to_logits", "whole_path"]
    inputs = processor(image, return_tensors="pt")
    assert torch.equal(subjects["superpixels"](), inputs["superpixel_ids"])
    with torch.no_grad():
        expected = model(**inputs).logits
    assert torch.equal(subjects["pixels_to_logits"](), expected) and torch.equal(subjects["model"](), expected)


def test_in_half_precision_both_get_pixels_that_they_take(systems):
    image = Image.fromarray(chelsea())
    for model, processor in systems.values():
        subjects = split_subjects(model.to(torch.bfloat16), processor, [image])
        assert subjects["pixels_to_logits"]().dtype == torch.bfloat16
        # FocusViT's superpixels come from the pixels before the cast.
        assert torch.equal(subjects["whole_path"](), subjects["pixels_to_logits"]().argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["focusvit", "dense"])
def test_a_training_step_changes_the_weights_and_leaves_no_gradient(name, dtype, systems):
    model, processor = systems[name]
    step = training_step(model, processor, torch.randn(2, 3, 32, 32), dtype)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step()
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    step()


def test_a_training_step_as_published_computes_superpixels(tiny_model, monkeypatch):
    seen = []

    def fixed(image, *options):
        seen.append(image.dtype)
        return np.zeros((16, 16), dtype=np.int64)

    monkeypatch.setattr(superpixel_maps, "skimage_slic_ids", fixed)
    model = tiny_model(superpixel_method="skimage")
    processor = FocusViTImageProcessor.from_model_config(model.config)
    training_step(model, processor, torch.randn(3, 3, 32, 32))()
    assert seen == [np.uint8] * 3


@pytest.mark.parametrize("name", ["focusvit", "dense"])
def test_a_compiled_path_gives_the_same_logits(name, systems, monkeypatch):
    monkeypatch.setattr(torch, "compile", _traced(torch.compile))
    model, processor = systems[name]
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(
        forward_pass(model, processor, pixels, compiled=True)(), forward_pass(model, processor, pixels)()
    )


def _traced(compiler):
    """Tracing without a C++ compiler."""
    return lambda function, **options: compiler(function, backend="eager", **options)
