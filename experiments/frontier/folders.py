"""Trained folders on the frontier, at any resolution: measured on a test split, and timed with what lies in them."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, PreTrainedConfig

from experiments.frontier.checkpoints import ranked
from experiments.frontier.rows import DENSE, GRID, GRID_LATENT, LATENT, OURS, PEERS
from experiments.micro.results import Beginning, write_result
from focusvit_hf import FocusViTConfig
from focusvit_hf.benchmark.subjects import Subject
from focusvit_hf.hub.folder import TRAINING_LOG_FILE
from focusvit_hf.hub.training_record import TrainingRecord
from focusvit_hf.utils.files import read_json


def name_and_seed(folder: Path) -> tuple[str, int]:
    """A folder `<name>-seed<n>` as name and seed; others are seed 0 of their own name."""
    found = re.fullmatch(r"(.+)-seed(\d+)", folder.resolve().name)
    return (found[1], int(found[2])) if found else (folder.resolve().name, 0)


def folder_subject(folder: Path) -> Subject:
    """The model of a folder, FocusViT or another, with the image processor that lies there, as something to time."""
    name, _ = name_and_seed(folder)
    place = str(folder)
    return Subject(name, partial(_config, place), partial(_model, place), partial(_processor, place))


def record(folder: Path, data: Path, question: str, results: Path) -> dict[str, Any]:
    """
    Measures a trained folder on a test split, each image through the folder's own processor.

    Args:
        folder (`Path`): As the training scripts write it; its recipe is read from `training_log.json`, if it is there.
        data (`Path`): The data set in parquet files; columns `image` and `label`.
        question (`str`), results (`Path`): Where the JSON belongs, `<results>/<question>/<name>-seed<n>.json`.

    Returns:
        `dict`: What the JSON holds, see `micro.run.run`.

    Raises:
        ValueError: when the model knows other classes than the data set.
        OSError: when there is no model or no processor.
    """
    name, seed = name_and_seed(folder)
    beginning = Beginning("float32", seed)
    config = AutoConfig.from_pretrained(folder)
    model, processor = _model(str(folder), config).eval(), _processor(str(folder), config, 0)
    rows = datasets.load_dataset("parquet", data_dir=str(data), split="test")
    classes = np.asarray(rows["label"])
    if classes.max() >= config.num_labels:
        raise ValueError(f"Expected a model of {classes.max() + 1} classes, got {config.num_labels} in {folder}.")
    right = ranked(model, processor, rows)[:, 0] == classes
    log = folder / TRAINING_LOG_FILE
    recipe = dict(TrainingRecord.from_log(read_json(log)).hyperparameters) if log.is_file() else {}
    about = {
        "question": question,
        "variant": name,
        "changes": {},
        "configuration": json.loads(json.dumps(config.to_diff_dict())),
        "recipe": {"precision": "float32", **recipe},
        "family": _family(config),
        "split": "test",
        "seed": seed,
        "tokens": config.num_tokens if isinstance(config, FocusViTConfig) else None,
        "parameters": model.num_parameters(),
        "history": [],
    }
    return write_result(results / question / f"{name}-seed{seed}.json", about, right, beginning)


def _family(config: PreTrainedConfig) -> str:
    if not isinstance(config, FocusViTConfig):
        return PEERS
    if config.patch_pooling == "none":
        return DENSE
    is_latent = "latent_attention" in (config.layer_types or ())
    full, latent = (GRID, GRID_LATENT) if config.patch_pooling == "grid" else (OURS, LATENT)
    return latent if is_latent else full


def _config(folder: str, resolution: int) -> PreTrainedConfig:
    config = AutoConfig.from_pretrained(folder)
    if config.image_size != resolution:
        raise ValueError(f"Expected a model for {resolution} pixels, got one for {config.image_size} in {folder}.")
    return config


def _model(folder: str, config: PreTrainedConfig) -> Any:
    return AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


def _processor(folder: str, config: PreTrainedConfig, resolution: int) -> Any:
    return AutoImageProcessor.from_pretrained(folder)
