"""Dense outputs: the head against a plain loop, the backbone's maps, labels that are refused, graphs, the pipeline."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModelForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from focusvit_hf import FocusViTBackbone, FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.superpixels import tile_ids


FULL, LATENT = "full_attention", "latent_attention"
CLOSE = {"rtol": 0, "atol": 1e-5}
VARIANTS = [
    pytest.param(options, id=name)
    for name, options in {
        "latent": {},
        "full": {"layer_types": [FULL, FULL]},
        "latent-full": {"layer_types": [LATENT, FULL]},
        "full-latent": {"layer_types": [FULL, LATENT], "layer_scale": 0.5},
        "token-alone": {"segmentation_cell_features": False},
        "mixing": {"segmentation_kernel_size": 3},
        "grid": {"patch_pooling": "grid", "num_superpixels": 9},
        "grid-bilinear": {"patch_pooling": "grid", "num_superpixels": 9, "segmentation_lay_back": "bilinear"},
        "patches": {"patch_pooling": "none", "embedding_type": "patch", "segmentation_lay_back": "bilinear"},
        "pooling-at-depth": {"pooling_layer": 1, "layer_types": [FULL, LATENT], "num_superpixels": 4},
    }.items()
]


@pytest.fixture
def segmenter(tiny_config):
    """A function from overrides of a tiny configuration to a segmentation model in evaluation mode."""

    def make(**overrides):
        torch.manual_seed(0)
        return FocusViTForSemanticSegmentation(tiny_config(**overrides)).eval()

    return make


def by_a_plain_loop(model, pixels):
    """The logits, a cell at a time, from what the encoder says of tokens and cells."""
    config, head = model.config, model.segmentation_head
    outputs = model.focusvit(pixels, output_stages=True)
    tokens, latents, ids = outputs.token_stages[-1]
    if latents is not None:
        tokens = model.reading(tokens, latents)
    tokens = model.focusvit.layernorm(tokens)
    rows, columns = ids.shape[-2:]
    hidden = torch.zeros(len(pixels), config.segmentation_hidden_size, rows, columns)
    layout = config.region_layout(*pixels.shape[-2:])
    for image in range(len(pixels)):
        for row in range(rows):
            for column in range(columns):
                token = tokens[image, ids[image if len(ids) > 1 else 0, row, column]]
                if config.segmentation_lay_back == "bilinear":
                    token = between_tiles(tokens[image].unflatten(0, layout), row, column, rows, columns)
                value = head.token_projection(token)
                if config.uses_cell_features:
                    value = value + head.cell_projection(outputs.units[image, row * columns + column])
                hidden[image, :, row, column] = value
    if head.mixing is not None:
        hidden = hidden + head.mixing(hidden)
    return nn.functional.conv2d(hidden.relu(), head.classifier.weight[:, :, None, None], head.classifier.bias)


def between_tiles(tiles, row, column, rows, columns):
    places = []
    for place, count, number in ((row, rows, tiles.shape[0]), (column, columns, tiles.shape[1])):
        centre = min(max((place + 0.5) * number / count - 0.5, 0), number - 1)
        low = min(int(centre), number - 1)
        places.append((low, min(low + 1, number - 1), centre - low))
    (top, bottom, y), (left, right, x) = places
    upper = tiles[top, left] * (1 - x) + tiles[top, right] * x
    return upper * (1 - y) + (tiles[bottom, left] * (1 - x) + tiles[bottom, right] * x) * y


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_head_is_a_plain_loop_over_the_cells(segmenter, pixels, variant):
    model = segmenter(**variant)
    outputs = model(pixels[:2])
    torch.testing.assert_close(outputs.logits, by_a_plain_loop(model, pixels[:2]), rtol=0, atol=1e-4)
    assert torch.equal(outputs.superpixel_ids, model.focusvit.region_ids(pixels[:2]))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_map_of_a_batch_is_that_of_its_singles(segmenter, pixels, variant):
    model = segmenter(**variant)
    singles = torch.cat([model(one[None]).logits for one in pixels])
    torch.testing.assert_close(model(pixels).logits, singles, **CLOSE)


@torch.no_grad()
def test_the_map_changes_the_answer_and_its_numbering_does_not(segmenter, pixels, ids):
    model = segmenter()
    base = model(pixels, ids).logits
    torch.testing.assert_close(model(pixels, torch.randperm(16)[ids]).logits, base, **CLOSE)
    assert (model(pixels, ids.roll(1, dims=0)).logits - base).abs().amax() > 1e-3


@torch.no_grad()
def test_a_mirrored_image_with_a_mirrored_map_has_mirrored_classes(segmenter, pixels, ids):
    # Without positions and with a symmetric stem nothing in the model knows left from right.
    model = segmenter(segmentation_kernel_size=3)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    units, position = model.focusvit.embeddings.units, model.focusvit.embeddings.position
    for parameter in [*units.position.parameters(), *position.parameters()]:
        parameter.zero_()
    mirrored = model(pixels.flip(-1), ids.flip(-1)).logits.flip(-1)
    torch.testing.assert_close(mirrored, model(pixels, ids).logits, **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_learns_and_ignored_pixels_do_not_count(segmenter, pixels, variant):
    model = segmenter(**variant).train()
    labels = torch.randint(5, (4, 32, 32))
    labels[:, :, 16:] = 255
    loss = model(pixels, labels=labels).loss
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    model.eval()
    with torch.no_grad():
        outputs = model(pixels, labels=labels)
        wide = nn.functional.interpolate(outputs.logits, (32, 32), mode="bilinear")[..., :16]
        expected = nn.functional.cross_entropy(wide, labels[..., :16])
        torch.testing.assert_close(outputs.loss, expected)
        model.config.semantic_loss_ignore_index = 7
        torch.testing.assert_close(model(pixels, labels=labels.where(labels < 255, 7)).loss, expected)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(4, 16, 16, dtype=torch.long), r"Expected labels of shape \(4, 32, 32\).*got \(4, 16, 16\)"),
        (torch.zeros(3, 32, 32, dtype=torch.long), r"Expected labels of shape \(4, 32, 32\)"),
        (torch.zeros(4, 32, 32), "Expected labels of type torch.int64, got torch.float32"),
        (torch.full((4, 32, 32), 5), r"Expected labels in \[0, 5\).*got \[5\]"),
        (torch.full((4, 32, 32), -1), r"Expected labels in \[0, 5\).*got \[-1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(segmenter, pixels, labels, message):
    with pytest.raises(ValueError, match=message):
        segmenter()(pixels, labels=labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segmentation_cell_features": True, "embedding_type": "patch"}, "Expected embedding_type='conv'"),
        ({"segmentation_kernel_size": 2}, "Expected an odd segmentation_kernel_size"),
        ({"segmentation_kernel_size": -1}, "Expected an odd segmentation_kernel_size"),
        ({"segmentation_hidden_size": 0}, "segmentation_hidden_size"),
        ({"segmentation_lay_back": "cubic"}, "Expected segmentation_lay_back to be one of"),
        ({"segmentation_lay_back": "bilinear"}, "Expected patch_pooling 'grid' or 'none'"),
        ({"out_features": ["stage3"]}, "stage3"),
        ({"out_indices": [5]}, "out_indices"),
        ({"out_feature": ["stage2"]}, "out_features"),
    ],
)
def test_options_that_do_not_fit_are_refused(tiny_config, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


@pytest.mark.parametrize("kind", [FocusViTForSemanticSegmentation, FocusViTBackbone])
def test_dense_outputs_keep_all_tokens(tiny_config, kind):
    config = tiny_config(sparsification_layers=[1], layer_types=[FULL, FULL])
    with pytest.raises(ValueError, match=rf"Expected no sparsification_layers in {kind.__name__}"):
        kind(config)


def test_a_model_without_classes_is_refused(tiny_config):
    with pytest.raises(ValueError, match="Expected num_labels >= 1"):
        FocusViTForSemanticSegmentation(tiny_config(num_labels=0))


# The backbone.


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_feature_maps_are_tokens_laid_back(tiny_config, pixels, variant):
    torch.manual_seed(0)
    backbone = FocusViTBackbone(tiny_config(**variant, out_indices=[0, 1, 2])).eval()
    outputs = backbone(pixels[:2], output_hidden_states=True)
    states = outputs.hidden_states
    stages = backbone.focusvit(pixels[:2], output_stages=True).token_stages
    assert [tuple(map.shape) for map in outputs.feature_maps] == [(2, 32, 16, 16)] * 3
    for index, (map, stage) in enumerate(zip(outputs.feature_maps, stages, strict=True)):
        tokens, latents, ids = stage
        if latents is not None:
            assert torch.equal(latents, states[index])
            tokens = backbone.reading(tokens, latents)
        elif LATENT not in backbone.config.layer_types:
            assert torch.equal(tokens, states[index][:, -tokens.shape[1] :])
        tokens = backbone.focusvit.layernorm(tokens)
        for image, row, column in [(0, 0, 0), (0, 7, 3), (1, 15, 9)]:
            region = ids[image if len(ids) > 1 else 0, row, column]
            torch.testing.assert_close(map[image, :, row, column], tokens[image, region], **CLOSE)


@torch.no_grad()
def test_before_pooling_at_depth_a_stage_is_made_of_patches(tiny_config, pixels):
    config = tiny_config(pooling_layer=1, layer_types=[FULL, FULL], num_superpixels=4)
    stages = FocusViTBackbone(config).eval().focusvit(pixels, output_stages=True).token_stages
    assert [stage.tokens.shape[1] for stage in stages] == [16, 16, 4]
    assert torch.equal(stages[1].region_ids, tile_ids((4, 4), 16, 16)[None])


def test_the_backbone_is_found_and_begins_from_a_classifier(tiny_model, tmp_path, pixels):
    classifier = tiny_model(layer_types=[FULL, FULL])
    classifier.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, out_indices=[1, 2])
    assert config.out_features == ["stage1", "stage2"]
    backbone = AutoBackbone.from_config(config).eval()
    assert type(backbone) is FocusViTBackbone
    assert backbone.channels == [32, 32]
    loaded, report = FocusViTBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        stages = classifier.focusvit(pixels, output_stages=True).token_stages
        outputs = loaded.eval()(pixels)
    tokens = classifier.focusvit.layernorm(stages[-1].tokens)
    torch.testing.assert_close(
        outputs.feature_maps[0][:, :, 0, 0], tokens[torch.arange(4), stages[-1].region_ids[:, 0, 0]]
    )


def test_stored_features_follow_another_number_of_layers(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, num_hidden_layers=1, layer_types=[FULL])
    assert config.out_features == ["stage1"]
    assert AutoConfig.from_pretrained(tmp_path, out_features=["stem"]).out_indices == [0]


# As other models are used.


@torch.no_grad()
def test_what_dense_outputs_need_costs_a_classifier_nothing_and_changes_nothing(tiny_model, pixels):
    model = tiny_model()
    outputs = model.focusvit(pixels)
    assert outputs.token_stages is None
    assert outputs.units is None
    asked = model.focusvit(pixels, output_stages=True)
    assert torch.equal(asked.last_hidden_state, outputs.last_hidden_state)
    assert asked.units.shape == (4, 256, 8)


@torch.no_grad()
def test_a_saved_model_answers_as_before(segmenter, pixels, tmp_path):
    model = segmenter()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert type(loaded) is FocusViTForSemanticSegmentation
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)


@torch.no_grad()
def test_a_compiled_and_an_exported_graph_answer_as_the_model(segmenter, pixels, ids):
    model = segmenter(num_hidden_layers=1)
    expected = model(pixels, ids).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(pixels, ids).logits, expected, **CLOSE)
    program = torch.export.export(model, (pixels, ids))
    torch.testing.assert_close(program.module()(pixels, ids).logits, expected, **CLOSE)


class LabelMap(nn.Module):
    """From the image to the class of each cell, in one graph."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits.argmax(dim=1)


@torch.no_grad()
def test_one_onnx_graph_leads_from_the_image_to_its_label_map(segmenter, pixels, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model = LabelMap(segmenter(num_hidden_layers=1, superpixel_iterations=1)).eval()
    path = tmp_path / "segmenter.onnx"
    torch.onnx.export(model, (pixels[:1],), path, dynamo=True, input_names=["pixel_values"], verbose=False)
    session = onnxruntime.InferenceSession(path)
    labels = session.run(None, {"pixel_values": pixels[:1].numpy()})[0]
    assert np.array_equal(labels, model(pixels[:1]).numpy())


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_pipeline_gives_masks_that_cover_each_image(segmenter, photographs, tmp_path, batch_size, caplog):
    model = segmenter(num_labels=3, initializer_range=0.5)
    model.save_pretrained(tmp_path)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    processor.save_pretrained(tmp_path)
    images = [
        Image.fromarray(one).resize((50 + 9 * i, 70 - 5 * i))
        for i, one in enumerate(photographs.permute(0, 2, 3, 1).numpy())
    ]
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        segment = pipeline("image-segmentation", model=str(tmp_path))
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for image, answer in zip(images, segment(images, batch_size=batch_size), strict=True):
        masks = np.stack([np.asarray(one["mask"]) for one in answer])
        assert masks.shape[1:] == (image.height, image.width)
        # Each pixel lies in exactly one mask.
        assert ((masks == 255).sum(axis=0) == 1).all()
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        (expected,) = processor.post_process_semantic_segmentation(outputs, [(image.height, image.width)])
        for one, mask in zip(answer, masks, strict=True):
            assert np.array_equal(mask == 255, expected.numpy() == model.config.label2id[one["label"]])


def test_the_backbone_works_under_another_model_s_head(tiny_config, pixels):
    backbone = tiny_config(num_hidden_layers=4, layer_types=[FULL] * 2 + [LATENT] * 2, out_indices=[1, 2, 3, 4])
    options = {"hidden_size": 16, "num_labels": 3, "auxiliary_in_channels": 32, "auxiliary_channels": 8}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, pool_scales=[1, 2], **options))
    outputs = model(pixels, labels=torch.randint(3, (4, 32, 32)))
    assert outputs.logits.shape == (4, 3, 32, 32)
    outputs.loss.backward()
    assert model.backbone.reading.attention.q_proj.weight.grad.abs().sum() > 0
