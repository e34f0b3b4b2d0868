"""
The dense pupil as a plain ViT of Transformers, in float16, with its card: something to convert.

    python -m experiments.teacher.keep runs/vit-tiny model_cards/vit-tiny-imagenette

The ViT gives the pupil's logits to 1e-4 before it is rounded to float16, which is checked, and the folder is measured
again on the test split as a user would load it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from experiments.micro.data import DATA, load_pictures
from experiments.teacher.efficientnet import MEAN, NAME, SIZE, STD
from experiments.teacher.train import LOG_FILE, measure
from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.conversion.sources import source_of_model
from focusvit_hf.utils.files import new_folder, read_json, write_json, write_whole


_SIZES = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_SAME = (*_SIZES, "layer_norm_eps", "qkv_bias", "hidden_act", "initializer_range")
_WEIGHTS = "model.safetensors"
CARD = """---
library_name: transformers
license: apache-2.0
datasets:
- frgfm/imagenette
metrics:
- accuracy
pipeline_tag: image-classification
tags:
- vision
- vit
---

# {name}

A dense ViT-Ti/16 at 224 px ({parameters:.2f} million parameters, a class of Transformers, float16) for the ten classes
of Imagenette. It is small, and it is here to be converted, sparsified and compared with.

## Use

```python
from transformers import pipeline

classify = pipeline("image-classification", model="model_cards/{name}")
```

`focusvit convert model_cards/{name} TARGET` makes a FocusViT of it.

## Results

accuracy: {accuracy:.4f}

{accuracy:.4f} on the 2,000 test images, in float32 from the weights in this folder; its teacher has {teacher:.4f} on
them, and both give the same class for {agreement:.4f} of them. The images are squashed to 224 x 224 pixels.

## Training

    python -m experiments.teacher.train experiments/teacher/vit-tiny.json --bank runs/teacher-bank --out runs/vit-tiny

**Taught, not trained from scratch**: it learned from 5,000 training images and from the answers and features of
EfficientNet-lite0 (`{teacher_name}`, Apache-2.0) for them. That teacher was trained on ImageNet, of which
Imagenette is a part; it has probably seen these images, the test images among them, with their labels.
`training_log.json` has the recipe and every epoch. {epochs} epochs took
{minutes:.0f} minutes of a processor that others used, too.

## Limits

Ten classes, one seed. Every image becomes one of the ten. The photographs are ImageNet's, which are for
non-commercial research and education.
"""


def as_vit(model: FocusViTForImageClassification) -> ViTForImageClassification:
    """
    The inverse of the conversion without pooling.

    Args:
        model ([`FocusViTForImageClassification`]): Dense, of linear patches, with a learned position.

    Raises:
        ValueError: If the ViT's logits are not those of `model` to 1e-4.
    """
    labels: dict[str, Any] = {"id2label": model.config.id2label, "label2id": model.config.label2id}
    vit = ViTForImageClassification(
        ViTConfig(**{name: getattr(model.config, name) for name in _SAME}, **labels)
    ).eval()
    source = source_of_model(vit, {})
    own = {name.removeprefix("focusvit."): tensor for name, tensor in model.state_dict().items()}
    template = vit.state_dict()
    vit.load_state_dict({origin: own[name].reshape(template[origin].shape) for name, origin in source.origins.items()})
    pixels = torch.randn(2, 3, *model.config.image_height_and_width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = float((vit(pixels).logits - model.eval()(pixels).logits).abs().max())
    if not difference <= 1e-4:
        raise ValueError(f"expected a ViT that gives the pupil's logits, got a difference of {difference}")
    return vit


def keep(run: Path, target: Path, data: Path = DATA) -> float:
    """Writes the folder `target`, which must not be there yet, and returns its accuracy on the test split in 0..1."""
    log = read_json(run / LOG_FILE)
    figures = log["figures"]
    vit = as_vit(FocusViTForImageClassification.from_pretrained(run))
    test = load_pictures(data, "test", SIZE)
    with new_folder(target) as folder:
        vit.save_pretrained(folder)
        # Rounded in the file alone: a loader asks for the configuration's float32.
        halves = {name: tensor.half() for name, tensor in load_file(folder / _WEIGHTS).items()}
        write_whole(folder / _WEIGHTS, save(halves, metadata={"format": "pt"}))
        ViTImageProcessorPil(
            size={"height": SIZE, "width": SIZE}, image_mean=[MEAN] * 3, image_std=[STD] * 3
        ).save_pretrained(folder)
        kept = ViTForImageClassification.from_pretrained(folder, dtype=torch.float32)
        logits = measure(kept, test.images, SIZE, half=False)
        accuracy = float((logits.argmax(dim=1) == test.labels).float().mean())
        card = CARD.format(
            name=target.name,
            parameters=sum(p.numel() for p in vit.parameters()) / 1e6,
            accuracy=accuracy,
            teacher=figures["teacher_accuracy"],
            agreement=figures["agreement"],
            teacher_name=NAME,
            epochs=len(log["history"]),
            minutes=sum(entry["seconds"] for entry in log["history"]) / 60,
        )
        write_whole(folder / "README.md", card.encode())
        write_json(folder / "training_log.json", {**log, "figures": {**figures, "test_accuracy": accuracy}})
    print(f"{accuracy:.4f} on the test split; {target / _WEIGHTS}: {(target / _WEIGHTS).stat().st_size / 1e6:.1f} MB")
    return accuracy


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that experiments.teacher.train wrote")
    parser.add_argument("target", type=Path, help="folder of the ViT")
    args = parser.parse_args(argv)
    keep(args.run, args.target)


if __name__ == "__main__":
    main()
