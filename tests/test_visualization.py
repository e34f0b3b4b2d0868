from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.superpixels import tile_ids
from focusvit_hf.visualization import (
    Box,
    cells_to_pixels,
    covered_box,
    deletion_drop,
    evaluating,
    heat_map,
    lay_back,
    region_relevance,
    regions,
    relevance_per_area,
    superpixel_boundaries,
)


class SeesBrightness(torch.nn.Module):
    """A stand-in for a classifier: the logit of class 0 is the mean of a given part of the picture, ten times."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        self.config = FocusViTConfig(image_size=32, patch_size=8, num_superpixels=16, num_labels=2)
        self.pictures = []

    def forward(self, pixel_values, superpixel_ids=None):
        self.pictures += pixel_values
        score = pixel_values[(..., *self.seen)].mean(dim=(1, 2, 3)) * 10
        return SimpleNamespace(logits=torch.stack((score, torch.zeros_like(score)), dim=1))


@pytest.fixture
def inputs(small_photographs, tiny_model):
    pixel_values = small_photographs[:3].float() / 127.5 - 1
    return pixel_values, tiny_model().focusvit.compute_superpixel_ids(pixel_values)


@pytest.fixture
def shipped_checkpoint():
    folder = Path(__file__).resolve().parents[1] / "model_cards" / "focusvit-nano-cifar10"
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no checkpoint in {folder}")
    return folder


def naive_lay_back(values, ids, size, box):
    result = torch.zeros(values.shape[0], values.shape[2], *size)
    for b in range(values.shape[0]):
        for y in range(size[0]):
            for x in range(size[1]):
                row = int(np.floor((y + 0.5 - box.top) / (box.bottom - box.top) * ids.shape[1]))
                column = int(np.floor((x + 0.5 - box.left) / (box.right - box.left) * ids.shape[2]))
                if (
                    0 <= row < ids.shape[1]
                    and 0 <= column < ids.shape[2]
                    and 0 <= ids[b, row, column] < len(values[b])
                ):
                    result[b, :, y, x] = values[b, ids[b, row, column]]
    return result


@pytest.mark.parametrize("size", [(8, 10), (13, 9), (4, 3), (40, 40)], ids=str)
@pytest.mark.parametrize("box", [None, Box(1.5, -2, 7, 8.25)], ids=["whole", "part"])
def test_lay_back_equals_loops(size, box):
    values = torch.randn(2, 6, 3)
    # 6 and -1 belong to nobody.
    ids = torch.randint(-1, 7, (2, 4, 5))
    expected = naive_lay_back(values, ids, size, box or Box(0, 0, *size))
    torch.testing.assert_close(lay_back(values, ids, size, box), expected, rtol=0, atol=0)
    torch.testing.assert_close(lay_back(values[..., 0], ids, size, box), expected[:, 0], rtol=0, atol=0)


def test_lay_back_takes_one_map_for_all():
    values, ids = torch.randn(3, 4), tile_ids((2, 2), 4, 4)[None]
    assert torch.equal(lay_back(values, ids, (8, 8)), lay_back(values, ids.expand(3, -1, -1), (8, 8)))


def test_lay_back_keeps_integers_and_passes_gradients():
    ids = tile_ids((2, 2), 4, 4)[None]
    assert lay_back(torch.arange(4)[None], ids, (4, 4)).dtype == torch.int64
    values = torch.randn(1, 4, requires_grad=True)
    lay_back(values, ids, (6, 6)).sum().backward()
    assert values.grad.tolist() == [[9, 9, 9, 9]]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_head_trains_through_lay_back(mode):
    # 4 and -1 belong to nobody; part of the map lies outside the result.
    ids = torch.randint(-1, 5, (2, 3, 4))
    values = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: lay_back(v, ids, (7, 6), Box(-1, 1, 6.5, 5), mode), values)


def test_every_module_is_as_it_was_after_evaluating(tiny_model):
    model = tiny_model().train()
    model.focusvit.embeddings.eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2


def test_regions_belong_to_who_asked_for_them(tiny_model, pixels):
    model = tiny_model(patch_pooling="grid")
    with torch.no_grad():
        before = model(pixels).logits
        found = regions(model, pixels[:1])
        found += 1
        assert torch.equal(model(pixels).logits, before)


def test_gradients_of_lay_back_are_sums_over_a_regions_pixels(ids):
    values = torch.randn(4, 16, requires_grad=True)
    upstream = torch.randn(4, 32, 32)
    lay_back(values, ids, (32, 32)).backward(upstream)
    pixel_ids = ids.repeat_interleave(2, 1).repeat_interleave(2, 2)
    owned = pixel_ids[:, None] == torch.arange(16)[:, None, None]
    torch.testing.assert_close(values.grad, (owned * upstream[:, None]).sum(dim=(2, 3)))


@pytest.mark.parametrize("size", [(8, 10), (13, 9), (3, 2), (4, 5)], ids=str)
def test_bilinear_equals_interpolation_by_the_library(size):
    cells = torch.randn(2, 3, 4, 5)
    expected = torch.nn.functional.interpolate(cells, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(cells_to_pixels(cells, size, mode="bilinear"), expected)
    values, ids = torch.randn(2, 6, 3), torch.randint(0, 6, (2, 4, 5))
    laid = lay_back(values, ids, (4, 5))
    expected = torch.nn.functional.interpolate(laid, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(lay_back(values, ids, size, mode="bilinear"), expected)
    torch.testing.assert_close(lay_back(values[..., 0], ids, size, mode="bilinear"), expected[:, 0])


def test_bilinear_in_a_box_is_the_whole_cut_out():
    cells = torch.rand(4, 4)
    whole = cells_to_pixels(cells, (16, 16), mode="bilinear")
    part = cells_to_pixels(cells, (8, 10), Box(-4, -2, 12, 14), mode="bilinear")
    torch.testing.assert_close(part, whole[4:12, 2:12])
    padded = cells_to_pixels(cells, (20, 20), Box(2, 3, 18, 19), fill=-1, mode="bilinear")
    torch.testing.assert_close(padded[2:18, 3:19], whole)
    assert (padded == -1).sum() == 400 - 256


def test_modes_of_lay_back_are_checked():
    ids = tile_ids((2, 2), 4, 4)[None]
    with pytest.raises(ValueError, match=r"Expected mode to be one of \('nearest', 'bilinear'\), got 'cubic'"):
        lay_back(torch.zeros(1, 4), ids, (4, 4), mode="cubic")
    with pytest.raises(ValueError, match=r"Expected floating-point cells .* got torch\.int64"):
        lay_back(torch.arange(4)[None], ids, (4, 4), mode="bilinear")


@pytest.mark.parametrize(
    ("values", "ids"), [((2, 4), (3, 4, 4)), ((4,), (1, 4, 4)), ((2, 4), (4, 4))], ids=["batch", "values", "map"]
)
def test_lay_back_refuses_shapes_that_do_not_fit(values, ids):
    with pytest.raises(ValueError, match=r"Expected values of shape .* got"):
        lay_back(torch.zeros(values), torch.zeros(ids, dtype=torch.int64), (8, 8))


def test_cells_to_pixels_fills_outside_the_box():
    cells = torch.ones(2, 2, dtype=torch.bool)
    assert cells_to_pixels(cells, (4, 4), Box(0, 0, 2, 4)).tolist() == [[True] * 4] * 2 + [[False] * 4] * 2
    assert cells_to_pixels(torch.zeros(2, 2), (2, 2), Box(0, 0, 1, 2), fill=-1).tolist() == [[0, 0], [-1, -1]]


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 40, "width": 51}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 64, "width": 80}},
        {"size": {"height": 25, "width": 50}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    ],
    ids=["resize", "crop", "odd crop", "crop without resize", "crop that pads"],
)
def test_covered_box_lays_the_processed_picture_on_the_photograph(options):
    rows, columns = np.mgrid[0:90, 0:130]
    photograph = np.stack((rows, columns, np.full_like(rows, 255)), axis=-1).astype(np.uint8)
    processor = FocusViTImageProcessor(do_superpixels=False, do_normalize=False, **options)
    processed = processor(photograph, return_tensors="pt").pixel_values[0] * 255
    laid = cells_to_pixels(processed, (90, 130), covered_box(processor, 90, 130), fill=-1).numpy()
    # Blue is 255 in the photograph, 0 in padding.
    inside = laid[2] >= 254
    assert inside.mean() > 0.2
    # The picture is a slope: a pixel's value tells where it came from. A shift of one pixel of the processed picture,
    # 1 to 3.6 of the photograph's, would show in the mean.
    for channel, coordinate in zip(laid[:2], (rows, columns), strict=True):
        assert np.abs(channel - coordinate)[inside].max() <= 4
        assert np.abs((channel - coordinate)[inside].mean()) < 0.4


def test_boundaries_run_where_the_superpixel_changes_and_nowhere_else():
    photograph = Image.new("L", (300, 200), 90)
    ids = torch.tensor([[0, 0, 1], [0, 0, 1]])
    drawn = np.asarray(superpixel_boundaries(photograph, ids, thickness=3))
    assert drawn.shape == (200, 300, 3)
    changed = (drawn != 90).any(axis=-1)
    # The line of 3 pixels and the dark ones of 2 beside it, along the whole border.
    assert np.flatnonzero(changed.any(axis=0)).tolist() == list(range(197, 204))
    assert changed[:, 197:204].all()
    assert (drawn[:, 199:202] == (255, 214, 0)).all() and (drawn[:, [197, 198, 202, 203]] == 0).all()
    assert set(np.asarray(photograph).ravel()) == {90}


def test_boundaries_grow_with_the_photograph_and_stay_in_the_box():
    ids = torch.tensor([[0], [1]])
    widths = []
    for side in (100, 900):
        photograph = Image.new("RGB", (side, side))
        drawn = np.asarray(superpixel_boundaries(photograph, ids, Box(0, 0, side / 2, side)))
        lines = np.flatnonzero((drawn == (255, 214, 0)).all(axis=-1).all(axis=1))
        assert abs(lines.mean() - side / 4) <= 1
        widths.append(len(lines))
    assert widths == [1, 6]


def test_boundaries_of_one_superpixel_leave_the_photograph_alone():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    drawn = superpixel_boundaries(photograph, torch.zeros(4, 4, dtype=torch.int64))
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(photograph))


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
    assert torch.equal(regions(model, pixel_values), ids)
    with torch.no_grad():
        expected = naive_relevance(model, pixel_values, given, ids, 16, target=3)
    relevance = region_relevance(model, pixel_values, given, target=3, batch_size=5)
    torch.testing.assert_close(relevance, expected, rtol=1e-4, atol=1e-5)
    assert relevance.std() > 1e-3
    # The map that the model computes is the processor's, and the number of pictures at a time does not matter.
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
    originals, *variants = torch.stack(model.pictures).unflatten(0, (-1, 2))
    assert torch.equal(originals, pixel_values) and len(variants) == 4
    for variant in variants:
        changed = (variant != pixel_values).any(dim=1)
        # 13 of 64 cells of 4 x 4 pixels.
        assert changed.sum(dim=(1, 2)).tolist() == [13 * 16] * 2
        means = pixel_values.mean(dim=(2, 3))
        for picture, mask, mean in zip(variant, changed, means, strict=True):
            torch.testing.assert_close(picture[:, mask], mean[:, None].expand(-1, 13 * 16))
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


def test_heat_map_is_hot_where_relevance_is_and_grey_where_it_is_not():
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    ids = torch.tensor([[0, 1], [2, 3]])
    drawn = np.asarray(heat_map(photograph, torch.tensor([0.0, 2.0, -1.0, 1.0]), ids)).astype(int)
    assert drawn.shape == (60, 80, 3)
    quarters = {0: drawn[:30, :40], 1: drawn[:30, 40:], 2: drawn[30:, :40], 3: drawn[30:, 40:]}
    for cold in (0, 2):
        assert np.ptp(quarters[cold], axis=-1).max() <= 1
    redness = {k: (quarter[..., 0] - quarter[..., 2]).mean() for k, quarter in quarters.items()}
    assert min(redness[1], redness[3]) > 50
    assert quarters[1].mean() > quarters[3].mean() > quarters[0].mean()


def test_heat_map_of_no_relevance_and_outside_the_box_is_grey():
    photograph = Image.new("RGB", (40, 40), (200, 30, 90))
    grey = np.asarray(heat_map(photograph, torch.full((4,), -1.0), tile_ids((2, 2), 4, 4)))
    assert np.ptp(grey, axis=-1).max() == 0
    boxed = np.asarray(heat_map(photograph, torch.ones(4), tile_ids((2, 2), 4, 4), Box(10, 10, 30, 30)))
    assert np.ptp(boxed[10:30, 10:30], axis=-1).min() > 50
    assert np.ptp(boxed[:10], axis=-1).max() == np.ptp(boxed[:, 30:], axis=-1).max() == 0


def test_shipped_checkpoint_rests_its_answers_on_the_regions_it_ranks_highest(data_dir, shipped_checkpoint):
    from datasets import Image as ImageFeature
    from datasets import load_dataset

    files = str(data_dir / "cifar10" / "test-*.parquet")
    pictures = load_dataset("parquet", data_files=files, split="train[:100]").cast_column("image", ImageFeature())
    model = FocusViTForImageClassification.from_pretrained(shipped_checkpoint)
    processor = FocusViTImageProcessor.from_pretrained(shipped_checkpoint)
    inputs = processor(pictures["image"][:], return_tensors="pt")
    relevance = relevance_per_area(region_relevance(model, **inputs), inputs["superpixel_ids"])
    drop = deletion_drop(model, **inputs, relevance=relevance, area=0.2)
    # Twice the drop, and a paired difference three standard errors above zero.
    difference = drop.ranked - drop.random
    assert drop.ranked.mean() > 2 * drop.random.mean()
    assert difference.mean() > 3 * difference.std() / 10
