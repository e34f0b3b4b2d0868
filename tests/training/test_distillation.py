"""A teacher's part in the loss, against plain references, and in both training scripts."""

import json

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import run_classification
import run_classification_no_trainer
from blobs import NAMES, TINY, flags, losses
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.hub.training_record import TrainingRecord
from focusvit_hf.training.distillation import (
    Distillation,
    distillation_loss,
    load_distillation,
    load_teacher_function,
)
from focusvit_hf.training.teacher_report import compare_with_teacher, report_table


LABELS = dict(enumerate(NAMES))
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def make_teacher(image_size=32, **options):
    torch.manual_seed(1)
    config = ViTConfig(
        image_size=image_size,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        **{"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}, **options},
    )
    teacher = ViTForImageClassification(config)
    torch.nn.init.normal_(teacher.classifier.weight)
    return teacher


def make_config(**options):
    labels = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
    return FocusViTConfig(**{**TINY, **labels, "image_size": 32, "patch_size": 8, "num_superpixels": 4, **options})


def save_teacher(folder, image_size=32, processor=None, **options):
    make_teacher(image_size, **options).save_pretrained(folder)
    size = {"height": image_size, "width": image_size}
    (processor or ViTImageProcessor(size=size, **IMAGENET)).save_pretrained(folder)
    return folder


# The loss


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_against_its_definition(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    expected = 0.0
    for own, told in zip(student, teacher, strict=True):
        p = (told / temperature).exp() / (told / temperature).exp().sum()
        q = (own / temperature).exp() / (own / temperature).exp().sum()
        expected += temperature**2 * sum(p[i] * (p[i] / q[i]).log() for i in range(4)) / 5
    torch.testing.assert_close(distillation_loss(student, teacher, temperature), expected)


def test_the_size_of_soft_gradients_does_not_hang_on_the_temperature():
    torch.manual_seed(0)
    teacher = torch.randn(5, 4)
    norms = []
    for temperature in (20.0, 40.0):
        student = torch.zeros(5, 4, requires_grad=True)
        distillation_loss(student, teacher, temperature).backward()
        norms.append(float(student.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_hard_distillation_is_cross_entropy_with_the_teachers_choice():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 4)
    expected = sum(-student[i].log_softmax(0)[teacher[i].argmax()] for i in range(5)) / 5
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0, "hard"), expected)


def test_the_loss_refuses_other_shapes_and_kinds():
    with pytest.raises(ValueError, match="expected logits of a student and a teacher alike"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="expected distillation_type to be one of"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3), kind="warm")


# The teacher


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_loss_of_a_step(kind):
    torch.manual_seed(0)
    teacher = make_teacher(hidden_dropout_prob=0.5)
    told = Distillation(teacher, make_config(), 0.5, 0.5, alpha=0.3, temperature=2.0, kind=kind)
    pixels, logits = torch.randn(4, 3, 32, 32), torch.randn(4, 3, requires_grad=True)
    loss = told.mixed(torch.tensor(2.0), logits, pixels)
    answers = teacher(pixel_values=pixels).logits
    torch.testing.assert_close(loss, 0.7 * 2.0 + 0.3 * distillation_loss(logits, answers, 2.0, kind))
    loss.backward()
    assert logits.grad is not None
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_sees_its_own_normalisation_and_size():
    pictures = torch.rand(2, 3, 32, 32)
    teacher, config = make_teacher(64), make_config(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4])
    told = Distillation(teacher, config, IMAGENET["image_mean"], IMAGENET["image_std"], size=(64, 64))

    def normalised(images, mean, std):
        return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    larger = torch.nn.functional.interpolate(pictures, (64, 64), mode="bilinear")
    expected = teacher(pixel_values=normalised(larger, *IMAGENET.values())).logits
    found = told.teacher_logits(normalised(pictures, config.image_mean, config.image_std))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_focusvit_can_teach(tmp_path):
    torch.manual_seed(0)
    config = make_config()
    teacher = FocusViTForImageClassification(config).eval()
    teacher.save_pretrained(tmp_path)
    FocusViTImageProcessor.from_model_config(config).save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (2, 3, 32, 32)) / 127.5 - 1
    told = load_distillation(str(tmp_path), config)
    torch.testing.assert_close(told.teacher_logits(pixels), teacher(pixel_values=pixels).logits.detach())


def test_any_module_or_function_can_teach():
    config = make_config()
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.LazyLinear(3))
    pixels = torch.randn(2, 3, 32, 32)
    module(pixels)
    told = Distillation(module, config, 0.5, 0.5)
    expected = module[2](pixels.flatten(1)).detach()
    torch.testing.assert_close(told.teacher_logits(pixels), expected)
    assert not module.training and not module[2].weight.requires_grad
    by_function = Distillation(lambda images: module(images), config, 0.5, 0.5)
    torch.testing.assert_close(by_function.teacher_logits(pixels), expected)
    in_half = Distillation(module.bfloat16(), config, 0.5, 0.5)
    torch.testing.assert_close(in_half.teacher_logits(pixels).float(), expected, atol=0.05, rtol=0.05)


def test_a_larger_head_is_restricted_to_the_students_classes_in_their_order():
    images = torch.rand(4, 5)
    told = Distillation(lambda pixels: images, make_config(), 0.5, 0.5, classes=[4, 0, 2])
    torch.testing.assert_close(told.teacher_logits(torch.zeros(4, 3, 32, 32)), images[:, [4, 0, 2]])
    # Their names need not agree: the numbers say which is which.
    teacher = make_teacher(id2label=dict(enumerate("abcde")), label2id={name: i for i, name in enumerate("abcde")})
    assert Distillation(teacher, make_config(), 0.5, 0.5, classes=[4, 0, 2]).num_labels == 3


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 1], "expected 3 different numbers from 0 as --teacher_classes"),
        ([0, 1, 1], "expected 3 different numbers from 0 as --teacher_classes"),
        ([0, -1, 1], "expected 3 different numbers from 0 as --teacher_classes"),
        ([0, 1, 3], "expected --teacher_classes below the teacher's 3, got 3"),
    ],
)
def test_classes_the_teacher_does_not_have_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        Distillation(make_teacher(), make_config(), 0.5, 0.5, classes=classes)


@pytest.mark.parametrize(
    ("answer", "classes", "message"),
    [
        (torch.zeros(2, 4), None, r"of shape \(2, 3\) from the teacher, got \(2, 4\)"),
        (torch.zeros(2, 4), [0, 1, 4], r"of shape \(2, 5 or more\) from the teacher, got \(2, 4\)"),
        (torch.zeros(2, 3, 1, 1), None, r"got \(2, 3, 1, 1\)"),
        ("cat", None, "got str"),
    ],
)
def test_answers_that_are_no_logits_of_the_classes_are_refused(answer, classes, message):
    told = Distillation(lambda pixels: answer, make_config(), 0.5, 0.5, classes=classes)
    with pytest.raises(ValueError, match=message):
        told.teacher_logits(torch.zeros(2, 3, 32, 32))


def test_a_function_named_on_the_command_line_gives_the_teacher():
    config = make_config()
    told = load_teacher_function("toy_teacher:colours", config, classes=[3, 1, 0], alpha=0.25)
    assert told.size == (24, 24) and told.alpha == 0.25
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    # In 0..1 the red image is (1, 0, 0), normalised by the teacher (2, -2, -2).
    torch.testing.assert_close(told.teacher_logits(red), torch.tensor([[40.0, -20.0, -20.0]]))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("toy_teacher", "expected --teacher as package.module:function, got 'toy_teacher'"),
        ("no.such.module:f", "can be imported as --teacher, got: No module named 'no'"),
        ("toy_teacher:nobody", "has no attribute 'nobody'"),
        ("toy_teacher:nothing", "expected .module, image_mean, image_std, size. from toy_teacher:nothing"),
    ],
)
def test_a_name_that_gives_no_teacher_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        load_teacher_function(path, make_config())


def test_student_and_teacher_are_compared():
    torch.manual_seed(0)
    model = FocusViTForImageClassification(make_config(superpixel_method="torch"))
    pixels = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        choices = model.eval()(pixels).logits.argmax(dim=1)
    # The teacher disagrees with the student on the first image, and the labels say so too.
    answers = torch.nn.functional.one_hot(choices, 3).float()
    answers[0] = answers[0].roll(1)
    told = Distillation(lambda images: answers[: len(images)], model.config, 0.5, 0.5)
    batch = {"pixel_values": pixels, "labels": answers.argmax(dim=1), "superpixel_ids": torch.full((5, 8, 8), 99)}
    report = compare_with_teacher(model, told, [batch], torch.device("cpu"))
    assert report["agreement"] == report["student_accuracy"] == 0.8 and report["teacher_accuracy"] == 1.0
    assert report["images"] == report["batch_size"] == 5
    ratio = report["student_images_per_second"] / report["teacher_images_per_second"]
    assert report["speed_up"] == pytest.approx(ratio) and ratio > 0
    table = report_table(report)
    assert "agrees with its teacher on 80.0 % of 5 images" in table and "1.0000" in table
    with pytest.raises(ValueError, match="expected images to compare student and teacher on, got none"):
        compare_with_teacher(model, told, [], torch.device("cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "expected 0 <= distillation_alpha <= 1, got 1.5"),
        ({"temperature": 0.0}, "expected a distillation_temperature above 0, got 0.0"),
        ({"kind": "warm"}, "expected distillation_type to be one of"),
        ({"image_std": [0.5, 0.0, 0.5]}, "expected a teacher's finite image_mean and image_std > 0"),
        ({"size": (32,)}, "expected a teacher's size in pixels as a number or .height, width., got .32,."),
        ({"size": 0}, "expected a teacher's size in pixels"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Distillation(make_teacher(), make_config(), **{"image_mean": 0.5, "image_std": 0.5, **options})


def test_a_size_may_be_a_list():
    assert Distillation(make_teacher(), make_config(), 0.5, 0.5, size=[16, 24]).size == (16, 24)


def test_a_teacher_of_other_classes_is_refused():
    swapped = {0: "green", 1: "red", 2: "blue"}
    with pytest.raises(ValueError, match="whose class 0 is 'green' instead of 'red'"):
        Distillation(make_teacher(id2label=swapped), make_config(), 0.5, 0.5)
    with pytest.raises(ValueError, match="expected a teacher of the student's 3 classes, got one of 2"):
        Distillation(make_teacher(id2label={0: "red", 1: "green"}), make_config(), 0.5, 0.5)


def test_a_teacher_that_cannot_be_used_is_refused(tmp_path):
    config = make_config()
    with pytest.raises(ValueError, match="expected an image classifier in safetensors"):
        load_distillation(str(tmp_path / "nowhere"), config)
    unscaled = save_teacher(tmp_path / "unscaled", processor=ViTImageProcessor(do_rescale=False))
    with pytest.raises(ValueError, match="expected a teacher whose image processor rescales by 1 / 255"):
        load_distillation(str(unscaled), config)
    backbone = save_teacher(tmp_path / "backbone")
    make_teacher().vit.save_pretrained(backbone)
    with pytest.raises(ValueError, match="expected all weights of the teacher"):
        load_distillation(str(backbone), config)


# The scripts


def test_both_scripts_learn_from_a_teacher(blob_dir, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", image_size=16)
    shared = {
        "max_steps": 4,
        "do_eval": None,
        "final_evaluation": False,
        "augmentation": json.dumps({"crop": "pad", "mixup_alpha": 0.4, "cutmix_alpha": 1.0}),
    }
    distilled = {**shared, "teacher_model_name_or_path": teacher, "distillation_alpha": 0.8}
    for script in (run_classification, run_classification_no_trainer):
        script.main(flags(blob_dir, tmp_path / script.__name__, **distilled))
    run_classification.main(flags(blob_dir, tmp_path / "alone", **shared))
    first, second, alone = (
        losses(tmp_path / name) for name in ("run_classification", "run_classification_no_trainer", "alone")
    )
    assert first == pytest.approx(second, abs=1e-4)
    assert first != pytest.approx(alone, abs=1e-2)
    log = json.loads((tmp_path / "run_classification" / "training_log.json").read_text())
    record = TrainingRecord.from_log(log)
    assert record.hyperparameters["distillation_alpha"] == 0.8
    assert record.hyperparameters["teacher_model_name_or_path"] == "teacher"
    card = (tmp_path / "run_classification" / "README.md").read_text()
    assert "distillation_temperature" in card and "`teacher_model_name_or_path` | teacher |" in card
    assert "distillation" not in (tmp_path / "alone" / "README.md").read_text()


def test_arguments_of_a_teacher_that_contradict_each_other_are_refused(blob_dir, tmp_path):
    with pytest.raises(ValueError, match="expected --teacher or --teacher_model_name_or_path with"):
        run_classification.main(flags(blob_dir, tmp_path / "run", teacher_bank=tmp_path / "bank"))
    with pytest.raises(ValueError, match="expected one of --teacher, --teacher_model_name_or_path"):
        both = {"teacher": "toy_teacher:colours", "teacher_model_name_or_path": "somebody/vit"}
        run_classification.main(flags(blob_dir, tmp_path / "run", **both))


def test_a_teacher_that_does_not_fit_is_refused_before_training(blob_dir, tmp_path):
    teacher = save_teacher(tmp_path / "teacher", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    with pytest.raises(ValueError, match="expected a teacher of the student's 3 classes"):
        run_classification.main(flags(blob_dir, tmp_path / "run", teacher_model_name_or_path=teacher))
    assert not list((tmp_path / "run").glob("checkpoint-*"))
