"""Uploads a checkpoint's folder to the Hub, after a look at what it holds."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import validate_repo_id

from ..utils.files import read_json
from ..utils.messages import told_of
from .checkpoints import load_checked
from .contents import code_of, files_of_checkpoint, left_out_of
from .folder import CARD_FILE, TRAINING_LOG_FILE, save_for_hub
from .loading import find_file
from .model_card import relocated


class Pushed(NamedTuple):
    """
    What [`push_to_hub`] uploaded, or would upload.

    Args:
        url (`str`): Where the repository is.
        files (`dict[str, int]`): Size in bytes of each file, by its path in the repository.
        left_out (`tuple[str, ...]`): Files and, with a `/` behind them, whole folders of the source that are no part
            of a checkpoint.
    """

    url: str
    files: dict[str, int]
    left_out: tuple[str, ...] = ()


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
            A folder by [`save_for_hub`], which is loaded first, and of which what belongs to a checkpoint is uploaded:
            card, configuration, weights, code, training log, licence and images. Or a classifier's checkpoint, of
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
        ValueError: when the source is no FocusViT that loads, a file of it is a link that leads outside, it holds the
            access token or a card the Hub does not take, or the name is none.
        OSError: when the Hub does not take it or the connection breaks. The same call again finishes the upload.
    """
    validate_repo_id(repo_id)
    api = HfApi(token=token)
    with _folder_for_hub(source, repo_id) as folder:
        files: dict[str, Path | bytes] = dict(files_of_checkpoint(folder))
        with told_of(CARD_FILE):
            card = (folder / CARD_FILE).read_text(encoding="utf-8")
            files[CARD_FILE] = relocated(card, repo_id).encode()
        _refuse_secrets(files, token or get_token())
        sizes = {name: _size(content) for name, content in files.items()}
        left_out = left_out_of(Path(source), set(files)) if Path(source).is_dir() else ()
        pushed = Pushed(f"{api.endpoint}/{repo_id}", sizes, left_out)
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


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


@contextlib.contextmanager
def _folder_for_hub(source: str | Path, repo_id: str) -> Iterator[Path]:
    """A folder by [`save_for_hub`]: the source, or one made of it that lasts as long as the context."""
    folder = Path(source)
    if code_of(folder):
        _check_folder(folder)
        yield folder
        return
    model, image_processor = load_checked(str(source))
    log, card = (find_file(source, name) for name in (TRAINING_LOG_FILE, CARD_FILE))
    with tempfile.TemporaryDirectory() as parent:
        yield save_for_hub(
            model,
            image_processor,
            Path(parent) / "folder",
            location=repo_id,
            training_log=read_json(log) if log else None,
            card=_text(card) if card else None,
        )


def _text(path: Path) -> str:
    with told_of(path.name):
        return path.read_text(encoding="utf-8")


def _check_folder(folder: Path) -> None:
    """ValueError unless a folder with code holds a card, and a model and a processor that load."""
    if find_file(folder, CARD_FILE) is None:
        raise ValueError(f"expected a folder by save_for_hub, got {folder} without {CARD_FILE}")
    load_checked(str(folder))


def _refuse_secrets(files: Mapping[str, Path | bytes], token: str | None) -> None:
    """ValueError where a file holds the access token."""
    for name, content in files.items():
        if token and token.encode() in (content if isinstance(content, bytes) else content.read_bytes()):
            raise ValueError(f"expected no access token in what is uploaded, got yours in {name}")
