"""A run on the Hub: its LoRA, its card and its page, through huggingface_hub."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ddpo import config
from ddpo.errors import UserError
from ddpo.evaluation import card, page

FILES = (
    "config.yaml",
    "provenance.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "README.md",
    "index.html",
)
FOLDERS = ("lora", "evaluation")
"""Of a run's folder, beside the pictures of the training that the page shows. Checkpoints, which
hold the optimizer's state, stay where they are."""


def push(run_dir: str, repo: str, private: bool | None = None, endpoint: str | None = None) -> str:
    """Upload a run in one commit, with its page and card written anew; gives the address.

    The repository is made if it is not there. `private` is for one that is made: None leaves it to
    the account's settings. `endpoint` is the Hub's address, where it is not the usual one. Raises
    UserError for a run without a LoRA yet, and for what the Hub refuses.
    """
    folder = config.of_run(run_dir).parent
    if not (folder / "lora").is_dir():
        raise UserError(f"{run_dir} has no lora/ yet; let it train to its end first")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--to {repo}: is no name of a repository, as name/model") from error
    page.write(folder)
    card.write(folder)
    api = HfApi(endpoint=endpoint)
    try:
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=list(files(folder)),
            commit_message=f"{folder.resolve().name}, by ddpo",
        )
    except OfflineModeIsEnabled as error:
        raise UserError("push: HF_HUB_OFFLINE is set; unset it to reach the Hub") from error
    except HfHubHTTPError as error:
        raise UserError(f"--to {repo}: {_refusal(error)}") from error
    except Exception as error:
        # of the library beneath, which is another one in later versions of huggingface_hub
        if not type(error).__module__.startswith("httpx"):
            raise
        raise UserError(f"push: {api.endpoint} cannot be reached ({error}); try again") from error
    return f"{api.endpoint}/{name}"


def files(folder: Path) -> Sequence[str]:
    """What is uploaded, as paths below the folder."""
    own = [name for name in FILES if (folder / name).is_file()]
    inside = [path for name in FOLDERS for path in sorted((folder / name).rglob("*"))]
    found = [
        path.relative_to(folder).as_posix()
        for path in inside
        if path.is_file() and not any(part.startswith(".") for part in path.parts[-2:])
    ]
    text = (folder / "index.html").read_text("utf-8")
    shown = {unquote(name) for name in re.findall(r'src="(samples/[^"]+)"', text)}
    return [*own, *found, *sorted(name for name in shown if (folder / name).is_file())]


def _refusal(error: HfHubHTTPError) -> str:
    """The Hub's words in one line, and what to do about them."""
    told = " ".join((error.server_message or str(error)).split())
    status = error.response.status_code if error.response is not None else None
    remedy = "; log in with `hf auth login`, or take a repository of yours"
    return f"the Hub refuses: {told}{remedy if status in (401, 403) else ''}"
