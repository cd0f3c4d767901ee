"""Upload a folder to a repository on the Hub."""

from __future__ import annotations

from pathlib import Path

from ..errors import HubError
from .fetch import HubLocation, call_hub, check_location


def check_upload(repo_id: str, revision: str | None, token: str | None, endpoint: str | None) -> HubLocation:
    """Return where to upload, without any request.

    Raises UsageError `bad_argument` as `check_location`, and HubError `offline`.
    """
    from huggingface_hub import constants

    location = check_location(repo_id, revision, None, token, endpoint)
    if constants.HF_HUB_OFFLINE:
        raise HubError("offline", f"{repo_id} cannot be written: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE")
    return location


def upload_folder(
    folder: Path,
    location: HubLocation,
    *,
    revision: str | None,
    private: bool | None,
    commit_message: str,
    create_pr: bool,
) -> str:
    """Upload the files of a folder in one commit, and return the address of the commit or of the pull request.

    revision: a branch, which is created if it does not exist; None for the default one. The other arguments are those
    of huggingface_hub. Raises HubError.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=location.endpoint, token=location.token, library_name="tessella")

    def upload() -> str:
        api.create_repo(location.repo, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(location.repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=location.repo,
            folder_path=folder,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )
        return str(commit.pr_url if create_pr else commit.commit_url)

    return call_hub(location, upload)
