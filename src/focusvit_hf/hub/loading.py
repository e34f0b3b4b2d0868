"""Checked loading of every checkpoint of Transformers that is read here: a FocusViT, a ViT to convert, a teacher.

Nothing is unpickled, nothing larger than the checkpoint's own file is built, and every error names the file.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
)

from ..errors import joined
from ..utils.files import read_json
from ..utils.messages import told_of
from ..utils.names import hub_name
from ..utils.tensors import first_not_finite


# Endings of formats that can run code when they are loaded.
PICKLES = (
    ".bin",
    ".ckpt",
    ".dill",
    ".h5",
    ".joblib",
    ".keras",
    ".npy",
    ".npz",
    ".pickle",
    ".pkl",
    ".pt",
    ".pt2",
    ".pth",
)
# A model may have as many numbers more than its file, such as a classifier that is new: 64 MB in float32.
_SPARE_NUMBERS = 2**24
# Up to here building a model of nothing is quick.
_FEW_LAYERS = 200


def find_file(name: str | Path, file: str, **place: Any) -> Path | None:
    """
    A file of a checkpoint.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        file (`str`): The file's name.
        place: `cache_dir`, `revision` and `token`, as of `from_pretrained`.

    Returns:
        `Path`, or None where there is no such file.

    Raises:
        ValueError: when there is neither such a folder nor such a name, or what bears the file's name is no file.
        OSError: when the Hub cannot be asked.
    """
    folder = Path(name)
    if folder.is_dir():
        path = folder / file
        if path.is_file():
            return path
        if path.is_symlink() and not path.exists():
            raise ValueError(f"{file}: expected a file, got a link to {path.readlink()}, which is not there")
        if path.exists():
            raise ValueError(f"{file}: expected a file, got a {'folder' if path.is_dir() else 'device'}")
        return None
    if folder.exists():
        raise ValueError("expected a folder, got a file")
    if hub_name(str(name)) is None:
        raise ValueError("there is no such folder, and the Hub has no such names")
    # The only argument by which the library tells a file that is not there from a Hub that is not there.
    found = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **place)
    return Path(found) if found else None


def read_config(
    name: str | Path, model_types: Iterable[str], kind: type = PreTrainedConfig, **place: Any
) -> dict[str, Any]:
    """
    What stands in a checkpoint's config.json.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        model_types (iterable of `str`): What kinds of models are expected.
        kind (`type`, *optional*): The class of the configuration.
        place: See [`find_file`].

    Raises:
        ValueError: as [`read_settings`], and when it is one of another kind of model.
    """
    stored = read_settings(name, CONFIG_NAME, kind, **place)
    if stored.get("model_type") not in (kinds := tuple(model_types)):
        raise ValueError(
            f"{CONFIG_NAME}: expected a model_type of {', '.join(kinds)}, got {stored.get('model_type')!r}"
        )
    for key in ("id2label", "label2id"):
        if not isinstance(stored.get(key) or {}, dict):
            raise ValueError(f"{CONFIG_NAME}: expected {key} as an object, got {type(stored[key]).__name__}")
    numbers = sorted(stored.get("id2label") or {})
    if set(numbers) != {str(number) for number in range(len(numbers))}:
        raise ValueError(f"{CONFIG_NAME}: expected an id2label of the classes from 0 on, got {joined(numbers)}")
    return stored


def read_settings(name: str | Path, file: str, kind: type, **place: Any) -> dict[str, Any]:
    """
    The JSON of a configuration or an image processor, which the library makes attributes of an object.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        file (`str`): The file's name.
        kind (`type`): The class of the object.
        place: See [`find_file`].

    Raises:
        ValueError: when there is no such file, when it holds no JSON object, and when a key would take the place of a
            method or cannot be set.
    """
    path = find_file(name, file, **place)
    if path is None:
        raise ValueError(f"expected a {file}, got none")
    stored = read_json(path)
    for key in stored:
        own = getattr(kind, key, None)
        read_only = isinstance(own, property) and own.fset is None
        if callable(own) or read_only or (key.startswith("__") and key.endswith("__")):
            raise ValueError(f"{file}: expected settings, got {key!r}, which {kind.__name__} keeps for itself")
    return stored


def shapes_of_weights(name: str | Path, **place: Any) -> dict[str, tuple[int, ...]]:
    """
    Names and shapes of a checkpoint's tensors, from the headers of its safetensors: no tensor is read.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        place: See [`find_file`].

    Raises:
        ValueError: when there are no safetensors, when one is damaged, and when an index leads to other files.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weights_files(name, **place):
        if path.name == SAFE_WEIGHTS_INDEX_NAME:
            continue
        with told_of(path.name):
            shapes |= shapes_of_file(path)
    return shapes


def shapes_of_file(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a safetensors file, from its header; SafetensorError where it is damaged."""
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - it is no mapping


def weights_files(name: str | Path, **place: Any) -> list[Path]:
    """
    The safetensors of a checkpoint: one file, or those that an index names, and the index behind them.

    Args:
        name (`str` or `Path`): A folder, or a name on the Hub.
        place: See [`find_file`].

    Raises:
        ValueError: when there are none, and when an index leads to other files.
    """
    single = find_file(name, SAFE_WEIGHTS_NAME, **place)
    if single is not None:
        return [single]
    index = find_file(name, SAFE_WEIGHTS_INDEX_NAME, **place)
    if index is None:
        pickles = sorted(path.name for path in Path(name).glob("*") if path.suffix.lower() in PICKLES)
        got = f"a pickle ({pickles[0]}), which can run code when it is loaded" if pickles else "none"
        raise ValueError(f"expected {SAFE_WEIGHTS_NAME}, got {got}")
    parts = read_json(index).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(part, str) for part in parts.values()):
        raise ValueError(f"{index.name}: expected a weight_map from tensors to files, got {type(parts).__name__}")
    files = []
    for part in sorted(set(parts.values())):
        if Path(part).name != part or not part.endswith(".safetensors"):
            raise ValueError(f"{index.name}: expected names of safetensors beside it, got {part!r}")
        found = find_file(name, part, **place)
        if found is None:
            raise ValueError(f"expected {part}, which {index.name} names, got none")
        files.append(found)
    return [*files, index]


def load_model(
    kind: Any,
    name: str | Path,
    config: PreTrainedConfig,
    *,
    spare: Mapping[str, str] | None = None,
    new_shapes: bool = False,
    trust_remote_code: bool = False,
    place: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Any, dict[str, str]]:
    """
    Loads a model from safetensors. The headers of the files are compared with the configuration first, so that a
    configuration that asks for much more than there is fails before anything is allocated.

    Args:
        kind (`type`): A class of a model, or an Auto class.
        name (`str` or `Path`): A folder, or a name on the Hub.
        config ([`PreTrainedConfig`]): What to build.
        spare (mapping from `str` to `str`, *optional*):
            Tensors that the checkpoint may have beside the model's: a part of their names, and why.
        new_shapes (`bool`, *optional*, defaults to `False`):
            Whether tensors of another shape than the checkpoint's start as in a new model, such as a classifier of
            other classes.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Of an Auto class.
        place (mapping, *optional*): See [`find_file`].
        options: More arguments of the class and of its `from_pretrained`, such as `dtype`.

    Returns:
        [`PreTrainedModel`], in evaluation mode, and the spare tensors that were there, with the reason.

    Raises:
        ValueError: when there are no safetensors or they are damaged, when they are not exactly the tensors of the
            model, and when one holds NaN or infinity.
    """
    place = dict(place or {})
    if find_file(name, ADAPTER_CONFIG_NAME, **place) is not None:
        raise ValueError(f"expected a whole model, got adapters ({ADAPTER_CONFIG_NAME}); merge them first")
    shapes = shapes_of_weights(name, **place)
    if hasattr(kind, "from_config"):
        build, trusted = kind.from_config, {"trust_remote_code": trust_remote_code}
    else:
        build, trusted = kind, {}
    arguments = {key: value for key, value in options.items() if key != "dtype"}
    with told_of(CONFIG_NAME):
        if getattr(config, "transformers_weights", None) is not None:
            raise ValueError(f"expected no transformers_weights, got {config.transformers_weights!r}")
        _refuse_more_layers(config, len(shapes))
        with torch.device("meta"):
            empty = build(config, **trusted, **arguments)
        _refuse_more_numbers(empty, shapes)
    with told_of(SAFE_WEIGHTS_NAME):
        model, report = kind.from_pretrained(
            str(name),
            config=config,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **trusted,
            **place,
            **options,
        )
        unexpected = {key: _reason(key, spare or {}) for key in report["unexpected_keys"]}
        _check_report(
            type(model).__name__, report, [key for key, why in unexpected.items() if why is None], new_shapes
        )
        require_finite_weights(model)
    return model.eval(), {key: why for key, why in unexpected.items() if why is not None}


def _refuse_more_layers(config: PreTrainedConfig, tensors: int) -> None:
    """Without a model at hand: one of a hundred thousand layers takes minutes to build, even of nothing."""
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, int) and layers > max(tensors, _FEW_LAYERS):
        raise ValueError(
            f"expected num_hidden_layers of which the weights hold some, got {layers} for {tensors} tensors"
        )


def _refuse_more_numbers(empty: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> None:
    asked = sum(tensor.numel() for tensor in empty.state_dict().values())
    held = sum(math.prod(shape) for shape in shapes.values())
    if asked > 2 * held and asked - held > _SPARE_NUMBERS:
        raise ValueError(
            f"expected a configuration of the {held:,} numbers that the weights hold, got one of {asked:,}"
        )


def _reason(key: str, spare: Mapping[str, str]) -> str | None:
    return next((why for part, why in spare.items() if part in key), None)


def _check_report(model: str, report: Mapping[str, Any], unexpected: Iterable[str], new_shapes: bool) -> None:
    """ValueError unless the checkpoint held each tensor of the model, in its shape, and no other."""
    problems = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    problems += [f"{key} is not of this model" for key in sorted(unexpected)]
    if not new_shapes:
        problems += [
            f"{key} has shape {tuple(got)} instead of {tuple(expected)}"
            for key, got, expected in sorted(report["mismatched_keys"])
        ]
    problems += report["error_msgs"]
    if problems:
        raise ValueError(f"expected the tensors of {model}, got: {joined(problems)}")


def require_finite_weights(model: torch.nn.Module) -> None:
    """Raises ValueError naming the first of a model's tensors that holds NaN or infinity."""
    key = first_not_finite(model.state_dict())
    if key is not None:
        raise ValueError(f"expected finite weights, got NaN or infinity in {key}")
