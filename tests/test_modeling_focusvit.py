"""What the model promises: what changes the answer and what does not, shapes, lengths, and input that is refused."""

import itertools
from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload
from transformers import ViTConfig, ViTForImageClassification

from focusvit_hf import FocusViTImageProcessor, cielab, embeddings, modeling_focusvit, regions, superpixels
from focusvit_hf.superpixels import slic, tile_ids
from focusvit_hf.training.elastic import ElasticSuperpixels


pytestmark = pytest.mark.usefixtures("deterministic")

FULL, LATENT = "full_attention", "latent_attention"
# Every kind of embedding, position, assignment and layer meets every other.
VARIANTS = [
    pytest.param(
        {
            "embedding_type": embedding,
            "position_embedding_type": position,
            "superpixel_assignment": assignment,
            "layer_types": layers,
        },
        id=f"{embedding}-{position}-{assignment}-{'-'.join(layer[0] for layer in layers)}",
    )
    for embedding, position, assignment, layers in itertools.product(
        ("conv", "patch"), ("dynamic", "learned"), ("soft", "hard"), ([LATENT, LATENT], [FULL, FULL], [FULL, LATENT])
    )
]
CLOSE = {"rtol": 0, "atol": 1e-5}


@torch.no_grad()
def logits(model, *args, **kwargs):
    return model(*args, **kwargs).logits


# What changes the answer and what does not.


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_map_changes_the_answer(tiny_model, pixels, ids, variant):
    model = tiny_model(**variant)
    base = logits(model, pixels, ids)
    for other in (ids.roll(1, dims=0), tile_ids((4, 4), 16, 16).expand(4, -1, -1)):
        assert ((logits(model, pixels, other) - base).abs().amax(dim=1) > 1e-3).all()


@pytest.mark.parametrize("area_bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_numbering_of_superpixels_does_not_change_the_answer(tiny_model, pixels, ids, variant, area_bias):
    model = tiny_model(**variant, attention_area_bias=area_bias)
    base = logits(model, pixels, ids)
    for order in (torch.randperm(16), torch.arange(16).flip(0)):
        torch.testing.assert_close(logits(model, pixels, order[ids]), base, **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_numbering_does_not_matter_where_every_patch_is_a_tie(tiny_model, pixels, variant):
    model = tiny_model(**variant, image_size=48, num_superpixels=25)
    pixels = torch.nn.functional.interpolate(pixels, size=48)
    # Tiles of 4.8 cells across patches of 4.
    ids = tile_ids((5, 5), 24, 24).expand(4, -1, -1)
    order = torch.randperm(25)
    torch.testing.assert_close(logits(model, pixels, order[ids]), logits(model, pixels, ids), **CLOSE)


@pytest.mark.parametrize("pooling", ["superpixel", "grid", "none"])
def test_region_ids_name_the_region_of_each_cell(tiny_model, pixels, pooling):
    model = tiny_model(patch_pooling=pooling, num_superpixels=12, image_size=48).focusvit
    pixels = torch.nn.functional.interpolate(pixels, size=(48, 32))
    ids = model.region_ids(pixels)
    if pooling == "superpixel":
        assert torch.equal(ids, model.compute_superpixel_ids(pixels))
        assert model.region_ids(pixels, ids) is ids
    else:
        layout = (4, 3) if pooling == "grid" else (6, 4)
        assert torch.equal(ids, tile_ids(layout, 24, 16).expand(4, -1, -1))
        with pytest.raises(ValueError, match="Expected no superpixel_ids"):
            model.region_ids(pixels, ids)
    assert int(ids.max()) + 1 == model.config.num_regions(48, 32)
    with pytest.raises(ValueError, match="Expected pixel_values of shape"):
        model.region_ids(pixels[0])


def test_writing_to_region_ids_leaves_the_model_alone(tiny_model, pixels):
    model = tiny_model(patch_pooling="grid")
    before = logits(model, pixels)
    model.focusvit.region_ids(pixels[:1]).add_(1)
    assert torch.equal(logits(model, pixels), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_superpixel_a_patch_is_the_dense_model(tiny_model, pixels, variant):
    dense = tiny_model(**variant, patch_pooling="none")
    model = tiny_model(**variant)
    model.load_state_dict(dense.state_dict())
    patches = tile_ids((4, 4), 16, 16).expand(4, -1, -1)
    torch.testing.assert_close(logits(model, pixels, patches), logits(dense, pixels), **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tiles_as_superpixels_are_the_grid(tiny_model, pixels, variant):
    grid = tiny_model(**variant, patch_pooling="grid", num_superpixels=9)
    model = tiny_model(**variant, num_superpixels=9)
    model.load_state_dict(grid.state_dict())
    tiles = tile_ids((3, 3), 16, 16).expand(4, -1, -1)
    torch.testing.assert_close(logits(model, pixels, tiles), logits(grid, pixels), **CLOSE)


@pytest.mark.parametrize("pooling", ["superpixel", "grid", "none"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_equals_its_singles(tiny_model, pixels, variant, pooling):
    model = tiny_model(**variant, patch_pooling=pooling)
    singles = torch.cat([logits(model, one[None]) for one in pixels])
    torch.testing.assert_close(logits(model, pixels), singles, **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_runs_are_equal_to_the_bit(tiny_model, pixels, variant):
    model = tiny_model(**variant)
    assert torch.equal(logits(model, pixels), logits(model, pixels))
    assert torch.equal(logits(tiny_model(**variant), pixels), logits(model, pixels))


@pytest.mark.parametrize("area_bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_absent_superpixel_gives_a_finite_answer(tiny_model, pixels, ids, variant, area_bias):
    model = tiny_model(**variant, attention_area_bias=area_bias)
    assert logits(model, pixels, torch.where(ids == 3, 4, ids)).isfinite().all()
    assert logits(model, pixels, torch.zeros_like(ids)).isfinite().all()


def test_with_the_area_bias_an_absent_superpixel_does_not_count(tiny_model, pixels, monkeypatch):
    model = tiny_model(attention_area_bias=True, num_superpixels=4)
    fewer = tiny_model(attention_area_bias=True, num_superpixels=2)
    halves = tile_ids((1, 2), 16, 16).expand(4, -1, -1)
    # The bias is relative to the mean area, which halves when two of four ids are absent.
    bias = modeling_focusvit.column_bias

    def halved(state, config, dtype):
        return bias(replace(state, area=state.area / 2) if state.count == 4 else state, config, dtype)

    monkeypatch.setattr(modeling_focusvit, "column_bias", halved)
    torch.testing.assert_close(logits(model, pixels, halves), logits(fewer, pixels, halves), **CLOSE)


@pytest.mark.parametrize("statistics", [{}, {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}])
@pytest.mark.parametrize("number", [49, (8, 4)])
def test_the_map_from_pixels_is_the_processors_bit_for_bit(tiny_model, photographs, statistics, number):
    model = tiny_model(image_size=224, patch_size=16, num_superpixels=number, **statistics)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    inputs = processor(list(photographs.numpy()), return_tensors="pt")
    assert torch.equal(model.focusvit.compute_superpixel_ids(inputs.pixel_values), inputs.superpixel_ids)
    assert torch.equal(inputs.superpixel_ids, slic(photographs, number))
    assert torch.equal(logits(model, **inputs), logits(model, inputs.pixel_values))


def test_the_map_of_a_half_precision_model_comes_from_its_float32_pixels(tiny_model, pixels, ids):
    model = tiny_model().to(torch.bfloat16)
    assert torch.equal(logits(model, pixels), logits(model, pixels, ids))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_superpixels_see_the_first_three_channels_or_the_first_thrice(tiny_model, small_photographs, channels):
    model = tiny_model(num_channels=channels)
    levels = torch.cat((small_photographs, small_photographs.flip(1)), dim=1)[:, :channels]
    pixels = levels.float() / 127.5 - 1
    seen = levels[:, :3] if channels == 4 else levels[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(model.focusvit.compute_superpixel_ids(pixels), slic(seen, 16, cell_size=2))
    assert logits(model, pixels).shape == (4, 5)


def test_the_dense_control_is_a_vit(tiny_model, pixels):
    torch.manual_seed(1)
    options = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    vit = ViTForImageClassification(
        ViTConfig(image_size=32, patch_size=8, num_labels=5, initializer_range=0.2, **options)
    ).eval()
    model = tiny_model(
        patch_pooling="none",
        embedding_type="patch",
        position_embedding_type="learned",
        layer_types=[FULL, FULL],
    )
    names = {
        "vit.": "focusvit.",
        "embeddings.patch_embeddings.": "embeddings.units.",
        "embeddings.position_embeddings": "embeddings.position.table",
    }
    weights = vit.state_dict()
    for old, new in names.items():
        weights = {name.replace(old, new): weight for name, weight in weights.items()}
    model.load_state_dict(weights)
    torch.testing.assert_close(logits(model, pixels), logits(vit, pixels), **CLOSE)


# Stacks of layers, and what comes out.


@pytest.mark.parametrize(
    ("layers", "lengths", "keys"),
    [
        ([FULL] * 2, [17, 17, 17], [17, 17]),
        ([LATENT] * 2, [5, 5, 5], [21, 21]),
        ([FULL, LATENT], [17, 17, 5], [17, 21]),
        ([LATENT, FULL], [5, 5, 21], [21, 21]),
        ([FULL, LATENT, FULL, LATENT], [17, 17, 5, 21, 5], [17, 21, 21, 21]),
        ([LATENT, LATENT, FULL, FULL, LATENT], [5, 5, 5, 21, 21, 5], [21] * 5),
    ],
)
def test_lengths_of_the_query_stream(tiny_model, pixels, layers, lengths, keys):
    # The input of the first layer, then what each layer gives.
    model = tiny_model(layer_types=layers, num_hidden_layers=len(layers), attn_implementation="eager").focusvit
    with torch.no_grad():
        outputs = model(pixels, output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in outputs.hidden_states] == [(4, length, 32) for length in lengths]
    expected = [(4, 4, queries, length) for queries, length in zip(lengths[1:], keys, strict=True)]
    assert [tuple(weights.shape) for weights in outputs.attentions] == expected
    for weights in outputs.attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert outputs.last_hidden_state.shape == (4, lengths[-1], 32)
    torch.testing.assert_close(outputs.last_hidden_state, model.layernorm(outputs.hidden_states[-1]))
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])


def test_the_stream_is_split_and_joined_between_layers(tiny_model, pixels):
    model = tiny_model(layer_types=[FULL, LATENT, FULL], num_hidden_layers=3).focusvit
    seen = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        outputs = model(pixels, output_hidden_states=True)
    # [class; X], then [class; latents], then [class; latents; X].
    assert [states.shape[1] for states in seen] == [17, 5, 21]
    assert torch.equal(outputs.hidden_states[0], seen[0])
    assert torch.equal(outputs.hidden_states[2], seen[2][:, :5])


def test_latent_layers_leave_the_context_as_it_is(tiny_model, pixels):
    model = tiny_model(layer_types=[LATENT, LATENT, FULL], num_hidden_layers=3).focusvit
    contexts, joined = [], []
    for layer in model.layers[:2]:
        layer.register_forward_pre_hook(lambda module, args: contexts.append(args[1]))
    model.layers[2].register_forward_pre_hook(lambda module, args: joined.append(args[0]))
    with torch.no_grad():
        model(pixels)
        _, tokens, _ = model.embeddings(pixels, model.compute_superpixel_ids(pixels))
    assert torch.equal(contexts[0], tokens)
    assert torch.equal(contexts[1], tokens)
    assert torch.equal(joined[0][:, 5:], tokens)


def test_an_all_full_model_owns_no_latents(tiny_model):
    full = tiny_model(layer_types=[FULL, FULL])
    assert not any("latents" in name or "context" in name for name in full.state_dict())
    mixed = tiny_model(layer_types=[FULL, LATENT])
    added = {name for name in mixed.state_dict() if name not in full.state_dict()}
    assert added == {
        "focusvit.latents",
        "focusvit.layers.1.layernorm_context.weight",
        "focusvit.layers.1.layernorm_context.bias",
    }


def test_the_area_bias_stands_on_the_columns_of_the_tokens(tiny_model, pixels, ids):
    layers = [FULL, LATENT, FULL]
    model = tiny_model(attention_area_bias=True, layer_types=layers, num_hidden_layers=3).focusvit
    masks = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda module, args: masks.append(args[2]))
    with torch.no_grad():
        model(pixels, ids)
    share = torch.nn.functional.one_hot(ids.flatten(1), 16).float().mean(dim=1)
    for mask, (queries, keys) in zip(masks, [(17, 17), (5, 21), (21, 21)], strict=True):
        assert mask.shape == (4, 1, queries, keys)
        assert (mask[..., :-16] == 0).all()
        expected = (16 * share).log()[:, None, None].expand(-1, 1, queries, -1)
        torch.testing.assert_close(mask[..., -16:], expected)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_the_area_bias_refuses_attention_that_takes_no_mask(tiny_model, pixels, implementation):
    model = tiny_model(attention_area_bias=True)
    model.config._attn_implementation = implementation
    with pytest.raises(ValueError, match=f"'eager' or 'sdpa' with attention_area_bias=True.*got '{implementation}'"):
        model(pixels)


def test_outputs_as_a_tuple(tiny_model, pixels):
    model = tiny_model()
    assert torch.equal(model(pixels, return_dict=False)[0], model(pixels).logits)
    loss, scores = model(pixels, labels=torch.zeros(4, dtype=torch.int64), return_dict=False)
    assert loss.shape == ()
    assert scores.shape == (4, 5)


def test_a_model_without_labels_has_no_classifier(tiny_model, pixels):
    model = tiny_model(num_labels=0)
    assert torch.equal(logits(model, pixels), model.focusvit(pixels).pooler_output)


# Other devices.


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_can_wait_elsewhere_until_their_module_is_called(tiny_model, pixels, variant):
    model = tiny_model(**variant)
    expected = logits(model, pixels)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in model.parameters())
    torch.testing.assert_close(logits(model, pixels), expected, **CLOSE)


@pytest.mark.parametrize("variant", [{"attention_area_bias": True}, {"classifier_pooling": "cls_patch_mean"}])
@pytest.mark.parametrize("layers", [[LATENT] * 3, [FULL, LATENT, FULL], [LATENT, FULL, LATENT]])
def test_layers_can_lie_on_other_devices(tiny_model, pixels, layers, variant):
    model = tiny_model(layer_types=layers, num_hidden_layers=3, **variant)
    shape = model(pixels).logits.shape
    backbone = model.focusvit
    for module in (*backbone.layers, backbone.layernorm, model.classifier):
        # Stands for a second device.
        module.to("meta")
        module.register_forward_pre_hook(
            lambda module, args: tuple(None if value is None else value.to("meta") for value in args)
        )
    outputs = model(pixels)
    assert outputs.logits.device.type == "meta"
    assert outputs.logits.shape == shape


@pytest.mark.parametrize("variant", [*VARIANTS, {"patch_pooling": "grid"}, {"patch_pooling": "none"}])
def test_a_forward_without_data(tiny_model, pixels, variant):
    model = tiny_model(**variant, attention_area_bias=True).to("meta")
    labels = torch.zeros(4, dtype=torch.int64, device="meta")
    for outputs in (model(pixels.to("meta"), labels=labels), model.train()(pixels.to("meta"), labels=labels)):
        assert outputs.logits.device.type == "meta"
        assert outputs.logits.shape == (4, 5)


# Other sizes.


@pytest.mark.parametrize("pooling", ["superpixel", "grid", "none"])
@pytest.mark.parametrize("position", ["dynamic", "learned"])
@pytest.mark.parametrize("embedding", ["conv", "patch"])
@pytest.mark.parametrize("size", [(64, 64), (48, 32), (24, 40), (16, 16)])
def test_any_resolution_that_the_patch_divides(tiny_model, size, embedding, position, pooling):
    model = tiny_model(embedding_type=embedding, position_embedding_type=position, patch_pooling=pooling)
    number = 8 if size[0] != size[1] and pooling != "none" else 16
    model.config.num_superpixels = number
    pixels = torch.randn(2, 3, *size).clamp(-1, 1)
    tokens = size[0] * size[1] // 64 if pooling == "none" else number
    shapes = []
    model.focusvit.embeddings.register_forward_hook(lambda module, args, output: shapes.append(output[1].shape))
    assert logits(model, pixels).isfinite().all()
    assert shapes == [(2, tokens, 32)]


@pytest.mark.parametrize("pooling", ["superpixel", "grid"])
@pytest.mark.parametrize("size", [(36, 28), (6, 10)])
def test_cells_need_no_patches(tiny_model, size, pooling):
    """Where nothing is made of patches of 8 pixels, images of any whole number of cells of 2 will do."""
    model = tiny_model(embedding_type="conv", patch_pooling=pooling, image_size=size, num_superpixels=6)
    pixels = torch.randn(2, 3, *size).clamp(-1, 1)
    assert logits(model, pixels).isfinite().all()
    with pytest.raises(ValueError, match="patch_size=8 divides"):
        tiny_model(embedding_type="patch", patch_pooling=pooling)(pixels)


def test_a_resolution_that_k_does_not_fit_names_one_that_does(tiny_model):
    with pytest.raises(ValueError, match="4 x 32 cells, got 25; the nearest that can is 24"):
        tiny_model(num_superpixels=25)(torch.zeros(1, 3, 8, 64))


def test_another_number_of_superpixels_needs_no_other_weights(tiny_model, pixels):
    model = tiny_model()
    base = logits(model, pixels)
    for number in (4, 9, 25, (2, 3)):
        model.config.num_superpixels = number
        changed = logits(model, pixels)
        assert changed.isfinite().all()
        assert not torch.allclose(changed, base)


# Input that is refused.


@pytest.mark.parametrize(
    ("pixel_values", "superpixel_ids", "message"),
    [
        (None, None, "Expected pixel_values, got None"),
        (torch.zeros(3, 32, 32), None, r"shape \(batch, 3, height, width\), got \(3, 32, 32\)"),
        (torch.zeros(2, 1, 32, 32), None, r"got \(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), None, "in floating point, got torch.uint8"),
        (torch.zeros(2, 3, 32, 35), None, "superpixel_cell_size=2 divides, got 32 x 35"),
        (torch.zeros(2, 3, 0, 32), None, "superpixel_cell_size=2 divides, got 0 x 32"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, 4, 4).long(), r"\(2, 16, 16\), one for each.*got \(2, 4, 4\)"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(1, 16, 16).long(), r"\(2, 16, 16\).*got \(1, 16, 16\)"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(16, 16).long(), r"got \(16, 16\)"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, 16, 16), "integer superpixel_ids, got torch.float32"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(2, 16, 16).bool(), "integer superpixel_ids, got torch.bool"),
        (torch.zeros(2, 3, 32, 32), torch.full((2, 16, 16), 16), r"in \[0, 16\), got values from 16 to 16"),
        (torch.zeros(2, 3, 32, 32), torch.full((2, 16, 16), -1), r"in \[0, 16\), got values from -1 to -1"),
    ],
)
def test_input_that_does_not_fit_is_refused(tiny_model, pixel_values, superpixel_ids, message):
    for model in (tiny_model(), tiny_model().focusvit):
        with pytest.raises(ValueError, match=message):
            model(pixel_values, superpixel_ids)


@pytest.mark.parametrize("pooling", ["grid", "none"])
def test_a_map_for_a_control_is_refused(tiny_model, pixels, ids, pooling):
    with pytest.raises(ValueError, match=f"this model pools with patch_pooling='{pooling}'"):
        tiny_model(patch_pooling=pooling)(pixels, ids)


def test_superpixels_of_scikit_image_are_the_processors_alone(tiny_model, pixels, ids):
    model = tiny_model(superpixel_method="skimage")
    for each in (model, model.focusvit):
        with pytest.raises(ValueError, match=r"that FocusViTImageProcessor returns.*superpixel_method='skimage', got"):
            each(pixels)
    assert torch.equal(logits(model, pixels, ids), logits(tiny_model(), pixels))
    with pytest.raises(ValueError, match=r"superpixel_method 'torch' to draw .* got 'skimage'"):
        ElasticSuperpixels(model.config, (4, 9))
    # The controls need no map.
    model = tiny_model(superpixel_method="skimage", patch_pooling="grid")
    assert torch.equal(logits(model, pixels), logits(tiny_model(patch_pooling="grid"), pixels))
    assert ElasticSuperpixels(model.config, (4, 9)).num_superpixels == (4, 9)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_maps_of_narrow_integers_are_taken(tiny_model, pixels, ids, dtype):
    model = tiny_model()
    assert torch.equal(logits(model, pixels, ids.to(dtype)), logits(model, pixels, ids))


# Unusual ways to run it.


@pytest.mark.parametrize("pooling", ["superpixel", "none"])
def test_an_empty_batch_is_refused(tiny_model, pixels, pooling):
    model = tiny_model(patch_pooling=pooling)
    for run in (model, model.focusvit, model.focusvit.region_ids):
        with pytest.raises(ValueError, match=r"Expected at least one image, got .* \(0, 3, 32, 32\)"):
            run(pixels[:0])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("embedding", ["conv", "patch"])
@pytest.mark.parametrize("position", ["dynamic", "learned"])
def test_quantised_linear_layers_run(tiny_model, pixels, embedding, position):
    model = tiny_model(embedding_type=embedding, position_embedding_type=position)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    difference = (logits(quantised, pixels) - logits(model, pixels)).abs().max()
    assert 0 < difference < 0.1 * logits(model, pixels).abs().max()


class OfAnotherType(torch.nn.Module):
    """A linear layer whose weights are of a type that no activation has, as those of bitsandbytes."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().max() / 127
        self.weight = torch.nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, states):
        assert states.is_floating_point()
        return torch.nn.functional.linear(states, (self.weight * self.scale).to(states.dtype), self.bias)


@pytest.mark.parametrize("position", ["dynamic", "learned"])
def test_types_follow_from_activations_and_not_from_weights(tiny_model, pixels, position):
    model = tiny_model(position_embedding_type=position)
    expected = logits(model, pixels)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear):
            model.set_submodule(name, OfAnotherType(module))
    assert (logits(model, pixels) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("pooling", ["superpixel", "grid", "none"])
def test_a_cold_model_can_be_traced(tiny_model, pixels, pooling):
    model = tiny_model(patch_pooling=pooling)
    for module in (cielab, embeddings, regions, superpixels):
        for table in vars(module).values():
            if hasattr(table, "cache_clear"):
                table.cache_clear()
    with torch.no_grad():
        traced = torch.jit.trace(model, pixels[:2], strict=False)
        found = [traced(images)["logits"] for images in (pixels[:2], pixels[2:])]
    torch.testing.assert_close(torch.cat(found), logits(model, pixels), **CLOSE)
    # Nothing of the trace is left behind.
    torch.testing.assert_close(logits(model, pixels), torch.cat(found), **CLOSE)


def test_a_map_of_fewer_superpixels_than_the_model_is_told(tiny_model, pixels, ids, caplog):
    model = tiny_model()
    modeling_focusvit.logger.warning_once.cache_clear()
    logits(model, pixels, ids)
    assert "largest id" not in caplog.text
    fewer = FocusViTImageProcessor.from_model_config(model.config, num_superpixels=9)
    inputs = fewer.process_levels((pixels / 2 + 0.5).mul(255).round())
    logits(model, **inputs)
    assert "The largest id of these superpixel_ids is 8, but the model pools to 16 superpixels" in caplog.text


# A change of each field, and what it has to be made on, to a model that differs: in its weights, in its answer in
# evaluation or training, or in the map. Fields of a size alone stand in the tests of the configuration.
CHANGES = {
    "image_size": ({"image_size": 64}, {"position_embedding_type": "learned"}),
    "patch_size": ({"patch_size": 16, "superpixel_cell_size": 2}, {"embedding_type": "patch"}),
    "num_channels": ({"num_channels": 1}, {}),
    "hidden_size": ({"hidden_size": 64}, {}),
    "num_hidden_layers": ({"num_hidden_layers": 3}, {}),
    "num_attention_heads": ({"num_attention_heads": 2}, {}),
    "intermediate_size": ({"intermediate_size": 64}, {}),
    "hidden_act": ({"hidden_act": "relu"}, {}),
    "hidden_dropout_prob": ({"hidden_dropout_prob": 0.5}, {}),
    "attention_probs_dropout_prob": ({"attention_probs_dropout_prob": 0.5}, {}),
    "drop_path_rate": ({"drop_path_rate": 0.9}, {}),
    "initializer_range": ({"initializer_range": 0.1}, {}),
    "layer_norm_eps": ({"layer_norm_eps": 0.1}, {}),
    "qkv_bias": ({"qkv_bias": False}, {}),
    "mlp_type": ({"mlp_type": "swiglu"}, {}),
    "layer_scale": ({"layer_scale": 0.5}, {}),
    "use_distillation_token": ({"use_distillation_token": True}, {}),
    "num_register_tokens": ({"num_register_tokens": 2}, {}),
    "embedding_type": ({"embedding_type": "patch"}, {}),
    "stem_channels": ({"stem_channels": 16}, {}),
    "stem_blocks": ({"stem_blocks": 1}, {}),
    "patch_pooling": ({"patch_pooling": "grid"}, {}),
    "num_superpixels": ({"num_superpixels": 9}, {}),
    "superpixel_compactness": ({"superpixel_compactness": 1.0}, {}),
    "superpixel_iterations": ({"superpixel_iterations": 1}, {}),
    "superpixel_cell_size": ({"superpixel_cell_size": 4}, {}),
    "superpixel_assignment": ({"superpixel_assignment": "hard"}, {"embedding_type": "patch"}),
    "position_embedding_type": ({"position_embedding_type": "learned"}, {}),
    "position_antialias": ({"position_antialias": True}, {"position_embedding_type": "learned", "image_size": 64}),
    "layer_types": ({"layer_types": [FULL, LATENT]}, {}),
    "num_latents": ({"num_latents": 8}, {}),
    "attention_area_bias": ({"attention_area_bias": True}, {}),
    "classifier_pooling": ({"classifier_pooling": "cls_patch_mean"}, {}),
    "image_mean": ({"image_mean": 0.4}, {}),
    "image_std": ({"image_std": 0.25}, {}),
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_something(tiny_model, pixels, field):
    change, base = CHANGES[field]

    def outcome(**overrides):
        torch.manual_seed(0)
        model = tiny_model(**{**base, **overrides})
        weights = {name: tuple(values.shape) for name, values in model.state_dict().items()}
        images = pixels[:, : model.config.num_channels]
        torch.manual_seed(0)
        with torch.no_grad():
            return weights, model.eval()(images).logits, model.train()(images).logits

    (weights, *answers), (changed_weights, *changed_answers) = outcome(), outcome(**change)
    if weights == changed_weights:
        assert any((one - other).abs().max() > 1e-6 for one, other in zip(answers, changed_answers, strict=True))
