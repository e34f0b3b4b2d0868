"""
A pupil as a folder to ship, in float16 and with its card; a dense one becomes a plain ViT of Transformers.

    python -m experiments.teacher.keep runs/vit-tiny model_cards/vit-tiny-imagenette
    python -m experiments.teacher.keep runs/mixed model_cards/focusvit-tiny-imagenette-taught

The ViT gives the pupil's logits to 1e-4 before it is rounded to float16, which is checked, and the folder is measured
again on the test split as a user would load it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from experiments.micro.data import DATA, load_examples
from experiments.teacher.efficientnet import MEAN, NAME, SIZE, STD
from experiments.teacher.train import LOG_FILE, measure
from focusvit_hf import FocusViTForImageClassification, FocusViTImageProcessor
from focusvit_hf.conversion.sources import source_of_model
from focusvit_hf.hub.contents import TRAINING_LOG_FILE
from focusvit_hf.hub.model_card import model_card
from focusvit_hf.hub.training_record import TrainingRecord
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


TAUGHT = """
The test split has 2,000 images of Imagenette's validation split, squashed to 224 x 224 pixels. It was looked at when
training had ended{rounds}.
The figures are those of the weights in this folder, in float32. The teacher has
{teacher:.4f} on the same images, and both give the same class for {agreement:.4f} of them.

**Taught, not trained from scratch**: the model learned from 5,000 training images, and from the answers of
EfficientNet-lite0 (`{teacher_name}`, Apache-2.0) for
{views}.
That teacher was trained on ImageNet, of which Imagenette is a part; it has probably seen these images, the test images
among them, with their labels.
"""
# Of what it learned before the last round.
FIXED, NEW = ",\nafter {count} epochs on fixed views of each image", " and {count} more on new ones"
UNLABELLED = ",\nin one round with images of other data sets without their labels among them\n({sets})"
LIMITS = """## Limits

Ten classes, one seed. Every image becomes one of the ten, often with a high score. Images were squashed to squares.
The number of superpixels was {superpixels}.
`python -m experiments.robustness.checkpoints` measures what another number costs.
[training_log.json](training_log.json) has the recipe and every epoch.

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


def in_half(file: Path) -> bytes:
    """
    A file of weights in float16, counts as they are. They are rounded in the file alone: a loader asks for the
    configuration's float32.
    """
    tensors = load_file(file)
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return save(halves, metadata={"format": "pt"})


def keep(run: Path, target: Path, data: Path = DATA) -> float:
    """Writes the folder `target`, which must not be there yet, and returns its accuracy on the test split in 0..1."""
    log = read_json(run / LOG_FILE)
    pupil = FocusViTForImageClassification.from_pretrained(run, dtype=torch.float32)
    dense = pupil.config.patch_pooling == "none" and pupil.config.embedding_type == "patch"
    test = load_examples(data, "test", SIZE)
    with new_folder(target) as folder:
        model = as_vit(pupil) if dense else pupil
        model.save_pretrained(folder)
        write_whole(folder / _WEIGHTS, in_half(folder / _WEIGHTS))
        if dense:
            ViTImageProcessorPil(
                size={"height": SIZE, "width": SIZE}, image_mean=[MEAN] * 3, image_std=[STD] * 3
            ).save_pretrained(folder)
        else:
            FocusViTImageProcessor.from_model_config(pupil.config).save_pretrained(folder)
        kept = type(model).from_pretrained(folder, dtype=torch.float32)
        logits = measure(kept, test.images, SIZE, half=False)
        right = logits.topk(5).indices == test.labels[:, None]
        figures = {"test_accuracy": float(right[:, 0].float().mean())}
        figures["test_top_5_accuracy"] = float(right.any(dim=1).float().mean())
        log = {**log, "figures": {**log["figures"], **figures, "epoch": len(log["history"])}}
        if isinstance(kept, FocusViTForImageClassification):
            card = pooled_card(kept, target.name, log, len(test))
        else:
            card = dense_card(kept, target.name, log)
        write_whole(folder / "README.md", card.encode())
        write_json(folder / TRAINING_LOG_FILE, log)
    accuracy = figures["test_accuracy"]
    print(f"{accuracy:.4f} on the test split; {target / _WEIGHTS}: {(target / _WEIGHTS).stat().st_size / 1e6:.1f} MB")
    return accuracy


def dense_card(vit: Any, name: str, log: Mapping[str, Any]) -> str:
    """The card of a ViT."""
    return CARD.format(
        name=name,
        parameters=sum(p.numel() for p in vit.parameters()) / 1e6,
        accuracy=log["figures"]["test_accuracy"],
        teacher=log["figures"]["teacher_accuracy"],
        agreement=log["figures"]["agreement"],
        teacher_name=NAME,
        epochs=len(log["history"]),
        minutes=_seconds(log) / 60,
    )


def pooled_card(model: FocusViTForImageClassification, name: str, log: Mapping[str, Any], images: int) -> str:
    """The card of a FocusViT, as a training script would write it, and what is to be said of its teacher."""
    recipe = log["settings"]["recipe"]
    given = {"num_train_epochs": len(log["history"]), "per_device_train_batch_size": recipe["batch_size"]}
    given |= {key: recipe[key] for key in ("learning_rate", "weight_decay", "ema_decay", "seed")}
    given |= {"bf16": True, "teacher_model_name_or_path": NAME}
    fixed = sum(entry["views"] > 0 for entry in log["earlier"])
    rounds = _rounds(log["earlier"][fixed:])
    views = f"{recipe['views']} augmented views of each"
    if not recipe["views"]:
        views = f"views drawn anew at every step, {recipe['mix']:.0%} of the batches mixed by mixup or cutmix"
        views += " in the last round" if rounds else ""
        views += FIXED.format(count=fixed) if fixed else ""
        views += NEW.format(count=sum(rounds)) if rounds else ""
    others = sorted({name for entry in log["rounds"] for name in entry["recipe"].get("unlabelled", [])})
    views += UNLABELLED.format(sets=", ".join(others)) if others else ""
    record = TrainingRecord(
        dataset="Imagenette, a balanced part at 224 px",
        dataset_id="frgfm/imagenette",
        license="apache-2.0",
        command="\n".join(entry["command"] for entry in log["rounds"]),
        images={"train": 5000, "test": images},
        evaluation_split="test",
        figures={key: value for key, value in log["figures"].items() if key.startswith("test_")},
        hyperparameters=given,
        wall_time_seconds=_seconds(log),
    )
    text = str(model_card(model, name, location=f"model_cards/{name}", record=record))
    told = {key: log["figures"][f"{key}_accuracy" if key == "teacher" else key] for key in ("teacher", "agreement")}
    before, _, after = text.partition("\n## Model\n")
    head, _, _ = after.partition("## Limits\n")
    licence = after[after.index("## Licence\n") :]
    *first, last = map(str, accumulate(rounds)) if rounds else [""]
    looks = f"{', '.join(first)} and {last}" if first else last
    earlier = f", and before, after {looks} epochs on new views" if rounds else ""
    taught = TAUGHT.format(**told, teacher_name=NAME, views=views, rounds=earlier)
    numbers = "49 in every step of the training"
    if recipe.get("num_superpixels"):
        numbers = f"drawn from {', '.join(map(str, recipe['num_superpixels']))} for each batch of the training"
    return before + taught + "\n## Model\n" + head + LIMITS.format(superpixels=numbers) + licence


def _rounds(entries: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many epochs each round had whose entries follow one another."""
    begins = [number for number, entry in enumerate(entries) if entry["epoch"] == 1]
    return [end - begin for begin, end in pairwise([*begins, len(entries)])]


def _seconds(log: Mapping[str, Any]) -> float:
    return sum(entry["seconds"] for entry in (*log.get("earlier", []), *log["history"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that experiments.teacher.train wrote")
    parser.add_argument("target", type=Path, help="folder to write")
    args = parser.parse_args(argv)
    keep(args.run, args.target)


if __name__ == "__main__":
    main()
