"""Gates that learn from a column of boxes or masks: augmented with the image, refused where bad, in both tasks."""

import io
import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import run_classification
import run_classification_no_trainer
import run_semantic_segmentation
from blobs import NAMES, SMALLEST, blob, flags
from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.training.augmentation import AugmentationConfig
from focusvit_hf.training.data_collator import FocusViTDataCollator
from focusvit_hf.training.segmentation_collator import SegmentationDataCollator
from focusvit_hf.training.selection import SelectionColumn
from focusvit_hf.training.selection_teacher import attended_masks


SPA = {
    **SMALLEST,
    "patch_size": 8,
    "num_hidden_layers": 2,
    "patch_pooling": "none",
    "superpixel_cell_size": 2,
    "layer_types": ["full_attention", "select_pack_attention"],
}
STRONG = {"crop_scale": (0.3, 1.0), "horizontal_flip": 0.5}
MIXES = {
    "crop": {},
    "mixup": {"mixup_alpha": 1.0},
    "cutmix": {"cutmix_alpha": 1.0},
    "shift": {"crop": "pad", "crop_scale": (0.08, 1.0), "mixup_alpha": 1.0},
    "resize": {"crop": None, "crop_scale": (0.08, 1.0)},
}


def shown(height, width):
    """An image that shows what matters in it: grey 50, and 200 where it does."""
    mask = np.random.randint(0, 2, (4, 4)).repeat(height // 4, 0).repeat(width // 4, 1).astype(np.uint8)
    image = np.repeat((50 + 150 * mask)[..., None], 3, axis=2).astype(np.uint8)
    return {"image": image, "label": 0, "mask": mask, "matters": mask}


def square(number):
    """The square of a blob, (left, top, width, height)."""
    rows, columns = np.nonzero(np.asarray(blob(number)).max(axis=2) > 100)
    return [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]


@pytest.fixture
def processor():
    return FocusViTImageProcessor(size={"height": 32, "width": 48}, num_superpixels=(2, 3), superpixel_cell_size=4)


def agreement(batch):
    """The share of the pixels whose grey is that of their mask, but for what a filter mixes between blocks."""
    grey = (batch["pixel_values"].mean(dim=1) * 0.5 + 0.5) * 255
    return ((grey - 50 - 150 * batch["selection_masks"]).abs() < 15).float().mean()


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_the_mask_moves_with_its_image(processor, mix):
    collate = FocusViTDataCollator(
        processor, AugmentationConfig(**{**STRONG, **mix}), num_labels=3, selection=SelectionColumn("matters")
    )
    for _ in range(3):
        batch = collate([shown(64, 64) for _ in range(6)])
        assert batch["selection_masks"].shape == (6, 32, 48)
        assert batch["selection_masks"].min() >= 0 and batch["selection_masks"].max() <= 1
        assert agreement(batch) > 0.8
        if "mixup_alpha" not in mix:
            assert set(batch["selection_masks"].unique().tolist()) == {0, 1}


@pytest.mark.parametrize("mix", [{}, {"crop": "pad"}, {"mixup_alpha": 0.5, "cutmix_alpha": 0.5}])
def test_the_images_are_those_without_a_column_of_masks(processor, mix):
    rows = [shown(64, 64) for _ in range(4)]
    batches = []
    for selection in (None, SelectionColumn("matters")):
        torch.manual_seed(3)
        config = AugmentationConfig(**mix, brightness=0.2)
        batches.append(FocusViTDataCollator(processor, config, 3, selection=selection)(rows))
    assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])
    assert torch.equal(batches[0]["labels"], batches[1]["labels"])


@pytest.mark.parametrize("crops", [False, True])
def test_without_augmentation_a_mask_is_resized_and_cropped_as_its_image(crops):
    options = {"do_center_crop": crops, "crop_size": {"height": 24, "width": 60}} if crops else {}
    processor = FocusViTImageProcessor(
        size={"height": 32, "width": 48}, num_superpixels=(2, 3), superpixel_cell_size=4, **options
    )
    batch = FocusViTDataCollator(processor, selection=SelectionColumn("matters"))([shown(32, 48), shown(64, 96)])
    masks = batch["selection_masks"]
    if crops:
        assert not masks[..., :6].any() and not masks[..., 54:].any()
        batch = {"pixel_values": batch["pixel_values"][..., 6:54], "selection_masks": masks[..., 6:54]}
    assert agreement(batch) > 0.8


@pytest.mark.parametrize("crop", ["random_resized", None])
@pytest.mark.parametrize("augmented", [False, True])
def test_a_segmenter_gets_both_kinds_of_masks(processor, augmented, crop):
    config = AugmentationConfig(crop=crop, horizontal_flip=0.5) if augmented else None
    rows = [shown(64, 64) for _ in range(4)]
    for options in ({"selection": SelectionColumn("matters")}, {"selection_from_labels": True}):
        batch = SegmentationDataCollator(processor, config, 2, **options)(rows)
        assert batch["selection_masks"].dtype == torch.float32
        assert torch.equal(batch["selection_masks"], batch["labels"].float())
        assert agreement(batch) > 0.8
    assert "selection_masks" not in SegmentationDataCollator(processor, config, 2)(rows)


def test_labels_that_do_not_count_select_nothing(processor):
    row = shown(64, 64)
    row["mask"] = np.full((64, 64), 255, np.uint8)
    row["mask"][:32] = 2
    row["mask"][:, :32] = 0
    for reduces, expected in ((False, 0.25), (True, 0.25)):
        processor.do_reduce_labels = reduces
        batch = SegmentationDataCollator(processor, None, 3, selection_from_labels=True)([row])
        assert batch["selection_masks"].mean() == expected
    with pytest.raises(ValueError, match="selection_from_labels, got both"):
        SegmentationDataCollator(processor, None, 3, selection=SelectionColumn("x"), selection_from_labels=True)


# What a column may hold.

VOC = """<annotation><object><name>dog</name><bndbox><xmin>2</xmin><ymin>1</ymin><xmax>3</xmax><ymax>2</ymax></bndbox>
</object></annotation>"""


def test_every_form_of_a_mask_means_the_same(tmp_path):
    expected = np.zeros((4, 6), np.uint8)
    expected[0:2, 1:3] = 255
    stream = io.BytesIO()
    Image.fromarray(expected).save(stream, "PNG")
    (tmp_path / "dog.xml").write_text(VOC)
    forms = [
        ("mask", Image.fromarray(expected)),
        ("mask", Image.fromarray(expected > 0)),
        ("mask", {"bytes": stream.getvalue(), "path": None}),
        ("mask", expected // 255),
        ("mask", (expected / 255).tolist()),
        ("mask", torch.from_numpy(expected > 0)),
        ("coco", [[1, 0, 2, 2]]),
        ("coco", {"bbox": [[1.0, 0.0, 2.0, 2.0]], "category": [3]}),
        ("corners", np.array([[1, 0, 3, 2]])),
        ("corners", {"boxes": [(1, 0, 3, 2)]}),
        ("voc", VOC),
        ("voc", VOC.encode()),
        ("voc", str(tmp_path / "dog.xml")),
    ]
    for kind, value in forms:
        levels = SelectionColumn("it", kind).levels(0, {"it": value}, 4, 6)
        assert levels.dtype == np.uint8 and np.array_equal(levels, expected), (kind, value)
    assert not SelectionColumn("it", "coco").levels(0, {"it": []}, 4, 6).any()
    assert SelectionColumn("it").levels(0, {"it": np.full((4, 6), 7)}, 4, 6).max() == 7
    # One level in floating point is no 1.
    assert SelectionColumn("it").levels(0, {"it": np.full((4, 6), 1 / 255)}, 4, 6).max() == 1


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("mask", None, "Image 2 .*expected a mask or boxes in the column 'it', got none"),
        ("mask", np.zeros((4, 5), np.uint8), "size 4 x 6, got 4 x 5"),
        ("mask", np.full((4, 6), 300), r"grey levels in 0\.\.255 .*got 300"),
        ("mask", np.full((4, 6), 1.5), r"in \[0, 1\] in floating point"),
        ("mask", np.full((4, 6), np.nan), r"in \[0, 1\] in floating point"),
        ("mask", Image.new("P", (6, 4)), "palette of classes"),
        ("mask", Image.new("RGB", (6, 4)), "a mask of one channel"),
        ("coco", [[1, 2, 3]], "boxes of four numbers"),
        ("coco", [1, 2, 3, 4], "boxes of four numbers"),
        ("coco", [["a", 0, 1, 1]], "boxes of four numbers"),
        ("coco", [None], "boxes of four numbers"),
        ("coco", [[0, 0, float("nan"), 1]], "box of four finite numbers"),
        ("coco", "1 2 3 4", "a list of boxes in the column 'it', got str"),
        ("coco", {"label": [3]}, r"under one of \('bbox', 'boxes'\) .*got \['label'\]"),
        ("coco", [[4, 0, 4, 2]], "boxes inside the image of 4 x 6 pixels"),
        ("corners", [[-2, 0, 3, 2]], "boxes inside the image"),
        ("corners", [[3, 0, 1, 2]], "ends behind its begin"),
        ("voc", "nowhere.xml", "expected the file of an annotation"),
        ("voc", [[1, 0, 2, 2]], "text or the path of an annotation, got list"),
    ],
)
def test_bad_masks_and_boxes_are_refused(kind, value, message):
    with pytest.raises(ValueError, match=message):
        SelectionColumn("it", kind).levels(2, {"it": value}, 4, 6)


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="Expected a format of selection masks from"):
        SelectionColumn("it", "yolo")


# The training scripts.


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """Blobs with the boxes of their squares, as COCO has them, and their masks."""
    folder = tmp_path_factory.mktemp("annotated")
    for split, first, count in (("train", 0, 24), ("test", 100, 6)):
        numbers = range(first, first + count)
        images = [blob(number) for number in numbers]
        columns = {
            "image": images,
            "label": [number % 3 for number in numbers],
            "objects": [{"bbox": [square(number)], "category": [0]} for number in numbers],
            "mask": [Image.fromarray((np.asarray(image).max(axis=2) > 100).astype(np.uint8)) for image in images],
        }
        features = datasets.Features(
            image=datasets.Image(),
            label=datasets.ClassLabel(names=NAMES),
            objects={
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.Value("int64")),
            },
            mask=datasets.Image(),
        )
        data = datasets.Dataset.from_dict(columns, features=features)
        if split == "test":
            data = data.remove_columns("objects")
        data.to_parquet(folder / f"{split}-00000.parquet")
    (folder / "labels.json").write_text(json.dumps({"labels": ["ground", "figure"]}))
    return folder


def command(folder, output_dir, **changes):
    values = {
        "config": {**SPA, **changes.pop("config", {})},
        "max_steps": 4,
        "final_evaluation": False,
        "do_eval": None,
    }
    values |= {"augmentation": '{"crop": "pad", "cutmix_alpha": 1.0, "mix_probability": 0.5}'}
    return flags(folder, output_dir, **{**values, **changes})


def gates(output_dir):
    weights = load_file(output_dir / "model.safetensors")
    return {name: weight for name, weight in weights.items() if name.endswith((".gate.weight", ".gate.bias"))}


BOXES = {"selection_column_name": "objects", "selection_format": "coco"}


@pytest.mark.parametrize("script", [run_classification, run_classification_no_trainer], ids=["trainer", "no_trainer"])
def test_a_classifier_learns_from_a_column_of_boxes_and_of_masks(annotated, tmp_path, script):
    found = {}
    for name, options in (
        ("none", {}),
        ("boxes", BOXES),
        ("masks", {"selection_column_name": "mask"}),
        ("once", {"selection_column_name": "mask", "decode_once": True}),
    ):
        script.main(command(annotated, tmp_path / name, config={"select_alpha": 10.0}, **options))
        found[name] = gates(tmp_path / name)
    for key, weight in found["none"].items():
        assert not torch.equal(weight, found["boxes"][key])
        # The boxes of the squares are their masks.
        torch.testing.assert_close(found["boxes"][key], found["masks"][key], rtol=0, atol=1e-6)
        assert torch.equal(found["once"][key], found["masks"][key])


@pytest.mark.parametrize("script", [run_classification, run_classification_no_trainer], ids=["trainer", "no_trainer"])
def test_the_share_of_tokens_that_is_selected_is_logged(annotated, tmp_path, script):
    # A threshold that every score passes, and no score: then the random choice of training alone takes tokens away.
    # In mixed precision a wrapper makes new outputs of the model's.
    for name, threshold, layers, half in (
        ("all", 1e-6, 1, True),
        ("none", 1 - 1e-6, 1, False),
        ("dense", None, 0, False),
    ):
        config = {
            "select_threshold": threshold,
            "layer_types": SPA["layer_types"] if layers else ["full_attention"] * 2,
        }
        options = {"do_eval": True, "logging_steps": 2, "bf16": half, "use_cpu": True}
        figures = script.main(command(annotated, tmp_path / name, config=config, **options))
        history = json.loads((tmp_path / name / "training_log.json").read_text())["log_history"]
        shares = [entry["selected_share"] for entry in history if "selected_share" in entry]
        if not layers:
            assert not shares and "eval_selected_share" not in figures
            continue
        assert len(shares) == 2
        assert all(share == pytest.approx(1.0 if name == "all" else 0.0, abs=0.01) for share in shares)
        assert figures["eval_selected_share"] == (1.0 if name == "all" else 0.0)


def test_a_run_that_is_interrupted_ends_as_one_that_is_not(annotated, tmp_path):
    schedule = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2, **BOXES}
    run_classification.main(command(annotated, tmp_path / "whole", **schedule))
    for steps in (2, 4):
        run_classification.main(command(annotated, tmp_path / "parts", **schedule, max_steps=steps))
    assert json.loads((tmp_path / "parts" / "training_log.json").read_text())["resumed_from"]
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())


@pytest.mark.parametrize("source", [{"selection_from_labels": True}, BOXES], ids=["labels", "boxes"])
def test_the_gates_of_a_segmenter_learn(annotated, tmp_path, source):
    """By the model's own part of the loss, which the loss of masks has to be given."""
    options = {"label_column_name": "mask", "augmentation": '{"crop_scale": [0.5, 1.0]}'}
    found = []
    for name, alpha in (("little", 1e-6), ("much", 10.0)):
        config = {**SPA, "embedding_type": "conv", "select_alpha": alpha}
        argv = command(annotated, tmp_path / name, config=config, **options, **source)
        run_semantic_segmentation.main(argv)
        found.append(gates(tmp_path / name))
    assert all(not torch.equal(weight, found[1][name]) for name, weight in found[0].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection_column_name": "boxes"}, "expected a column 'boxes' .* in the split 'train'"),
        ({**BOXES, "config": {"layer_types": ["full_attention"] * 2}}, "with layers of 'select_pack_attention'"),
        (
            {"config": {"select_supervision": "teacher", "select_budget": 0.5}},
            "expected --teacher_model_name_or_path, or --sel",
        ),
        ({"selection_column_name": "objects", "selection_format": "corners"}, "boxes inside the image|ends behind"),
        ({"selection_column_name": "objects"}, "expected .*"),
    ],
)
def test_what_does_not_fit_is_refused(annotated, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run_classification.main(command(annotated, tmp_path / "run", **options))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_rows_without_a_mask_are_refused_before_training(tmp_path):
    rows = {"image": [blob(0), blob(1)], "label": [0, 1], "objects": [[[0, 0, 4, 4]], None]}
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=NAMES[:2]),
        objects=datasets.List(datasets.List(datasets.Value("float32"))),
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train-00000.parquet")
    with pytest.raises(ValueError, match=r"in every row of the column 'objects' .* got none in row 1"):
        run_classification.main(command(tmp_path, tmp_path / "run", **BOXES))


# A teacher.


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A ViT of 4 x 4 patches that tells the blobs' classes apart."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=32, patch_size=8, id2label=dict(enumerate(NAMES)), initializer_range=0.5)
    folder = tmp_path_factory.mktemp("teacher")
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_teacher_says_what_its_class_token_attends_to(teacher):
    model = ViTForImageClassification.from_pretrained(teacher).eval()
    pixels = torch.randn(3, 3, 32, 32)
    masks, answer = attended_masks(model, pixels, 0.25, (64, 64))
    assert torch.equal(answer.logits, model(pixels).logits)
    maps = model(pixels, output_attentions=True).attentions[-1]
    for image in range(3):
        attended = sum(head[0, 1:] for head in maps[image])
        largest = attended.topk(4).indices.tolist()
        for patch in range(16):
            top, left = 16 * (patch // 4), 16 * (patch % 4)
            assert (masks[image, top : top + 16, left : left + 16] == (patch in largest)).all()
    with pytest.raises(ValueError, match=r"expected a ViT of Transformers as the teacher .* got Linear"):
        attended_masks(torch.nn.Linear(2, 2), pixels, 0.25, (64, 64))


@pytest.mark.parametrize("script", [run_classification, run_classification_no_trainer], ids=["trainer", "no_trainer"])
@pytest.mark.parametrize("token_weight", [0.0, 0.5])
def test_a_teacher_of_gates_and_of_logits_sees_each_batch_once(
    annotated, teacher, tmp_path, script, token_weight, monkeypatch
):
    calls = []
    forward = ViTForImageClassification.forward

    def spy(self, *args, **kwargs):
        calls.append(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ViTForImageClassification, "forward", spy)
    config = {"select_supervision": "teacher", "select_budget": 0.25, "select_threshold": 0.5}
    options = {"teacher_model_name_or_path": teacher, "augmentation": None}
    if token_weight:
        layers = {"layer_types": ["select_pack_attention", "full_attention"], "sparsification_layers": [1]}
        config |= {**layers, "keep_ratio": 0.5}
        options |= {"distillation_token_weight": token_weight}
    script.main(command(annotated, tmp_path / "run", config=config, **options))
    steps = [call for call in calls if call.get("output_attentions")]
    assert len(steps) == 4 == len(calls)


@pytest.mark.parametrize("script", [run_classification, run_classification_no_trainer], ids=["trainer", "no_trainer"])
def test_gates_learn_from_a_teacher(annotated, teacher, tmp_path, script):
    found = []
    for name, alpha in (("little", 1e-6), ("much", 10.0)):
        config = {"select_supervision": "teacher", "select_budget": 0.25, "select_threshold": 0.5}
        options = {"teacher_model_name_or_path": teacher, "augmentation": None}
        script.main(command(annotated, tmp_path / name, config={**config, "select_alpha": alpha}, **options))
        found.append(gates(tmp_path / name))
    assert all(not torch.equal(weight, found[1][name]) for name, weight in found[0].items())
