"""Uploads a model directory to the Hugging Face hub."""

from __future__ import annotations

import os

from clue_jax.errors import UserError


def push(directory: str | os.PathLike, repository: str, private: bool = False) -> str:
    """Makes the repository if there is none, and uploads the files of a model directory.

    The token is the one that `hf auth login` or `HF_TOKEN` left; `HF_ENDPOINT` names another hub.

    Args:
      directory: a model directory.
      repository: such as "someone/my-model".
      private: of a repository that is made.

    Returns:
      The address of the upload.

    Raises:
      UserError: without a token, or if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=directory, commit_message="Upload model directory"
        )
    except Exception as error:  # its transport, and so its errors, change from version to version
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{repository}: cannot upload ({reason}); is HF_TOKEN set?") from error
    return str(commit.commit_url)
