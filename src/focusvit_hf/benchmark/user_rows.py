"""The table of the time where users are: its rows, and how it is written. `benchmarks/users.py` measures them."""

from collections.abc import Mapping
from typing import Any


VIT, LEVIT, LATENT, FULL = SUBJECTS = ("ViT-Ti/16", "LeViT-128S", "focusvit-tiny-latent", "focusvit-tiny-full")
BATCH = 32
Row = dict[str, Any]
# What each row is called in the table, in its order.
TITLES = {
    "float32": f"float32, batch {BATCH}, pixels → logits",
    "bfloat16": f"bfloat16, batch {BATCH}",
    "single": "float32, batch 1, eager",
    "onnx-single": "ONNX Runtime, batch 1",
    "onnx-alone": "ONNX Runtime, batch 1, the only model",
    "onnx": f"ONNX Runtime, batch {BATCH}",
    "compiled": "`torch.compile`, batch 1",
    "pipeline": f"`pipeline(images, batch_size={BATCH})`",
    "pipeline-single": "`pipeline(image)`",
    "jpeg": f"JPEG 500×375 → class, batch {BATCH}",
    "photograph": "12-megapixel JPEG → class, one thread",
    "448": "448 px, batch 4",
    "896": "896 px, batch 1",
    "first-step": "first compiled training step of nano, seconds",
}


def table(rows: Mapping[str, Row], earlier: Mapping[str, Row] | None = None) -> str:
    """
    The rows in Markdown: milliseconds an image, how many times faster than ViT, the floor, and what stands between.

    Args:
        rows (mapping from names in `TITLES` to rows): As `benchmarks/users.py` writes them.
        earlier (mapping, *optional*):
            Rows of an earlier run, whose times stand beside the new ones; beside a row that was not measured again
            stands a dash.
    """
    heads = ["path", VIT, LEVIT, "latent / full", "times faster", "floor", "what stands between (latent)"]
    if earlier is not None:
        heads.insert(4, "before")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, title in TITLES.items():
        if name in rows:
            cells = _cells(rows[name])
            if earlier is not None:
                old = earlier.get(name)
                cells.insert(3, "–" if old in (None, rows[name]) else _ours(_medians(old)))
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    """What a row holds, as text."""
    medians = _medians(row)
    beside = [f"{name}: {_number(value)}" for name, value in medians.items() if name not in SUBJECTS]
    ratios = " / ".join(f"{medians[VIT] / medians[name]:.1f}" for name in (LATENT, FULL))
    floors = " / ".join(_number(row["floors"][name]["floor_ms"]) for name in (LATENT, FULL) if name in row["floors"])
    between = [f"{name} {_number(value)}" for name, value in row["stages"].get(LATENT, {}).items()]
    if between and "operations" in row["floors"][LATENT]:
        floor = row["floors"][LATENT]
        between.append(f"of it {floor['operations']} operations {_number(floor['dispatch_ms'])}")
    levit = _number(medians[LEVIT]) if LEVIT in medians else "–"
    ours = "; ".join((_ours(medians), *beside))
    return [_number(medians[VIT]), levit, ours, ratios, floors or "–", "; ".join(between) or "–"]


def _medians(row: Row) -> dict[str, float]:
    return {name: figures["median_ms"] for name, figures in row["times"].items()}


def _ours(medians: Mapping[str, float]) -> str:
    return f"{_number(medians[LATENT])} / {_number(medians[FULL])}"


def _number(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.1f}"
