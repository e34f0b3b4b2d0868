"""`focusvit push`: a FocusViT to the Hub, with its code and its card."""

import argparse

from ..hub.push import push_to_hub
from ..utils.messages import printable
from .arguments import new_command


def add_push_command(commands: argparse._SubParsersAction) -> None:
    """Adds `focusvit push`."""
    command = new_command(commands, push, help="upload a FocusViT to the Hub with its code and its model card")
    command.add_argument(
        "source",
        metavar="FOLDER_OR_CHECKPOINT",
        help="a folder that save_for_hub wrote, or a checkpoint to make such a folder of; only what belongs to a "
        "checkpoint is uploaded",
    )
    command.add_argument(
        "repo_id", metavar="REPO_ID", help="the repository, owner/name, which is created if it does not exist"
    )
    command.add_argument("--private", action="store_true", default=None, help="create the repository as a private one")
    command.add_argument("--revision", metavar="BRANCH", help="the branch to upload to (default: main)")
    command.add_argument("--message", help="the commit message")
    command.add_argument(
        "--dry-run", action="store_true", help="only list what would be uploaded, without using the network"
    )


def push(arguments: argparse.Namespace) -> None:
    """
    Uploads a FocusViT to the Hub, so that it loads with this package and without it. The access token is the one of
    `hf auth login` or of the environment variable HF_TOKEN.
    """
    pushed = push_to_hub(
        arguments.source,
        arguments.repo_id,
        private=arguments.private,
        revision=arguments.revision,
        message=arguments.message,
        dry_run=arguments.dry_run,
    )
    for name, size in pushed.files.items():
        print(f"{size:>12,}  {name}")
    if pushed.left_out:
        print(f"left out, as no part of a checkpoint: {', '.join(map(printable, pushed.left_out))}")
    done = "would go" if arguments.dry_run else "went"
    print(f"{len(pushed.files)} files, {sum(pushed.files.values()):,} bytes, {done} to {pushed.url}")
