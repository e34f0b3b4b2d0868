"""
What transformers' common suite for models asks, where its own version takes a model of words for granted.

`ModelTesterMixin.test_model_get_set_embeddings` wants an `nn.Embedding`; the suites of ViT and DINOv2 replace it, as
here. Its tests of training call `outputs.loss` of every class but transformers' own base models and backbones, which
they leave out by name; here those two are trained on what they return.
"""

import pytest
import torch
from torch import nn

from focusvit_hf import (
    FocusViTBackbone,
    FocusViTForImageClassification,
    FocusViTForSemanticSegmentation,
    FocusViTModel,
)


CLASSES = (FocusViTModel, FocusViTForImageClassification, FocusViTForSemanticSegmentation, FocusViTBackbone)
WITHOUT_LOSS = (FocusViTModel, FocusViTBackbone)


@pytest.mark.parametrize("kind", CLASSES)
def test_input_embeddings_are_a_module_that_can_be_replaced(tiny_config, pixels, kind):
    model = kind(tiny_config()).eval()
    units = model.get_input_embeddings()
    assert isinstance(units, nn.Module) and model.get_output_embeddings() is None
    replaced = kind(tiny_config()).eval().get_input_embeddings()

    def answer():
        found = model(pixels)[0]
        return found if isinstance(found, torch.Tensor) else found[0]

    with torch.no_grad():
        before = answer()
        model.set_input_embeddings(replaced)
        assert model.get_input_embeddings() is replaced and not torch.equal(answer(), before)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("kind", WITHOUT_LOSS)
def test_a_model_without_a_loss_learns_by_what_it_returns(tiny_config, pixels, kind, reentrant):
    torch.manual_seed(0)
    model = kind(tiny_config(layer_types=["full_attention", "latent_attention"])).train()
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable(None if reentrant is None else {"use_reentrant": reentrant})
        model.zero_grad()
        outputs = model(pixels)
        found = outputs.feature_maps[0] if kind is FocusViTBackbone else outputs.last_hidden_state
        found.square().mean().backward()
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    kept, repeated = gradients
    assert kept.keys() == repeated.keys() and "embeddings.cls_token" in {
        name.removeprefix("focusvit.") for name in kept
    }
    for name, gradient in kept.items():
        torch.testing.assert_close(repeated[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
