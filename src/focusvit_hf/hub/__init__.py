"""Folders that load from the Hugging Face Hub, with and without this package, and their model cards."""

from .folder import code_files, save_for_hub
from .push import push_to_hub


__all__ = ["code_files", "push_to_hub", "save_for_hub"]
