"""
Layers of select-and-pack attention beside dense ones and beside padding to the longest image: time and memory.

    python -m experiments.selection.speed

The twelve layers of a ViT-Ti/16 at 224 pixels, 196 tokens and the class token, a batch of 32, float32, two threads,
random weights. Which tokens are selected is fixed, and all else of a layer is computed: norm, gate, weights, packing.
"even": each image selects 30 % of its tokens. "uneven": 15 to 45 %, a factor of three. "padded" computes the same with
every image padded to the longest one, and a mask. Training is a pass forward and one back. Memory is that by which a
call raises the resident set of a process of its own. The floor is the ratio of the multiplications.
`experiments/tables/selection-speed.json` and `.md` hold what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from experiments.micro.processes import keep_heap
from experiments.selection.program import run_program
from focusvit_hf import FocusViTConfig
from focusvit_hf.benchmark.memory import peak_memory
from focusvit_hf.benchmark.timing import interleaved, summary
from focusvit_hf.select_pack_attention import FocusViTSelectPackLayer
from focusvit_hf.token_packing import Packing, attend_by_image, attend_in_containers
from focusvit_hf.token_selection import cost_share
from focusvit_hf.transformer_layer import FocusViTLayer


SEED, BATCH, TOKENS, DEPTH = 0, 32, 196, 12
SHARES = {"even": (0.3, 0.3), "uneven": (0.15, 0.45)}
SUBJECTS = (("dense", "even"), ("packed", "even"), ("packed", "uneven"), ("padded", "uneven"))
# Whom each is compared with.
AGAINST = {"packed-even": "dense-even", "packed-uneven": "padded-uneven"}


class PaddedLayer(FocusViTSelectPackLayer):
    """The same layer with the selected tokens of each image padded to the longest, and a mask."""

    def _packed(self, hidden_states: Any, weights: Any, selected: Any, *masks: Any) -> torch.Tensor:
        packing = Packing.of(nn.functional.pad(selected, (1, 0), value=True))
        counts = torch.tensor(packing.counts)
        there = torch.arange(int(counts.max())) < counts[:, None]

        def padded(packed: torch.Tensor) -> torch.Tensor:
            return packed.new_zeros(*there.shape, packed.shape[-1]).index_put((there,), packed)

        mask = there[:, None, None].expand(-1, -1, there.shape[1], -1)
        states = packing.pack(hidden_states)
        attended, *_ = self.attention(padded(self.layernorm_before(states) * packing.pack(weights)), None, mask)
        states = self._mixed(padded(states), attended)
        return packing.scatter(states[there], hidden_states)


def counts_of(name: str) -> list[int]:
    """How many tokens each image selects."""
    low, high = SHARES[name]
    return [round(TOKENS * (low + (high - low) * image / (BATCH - 1))) for image in range(BATCH)]


def selection(counts: Sequence[int]) -> torch.Tensor:
    """So many tokens of each image, at random: `(batch, tokens)` float32."""
    generator = torch.Generator().manual_seed(SEED)
    order = torch.rand(len(counts), TOKENS, generator=generator).argsort(dim=1).argsort(dim=1)
    return (order < torch.tensor(counts)[:, None]).float()


def make_layers(way: str, counts: str) -> list[Any]:
    """The layers of a model, whose choice is fixed."""
    torch.manual_seed(SEED)
    kind = "full_attention" if way == "dense" else "select_pack_attention"
    options: dict[str, Any] = {"attn_implementation": "sdpa"}
    config = FocusViTConfig(layer_types=[kind] * DEPTH, patch_pooling="none", **options)
    if way == "dense":
        return [FocusViTLayer(config, kind, 0.0) for _ in range(DEPTH)]
    layers = [(FocusViTSelectPackLayer if way == "packed" else PaddedLayer)(config, 0.0) for _ in range(DEPTH)]
    mask = selection(counts_of(counts))
    for layer in layers:
        layer._choice = lambda scores, *_: mask + 0 * scores  # type: ignore[method-assign]
    return layers


def subject(way: str, counts: str, training: bool) -> Callable[[], Any]:
    """A pass through all layers, and in training one back."""
    layers = make_layers(way, counts)
    states = torch.randn(BATCH, TOKENS + 1, 192)
    for layer in layers:
        layer.train(training)

    def forward() -> torch.Tensor:
        hidden, scores = states, None
        for layer in layers:
            if way == "dense":
                hidden = layer(hidden)
            else:
                hidden, scores, *_ = layer(hidden, TOKENS, scores)
        return hidden

    def step() -> None:
        forward()[:, 0].square().mean().backward()
        for layer in layers:
            layer.zero_grad(set_to_none=True)

    return step if training else torch.no_grad()(forward)


def attention_ways() -> dict[str, Callable[[], Any]]:
    """Attention alone on the uneven counts, forward and backward."""
    packing = Packing.of(selection(counts_of("uneven")) > 0)
    query = torch.randn(len(packing.index), 3, 64, requires_grad=True)
    offsets = nn.functional.pad(torch.tensor(packing.counts).cumsum(0), (1, 0))

    def nested() -> torch.Tensor:
        rows = torch.nested.nested_tensor_from_jagged(query, offsets).transpose(1, 2)
        values: torch.Tensor = nn.functional.scaled_dot_product_attention(rows, rows, rows).transpose(1, 2).values()
        return values

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "image by image": lambda: attend_by_image(query, query, query, packing),
        "containers of 64": lambda: attend_in_containers(query, query, query, packing, pack_length=64),
        "nested tensor": nested,
    }
    return {name: lambda way=way: way().square().sum().backward() for name, way in ways.items()}  # type: ignore[misc]


def floor() -> float:
    """How many times the multiplications of the even selection go into those of dense layers."""
    counts = torch.tensor(counts_of("even"), dtype=torch.float32)
    return 1 / float(cost_share(counts, TOKENS, 1, 192, 768).mean())


def measured(repeats: int) -> dict[str, Any]:
    """All figures."""
    result: dict[str, Any] = {"floor": floor()}
    for training, title in ((False, "inference"), (True, "training")):
        subjects = {f"{way}-{counts}": subject(way, counts, training) for way, counts in SUBJECTS}
        times = interleaved(subjects, repeats)
        rows: dict[str, Any] = {name: summary(seconds, BATCH) for name, seconds in times.items()}
        if training:
            for way, counts in SUBJECTS:
                growth = peak_memory(subject, way, counts, True, device=torch.device("cpu"))
                rows[f"{way}-{counts}"]["peak_mib"] = growth
        result[title] = rows
    result["attention"] = {name: summary(seconds, BATCH) for name, seconds in interleaved(attention_ways()).items()}
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """Milliseconds of a batch and MiB, and how they compare."""
    heads = ["layers", "inference, ms", "×", "training, ms", "×", "training, MiB", "share"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for way, counts in SUBJECTS:
        name = f"{way}-{counts}"
        cells = [f"{way}, {'all tokens' if way == 'dense' else counts}"]
        for title in ("inference", "training"):
            rows = result[title]
            cells.append(f"{rows[name]['median_ms'] * BATCH:.0f}")
            other = AGAINST.get(name)
            cells.append(f"{rows[other]['median_ms'] / rows[name]['median_ms']:.2f}" if other else "")
        memory = {row: figures["peak_mib"] for row, figures in result["training"].items()}
        share = f"{memory[name] / memory[AGAINST[name]]:.0%}" if name in AGAINST else ""
        lines.append("| " + " | ".join([*cells, f"{memory[name]:.0f}", share]) + " |")
    lines.append("")
    lines.append(f"30 % of the tokens need 1/{result['floor']:.2f} of the multiplications of dense layers. Attention")
    ways = ", ".join(f"{name} {row['median_ms'] * BATCH:.1f} ms" for name, row in result["attention"].items())
    lines.append(f"alone, uneven, forward and backward: {ways}.")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison."""
    run_program(__doc__, argv, "selection-speed", measured, markdown, SEED)


if __name__ == "__main__":
    keep_heap()
    main()
