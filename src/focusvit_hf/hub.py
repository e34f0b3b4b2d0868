"""Folders for the Hub, which load with this package and without it, and pushing them there."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, SAFE_WEIGHTS_NAME, cached_file

from .checkpoints import load_checkpoint
from .configuration_focusvit import FocusViTConfig
from .files import new_folder, read_json, write_json, write_whole
from .image_processing_focusvit import FocusViTImageProcessor
from .model_card import model_card, relocated
from .modeling_focusvit import FocusViTForImageClassification, FocusViTModel, FocusViTPreTrainedModel
from .training_record import TrainingRecord


# What a folder's code is entered by.
AUTO_CLASSES: dict[str, type] = {
    "AutoConfig": FocusViTConfig,
    "AutoImageProcessor": FocusViTImageProcessor,
    "AutoModel": FocusViTModel,
    "AutoModelForImageClassification": FocusViTForImageClassification,
}
CARD_FILE = "README.md"
TRAINING_LOG_FILE = "training_log.json"
# Formats that can run code when they are loaded.
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


class Pushed(NamedTuple):
    """
    What [`push_to_hub`] uploaded, or would upload.

    Args:
        url (`str`): Where the repository is.
        files (`dict[str, int]`): Size in bytes of each file, by its path in the repository.
    """

    url: str
    files: dict[str, int]


def code_files() -> set[Path]:
    """The files of this package that a FocusViT needs to run: the modules of its classes and all they import."""
    return _with_imports(Path(__file__).parent, map(_module, AUTO_CLASSES.values()))


def save_for_hub(
    model: FocusViTPreTrainedModel,
    image_processor: FocusViTImageProcessor,
    folder: str | Path,
    *,
    location: str | None = None,
    training_log: Mapping[str, Any] | None = None,
    license: str | None = None,
    card: str | None = None,
    weights_dtype: torch.dtype | None = None,
) -> Path:
    """
    Saves a model with its processor, its code and its card in a folder that loads in two ways: after `import
    focusvit_hf`, with the package's code and without a question asked, and without the package through
    `trust_remote_code=True`, with the code in the folder. The folder appears whole or not at all.

    Args:
        model ([`FocusViTForImageClassification`] or [`FocusViTModel`]): Saved as safetensors.
        image_processor ([`FocusViTImageProcessor`]): The one that prepares the model's pictures.
        folder (`str` or `Path`): A new folder, or an empty one.
        location (`str`, *optional*): What the card's code loads it by, its name on the Hub; `folder` by default.
        training_log (`Mapping`, *optional*):
            Log of the training, `training_log.json` of the training scripts. Goes into the card and beside it.
        license (`str`, *optional*): Licence of the weights as the Hub abbreviates it, such as `"apache-2.0"`.
        card (`str`, *optional*):
            Text of a card to be kept, but for its section "Use", instead of one written from the training log.
        weights_dtype (`torch.dtype`, *optional*):
            What the weights are stored in, such as `torch.float16` for half the size. A plain `from_pretrained`
            computes in float32 whatever they are stored in.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError: when the folder holds something already, model and processor disagree, they are none of this
            package, a weight is not finite in the type it is stored in, or the card is none the Hub takes.

    Example:

    ```python
    >>> from focusvit_hf import FocusViTConfig, FocusViTForImageClassification, FocusViTImageProcessor
    >>> from focusvit_hf.hub import save_for_hub

    >>> model = FocusViTForImageClassification(FocusViTConfig())
    >>> folder = save_for_hub(model, FocusViTImageProcessor.from_model_config(model.config), "my-focusvit")
    ```"""
    if not isinstance(model, PreTrainedModel) or type(model) not in AUTO_CLASSES.values():
        raise ValueError(
            "expected a FocusViTForImageClassification or a FocusViTModel, its adapters merged, got "
            f"{type(model).__name__}"
        )
    if not isinstance(image_processor, FocusViTImageProcessor):
        raise ValueError(f"expected a FocusViTImageProcessor, got {type(image_processor).__name__}")
    image_processor.validate_against_config(model.config)
    weights = _weights(model, weights_dtype)
    location = location or Path(folder).as_posix()
    if card is None:
        record = TrainingRecord.from_log(training_log or {})
        record = replace(record, license=license or record.license)
        name = Path(location).resolve().name
        card = str(model_card(model, name, location=location, record=record, remote_code=True))
    else:
        card = relocated(card, location)
    with new_folder(Path(folder)) as staging:
        model.save_pretrained(staging, state_dict=weights)
        image_processor.save_pretrained(staging)
        _enter_code(staging)
        for file in code_files():
            write_whole(staging / file.name, file.read_bytes())
        if training_log is not None:
            write_json(staging / TRAINING_LOG_FILE, training_log)
        write_whole(staging / CARD_FILE, card.encode())
    return Path(folder)


def push_to_hub(
    source: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Pushed:
    """
    Uploads a FocusViT to the Hub in one commit. The source is only read, whatever happens on the way.

    Args:
        source (`str` or `Path`):
            A folder by [`save_for_hub`], of which all is uploaded and nothing else. Or a classifier's checkpoint, of
            which such a folder is made first: a folder, or a name on the Hub. A card is kept but for its section
            "Use", which names the repository; where there is none it is written from `training_log.json`.
        repo_id (`str`): Name of the repository, `owner/name`; it is made where there is none.
        private (`bool`, *optional*): Whether a new repository is private.
        revision (`str`, *optional*): The branch to commit to, made where there is none; the main one by default.
        message (`str`, *optional*): The commit's message.
        token (`str`, *optional*): Access token; by default the one of `hf auth login` or `HF_TOKEN`.
        dry_run (`bool`, *optional*, defaults to `False`): Only says what would be uploaded; uses no network.

    Returns:
        [`Pushed`].

    Raises:
        ValueError: when the source is no FocusViT that is safe to load, holds the access token or a card the Hub does
            not take, or the name is none.
        OSError: when the Hub does not take it or the connection breaks. The same call again finishes the upload.
    """
    validate_repo_id(repo_id)
    api = HfApi(token=token)
    with _folder_for_hub(source, repo_id) as folder:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in paths}
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
        files[CARD_FILE] = relocated(card, repo_id).encode()
        _refuse_secrets(files, token or get_token())
        pushed = Pushed(f"{api.endpoint}/{repo_id}", {name: _size(content) for name, content in files.items()})
        if dry_run:
            return pushed
        try:
            repository = api.create_repo(repo_id, private=private, exist_ok=True)
            # Only now is an owner known who was not named.
            files[CARD_FILE] = relocated(card, repository.repo_id).encode()
            if revision is not None:
                api.create_branch(repository.repo_id, branch=revision, exist_ok=True)
            # One commit of exactly these files: an upload of the folder may leave files out, or need several commits.
            api.create_commit(
                repository.repo_id,
                [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()],
                commit_message=message or "Upload FocusViT",
                revision=revision,
            )
        # The library raises its HTTP client's errors, and RuntimeError for what breaks in one of its threads.
        except (HTTPError, OSError, RuntimeError) as error:
            reason = error.__cause__ or error
            raise OSError(
                f"expected {pushed.url} to take {len(files)} files, got: {reason}; {source} is as it was, and pushing "
                "again goes on from there"
            ) from error
    return pushed._replace(url=str(repository))


def _module(kind: type) -> str:
    return kind.__module__.rpartition(".")[2]


def _with_imports(folder: Path, modules: Iterable[str]) -> set[Path]:
    """The files of modules and of all siblings they import; FileNotFoundError where one of these is not there."""
    entries = {folder / f"{module}.py" for module in modules}
    # The library's own search, so that what is saved is what the library will look for.
    return entries | {Path(file) for entry in entries for file in get_relative_import_files(entry)}


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _weights(model: FocusViTPreTrainedModel, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The weights in the type they are stored in; ValueError for one that is not finite there."""
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        if not torch.isfinite(weights[name]).all():
            raise ValueError(f"expected finite weights in {weights[name].dtype}, got NaN or infinity in {name}")
    return weights


def _enter_code(folder: Path) -> None:
    """Tells the library which files of a saved model's folder hold its classes."""
    entries = {auto: f"{_module(kind)}.{kind.__name__}" for auto, kind in AUTO_CLASSES.items()}
    config = read_json(folder / CONFIG_NAME)
    # The library computes in the type that stands here, and half precision is slow and coarse on a CPU.
    write_json(folder / CONFIG_NAME, {**config, "auto_map": entries, "dtype": "float32"})
    # The processor's class stands in config.json as well. Were it named here, `AutoImageProcessor` would not look
    # there; were its code named here, `pipeline` would ask whether to run it although the package is imported.
    processor = read_json(folder / IMAGE_PROCESSOR_NAME)
    del processor["image_processor_type"]
    write_json(folder / IMAGE_PROCESSOR_NAME, processor)


@contextlib.contextmanager
def _folder_for_hub(source: str | Path, repo_id: str) -> Iterator[Path]:
    """A folder by [`save_for_hub`]: the source, or one made of it that lasts as long as the context."""
    folder = Path(source)
    if _has_code(folder):
        _check_folder(folder)
        yield folder
        return
    model, image_processor = load_checkpoint(str(source))
    log, card = (_beside(source, name) for name in (TRAINING_LOG_FILE, CARD_FILE))
    with tempfile.TemporaryDirectory() as parent:
        yield save_for_hub(
            model,
            image_processor,
            Path(parent) / "folder",
            location=repo_id,
            training_log=read_json(log) if log else None,
            card=card.read_text(encoding="utf-8") if card else None,
        )


def _beside(source: str | Path, name: str) -> Path | None:
    """A file beside the weights in a folder or under a name on the Hub, or None where there is no such file."""
    found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def _has_code(folder: Path) -> bool:
    """Whether the classes that config.json names lie in the folder, with all they import."""
    if not (folder / CONFIG_NAME).is_file():
        return False
    entries = read_json(folder / CONFIG_NAME).get("auto_map", {})
    try:
        _with_imports(folder, [entry.partition(".")[0] for entry in entries.values()])
    except FileNotFoundError:
        return False
    return bool(entries)


def _check_folder(folder: Path) -> None:
    """ValueError unless a folder with code holds a card, a processor and weights that run no code when loaded."""
    missing = [name for name in (CARD_FILE, IMAGE_PROCESSOR_NAME) if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append(SAFE_WEIGHTS_NAME)
    if missing:
        raise ValueError(f"expected a folder by save_for_hub, got {folder} without {', '.join(missing)}")
    pickles = sorted(path.name for path in folder.rglob("*") if path.suffix in PICKLES)
    if pickles:
        raise ValueError(f"expected weights in safetensors alone, got pickles in {folder}: {', '.join(pickles)}")


def _refuse_secrets(files: Mapping[str, Path | bytes], token: str | None) -> None:
    """ValueError where a file holds the access token."""
    for name, content in files.items():
        if token and token.encode() in (content if isinstance(content, bytes) else content.read_bytes()):
            raise ValueError(f"expected no access token in what is uploaded, got yours in {name}")
