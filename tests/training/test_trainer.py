"""FocusViTTrainer with the arguments of any Trainer: evaluation, diverged runs, resuming, saving, weight decay."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments, default_data_collator

from focusvit_hf.training.averaging import ExponentialMovingAverage
from focusvit_hf.training.objective import no_decay
from focusvit_hf.training.trainer import FocusViTTrainer


# PEFT asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def rows(pixels):
    """Three images of three classes."""
    return [{"pixel_values": image, "labels": label} for label, image in enumerate(pixels[:3])]


@pytest.fixture
def run(tmp_path):
    """The output folder."""
    return tmp_path / "run"


@pytest.fixture
def arguments(run):
    """A function from changes to a Trainer's arguments, which are else those that it has by default."""

    def make(**changes):
        return TrainingArguments(str(run), use_cpu=True, report_to="none", disable_tqdm=True, **changes)

    return make


@pytest.fixture
def lora(tiny_model):
    """A function to a classifier with adapters, always the same; none of its parts counts what it sees in training."""

    def make():
        return get_peft_model(tiny_model(embedding_type="patch"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))

    return make


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def blank(features):
    """Stands for augmentation: images that nobody can tell apart."""
    batch = default_data_collator(features)
    return {**batch, "pixel_values": torch.zeros_like(batch["pixel_values"])}


def test_evaluation_and_prediction_see_every_image_as_it_is(tiny_model, rows, arguments):
    model = tiny_model()
    args = arguments(per_device_eval_batch_size=2, dataloader_drop_last=True)
    with torch.no_grad():
        expected = model(pixel_values=torch.stack([row["pixel_values"] for row in rows])).logits
    loss = torch.nn.functional.cross_entropy(expected, torch.arange(3)).item()

    trainer = FocusViTTrainer(model, args, data_collator=blank, eval_collator=default_data_collator)
    prediction = trainer.predict(rows)
    torch.testing.assert_close(torch.from_numpy(prediction.predictions), expected, rtol=1e-4, atol=1e-4)
    assert prediction.label_ids.tolist() == [0, 1, 2]
    assert prediction.metrics["test_loss"] == pytest.approx(loss, abs=1e-4)
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(loss, abs=1e-4)
    assert trainer.data_collator is blank
    assert args.dataloader_drop_last

    blanks = FocusViTTrainer(model, args, data_collator=blank).predict(rows).predictions
    assert blanks == pytest.approx(blanks[:1].repeat(3, axis=0), abs=1e-4), "without an eval_collator"


@pytest.mark.parametrize(
    ("changes", "step"),
    [({}, 3), ({"save_strategy": "no"}, 3), ({"save_steps": 2}, 2), ({"logging_steps": 1}, 1)],
    ids=["last_checkpoint", "end", "checkpoint", "log"],
)
def test_a_diverged_run_stops_and_saves_nothing(tiny_model, rows, run, arguments, changes, step):
    model = tiny_model()
    model.classifier.weight.data.fill_(float("nan"))
    trainer = FocusViTTrainer(model, arguments(**changes), train_dataset=rows)
    with pytest.raises(ValueError, match=f"expected a finite loss, got nan at step {step};"):
        trainer.train()
    assert list(run.glob("*")) == []


def test_a_run_with_adapters_goes_on_from_its_checkpoint(lora, rows, run, arguments):
    args = arguments(max_steps=4, save_steps=2, lr_scheduler_type="constant", learning_rate=1e-2)
    whole = lora()
    FocusViTTrainer(whole, args, train_dataset=rows, ema=ExponentialMovingAverage(0.9)).train()
    assert not (run / "checkpoint-2" / "model.safetensors").exists()
    averaged = load_file(run / "checkpoint-4" / "ema.safetensors")

    resumed = lora()
    trainer = FocusViTTrainer(resumed, args, train_dataset=rows, ema=ExponentialMovingAverage(0.9))
    trainer.train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert trainer.state.global_step == 4
    fresh = lora().state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
        assert torch.equal(fresh[name], value) == ("lora_" not in name), name
    again = load_file(run / "checkpoint-4" / "ema.safetensors")
    assert all(torch.equal(again[name], value) for name, value in averaged.items())

    truncate(run / "checkpoint-4" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"expected the weights of this model in .*checkpoint-4, got: "):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-4"))


def test_the_checkpoint_of_a_plain_model_is_none_of_one_with_adapters(tiny_model, lora, rows, run, arguments):
    args = arguments(max_steps=1)
    FocusViTTrainer(tiny_model(embedding_type="patch"), args, train_dataset=rows).train()
    with pytest.raises(ValueError, match=r"expected the weights of this model in .*, got others in 104 tensors"):
        FocusViTTrainer(lora(), args, train_dataset=rows).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("file", "message"),
    [("model.safetensors", "the weights of this model"), ("ema.safetensors", "the moving average of this model")],
)
def test_a_truncated_checkpoint_is_refused(tiny_model, rows, run, arguments, file, message):
    args = arguments(max_steps=1)
    ema = ExponentialMovingAverage(0.9)
    FocusViTTrainer(tiny_model(), args, train_dataset=rows, ema=ema).train()
    truncate(run / "checkpoint-1" / file)
    trainer = FocusViTTrainer(tiny_model(), args, train_dataset=rows, ema=ExponentialMovingAverage(0.9))
    with pytest.raises(ValueError, match=f"expected {message} in .*checkpoint-1.*, got: "):
        trainer.train(resume_from_checkpoint=True)


def test_the_moving_average_of_another_model_is_refused(tmp_path):
    ema = ExponentialMovingAverage(0.9)
    ema.update(torch.nn.Linear(2, 3))
    ema.save(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)expected the moving average of this model in .*, got: .*size mismatch"):
        ema.load(tmp_path, torch.nn.Linear(2, 4))
    save_file(torch.nn.Linear(2, 3).state_dict(), tmp_path / "ema.safetensors")
    with pytest.raises(ValueError, match=r"expected the weights \['bias', 'n_averaged', 'weight'\] in .*, got \['b"):
        ema.load(tmp_path, torch.nn.Linear(2, 3))
    assert int(ema.average.n_averaged) == 1, "what was averaged before stays"


def test_a_saved_model_brings_nothing_of_a_killed_process(tiny_model, run, arguments):
    trainer = FocusViTTrainer(tiny_model(), arguments())
    half_written = run / ".incomplete" / "checkpoint-7"
    half_written.mkdir(parents=True)
    (half_written / "model.safetensors").write_bytes(b"half")
    (run / ".incomplete" / "optimizer.bin").write_bytes(b"half")
    trainer.save_model()
    assert {path.name for path in run.iterdir()} == {"config.json", "model.safetensors", "training_args.bin"}


@pytest.mark.parametrize("position", ["dynamic", "learned"])
def test_weight_decay_spares_every_token(tiny_model, arguments, position):
    model = tiny_model(position_embedding_type=position, use_distillation_token=True, num_register_tokens=2)
    decayed = set(FocusViTTrainer(model, arguments()).get_decay_parameter_names(model))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert decayed == {name for name, shape in shapes.items() if name.endswith("weight") and len(shape) > 1}
    spared = {name for name, parameter in model.named_parameters() if no_decay(name, parameter)}
    assert spared == shapes.keys() - decayed
    tokens = {f"focusvit.embeddings.{name}" for name in ("cls_token", "distillation_token", "register_tokens")}
    assert tokens | {"focusvit.latents"} <= spared
