"""Each option of Trainer that FocusViTTrainer touches is honoured, as Trainer does, or refused."""

import pytest
import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.data_collator import FocusViTDataCollator, SeededCollator
from focusvit_hf.training.distillation import Distillation
from focusvit_hf.training.trainer import FocusViTTrainer


CLASSES = [0, 1, 2, 1]
SEVERAL = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]
NUMBERS = [0.5, -2.0, 30.0, 7.0]


@pytest.fixture
def arguments(tmp_path):
    """A function from changes to arguments of Trainer: two steps of two batches each, checked by their weights."""

    def make(**changes):
        options = {"max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, **changes}
        options = {"save_strategy": "no", "learning_rate": 1e-2, "max_grad_norm": 0, **options}
        return TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, **options)

    return make


def rows(pixels, labels):
    return [{"pixel_values": image, "labels": label} for image, label in zip(pixels, labels, strict=True)]


def doubled(outputs, labels, num_items_in_batch=None):
    """A loss of a user's own, summed over the batch and divided by what the whole step has."""
    loss = torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum")
    return 2 * loss / num_items_in_batch


class Halved(LabelSmoother):
    """A label smoother of a user's own."""

    def __call__(self, outputs, labels, shift_labels=False, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels) / 2


@pytest.mark.parametrize(
    ("config", "labels", "args", "options", "attributes"),
    [
        ({}, CLASSES, {}, {}, {}),
        ({}, CLASSES, {"label_smoothing_factor": 0.2}, {}, {}),
        ({"problem_type": "single_label_classification"}, CLASSES, {}, {}, {}),
        ({"num_labels": 1}, NUMBERS, {}, {}, {}),
        ({"problem_type": "regression"}, SEVERAL, {}, {}, {}),
        ({"problem_type": "multi_label_classification"}, SEVERAL, {}, {}, {}),
        ({}, CLASSES, {}, {"compute_loss_func": doubled}, {}),
        ({}, CLASSES, {"label_smoothing_factor": 0.2}, {"compute_loss_func": doubled}, {}),
        ({}, CLASSES, {}, {}, {"label_smoother": Halved()}),
        ({}, CLASSES, {"label_smoothing_factor": 0.2}, {}, {"label_smoother": None}),
    ],
    ids=[
        "classes",
        "label smoothing",
        "problem_type",
        "one number",
        "regression",
        "several classes",
        "compute_loss_func",
        "compute_loss_func before smoothing",
        "another label_smoother",
        "no label_smoother",
    ],
)
def test_it_minimises_what_trainer_minimises(tiny_model, pixels, arguments, config, labels, args, options, attributes):
    trained = []
    for kind in (Trainer, FocusViTTrainer):
        # Patches: the cells of a stem are normalised by their batch, which an evaluation in between does not see.
        model = tiny_model(**{"embedding_type": "patch", "num_labels": 3, **config})
        trainer = kind(model=model, args=arguments(**args), train_dataset=rows(pixels, labels), **options)
        for name, value in attributes.items():
            setattr(trainer, name, value)
        figures = trainer.train().metrics
        trained.append((model.state_dict(), figures["train_loss"]))
    (expected, expected_loss), (got, loss) = trained
    assert loss == pytest.approx(expected_loss, rel=1e-4) and loss > 0
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name, rtol=1e-3, atol=1e-4)


def test_several_classes_are_not_taken_for_probabilities(tiny_model, pixels, arguments):
    trainer = FocusViTTrainer(tiny_model(num_labels=3), arguments(), train_dataset=rows(pixels, SEVERAL))
    message = r"rows sum to one, or config.problem_type='multi_label_classification' .*, got a sum of [023] in row 0"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    certain = [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]
    assert FocusViTTrainer(tiny_model(num_labels=3), arguments(), train_dataset=rows(pixels, certain)).train()


def test_labels_that_are_missing_are_named_as_trainer_names_them(tiny_model, pixels, arguments):
    unlabelled = [{"pixel_values": image} for image in pixels]
    with pytest.raises(ValueError, match="did not return a loss"):
        FocusViTTrainer(tiny_model(), arguments(), train_dataset=unlabelled).train()


def test_options_that_cannot_be_served_together_are_refused(tiny_model, arguments):
    several = tiny_model(num_labels=3, problem_type="multi_label_classification")
    with pytest.raises(ValueError, match=r"expected no label_smoothing_factor for regression or .*, got 0\.1"):
        FocusViTTrainer(several, arguments(label_smoothing_factor=0.1))
    teacher = Distillation(tiny_model(num_labels=3), several.config, 0.5, 0.5)
    with pytest.raises(ValueError, match="expected no teacher beside another loss"):
        FocusViTTrainer(several, arguments(), distillation=teacher)
    with pytest.raises(ValueError, match="expected no teacher beside another loss"):
        FocusViTTrainer(tiny_model(num_labels=3), arguments(), distillation=teacher, compute_loss_func=doubled)
    collator = FocusViTDataCollator(FocusViTImageProcessor())
    for wrapped in (collator, SeededCollator(collator, seed=0)):
        with pytest.raises(ValueError, match=r"expected TrainingArguments\(remove_unused_columns=False\)"):
            FocusViTTrainer(several, arguments(), data_collator=wrapped)
        FocusViTTrainer(several, arguments(remove_unused_columns=False), data_collator=wrapped)


def test_trainer_itself_is_told_of_the_columns_that_it_removes(tiny_model, small_photographs, arguments):
    rows = [{"image": image, "label": 0} for image in small_photographs]
    collator = FocusViTDataCollator(FocusViTImageProcessor())
    trainer = Trainer(tiny_model(), arguments(), data_collator=collator, train_dataset=rows)
    with pytest.raises(
        ValueError, match="Trainer removes it unless TrainingArguments has remove_unused_columns=False"
    ):
        trainer.train()


def test_the_moving_average_begins_with_each_training(tiny_model, pixels, arguments):
    """A second training of a model that is made anew has nothing of the first one."""
    ema = ExponentialMovingAverage(0.9)
    options = {"model_init": lambda: tiny_model(num_labels=3), "ema": ema, "train_dataset": rows(pixels, CLASSES)}
    trainer = FocusViTTrainer(args=arguments(), **options)
    averages = []
    for _ in range(2):
        trainer.train()
        averages.append({name: value.clone() for name, value in ema.average.module.state_dict().items()})
        assert int(ema.average.n_averaged) == 2
    assert all(torch.equal(averages[1][name], value) for name, value in averages[0].items())


def test_pushing_saves_the_averaged_weights_as_saving_does(tiny_model, pixels, arguments, tmp_path):
    """`push_to_hub` saves the model through an internal call, which checkpoints use too."""
    ema = ExponentialMovingAverage(0.9)
    trainer = FocusViTTrainer(tiny_model(num_labels=3), arguments(), train_dataset=rows(pixels, CLASSES), ema=ema)
    trainer.train()
    trainer.save_model(str(tmp_path / "called"))
    trainer.save_model(_internal_call=True)
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "called/model.safetensors").read_bytes()
