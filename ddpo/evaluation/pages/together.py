"""The samples of several evaluations side by side, wherever prompt and seed are the same."""

import filecmp
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ddpo.evaluation.evidence import Match, Run


def samples(runs: Mapping[str, Run], out: Path) -> tuple[list[str], list[Match]]:
    """The columns of all runs, and the samples of each prompt and seed.

    Pictures are put below `out`. A run's base shares a column with those before it where their
    pictures are the same to the byte.
    """
    found: dict[tuple[str, str, int], Match] = {}
    columns: dict[str, None] = {}
    for label, run in runs.items():
        names = _names(label, run, found, out)
        columns |= dict.fromkeys(names[c] for c in run.columns if run.matches)
        for match in run.matches:
            key = (match.set, match.prompt, match.seed)
            into = found.setdefault(key, Match(*key))
            for column, image in match.images.items():
                source, name = run.folder / "evaluation" / image, names[column]
                if name not in into.images and source.is_file():
                    target = f"images/{label.replace('/', '_')}_{Path(image).name}"
                    _put(source, out / target)
                    into.images[name] = target
                into.scores.setdefault(name, {}).update(match.scores[column])
    return list(columns), list(found.values())


def _names(
    label: str, run: Run, found: Mapping[tuple[str, str, int], Match], out: Path
) -> dict[str, str]:
    """What the columns of a run are called among those of all."""
    base, *others = run.columns
    folder, pairs = run.folder / "evaluation", []
    for match in run.matches:
        known = found.get((match.set, match.prompt, match.seed))
        if known and base in known.images and base in match.images:
            pairs.append((out / known.images[base], folder / match.images[base]))
    shared = all(filecmp.cmp(*pair, shallow=False) for pair in pairs if pair[1].is_file())
    names = {column: label if len(others) == 1 else f"{label} {column}" for column in others}
    return {base: base if shared else f"{label} {base}", **names}


def _put(source: Path, target: Path) -> None:
    """A second name of the file where the disk allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
