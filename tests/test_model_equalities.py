"""What must not change the answer, and what must: maps, numbering, batches, regions that are patches."""

import pytest
import torch
from skimage.data import astronaut, chelsea

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.superpixels import tile_ids


TOLERANCE = {"atol": 1e-5, "rtol": 0}
VARIANTS = [
    pytest.param({"embedding_type": embedding, "position_embedding_type": position, "superpixel_assignment": rule})
    for embedding in ("conv", "patch")
    for position in ("dynamic", "learned")
    for rule in ("soft", "hard")
]


def tiny_model(**overrides) -> FocusViTForImageClassification:
    options = {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "stem_channels": 8,
        "num_superpixels": 16,
        "num_latents": 4,
        "num_labels": 5,
        "layer_types": ["full_attention", "latent_attention", "full_attention"],
    }
    torch.manual_seed(0)
    return FocusViTForImageClassification(FocusViTConfig(**{**options, **overrides})).eval()


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def logits(model: FocusViTForImageClassification, *args, **kwargs) -> torch.Tensor:
    return model(*args, **kwargs).logits


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_numbering_of_superpixels_does_not_matter(variant: dict, pixel_values: torch.Tensor) -> None:
    model = tiny_model(**variant)
    ids = model.focusvit.compute_superpixel_ids(pixel_values)
    numbers = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        logits(model, pixel_values, numbers[ids]), logits(model, pixel_values, ids), **TOLERANCE
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_map_is_another_answer(variant: dict, pixel_values: torch.Tensor) -> None:
    model = tiny_model(**variant)
    ids = model.focusvit.compute_superpixel_ids(pixel_values)
    change = logits(model, pixel_values, ids.roll(3, dims=2)) - logits(model, pixel_values, ids)
    assert change.abs().max() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_superpixel_a_patch_is_the_dense_model(variant: dict, pixel_values: torch.Tensor) -> None:
    pooled, dense = tiny_model(**variant), tiny_model(**variant, patch_pooling="none")
    dense.load_state_dict(pooled.state_dict())
    patches = tile_ids((4, 4), 16, 16)[None].expand(3, -1, -1)
    torch.testing.assert_close(logits(pooled, pixel_values, patches), logits(dense, pixel_values), **TOLERANCE)


@pytest.mark.parametrize("variant", [{}, {"patch_pooling": "grid"}, {"patch_pooling": "none"}])
def test_a_batch_equals_its_pictures(variant: dict, pixel_values: torch.Tensor) -> None:
    model = tiny_model(**variant)
    singles = torch.cat([logits(model, picture[None]) for picture in pixel_values])
    torch.testing.assert_close(logits(model, pixel_values), singles, **TOLERANCE)


def test_two_runs_agree_to_the_bit(pixel_values: torch.Tensor) -> None:
    model = tiny_model()
    assert torch.equal(logits(model, pixel_values), logits(model, pixel_values))


@pytest.mark.parametrize("overrides", [{}, {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}])
def test_the_map_from_pixels_is_the_processors(overrides: dict) -> None:
    model = tiny_model(image_size=224, patch_size=16, num_superpixels=49, **overrides)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    inputs = processor([chelsea(), astronaut()], return_tensors="pt")
    assert torch.equal(model.focusvit.compute_superpixel_ids(inputs.pixel_values), inputs.superpixel_ids)
    assert torch.equal(logits(model, inputs.pixel_values), logits(model, **inputs))


def test_lengths_of_the_query_stream(pixel_values: torch.Tensor) -> None:
    model = tiny_model(
        num_hidden_layers=4,
        layer_types=["full_attention", "latent_attention", "full_attention", "latent_attention"],
    )
    with torch.no_grad():
        outputs = model.focusvit(pixel_values, output_hidden_states=True)
    # The input of the first layer, then what each layer gives: 1 + K, 1 + M, 1 + M + K, 1 + M.
    assert [states.shape[1] for states in outputs.hidden_states] == [17, 17, 5, 21, 5]
    assert outputs.last_hidden_state.shape == (3, 5, 32)


def test_only_latent_layers_need_latents() -> None:
    full = tiny_model(layer_types=["full_attention"] * 3)
    assert not [name for name, _ in full.named_parameters() if "latents" in name]
    assert [name for name, _ in tiny_model().named_parameters() if "latents" in name] == ["focusvit.latents"]


@pytest.mark.parametrize("area_bias", [False, True])
def test_eager_and_sdpa_agree(area_bias: bool, pixel_values: torch.Tensor) -> None:
    sdpa = tiny_model(attention_area_bias=area_bias)
    eager = tiny_model(attention_area_bias=area_bias, attn_implementation="eager")
    torch.testing.assert_close(logits(sdpa, pixel_values), logits(eager, pixel_values), **TOLERANCE)


@pytest.mark.parametrize("layers", ["full_attention", "latent_attention"])
def test_every_parameter_gets_a_gradient(layers: str, pixel_values: torch.Tensor) -> None:
    model = tiny_model(layer_types=[layers] * 3).train()
    model(pixel_values, labels=torch.tensor([0, 1, 2])).loss.backward()
    # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_compiled_without_a_break(pixel_values: torch.Tensor) -> None:
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixel_values).logits, logits(model, pixel_values), **TOLERANCE)


@pytest.mark.parametrize("size", [(32, 64), (48, 40), (8, 16)])
@pytest.mark.parametrize("position", ["dynamic", "learned"])
def test_other_resolutions(size: tuple[int, int], position: str) -> None:
    model = tiny_model(position_embedding_type=position, num_superpixels=8)
    if size == (48, 40):
        with pytest.raises(ValueError, match="nearest that can is"):
            tiny_model(num_superpixels=11)
        model.config.num_superpixels = 9
    assert logits(model, torch.zeros(2, 3, *size)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype: torch.dtype, pixel_values: torch.Tensor) -> None:
    model = tiny_model()
    ids = model.focusvit.compute_superpixel_ids(pixel_values)
    expected = logits(model, pixel_values, ids)
    found = logits(model.to(dtype), pixel_values.to(dtype), ids).float()
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(1, 1, 32, 32)}, "Expected pixel_values of shape"),
        ({"pixel_values": torch.zeros(1, 3, 33, 32)}, "patch_size=8 divides"),
        ({"pixel_values": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}, "floating point"),
        ({"superpixel_ids": torch.zeros(1, 8, 8, dtype=torch.int64)}, "Expected superpixel_ids of shape"),
        ({"superpixel_ids": torch.full((1, 16, 16), 16)}, r"in \[0, 16\)"),
        ({"superpixel_ids": torch.zeros(1, 16, 16)}, "integer superpixel_ids"),
    ],
)
def test_inputs_that_do_not_fit(change: dict, message: str) -> None:
    inputs = {"pixel_values": torch.zeros(1, 3, 32, 32), **change}
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)
