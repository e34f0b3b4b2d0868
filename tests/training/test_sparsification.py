"""Training a learned choice of tokens: its loss, the predictors' rate, a backbone at rest, a teacher's tokens."""

import pytest
import torch
from transformers import TrainingArguments, default_data_collator

import run_classification
import run_classification_no_trainer
from blobs import flags
from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.training.distillation import Distillation
from focusvit_hf.training.objective import parameter_groups
from focusvit_hf.training.sparsification import (
    FrozenBackbone,
    is_predictor,
    rest_backbone,
    token_distillation_loss,
    with_aux_loss,
    with_predictor_rate,
)
from focusvit_hf.training.trainer import FocusViTTrainer


SPOT = {
    "sparsification_layers": [1],
    "sparsification_relevance": "learned",
    "keep_ratio": 0.5,
    "layer_types": ["full_attention", "full_attention"],
    "embedding_type": "patch",
}


SPA = {
    "layer_types": ["full_attention", "select_pack_attention"],
    "select_budget": 0.5,
    "embedding_type": "patch",
    "patch_pooling": "none",
}


@pytest.fixture
def rows(pixels):
    return [{"pixel_values": image, "labels": label} for label, image in enumerate(pixels)]


def arguments(folder, **changes):
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", **changes}
    return TrainingArguments(str(folder), remove_unused_columns=False, **options)


def moved(model, before):
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def copies(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_trainer_adds_what_the_model_adds_in_training_alone(tiny_model, pixels, tmp_path):
    model = tiny_model(**SPOT).train()
    trainer = FocusViTTrainer(model, arguments(tmp_path), data_collator=default_data_collator)
    loss, outputs = trainer.compute_loss(model, {"pixel_values": pixels, "labels": torch.arange(4)}, True)
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.arange(4))
    assert outputs.aux_loss > 0
    torch.testing.assert_close(loss, expected + outputs.aux_loss)
    loss, outputs = trainer.compute_loss(model.eval(), {"pixel_values": pixels, "labels": torch.arange(4)}, True)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(outputs.logits, torch.arange(4)))
    assert torch.equal(with_aux_loss(loss, (outputs.logits,)), loss)


@pytest.mark.parametrize("fields", [SPOT, SPA], ids=["predictors", "gates"])
def test_predictors_have_their_own_rate_and_decay_as_before(tiny_model, rows, fields, tmp_path):
    model = tiny_model(**fields)
    trainer = FocusViTTrainer(
        model,
        arguments(tmp_path, learning_rate=1e-5, max_steps=1, weight_decay=0.1, lr_scheduler_type="constant"),
        data_collator=default_data_collator,
        train_dataset=rows,
        predictor_learning_rate=1e-2,
    )
    trainer.train()
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        rate, decay = rates[id(parameter)]
        assert rate == (1e-2 if is_predictor(name) else 1e-5)
        assert decay == (0.1 if parameter.ndim > 1 and "cls_token" not in name else 0.0)
    # Nothing is taken out of the groups that are given, and none is left empty.
    groups = with_predictor_rate(parameter_groups(tiny_model(), 0.1), tiny_model(), 1.0)
    assert len(groups) == 2


@pytest.mark.parametrize("fields", [SPOT, SPA], ids=["predictors", "gates"])
def test_the_backbone_rests_for_some_epochs(tiny_model, rows, fields, tmp_path):
    model = tiny_model(**fields)
    for epochs, all_move in ((1.0, False), (0.5, True)):
        before = copies(model)
        trainer = FocusViTTrainer(
            model,
            arguments(tmp_path, num_train_epochs=1, per_device_train_batch_size=2, weight_decay=0.1),
            data_collator=default_data_collator,
            train_dataset=rows,
            callbacks=[FrozenBackbone(epochs)],
        )
        trainer.train()
        names = moved(model, before)
        assert any(is_predictor(name) for name in names)
        assert all(is_predictor(name) for name in names) != all_move
    model(torch.zeros(1, 3, 32, 32)).logits.sum().backward()
    rest_backbone(model)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if not is_predictor(name))


@pytest.mark.parametrize("relevance", ["attention", "learned"])
@pytest.mark.parametrize("training", [False, True])
def test_tokens_that_stayed_are_compared_with_the_teachers(tiny_model, pixels, relevance, training):
    model = tiny_model(**{**SPOT, "sparsification_relevance": relevance}).train(training)
    outputs = model(pixels)
    teacher = torch.randn(4, 16, 32)
    found = token_distillation_loss(outputs, teacher)
    distances = []
    for image in range(4):
        if outputs.kept_masks is None:
            pairs = zip(outputs.token_states[image], outputs.kept_tokens[-1][image].tolist(), strict=True)
        else:
            there = outputs.kept_masks[-1][image].nonzero().flatten().tolist()
            pairs = [(outputs.token_states[image, place], place) for place in there]
        distances += [(state - teacher[image, place]).square().mean() for state, place in pairs]
    torch.testing.assert_close(found, torch.stack(distances).mean())
    found.backward()


def test_what_cannot_be_compared_is_refused(tiny_model, pixels):
    with pytest.raises(ValueError, match="expected a model with sparsification_layers that ends in full attention"):
        token_distillation_loss(tiny_model()(pixels), torch.zeros(4, 16, 32))
    with pytest.raises(ValueError, match=r"of shape \(4, 8, 32\), as the student's, got \(4, 8, 16\)"):
        token_distillation_loss(tiny_model(**SPOT).eval()(pixels), torch.zeros(4, 16, 16))


@pytest.mark.parametrize("script", [run_classification, run_classification_no_trainer], ids=["trainer", "no_trainer"])
def test_both_scripts_let_predictors_learn_alone_at_first(blob_dir, tmp_path, script):
    sizes = {**SPOT, "sparsification_relevance": "learned"}
    options = {"max_steps": 1, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "final_evaluation": False}
    script.main(flags(blob_dir, tmp_path / "begin", config=sizes, **options))
    begin = FocusViTForImageClassification.from_pretrained(tmp_path / "begin")
    options |= {
        "preset": None,
        "model_name_or_path": str(tmp_path / "begin"),
        "predictor_learning_rate": 1e-2,
        "frozen_epochs": 2,
    }
    script.main(flags(blob_dir, tmp_path / "run", config=sizes, **options))
    names = moved(FocusViTForImageClassification.from_pretrained(tmp_path / "run"), copies(begin))
    assert names
    assert all(is_predictor(name) for name in names)
    with pytest.raises(ValueError, match="select-and-pack attention for --predictor_learning_rate"):
        script.main(flags(blob_dir, tmp_path / "none", max_steps=1, predictor_learning_rate=1e-2))


def test_the_tokens_of_a_dense_teacher_are_part_of_the_loss(tiny_model, pixels, tmp_path):
    model = tiny_model(**SPOT).train()
    dense = tiny_model(**{**SPOT, "sparsification_layers": []})
    config = model.config
    about = (dense, config, config.image_mean, config.image_std)
    trainer = FocusViTTrainer(
        model,
        arguments(tmp_path),
        data_collator=default_data_collator,
        distillation=Distillation(*about, token_weight=0.25),
    )
    inputs = {"pixel_values": pixels, "labels": torch.arange(4)}
    torch.manual_seed(0)
    loss = trainer.compute_loss(model, inputs)
    torch.manual_seed(0)
    outputs = model(pixels)
    with torch.no_grad():
        tokens = dense.focusvit(pixels).last_hidden_state[:, config.num_prefix_tokens :]
    without = torch.nn.functional.cross_entropy(outputs.logits, torch.arange(4))
    expected = Distillation(*about).mixed(without, outputs.logits, pixels) + outputs.aux_loss
    added = token_distillation_loss(outputs, tokens)
    assert added > 0
    torch.testing.assert_close(loss, expected + 0.25 * added)
    assert not dense.focusvit._forward_hooks


def test_tokens_that_cannot_be_compared_are_refused(tiny_model):
    config = tiny_model(**SPOT).config
    normalisation = (config.image_mean, config.image_std)
    dense = tiny_model(**{**SPOT, "sparsification_layers": []})
    for teacher, student, message in (
        (dense, dense.config, "student with sparsification_layers"),
        (lambda images: images, config, "ViT of Transformers"),
        (tiny_model(**{**SPOT, "sparsification_layers": [], "hidden_size": 64}), config, "hidden_size"),
    ):
        with pytest.raises(ValueError, match=message):
            Distillation(teacher, student, *normalisation, token_weight=0.5)
    with pytest.raises(ValueError, match="distillation_token_weight"):
        Distillation(dense, config, *normalisation, token_weight=-1.0)
