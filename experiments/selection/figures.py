"""
Does a gate find the figures that people drew, in the ViT that a user has?

    python -m experiments.selection.figures

The dense ViT of `model_cards/vit-tiny-imagenette` gets select-and-pack attention in the second half of its layers.
Only the gates learn, from the masks of ECSSD; all other weights stay. The threshold is chosen on a fifth of the
training images, held out: the highest at which 95 % of the tokens of figures are selected. On the test images stand
the share of tokens selected, of the FLOPs of the layers that select, and of the tokens of figures (half or more of
whose area the figure covers), and how often the ViT's answer stays the same. Two controls take as many tokens of each
image: those with the most attention of the class token in the layer before, and the ones in the middle, where
photographers put figures. At last the gates, which have seen no image of Imagenette, select there.

Writes `experiments/tables/selection-figures.json` and `.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn

from experiments.conversion.curve import load_dense, made
from experiments.conversion.rows import Row
from experiments.dense.teacher import ECSSD, squashed
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import training_and_evaluation
from experiments.micro.processes import keep_heap
from experiments.micro.results import write_table
from experiments.selection.run import normalised, outcomes, set_threshold
from focusvit_hf import FocusViTForImageClassification
from focusvit_hf.segmentation_maps import decode_mask
from focusvit_hf.token_choice import largest
from focusvit_hf.training.objective import require_finite
from focusvit_hf.training.sparsification import is_predictor
from focusvit_hf.utils.environment import environment


VIT = Path("model_cards/vit-tiny-imagenette")
RECALL = 0.95
# Of which the highest that is enough is taken.
THRESHOLDS = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
RECIPE: dict[str, Any] = {"epochs": 10, "batch_size": 32, "learning_rate": 1e-2, "seed": 0}


def gated(dense: FocusViTForImageClassification) -> FocusViTForImageClassification:
    """The dense ViT with gates, which alone can learn, in the second half of its layers."""
    layers = dense.config.num_hidden_layers
    kinds = ["full_attention"] * (layers - layers // 2) + ["select_pack_attention"] * (layers // 2)
    options = {"layer_types": kinds, "select_threshold": 0.5, "select_alpha": 1.0, "drop_path_rate": 0.0}
    model = made(dense, Row("figures", 1.0, 1.0, options))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_predictor(name))
    return model


def figures(split: str, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ECSSD's images, 8-bit levels `(count, 3, side, side)`, and masks `(count, side, side)`, 1 in the figure."""
    rows = datasets.load_dataset("parquet", data_dir=str(ECSSD), split=split)
    images = torch.stack([squashed(image, side) for image in rows["image"]])
    size = (side, side)
    small = [Image.fromarray(decode_mask(mask)).resize(size, Image.Resampling.NEAREST) for mask in rows["mask"]]
    return images, torch.from_numpy(np.stack([np.asarray(mask) == 1 for mask in small])).float()


def teach(
    model: FocusViTForImageClassification, images: torch.Tensor, masks: torch.Tensor, recipe: Mapping[str, Any]
) -> None:
    """Adam on the gates, with half a cosine; half of the images are mirrored."""
    torch.manual_seed(recipe["seed"])
    gates = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(gates, lr=recipe["learning_rate"])
    batch = recipe["batch_size"]
    steps = recipe["epochs"] * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    step = 0
    for _ in range(recipe["epochs"]):
        for rows in torch.randperm(len(images))[: len(images) // batch * batch].split(batch):
            mirrored = torch.rand(()) < 0.5
            levels, wanted = (each[rows].flip(-1) if mirrored else each[rows] for each in (images, masks))
            loss = model.focusvit(normalised(levels), selection_masks=wanted).selection_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
        require_finite(float(loss.detach()), step)
    model.eval()


def chosen_threshold(model: FocusViTForImageClassification, images: torch.Tensor, masks: torch.Tensor) -> float:
    """The highest of [`THRESHOLDS`] at which enough of the figures' tokens are selected; the lowest where none is."""
    labels = torch.zeros(len(images), dtype=torch.long)
    for threshold in THRESHOLDS:
        set_threshold(model, threshold)
        if outcomes(model, images, masks, labels)[1]["recall"] >= RECALL:
            return threshold
    return THRESHOLDS[-1]


@torch.no_grad()
def answers(model: FocusViTForImageClassification, images: torch.Tensor) -> torch.Tensor:
    """The class of each image, `(count,)`."""
    return torch.cat([model(normalised(part)).logits.argmax(dim=1) for part in images.split(100)])


@torch.no_grad()
def class_attention(dense: FocusViTForImageClassification, images: torch.Tensor, layer: int) -> torch.Tensor:
    """The class token's attention to the tokens in a layer, the mean over heads, `(count, N)`."""
    usual = dense.config._attn_implementation
    dense.set_attn_implementation("eager")
    maps = [dense(normalised(part), output_attentions=True).attentions[layer] for part in images.split(50)]
    dense.set_attn_implementation(usual)
    return torch.cat(maps)[:, :, 0, 1:].mean(dim=1)


def controls(
    dense: FocusViTForImageClassification, images: torch.Tensor, masks: torch.Tensor, share: float
) -> dict[str, float]:
    """The share of figures' tokens among as many that have most attention of the class token, or lie in the middle."""
    objects = nn.functional.avg_pool2d(masks[:, None], dense.config.patch_size)[:, 0] >= 0.5
    rows, columns = objects.shape[1:]
    y, x = (torch.arange(length) / (length - 1) - 0.5 for length in (rows, columns))
    nearness = -(y[:, None] ** 2 + x**2).flatten().expand(len(images), -1)
    scores = {
        "attention": class_attention(dense, images, dense.config.num_hidden_layers // 2 - 1),
        "middle": nearness,
    }
    count, objects = round(share * rows * columns), objects.flatten(1)
    return {name: float((largest(values, count) * objects).sum() / objects.sum()) for name, values in scores.items()}


def markdown(content: Mapping[str, Any]) -> str:
    """The figures as a table to read."""
    heads = [
        "test images",
        "threshold",
        "tokens selected",
        "FLOPs",
        "figures' tokens found",
        "same answer",
        "accuracy",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in content["rows"]:
        names = ("selected_share", "cost_share", "recall", "agreement", "accuracy")
        cells = ["" if name not in row else f"{100 * row[name]:.1f} %" for name in names]
        lines.append("| " + " | ".join([row["images"], f"{row['threshold']:g}", *cells]) + " |")
    share, found = (f"{100 * content['rows'][0][name]:.1f} %" for name in ("object_tokens", "selected_share"))
    control = {name: f"{100 * value:.1f} %" for name, value in content["controls"].items()}
    lines += [
        "",
        f"Figures cover half or more of {share} of the tokens. Of as many tokens as the gates select ({found}), those "
        f"with the most attention hold {control['attention']} of them, those in the middle {control['middle']}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Teaches the gates, measures, and writes the table."""
    parser = parser_of(__doc__)
    parser.add_argument("--vit", type=Path, default=VIT, help="A folder with a dense ViT.")
    parser.add_argument("--epochs", type=int, default=RECIPE["epochs"])
    parser.add_argument("--limit", type=int, help="Use so many images of each split.")
    add_options(parser, "data", "cache", "tables")
    arguments = parser.parse_args(argv)
    recipe = {**RECIPE, "epochs": arguments.epochs}
    dense = load_dense(arguments.vit)
    side = dense.config.image_height_and_width[0]
    images, masks = (each[: arguments.limit] for each in figures("train", side))
    held_out = torch.arange(len(images)) % 5 == 0
    model = gated(dense)
    teach(model, images[~held_out], masks[~held_out], recipe)
    chosen = chosen_threshold(model, images[held_out], masks[held_out])
    images, masks = (each[: arguments.limit] for each in figures("test", side))
    known = answers(dense, images)
    rows: list[dict[str, Any]] = []
    for threshold in dict.fromkeys((chosen, 0.5)):
        set_threshold(model, threshold)
        same, found = outcomes(model, images, masks, known)
        rows.append({"images": "ECSSD", "threshold": threshold, "agreement": float(same.mean()), **found})
    share = rows[0]["selected_share"]
    examples = training_and_evaluation(arguments.data, side, "test", arguments.cache)[1][: arguments.limit]
    known = answers(dense, examples.images)
    set_threshold(model, chosen)
    # Nobody drew figures here, so that recall has no meaning.
    nowhere = torch.zeros(len(examples), side, side)
    same, found = outcomes(model, examples.images, nowhere, known)
    there: dict[str, Any] = {name: found[name] for name in ("selected_share", "cost_share")}
    right = (answers(model, examples.images) == examples.labels).float().mean()
    there |= {"images": "Imagenette", "threshold": chosen, "agreement": float(same.mean()), "accuracy": float(right)}
    rows.append(there)
    content = {
        "rows": rows,
        "controls": controls(dense, images, masks, share),
        "dense_accuracy": float((known == examples.labels).float().mean()),
        "recipe": recipe,
        "environment": environment(torch.device("cpu"), torch.float32),
    }
    write_table(arguments.tables, "selection-figures", content, markdown(content))
    print(markdown(content))


if __name__ == "__main__":
    keep_heap()
    main()
