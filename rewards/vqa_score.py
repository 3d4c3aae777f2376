"""VQAScore: how sure is a vision-language model that the image shows the prompt?"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ddpo.plugins.ranges import PositiveInt

from ._chunks import cut
from ._judging import YES_NO
from ._vlm import VLM, wording

EMBEDDED = "Does this figure show '{prompt}'?"
YES, NO = ("Yes", "yes", "YES", " Yes", " yes", " YES"), ("No", "no", "NO", " No", " no", " NO")


class vqa_score:
    """P(yes) of a vision-language model that is asked whether the image shows the prompt.

    P(yes) / (P(yes) + P(no)) of the first word of its answer, over the spellings of both that are
    one token, by one forward (VQAScore, Lin et al. 2024, arXiv 2404.01291; theirs is a CLIP-FlanT5,
    ours is any model of transformers that chats about an image). Range 0 to 1, higher is better;
    NaN for an empty prompt. Differentiable.

    `pretrained` is a name on the Hub, a folder, or emoji (the embedded captioner). `question` holds
    {prompt}; null: the paper's, without its second sentence for emoji, which never read it.
    `batch_size` images are judged at once.
    """

    differentiable = True

    def __init__(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        pretrained: str = "Qwen/Qwen3-VL-2B-Instruct",
        question: str | None = None,
        batch_size: PositiveInt = 8,
    ) -> None:
        self.question = wording(question, pretrained, YES_NO, EMBEDDED)
        self.batch_size = batch_size
        self.vlm = VLM(pretrained, "vqa_score.pretrained", device, dtype)
        self.yes, self.no = self.vlm.words(*YES), self.vlm.words(*NO)

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
    ) -> Float[Tensor, " B"]:
        questions = [self.question.replace("{prompt}", prompt) for prompt in prompts]
        chunks = zip(images.split(self.batch_size), cut(questions, self.batch_size), strict=True)
        sure = torch.cat([self.vlm.probability(*chunk, self.yes, self.no) for chunk in chunks])
        empty = torch.tensor([not prompt.strip() for prompt in prompts], device=sure.device)
        return sure.masked_fill(empty, torch.nan)
