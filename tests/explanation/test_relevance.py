"""Relevance of regions against occluding by hand, and the deletion test."""

from types import SimpleNamespace

import pytest
import torch

from blobs import ROOT
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.explanation.relevance import deletion_drop, evaluating, region_relevance, relevance_per_area
from focusvit_hf.modeling_focusvit import FocusViTModel
from focusvit_hf.superpixels import tile_ids


class SeesBrightness(torch.nn.Module):
    """A stand-in for a classifier: the logit of class 0 is the mean of a given part of the image, ten times."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        self.config = FocusViTConfig(
            image_size=32, patch_size=8, superpixel_cell_size=4, num_superpixels=16, num_hidden_layers=1, num_labels=2
        )
        self.focusvit = FocusViTModel(self.config)
        self.images = []

    def forward(self, pixel_values, superpixel_ids=None):
        self.images += pixel_values
        score = pixel_values[(..., *self.seen)].mean(dim=(1, 2, 3)) * 10
        return SimpleNamespace(logits=torch.stack((score, torch.zeros_like(score)), dim=1))


@pytest.fixture
def inputs(small_photographs, tiny_model):
    pixel_values = small_photographs[:3].float() / 127.5 - 1
    return pixel_values, tiny_model().focusvit.compute_superpixel_ids(pixel_values)


@pytest.fixture
def shipped_checkpoint():
    folder = ROOT / "model_cards" / "focusvit-nano-cifar10"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no checkpoint in {folder}")
    return folder


def test_every_module_is_as_it_was_after_evaluating(tiny_model):
    model = tiny_model().train()
    model.focusvit.embeddings.eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2


def naive_relevance(model, pixel_values, given, ids, count, target):
    result = torch.zeros(len(pixel_values), count)
    for b, pixels in enumerate(pixel_values):
        kept = {} if given is None else {"superpixel_ids": given[b : b + 1]}
        for k in range(count):
            occluded = pixels.clone()
            for row, column in (ids[b] == k).nonzero().tolist():
                occluded[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = pixels.mean(dim=(1, 2))[
                    :, None, None
                ]
            before, after = (model(p[None], **kept).logits.log_softmax(dim=1)[0, target] for p in (pixels, occluded))
            result[b, k] = before - after
    return result


@pytest.mark.parametrize("pooling", ["superpixel", "grid", "none"])
def test_relevance_equals_occluding_by_hand(pooling, inputs, tiny_model):
    model = tiny_model(patch_pooling=pooling)
    pixel_values, ids = inputs
    given = ids if pooling == "superpixel" else None
    if given is None:
        # 16 tiles or 16 patches of 8 x 8 pixels: the same regions.
        ids = tile_ids((4, 4), 16, 16).expand(3, -1, -1)
    assert torch.equal(model.focusvit.region_ids(pixel_values), ids)
    with torch.no_grad():
        expected = naive_relevance(model, pixel_values, given, ids, 16, target=3)
    relevance = region_relevance(model, pixel_values, given, target=3, batch_size=5)
    torch.testing.assert_close(relevance, expected, rtol=1e-4, atol=1e-5)
    assert relevance.std() > 1e-3
    # The map that the model computes is the processor's, and the number of images at a time does not matter.
    torch.testing.assert_close(region_relevance(model, pixel_values, target=3), expected, rtol=1e-4, atol=1e-5)


def test_relevance_is_about_the_answer_unless_told_otherwise(inputs, tiny_model):
    model, (pixel_values, ids) = tiny_model(), inputs
    answers = model(pixel_values, superpixel_ids=ids).logits.argmax(dim=1)
    expected = region_relevance(model, pixel_values, ids)
    assert torch.equal(region_relevance(model, pixel_values, ids, target=answers), expected)
    assert not torch.equal(region_relevance(model, pixel_values, ids, target=(answers + 1) % 5), expected)


def test_relevance_leaves_the_model_as_it_was(inputs, tiny_model):
    model = tiny_model(hidden_dropout_prob=0.5).train()
    first = region_relevance(model, *inputs)
    assert model.training and not first.requires_grad
    assert torch.equal(region_relevance(model.eval(), *inputs), first)
    assert not model.training


def test_relevance_finds_the_part_that_matters():
    pixel_values = torch.rand(2, 3, 32, 32)
    pixel_values[:, :, 8:16, 16:24] += 1
    ids = tile_ids((4, 4), 8, 8).expand(2, -1, -1)
    relevance = region_relevance(SeesBrightness((slice(8, 16), slice(16, 24))), pixel_values, ids, target=0)
    assert relevance.argmax(dim=1).tolist() == [6, 6]
    others = relevance[:, [k for k in range(16) if k != 6]]
    torch.testing.assert_close(others, torch.zeros_like(others))


@pytest.mark.parametrize("target", [5, -1, torch.tensor([0, 1, 7])], ids=["high", "low", "tensor"])
def test_relevance_refuses_a_target_outside_the_classes(target, inputs, tiny_model):
    with pytest.raises(ValueError, match=r"Expected a target in \[0, 5\), got"):
        region_relevance(tiny_model(), *inputs, target=target)


def test_relevance_refuses_a_batch_size_of_zero(inputs, tiny_model):
    with pytest.raises(ValueError, match="Expected batch_size >= 1, got 0"):
        region_relevance(tiny_model(), *inputs, batch_size=0)


def test_relevance_per_area():
    ids = torch.tensor([[[0, 0, 0, 1]]])
    per_area = relevance_per_area(torch.tensor([[3.0, -1.0, 5.0]]), ids)
    torch.testing.assert_close(per_area, torch.tensor([[4.0, -4.0, 0.0]]))


def test_deletion_takes_the_same_area_in_both_arms():
    pixel_values = torch.rand(2, 3, 32, 32)
    ids = torch.stack([tile_ids((4, 4), 8, 8), tile_ids((4, 4), 8, 8).T])
    model = SeesBrightness((slice(None), slice(None)))
    relevance = torch.rand(2, 16)
    deletion_drop(model, pixel_values, ids, relevance, area=0.2, draws=3)
    originals, *variants = torch.stack(model.images).unflatten(0, (-1, 2))
    assert torch.equal(originals, pixel_values) and len(variants) == 4
    for variant in variants:
        changed = (variant != pixel_values).any(dim=1)
        # 13 of 64 cells of 4 x 4 pixels.
        assert changed.sum(dim=(1, 2)).tolist() == [13 * 16] * 2
        means = pixel_values.mean(dim=(2, 3))
        for image, mask, mean in zip(variant, changed, means, strict=True):
            torch.testing.assert_close(image[:, mask], mean[:, None].expand(-1, 13 * 16))
    # Three whole regions of 4 cells, and one cell of the next.
    changed = (variants[0] != pixel_values).any(dim=1)[:, ::4, ::4]
    for b in range(2):
        sizes = torch.bincount(ids[b][changed[b]], minlength=16)
        order = relevance[b].argsort(descending=True)
        assert sizes[order[:4]].tolist() == [4, 4, 4, 1]


def test_deletion_tells_faithful_relevance_from_chance():
    pixel_values = torch.rand(4, 3, 32, 32)
    pixel_values[:, :, 8:16, 16:24] += 1
    ids = tile_ids((4, 4), 8, 8).expand(4, -1, -1)
    model = SeesBrightness((slice(8, 16), slice(16, 24)))
    relevance = relevance_per_area(region_relevance(model, pixel_values, ids, target=0), ids)
    drop = deletion_drop(model, pixel_values, ids, relevance, area=1 / 16, target=0)
    assert drop.ranked.shape == drop.random.shape == (4,)
    assert (drop.ranked > drop.random + 0.001).all()
    reversed_drop = deletion_drop(model, pixel_values, ids, -relevance, area=1 / 16, target=0)
    torch.testing.assert_close(reversed_drop.ranked, torch.zeros(4))


def test_deletion_of_nothing_and_of_everything(inputs, tiny_model):
    relevance = torch.rand(3, 16)
    nothing = deletion_drop(tiny_model(), *inputs, relevance, area=0.0)
    assert nothing.ranked.tolist() == nothing.random.tolist() == [0, 0, 0]
    everything = deletion_drop(tiny_model(), *inputs, relevance, area=1.0)
    torch.testing.assert_close(everything.ranked, everything.random)


def test_deletion_is_repeatable_and_works_without_a_map(inputs, tiny_model):
    model, (pixel_values, ids) = tiny_model(), inputs
    relevance = region_relevance(model, pixel_values, ids)
    first = deletion_drop(model, pixel_values, ids, relevance)
    assert torch.equal(deletion_drop(model, pixel_values, None, relevance).random, first.random)
    assert not torch.equal(deletion_drop(model, pixel_values, ids, relevance, seed=1).random, first.random)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": 1.5}, "Expected area in 0..1"),
        ({"draws": 0}, "draws >= 1"),
        ({"relevance": torch.zeros(3, 15)}, r"Expected relevance of shape \(3, 16\), got \(3, 15\)"),
    ],
    ids=["area", "draws", "relevance"],
)
def test_deletion_refuses_bad_values(options, message, inputs, tiny_model):
    with pytest.raises(ValueError, match=message):
        deletion_drop(tiny_model(), *inputs, **{"relevance": torch.zeros(3, 16), **options})


def test_shipped_checkpoint_rests_its_answers_on_the_regions_it_ranks_highest(data_dir, shipped_checkpoint):
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    files = str(data_dir / "cifar10" / "test-*.parquet")
    images = load_dataset("parquet", data_files=files, split="train[:100]").cast_column("image", ImageFeature())
    model = FocusViTForImageClassification.from_pretrained(shipped_checkpoint)
    processor = FocusViTImageProcessor.from_pretrained(shipped_checkpoint)
    inputs = processor(images["image"][:], return_tensors="pt")
    relevance = relevance_per_area(region_relevance(model, **inputs), inputs["superpixel_ids"])
    drop = deletion_drop(model, **inputs, relevance=relevance, area=0.2)
    # Twice the drop, and a paired difference three standard errors above zero.
    difference = drop.ranked - drop.random
    assert drop.ranked.mean() > 2 * drop.random.mean()
    assert difference.mean() > 3 * difference.std() / 10
