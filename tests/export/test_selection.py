"""Models that select a fixed share of their tokens, as one graph: the same tokens, and so the same answers."""

import numpy as np
import onnxruntime
import pytest
import torch

from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.export import export_model


LAYERS = {"layer_types": ["full_attention", "select_pack_attention"]}


class Choosing(torch.nn.Module):
    """Logits, and which tokens each layer selected."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        outputs = self.model(pixel_values)
        return outputs.logits, torch.stack(outputs.selected_tokens)


def test_onnx_runtime_selects_the_same_tokens(tiny_model, tmp_path):
    model = Choosing(tiny_model(**LAYERS, patch_pooling="none", select_budget=0.4)).eval()
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        logits, selected = model(images)
        program = torch.onnx.export(
            model, (images[:2],), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for size in (1, 5):
        found = session.run(None, {session.get_inputs()[0].name: images[:size].numpy()})
        np.testing.assert_array_equal(found[1], selected[:, :size])
        torch.testing.assert_close(torch.from_numpy(found[0]), logits[:size], rtol=0, atol=1e-4)
    assert selected.sum(dim=2).unique().tolist() == [6]


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_onnx_runtime_drops_the_same_of_tokens_that_nothing_attends_to(tiny_model, tmp_path):
    layers = ["full_attention", "select_pack_attention", "full_attention"]
    options = {"num_hidden_layers": 3, "layer_types": layers, "sparsification_layers": [2], "keep_ratio": 0.6}
    model = tiny_model(**options, patch_pooling="none", select_budget=0.3)
    # It runs the graph, and refuses one whose logits are not the model's.
    export_model(model, FocusViTImageProcessor.from_model_config(model.config), tmp_path / "graph", batch_size=3)


def test_a_budget_is_exported_and_a_threshold_refused(tiny_model, tmp_path):
    options = {"export_format": "torch-export", "graph_input": "pixel_values"}
    model = tiny_model(**LAYERS, patch_pooling="none", select_budget=0.4)
    processor = FocusViTImageProcessor.from_model_config(model.config)
    # It runs the graph, and refuses one whose logits are not the model's.
    export_model(model, processor, tmp_path / "graph", **options)
    with pytest.raises(ValueError, match="Expected select_budget without select_threshold in a compiled or exported"):
        export_model(tiny_model(**LAYERS, patch_pooling="none"), processor, tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()
