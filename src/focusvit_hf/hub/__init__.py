"""Folders that load from the Hugging Face Hub, with and without this package, and their model cards."""

from .contents import code_files
from .folder import save_for_hub
from .push import push_to_hub


__all__ = ["code_files", "push_to_hub", "save_for_hub"]
