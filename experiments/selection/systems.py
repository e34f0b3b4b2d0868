"""
SPOT, SPA and FocusViT, and the pairs that combine, under one configuration on the same dense model: what each costs.

    python -m experiments.selection.systems

Untrained models of the shape of ViT-Ti/16 behind the stem of focusvit-tiny, 224 pixels, a batch of 32, float32, two
threads. SPOT drops tokens before layers 3, 6 and 9, 70 % stay each time; "learned" decides by predictors, which see
all tokens in training, "attention" by the layer before. SPA selects 30 % of the tokens in the last six layers.
FocusViT pools to 49 superpixels, which it computes inside the timed region. A training step is a pass forward, one
back and a step of AdamW; memory is that by which it raises the resident set of a process of its own. FLOPs are of one
image, without superpixels. Accuracy is not here, since nothing is trained.
`experiments/tables/selection-systems.json` and `.md` hold what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from experiments.micro.processes import keep_heap
from experiments.selection.program import run_program
from focusvit_hf import FocusViTConfig, FocusViTForImageClassification
from focusvit_hf.benchmark.cost import model_costs
from focusvit_hf.benchmark.memory import peak_memory
from focusvit_hf.benchmark.timing import interleaved, summary


SEED, BATCH, SIZE, CLASSES = 0, 32, 224, 10
_SPOT: dict[str, Any] = {"sparsification_layers": [3, 6, 9], "keep_ratio": 0.7}
_ATTENTION = {**_SPOT, "sparsification_relevance": "attention"}
_LEARNED = {**_SPOT, "sparsification_relevance": "learned"}
_SPA: dict[str, Any] = {
    "layer_types": ["full_attention"] * 6 + ["select_pack_attention"] * 6,
    "select_budget": 0.3,
}
_SUPERPIXELS: dict[str, Any] = {"patch_pooling": "superpixel", "num_superpixels": 49}
_LATENT: dict[str, Any] = {"layer_types": ["full_attention"] * 6 + ["latent_attention"] * 6}
SYSTEMS: dict[str, dict[str, Any]] = {
    "dense": {},
    "SPOT, learned": _LEARNED,
    "SPOT, attention": _ATTENTION,
    "SPA": _SPA,
    "FocusViT": _SUPERPIXELS,
    "FocusViT, half of the layers latent": {**_SUPERPIXELS, **_LATENT},
    "SPOT, attention, and SPA": {**_ATTENTION, **_SPA},
    "FocusViT and SPA": {**_SUPERPIXELS, **_SPA},
    "FocusViT and SPOT, attention": {**_SUPERPIXELS, **_ATTENTION},
}


def config_of(name: str) -> FocusViTConfig:
    """The configuration of a system: the dense preset with other fields."""
    fields: dict[str, Any] = {"image_size": SIZE, "num_labels": CLASSES, **SYSTEMS[name]}
    return FocusViTConfig.from_preset("focusvit-tiny-dense", **fields)


def subject(name: str, training: bool) -> Callable[[], Any]:
    """A pass from the pixels to the logits, or a training step."""
    torch.manual_seed(SEED)
    model = FocusViTForImageClassification(config_of(name)).train(training)
    pixels, labels = torch.randn(BATCH, 3, SIZE, SIZE).clamp(-1, 1), torch.arange(BATCH) % CLASSES
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model(pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step if training else torch.no_grad()(lambda: model(pixels))


def measured(repeats: int) -> dict[str, Any]:
    """A row for each system."""
    rows: dict[str, dict[str, Any]] = {
        name: {"fields": fields, "flops": model_costs(FocusViTForImageClassification(config_of(name)), SIZE)["flops"]}
        for name, fields in SYSTEMS.items()
    }
    for training, title in ((False, "inference"), (True, "training")):
        times = interleaved({name: subject(name, training) for name in SYSTEMS}, repeats, warmup=1)
        for name, seconds in times.items():
            rows[name][title] = summary(seconds, BATCH)
    for name, row in rows.items():
        row["training"]["peak_mib"] = peak_memory(subject, name, True, device=torch.device("cpu"))
    return rows


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures, and how they compare with those of the dense model."""
    heads = ["system", "GFLOPs an image", "images/s", "×", "training step, ms an image", "×", "training, MiB", "share"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    dense = rows["dense"]
    for name, row in rows.items():
        inference, training = row["inference"]["median_ms"], row["training"]["median_ms"]
        cells = [name, f"{row['flops'] / 1e9:.2f}", f"{1000 / inference:.0f}"]
        cells += [f"{dense['inference']['median_ms'] / inference:.2f}", f"{training:.1f}"]
        cells += [f"{dense['training']['median_ms'] / training:.2f}", f"{row['training']['peak_mib']:.0f}"]
        cells.append(f"{row['training']['peak_mib'] / dense['training']['peak_mib']:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    run_program(__doc__, argv, "selection-systems", measured, markdown, SEED)


if __name__ == "__main__":
    keep_heap()
    main()
