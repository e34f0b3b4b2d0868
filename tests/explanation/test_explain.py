"""One look at an image gives its classes, its regions and what the answer rests on."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.explanation import draw_sheet, explain, predict
from focusvit_hf.explanation.overlays import draw_kept
from focusvit_hf.lay_back import Box


@pytest.fixture
def photograph():
    return Image.fromarray(chelsea())


@pytest.fixture
def system(tiny_model):
    def make(processor_options=None, **overrides):
        model = tiny_model(**overrides)
        return model, FocusViTImageProcessor.from_model_config(model.config, **(processor_options or {}))

    return make


def counted(monkeypatch, owner, name):
    """The calls of a method, which still does its work."""
    calls, method = [], getattr(owner, name)

    def call(self, *args, **kwargs):
        calls.append(args)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize(
    ("pooling", "name"), [("superpixel", "superpixels"), ("grid", "tiles of a grid"), ("none", "patches")]
)
def test_an_explanation_holds_what_model_and_processor_say(pooling, name, photograph, system):
    model, processor = system(patch_pooling=pooling)
    explanation = explain(model, processor, photograph)
    inputs = processor(photograph, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits.softmax(dim=1)[0]
    torch.testing.assert_close(explanation.probabilities, expected)
    assert explanation.target == explanation.answer == int(expected.argmax())
    ranked = explanation.ranked(2)
    assert ranked["labels"][0] == f"LABEL_{explanation.answer}" and len(ranked["scores"]) == 2
    assert ranked["scores"] == pytest.approx(sorted(expected.tolist(), reverse=True)[:2])
    assert (explanation.num_regions, explanation.region_name) == (16, name)
    assert torch.equal(explanation.region_ids, model.focusvit.region_ids(**inputs)[0])
    assert explanation.box == Box(0, 0, 300, 451)
    assert explanation.region_map().shape == explanation.heat().shape == (300, 451)
    assert set(explanation.region_map().unique().tolist()) == set(range(16))
    assert explanation.relevance.shape == (16, 16) and explanation.relevance.std() > 0
    assert explanation.heat().min() >= 0 and explanation.heat().max() == 1


def test_an_image_is_prepared_once_and_seen_whole_once(photograph, system, monkeypatch):
    model, processor = system()
    prepared = counted(monkeypatch, FocusViTImageProcessor, "__call__")
    seen = counted(monkeypatch, type(model), "forward")
    seen_batches = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen_batches.append(len(args[0])), with_kwargs=True)
    explain(model, processor, photograph, batch_size=1000)
    assert len(prepared) == 1 and len(seen) == 5
    # Once whole; then in 16, 25, 49 and 100 pieces, one hidden at a time.
    assert seen_batches == [1, 16, 25, 49, 100]


def test_images_of_one_size_go_through_the_model_together_and_answer_as_alone(photograph, system):
    model, processor = system()
    images = [photograph, photograph.rotate(90), photograph.convert("L")]
    batches = []
    model.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    together = predict(model, processor, images)
    assert batches == [3]
    for image, found in zip(images, together, strict=True):
        [alone] = predict(model, processor, [image])
        torch.testing.assert_close(found.probabilities, alone.probabilities, rtol=1e-4, atol=1e-6)
        assert torch.equal(found.region_ids, alone.region_ids)
    assert len({found.probabilities for found in together}) == 3
    # Images that stay of several sizes go one by one.
    model, processor = system({"do_resize": False})
    sizes = [Image.new("RGB", (32, 32)), Image.new("RGB", (64, 32), (200, 0, 0))]
    assert [found.region_ids.shape for found in predict(model, processor, sizes)] == [(16, 16), (16, 32)]
    assert predict(model, processor, []) == []


def test_the_class_in_question_can_be_another_one(photograph, system):
    model, processor = system()
    own = explain(model, processor, photograph)
    other = explain(model, processor, photograph, target=(own.answer + 1) % 5)
    assert other.answer == own.answer != other.target
    assert not torch.equal(own.relevance, other.relevance)
    assert torch.equal(
        explain(model, processor, photograph, target=own.answer, batch_size=7).region_ids, own.region_ids
    )


def test_the_image_is_the_one_that_the_model_sees(photograph, system):
    transparent = photograph.copy()
    transparent.putalpha(0)
    [found] = predict(*system(), [transparent])
    assert found.image.mode == "RGB" and np.asarray(found.image).min() == 255
    turned = photograph.copy()
    turned.getexif()[0x0112] = 6
    [found] = predict(*system(), [turned])
    assert found.image.size == (300, 451)


def test_a_model_of_grey_images_is_given_grey(photograph, system):
    model, processor = system({"do_convert_rgb": False}, num_channels=1)
    explanation = explain(model, processor, photograph.convert("L"))
    assert explanation.image.mode == "RGB" and explanation.heat().max() > 0.9


def test_what_a_crop_leaves_out_belongs_to_no_region_and_carries_nothing(photograph, system):
    model, processor = system(
        {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
    )
    explanation = explain(model, processor, photograph)
    # 32 of 48 columns are seen, so 300 of 451 pixels: from 75 on.
    outside = torch.ones(300, 451, dtype=torch.bool)
    outside[:, 75:376] = False
    assert (explanation.region_map()[outside] == -1).all() and (explanation.heat()[outside] == 0).all()
    assert (explanation.region_map()[:, 76:374] >= 0).all()


def test_heat_does_not_hang_on_a_single_cell(photograph, system):
    explanation = explain(*system(), photograph)
    relevance = torch.full((16, 16), 0.5)
    relevance[0, 0], relevance[8:, 8:] = 1e6, 1.0
    heat = type(explanation)(**{**vars(explanation), "relevance": relevance}).heat()
    assert heat.max() == 1 and (heat[200:, 300:] == 1).all()
    nothing = type(explanation)(**{**vars(explanation), "relevance": -relevance}).heat()
    assert nothing.max() == 0
    one_cell = torch.zeros(16, 16)
    one_cell[4, 4] = 2.0
    assert type(explanation)(**{**vars(explanation), "relevance": one_cell}).heat().max() > 0.9


def test_several_classes_at_once_have_probabilities_of_their_own(photograph, system):
    model, processor = system(problem_type="multi_label_classification")
    explanation = explain(model, processor, photograph)
    with torch.no_grad():
        logits = model(**processor(photograph, return_tensors="pt")).logits[0]
    torch.testing.assert_close(explanation.probabilities, logits.sigmoid())
    assert explanation.relevance.std() > 0


@pytest.mark.parametrize("overrides", [{"problem_type": "regression"}, {"num_labels": 1}], ids=str)
def test_what_is_no_classifier_is_refused(overrides, photograph, system):
    with pytest.raises(ValueError, match="expected a model that tells at least two classes apart"):
        predict(*system(**overrides), [photograph])


@pytest.mark.parametrize("options", [{"target": 5}, {"target": -1}, {"batch_size": 0}], ids=str)
def test_bad_options_are_refused_before_the_work(options, photograph, system, monkeypatch):
    model, processor = system()
    monkeypatch.setattr(FocusViTImageProcessor, "__call__", lambda *args, **kwargs: pytest.fail("prepared"))
    with pytest.raises(ValueError, match=r"Expected a target in|Expected batch_size >= 1"):
        explain(model, processor, photograph, **options)


def test_logits_that_are_not_finite_name_the_weights(photograph, system):
    model, processor = system()
    model.focusvit.layers[1].attention.q_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"expected finite logits of the model, got .*layers\.1\.\S+q_proj\.weight"):
        predict(model, processor, [photograph])


def test_the_model_is_left_as_it_was(photograph, system):
    model, processor = system(hidden_dropout_prob=0.5)
    model.train()
    first = explain(model, processor, photograph)
    assert model.training
    torch.testing.assert_close(explain(model.eval(), processor, photograph).relevance, first.relevance)


@pytest.mark.parametrize("mode", ["drop", "fuse", "merge"])
def test_tokens_that_left_are_told_and_drawn(photograph, system, mode):
    layers = {"layer_types": ["full_attention"] * 4, "num_hidden_layers": 4, "sparsification_layers": [1, 3]}
    model, processor = system(**layers, sparsification_mode=mode)
    tall = photograph.resize((200, 400))
    predictions = predict(model, processor, [photograph, tall])
    for image, prediction in zip((photograph, tall), predictions, strict=True):
        with torch.no_grad():
            kept = model(**processor(image, return_tensors="pt")).kept_tokens
        assert prediction.layers == (1, 3)
        assert [places.tolist() for places in prediction.kept] == [places[0].tolist() for places in kept]
        passed, regions = prediction.stages_passed(), prediction.region_map()
        assert passed.shape == (image.height, image.width)
        for region in range(16):
            expected = sum(region in places for places in prediction.kept)
            assert (passed[regions == region] == expected).all()
    # Brightness falls with the stages that a token did not reach.
    white = np.asarray(draw_kept(Image.new("RGB", photograph.size, "white"), predictions[0].stages_passed(), 2))
    levels = [int(white[predictions[0].stages_passed() == number].mean()) for number in range(3)]
    assert levels == sorted(levels) and levels[-1] == 255 and levels[0] < 64
    assert predict(*system(), [photograph])[0].layers == ()


def test_a_sheet_has_a_panel_for_tokens_that_left(photograph, system):
    layers = {"layer_types": ["full_attention"] * 4, "num_hidden_layers": 4, "sparsification_layers": [1, 3]}
    model, processor = system(**layers)
    square = photograph.resize((400, 400))
    widths = [draw_sheet([explain(*pair, square)], ["cat"]).width for pair in (system(), (model, processor))]
    assert widths[1] == widths[0] + 400 + 18


@pytest.mark.parametrize("pooling_layer", [0, 2])
def test_tokens_that_layers_select_are_told_and_drawn(photograph, system, pooling_layer):
    layers = {"layer_types": ["full_attention", *["select_pack_attention"] * 3], "num_hidden_layers": 4}
    layers |= {"pooling_layer": pooling_layer, "embedding_type": "patch"} if pooling_layer else {}
    model, processor = system(**layers, select_threshold=0.98)
    tall = photograph.resize((200, 400))
    first = max(1, pooling_layer)
    for image, prediction in zip((photograph, tall), predict(model, processor, [photograph, tall]), strict=True):
        with torch.no_grad():
            selected = model(**processor(image, return_tensors="pt")).selected_tokens
        assert prediction.selecting_layers == tuple(range(first, 4))
        assert [places.tolist() for places in prediction.selected] == [
            mask[0].nonzero().squeeze(1).tolist() for mask in selected[first - 1 :]
        ]
        times, regions = prediction.times_selected(), prediction.region_map()
        for region in range(16):
            expected = sum(region in places for places in prediction.selected)
            assert (times[regions == region] == expected).all()
    assert predict(*system(), [photograph])[0].selecting_layers == ()
    explanation = explain(model, processor, photograph)
    dense = explain(*system(), photograph)
    assert draw_sheet([explanation], ["a"]).width > draw_sheet([dense], ["a"]).width
