"""What a judge behind a server is asked, and how its answer becomes a number."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

YES_NO = "Does this figure show '{prompt}'? Please answer yes or no."
RUBRIC = (
    "How well does this image show '{prompt}'? "
    "Answer with one number from {low} (not at all) to {high} (perfectly), and nothing else."
)
UNIFIED_REWARD = (
    "You are presented with a generated image and its associated text caption. "
    "Your task is to analyze the image across multiple dimensions in relation to the caption. "
    "Specifically:\n"
    "Provide overall assessments for the image along the following axes (each rated from 1 to "
    "5):\n"
    "- Alignment Score: How well the image matches the caption in terms of content.\n"
    "- Coherence Score: How logically consistent the image is (absence of visual glitches, "
    "object distortions, etc.).\n"
    "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n"
    "\n"
    "Output your evaluation using the format below:\n"
    "\n"
    "Alignment Score (1-5): X\n"
    "Coherence Score (1-5): Y\n"
    "Style Score (1-5): Z\n"
    "\n"
    "Your task is provided as follows:\n"
    "Text Caption: [{prompt}]"
)
"""The words that UnifiedReward 2.0 was trained with (Wang et al. 2025, MIT license)."""

QUESTIONS = {"yes_no": YES_NO, "rubric": RUBRIC, "unified_reward": UNIFIED_REWARD}
OPTIONS: dict[str, dict[str, Any]] = {
    "yes_no": {"max_tokens": 1, "logprobs": True, "top_logprobs": 20},
    "rubric": {"max_tokens": 16},
    "unified_reward": {"max_tokens": 256},
}
"""Of the request."""

AXES = ("Alignment", "Coherence", "Style")
NUMBER = r"[-+]?\d+(?:\.\d+)?"
CERTAIN = 0.01
"""How far P(yes) may be unknown because a server lists only the likeliest tokens."""


class Unreadable(ValueError):
    """The judge answered, but not what it was asked."""


def read(choice: Any, judge: str, low: float, high: float) -> float:
    """The score, from 0 to 1, in a choice of an OpenAI-compatible server. Raises Unreadable."""
    if judge == "yes_no" and choice.logprobs:
        return yes_probability(choice.logprobs.content[0].top_logprobs)
    text = choice.message.content
    if not isinstance(text, str):
        raise Unreadable(f"an answer without text: {text!r}")
    if judge == "yes_no":
        return yes_or_no(text)
    if choice.finish_reason == "length":  # the number may have been cut off too
        raise Unreadable(f"an answer that does not end: {text[:60]!r}")
    return axes(text) if judge == "unified_reward" else rating(text, low, high)


def rating(text: str, low: float, high: float) -> float:
    """(x - low) / (high - low) of an answer that is a number on the scale: `4`, `Score: 4/5`."""
    scale = rf"(?:\s*(?:/|out of)\s*{re.escape(f'{high:g}')})?"
    found = re.fullmatch(
        rf"[\s*]*(?:score|rating|answer)?[\s:*]*({NUMBER}){scale}[\s.*]*", text, re.I
    )
    return _share([found[1]] if found else [], text, low, high)


def axes(text: str) -> float:
    """Mean over alignment, coherence, style of (x - 1) / 4, given as `Style Score (1-5): x`."""
    lines = {axis: rf"^{axis} Score \(1-5\): *({NUMBER}) *$" for axis in AXES}
    return sum(_share(re.findall(line, text, re.M), text, 1, 5) for line in lines.values()) / len(
        AXES
    )


def _share(found: Sequence[str], text: str, low: float, high: float) -> float:
    """Raises Unreadable unless one number was found, and lies on the scale."""
    if len(found) != 1 or not low <= float(found[0]) <= high:
        raise Unreadable(f"no number from {low:g} to {high:g} in the answer {text[:60]!r}")
    return (float(found[0]) - low) / (high - low)


def yes_or_no(text: str) -> float:
    """1 or 0 for an answer that is this one word, where a server gives no probabilities."""
    found = re.fullmatch(r"\W*(yes|no)\W*", text, re.I)
    if not found:
        raise Unreadable(f"neither yes nor no: {text[:60]!r}")
    return float(found[1].lower() == "yes")


def yes_probability(listed: Sequence[Mapping[str, Any]]) -> float:
    """P(yes) / (P(yes) + P(no)) over the spellings of both in the list (`token`, `logprob`).

    A word that is not listed has at most the probability of the least likely one that is, and at
    most what they leave. Raises Unreadable where that could move the result by more than CERTAIN.
    """
    chances = [
        (str(entry["token"]).strip().lower(), math.exp(entry["logprob"])) for entry in listed
    ]
    total = sum(chance for _, chance in chances)
    if not chances or not total <= 1.01:  # NaN too
        raise Unreadable(f"log-probabilities whose exponentials sum to {total:g}")
    yes, no = (sum(chance for token, chance in chances if token == word) for word in ("yes", "no"))
    unknown = min(min(chance for _, chance in chances), max(1 - total, 0.0))
    if not (yes and no) and unknown > CERTAIN * (yes + no + unknown):
        raise Unreadable(f"yes and no are not both among the {len(chances)} likeliest tokens")
    if not yes + no:
        raise Unreadable("neither yes nor no is likely")
    return yes / (yes + no)
