"""
How much of a dense ViT's accuracy is left when it is converted to fewer tokens.

    python -m experiments.conversion.curve
    python -m experiments.conversion.curve --rows superpixel_36 grid_36 --learning at_once tuned

Trains a ViT of Transformers at micro scale, converts it with `convert_vit_checkpoint` to an eighth, a quarter, half
and all of its 144 tokens, and measures on the test split: at once, after a short fine-tune, and after one with the ViT
as teacher. Token merging is applied to the same ViT without training. Each row is a JSON in
`experiments/results/conversion/`; what is there is not made again. `table.py` makes table and plot.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from experiments.conversion.token_merging import TokenMerging, merging_schedule
from experiments.micro.arguments import add_options, parser_of
from experiments.micro.data import Pictures, training_and_evaluation
from experiments.micro.processes import keep_heap
from experiments.micro.results import RESULTS, Beginning, packed, require_settings
from experiments.micro.training import BASE, Recipe, fit, predict, settings
from focusvit_hf import FocusViTConfig, convert_vit_checkpoint
from focusvit_hf.training.distillation import Distillation
from focusvit_hf.utils.files import read_json, write_json


QUESTION = "conversion"
LEARNING = ("at_once", "tuned", "distilled")
# Rows and columns of tiles; their borders are borders of patches, which favours the grid, if anything.
LAYOUTS = {18: (3, 6), 36: (6, 6), 72: (6, 12), 144: (12, 12)}
_SIZES = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True)
class Row:
    """
    What the dense ViT is made into.

    Args:
        overrides (`dict`): Of `convert_vit_checkpoint`.
        schedule (`tuple` of `int`): Tokens that each layer merges; none: no merging.
        learning (`tuple` of `str`): Of [`LEARNING`].
    """

    overrides: dict[str, Any] = field(default_factory=dict)
    schedule: tuple[int, ...] = ()
    learning: tuple[str, ...] = LEARNING


def all_rows() -> dict[str, Row]:
    """The rows by name, the number of final tokens at the end."""
    none, layers = {"patch_pooling": "none"}, BASE["num_hidden_layers"]
    # Tuned like the others, so that what they gain by that can be told from what more training gives.
    rows = {"dense_144": Row(none, learning=LEARNING[:2])}
    for count, layout in LAYOUTS.items():
        once = LEARNING[:1] if count == 144 else LEARNING
        superpixel = {"num_superpixels": layout}
        rows[f"superpixel_{count}"] = Row(superpixel, learning=once)
        if count == 144:
            continue
        rows[f"grid_{count}"] = Row({**superpixel, "patch_pooling": "grid"})
        rows[f"superpixel_area_bias_{count}"] = Row({**superpixel, "attention_area_bias": True}, learning=once[:1])
        # To 18 tokens it costs what 72 from the beginning cost. Halving once a layer cannot reach the cost of 36.
        schedule = tuple(merging_schedule(144, layers, count))
        rows[f"merging_{count}"] = Row(none, schedule, learning=once[:1])
    latent = {"num_superpixels": LAYOUTS[36], "layer_types": ["latent_attention"] * layers, "num_latents": 8}
    rows["superpixel_latent_36"] = Row(latent)
    return rows


def fed_dense() -> FocusViTConfig:
    """What the dense ViT is fed with, as the configuration of a FocusViT."""
    return settings({"patch_pooling": "none", "embedding_type": "patch", "position_embedding_type": "learned"})[0]


def new_vit() -> ViTForImageClassification:
    """A new ViT of Transformers, of the sizes of the micro scale."""
    options = {name: BASE[name] for name in (*_SIZES, "num_labels", "attn_implementation")}
    return ViTForImageClassification(ViTConfig(**options))


def multiply_adds(config: FocusViTConfig, schedule: Sequence[int] = ()) -> int:
    """
    Multiply-adds of one image in products of matrices: patches, pooling, layers and the matching of keys.
    Superpixels are not counted.

    Args:
        config ([`FocusViTConfig`]): All layers of one kind.
        schedule (sequence of `int`, *optional*): Tokens that each layer merges.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    height, breadth = config.image_height_and_width
    patches, tokens = height * breadth // config.patch_size**2, config.num_tokens
    total = patches * config.num_channels * config.patch_size**2 * width
    # Patches and their positions; a ViT has nothing to pool.
    total += 2 * tokens * patches * width if config.patch_pooling != "none" else 0
    prefix = config.num_prefix_tokens
    latent = "latent_attention" in (config.layer_types or ())
    queries = prefix + (config.num_latents if latent else tokens)
    for merged in schedule or (0,) * layers:
        keys = queries + (tokens if latent else 0)
        total += 2 * (queries + keys) * width**2 + 2 * queries * keys * width
        if merged:
            total += (queries // 2) ** 2 * width // config.num_attention_heads
            queries -= merged
        total += 2 * queries * width * config.intermediate_size
    return total


def dense_vit(seed: int, training: Pictures, evaluation: Pictures, cache: Path, results: Path) -> PreTrainedModel:
    """
    The dense ViT: trained, or as it was saved by then.

    Raises:
        ValueError: when its result is there and its weights are not, or it was trained otherwise: rows that are there
            were converted from it.
    """
    folder, path = cache / "weights" / QUESTION / f"vit-seed{seed}", results / f"vit-seed{seed}.json"
    trained = (folder / "model.safetensors").is_file()
    if path.is_file():
        _require(path, recipe=asdict(Recipe()))
        if not trained:
            raise ValueError(f"Expected the weights of {path} in {folder}, got none; choose another --results.")
    if not trained:
        beginning, fed = Beginning("float32", seed), fed_dense()
        torch.manual_seed(seed)
        vit = new_vit()
        history = fit(vit, fed, Recipe(), seed, training)
        vit.save_pretrained(folder)
        outcome = (predict(vit, evaluation.images, config=fed).argmax(dim=1) == evaluation.labels).numpy()
        # The row dense_144, converted with all tokens, has to be right where this is.
        result = {"variant": "vit", "tokens": fed.num_tokens, "multiply_adds": multiply_adds(fed), "seed": seed}
        result |= {"recipe": asdict(Recipe()), "accuracy": float(outcome.mean()), "correct": packed(outcome)}
        result |= {"pictures": len(evaluation), "history": history}
        write_json(path, {**result, **beginning.about()})
    return ViTForImageClassification.from_pretrained(folder, attn_implementation="eager").eval()


def _require(path: Path, **wanted: Any) -> None:
    """Raises ValueError where a result that is there was made with other settings; a later field had its default."""
    there = read_json(path)
    if there["recipe"] is not None:
        there["recipe"] = {**asdict(Recipe()), **there["recipe"]}
    known, asked = (json.loads(json.dumps(values)) for values in (there, wanted))
    require_settings(path, known, asked)


def measured(
    row: Row, learning: str, vit: PreTrainedModel, plan: Recipe, seed: int, training: Pictures, evaluation: Pictures
) -> dict[str, Any]:
    """
    Converts, learns what there is to learn, measures.

    Args:
        row ([`Row`]), learning (`str`): What is measured.
        vit ([`PreTrainedModel`]): The dense ViT, which is also the teacher.
        plan ([`Recipe`]), seed (`int`): Of the fine-tune.
        training, evaluation ([`Pictures`]): To learn from, and to measure on.

    Returns:
        `dict`: What the JSON of the row holds beside its name.
    """
    beginning = Beginning("float32", seed)
    model: Any = convert_vit_checkpoint(vit, **row.overrides)
    config, history = model.config, []
    if row.schedule:
        model = TokenMerging(model, row.schedule)
    if learning != "at_once":
        teacher = None
        if learning == "distilled":
            teacher = Distillation(vit, config, config.image_mean, config.image_std)
        history = fit(model, config, plan, seed, training, teacher)
    outcome = (predict(model, evaluation.images).argmax(dim=1) == evaluation.labels).numpy()
    left = config.num_tokens - sum(row.schedule)
    return {
        "tokens": left,
        "multiply_adds": multiply_adds(config, row.schedule),
        "overrides": row.overrides,
        "schedule": row.schedule,
        "learning": learning,
        "recipe": asdict(plan) if history else None,
        "seed": seed,
        "pictures": len(evaluation),
        "accuracy": float(outcome.mean()),
        "correct": packed(outcome),
        "history": history,
        **beginning.about(),
    }


def unfinished(
    rows: Mapping[str, Row], learning: Sequence[str], plan: Recipe, seed: int, results: Path
) -> Iterator[tuple[str, str]]:
    """
    Name and learning of each result that is not there, the quick ones first.

    Raises:
        ValueError: when a result that is there was made with other settings.
    """
    for way in learning:
        for name, row in rows.items():
            path = results / f"{name}-{way}-seed{seed}.json"
            if way not in row.learning:
                continue
            if not path.is_file():
                yield name, way
                continue
            recipe = None if way == "at_once" else asdict(plan)
            _require(path, recipe=recipe, overrides=row.overrides, schedule=row.schedule)


def main(argv: Sequence[str] | None = None) -> None:
    """Makes what is not there yet."""
    rows = all_rows()
    parser = parser_of(__doc__)
    parser.add_argument("--rows", nargs="+", choices=rows, default=list(rows))
    parser.add_argument("--learning", nargs="+", choices=LEARNING, default=LEARNING)
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser, "epochs", "data", "cache", "results", epochs=3, results=RESULTS / QUESTION)
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="Of a fine-tune.")
    arguments = parser.parse_args(argv)
    seed, results = arguments.seed, arguments.results
    plan = Recipe(epochs=arguments.epochs, learning_rate=arguments.learning_rate)
    training, evaluation = training_and_evaluation(arguments.data, BASE["image_size"], "test", arguments.cache)
    chosen = {name: rows[name] for name in arguments.rows}
    todo = list(unfinished(chosen, arguments.learning, plan, seed, results))
    vit = dense_vit(seed, training, evaluation, arguments.cache, results)
    for name, learning in todo:
        result = measured(chosen[name], learning, vit, plan, seed, training, evaluation)
        write_json(results / f"{name}-{learning}-seed{seed}.json", {"variant": name, **result})
        print(f"{name}, {learning}: {result['accuracy']:.4f} in {result['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    keep_heap()
    main()
