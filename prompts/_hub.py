"""Prompt sets that stand in a data set of the Hub: one file of it, downloaded and counted."""

import csv
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ddpo.prompts import NotHere, UserError

Row = dict[str, Any]

PROMPT = {"prompt": "prompt"}


def rows(
    repo: str,
    file: str,
    count: int,
    columns: Mapping[str, str] = PROMPT,
    revision: str | None = None,
) -> list[Row]:
    """The rows of a .json (a list of texts), .tsv or .parquet file in the data set `repo`.

    `columns` has, by the name that a column gets here, the file's own name for it. A prompt that
    stands in the file twice is given once. Raises NotHere where the file cannot be had,
    UserError where it has not `count` rows, or lacks a column: it is then not the set of that name.
    """
    place = f"{file} of the data set {repo}"
    path = Path(_downloaded(repo, file, revision))
    found: list[Row] = [
        {ours: row.get(theirs) for ours, theirs in columns.items()} for row in _read(path, place)
    ]
    if len(found) != count:
        raise UserError(
            f"prompts.name: {place} has {len(found)} prompts, and {count} were expected"
        )
    if any(not isinstance(row["prompt"], str) for row in found):
        theirs = columns["prompt"]
        raise UserError(f"prompts.name: {place} has a row without text in its column {theirs!r}")
    unique = {row["prompt"].strip(): row for row in reversed(found)}
    return list(reversed(unique.values()))


def _downloaded(repo: str, file: str, revision: str | None) -> str:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what the library says of each try, the line says
    try:
        return hf_hub_download(repo, file, repo_type="dataset", revision=revision)
    except Exception as error:  # each layer below has errors of its own
        said = " ".join(str(error).split())[:160]
        remedy = "give prompts.path a copy of the prompts"
        if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
            remedy = f"HF_HUB_OFFLINE is set: unset it, or {remedy}"
        raise NotHere(
            f"prompts.name: {file} of the data set {repo} cannot be had from the Hub; {remedy} "
            f"({type(error).__name__}: {said})"
        ) from error
    finally:
        logging.disable(before)


def _read(file: Path, place: str) -> Iterable[Row]:
    if file.suffix == ".json":
        return [{"prompt": text} for text in json.loads(file.read_text(encoding="utf-8"))]
    if file.suffix == ".tsv":
        with open(file, encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_MINIMAL))
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise NotHere(
            f"prompts.name: {place} is read by pyarrow, which is not installed; "
            "pip install 'ddpo[datasets]'"
        ) from error
    return parquet.read_table(file).to_pylist()
