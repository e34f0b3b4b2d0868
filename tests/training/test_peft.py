"""LoRA by PEFT: adapters on the attention's projections, the classifier trained whole, saved and loaded."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.superpixels import slic


# PEFT asks for it.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture
def batch(small_photographs):
    """What a classifier of four classes can learn by heart."""
    pixel_values = small_photographs.float() / 127.5 - 1
    ids = slic(small_photographs, 16, cell_size=2)
    return {"pixel_values": pixel_values, "superpixel_ids": ids, "labels": torch.arange(4)}


@pytest.fixture
def base(tiny_model, tmp_path):
    """A folder with a model that others fine-tune."""
    tiny_model(layer_types=["full_attention", "latent_attention"]).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], [*ATTENTION, "fc1", "fc2"], ["v_proj", "convolution"]])
def test_lora_trains_saves_and_loads(base, batch, tmp_path, targets):
    before = FocusViTForImageClassification.from_pretrained(base).state_dict()
    options = LoraConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=["classifier"])
    model = get_peft_model(FocusViTForImageClassification.from_pretrained(base), options)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trained)
    for target in targets:
        assert any(f".{target}.lora_A" in name for name in trained)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for _ in range(12):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]

    model.eval().save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = PeftModel.from_pretrained(
        FocusViTForImageClassification.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(again(**batch).logits, expected)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    plain = FocusViTForImageClassification.from_pretrained(tmp_path / "merged").state_dict()
    assert plain.keys() == before.keys()
    changed = {name for name in plain if not torch.equal(plain[name], before[name])}
    assert changed and all(any(part in name for part in (*targets, "classifier")) for name in changed)


def test_trained_normalisation_is_saved_with_its_statistics(base, batch, tmp_path):
    norms = ["cells.norm", "mixing.norm"]
    options = LoraConfig(target_modules=ATTENTION, modules_to_save=["classifier", *norms])
    model = get_peft_model(FocusViTForImageClassification.from_pretrained(base), options).train()
    for _ in range(3):
        model(**batch).loss.backward()
    model.eval().save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        FocusViTForImageClassification.from_pretrained(base), tmp_path / "adapter"
    ).eval()
    found, start = again.merge_and_unload(), FocusViTForImageClassification.from_pretrained(base)
    for norm in norms:
        mean = f"focusvit.embeddings.units.{norm}.running_mean"
        assert not torch.allclose(found.get_buffer(mean), start.get_buffer(mean))
    with torch.no_grad():
        torch.testing.assert_close(found(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-4)
