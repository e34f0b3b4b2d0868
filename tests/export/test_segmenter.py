"""A segmenter as one graph, from 8-bit images to their label maps, in float32 and in 8 bits."""

import onnxruntime
import pytest
import torch

from focusvit_hf import FocusViTForSemanticSegmentation, FocusViTImageProcessor
from focusvit_hf.cli.__main__ import main
from focusvit_hf.hub import save_for_hub
from focusvit_hf.utils.files import read_json


@pytest.fixture(scope="module")
def checkpoint(tiny_config, tmp_path_factory):
    """A segmenter of three classes in a folder, and its processor."""
    torch.manual_seed(0)
    config = tiny_config(initializer_range=0.5, num_labels=3)
    model = FocusViTForSemanticSegmentation(config).eval()
    processor = FocusViTImageProcessor.from_model_config(config)
    folder = tmp_path_factory.mktemp("segmenter") / "checkpoint"
    save_for_hub(model, processor, folder)
    return model, processor, folder


@pytest.mark.parametrize("quantize", [[], ["--quantize", "int8"]])
def test_an_exported_segmenter_leads_from_images_to_label_maps(checkpoint, photographs, tmp_path, quantize):
    model, processor, folder = checkpoint
    assert main(["export", str(folder), str(tmp_path / "graph"), *quantize]) == 0
    images = photographs[..., ::7, ::7].contiguous()
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
    with torch.no_grad():
        outputs = model(**processor(list(images), return_tensors="pt"))
    maps = processor.post_process_semantic_segmentation(outputs, [(32, 32)] * len(images))
    same = (torch.from_numpy(found["label_map"]) == torch.stack(maps)).float().mean()
    assert found["label_map"].shape == (len(images), 32, 32) and len(torch.stack(maps).unique()) > 1
    # Classes that win in no cell have no part in the processor's map, and 8 bits move borders a little.
    assert same >= (0.8 if quantize else 0.99)
    assert (found["superpixel_ids"] == outputs.superpixel_ids.numpy()).all()
    described = read_json(tmp_path / "graph" / "export.json")
    assert described["outputs"]["label_map"] == {"dtype": "int64", "shape": ["batch", 32, 32]}
