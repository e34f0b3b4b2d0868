"""
Converted checkpoints at full depth against their sources: the largest difference of logits and hidden states.

    python benchmarks/conversion.py --out benchmarks/results/conversion-cpu.json

No published weights: new ones, each tensor with noise added, since zeros and ones would hide errors. "dense" has no
pooling; "one_superpixel_a_patch" pools over superpixels that are the patches. `steps` are units of float32 rounding at
the largest logit: how far apart two orders of summation may come. The pixels are noise in the range of a normalised
image.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers

from focusvit_hf import convert_vit_checkpoint
from focusvit_hf.superpixels import tile_ids
from focusvit_hf.utils.environment import environment
from focusvit_hf.utils.files import write_json


SEED = 0
NOISE = 0.02
BASE = {"hidden_size": 768, "num_attention_heads": 12, "num_labels": 1000}
SMALL = {"hidden_size": 384, "num_attention_heads": 6, "num_labels": 1000}
# Name: class, configuration, side of the images.
SOURCES: dict[str, tuple[str, dict[str, Any], int]] = {
    "ViT-B/16": ("ViTForImageClassification", {**BASE, "intermediate_size": 3072}, 224),
    "DeiT-S/16 distilled": ("DeiTForImageClassificationWithTeacher", {**SMALL, "intermediate_size": 1536}, 224),
    "DINOv2-S/14": ("Dinov2ForImageClassification", {**SMALL, "image_size": 518, "patch_size": 14}, 224),
    "DINOv2-S/14 with registers": (
        "Dinov2WithRegistersForImageClassification",
        {**SMALL, "image_size": 518, "patch_size": 14},
        224,
    ),
    "DINOv2-S/14 at 518 px": ("Dinov2ForImageClassification", {**SMALL, "image_size": 518, "patch_size": 14}, 518),
}


def perturbed(name: str, options: dict[str, Any]) -> transformers.PreTrainedModel:
    """A new model with noise on every tensor."""
    model_class = getattr(transformers, name)
    torch.manual_seed(SEED)
    model = model_class(model_class.config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    return model


@torch.no_grad()
def compare(name: str, options: dict[str, Any], side: int) -> dict[str, Any]:
    """Largest differences between a source and the models made of it."""
    source = perturbed(name, options)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(SEED))
    expected = source(pixels, output_hidden_states=True)
    result: dict[str, Any] = {
        "parameters": source.num_parameters(),
        "layers": source.config.num_hidden_layers,
        "largest_logit": expected.logits.abs().max().item(),
    }
    grid = side // source.config.patch_size
    for label, overrides in (
        ("dense", {"patch_pooling": "none"}),
        ("one_superpixel_a_patch", {"num_superpixels": grid**2}),
    ):
        model = convert_vit_checkpoint(source, **overrides).eval()
        inputs = {"pixel_values": pixels}
        if "num_superpixels" in overrides:
            cells = side // model.config.cell_size
            inputs["superpixel_ids"] = tile_ids((grid, grid), cells, cells).expand(2, -1, -1)
        found = model(**inputs, output_hidden_states=True)
        states = zip(found.hidden_states, expected.hidden_states, strict=True)
        difference = (found.logits - expected.logits).abs().max().item()
        result[label] = {
            "logits": difference,
            "steps": difference / (torch.finfo(torch.float32).eps * result["largest_logit"]),
            "hidden_states": max((one - other).abs().max().item() for one, other in states),
        }
    return result


def main() -> None:
    """Runs the comparison and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    differences = {name: compare(*source) for name, source in SOURCES.items()}
    settings = environment(torch.device("cpu"), torch.float32, SEED)
    write_json(arguments.out, {"environment": settings, "noise": NOISE, "largest_differences": differences})
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
