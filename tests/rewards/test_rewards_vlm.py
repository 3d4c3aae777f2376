"""Rewards that ask a vision-language model, a detector or a reader, against their own libraries."""

import io
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bert_score
import numpy as np
import pytest
import torch
import zoo_vlm
from PIL import Image
from tokenizers import AddedToken
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoModelForTextRecognition,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    BertModel,
    BertTokenizer,
    pipeline,
)

from ddpo import config, rewards
from ddpo.errors import UserError
from ddpo.images import from_pil, to_pil
from ddpo.models.emoji import scenes
from ddpo.rewards._bertscore import BertScore
from ddpo.rewards._ppocr import cut, in_reading_order
from ddpo.scoring import conformance

PICTURES = conformance.Case(lambda *_: torch.zeros(0)).images
TEXTS = [prompt.text for prompt in conformance.PROMPTS]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    zoo_vlm.llava(folder)
    zoo_vlm.bert(folder)
    zoo_vlm.owlv2(folder)
    return folder


def build(name: str, **params: Any) -> Any:
    return rewards.build(name, params=params).score


def sentences(count: int, seed: int) -> list[str]:
    rng, words = (
        random.Random(seed),
        [*zoo_vlm.TEXT.replace("##", "").split(), "Zebra", "xylophone"],
    )
    return [" ".join(rng.choices(words, k=rng.randint(1, 12))) for _ in range(count)]


@pytest.mark.parametrize("layer", [0, 2])
def test_recall_is_bert_scores(zoo: Path, layer: int) -> None:
    """The authors' package, one pair at a time, on 100 pairs in three orders and sizes of batches.

    In a batch it takes padding for a token of cosine 0, so that a word unlike all others is worth
    more.
    """
    said, wanted = sentences(100, 1), sentences(100, 2)
    oracle = bert_score.BERTScorer(
        model_type=str(zoo / "bert"), num_layers=max(layer, 1), batch_size=1, device="cpu"
    )
    if layer == 0:
        oracle._model.encoder.layer = torch.nn.ModuleList()
    expected = oracle.score(said, wanted)[1]
    ours = BertScore(str(zoo / "bert"), layer, "encoder", "cpu")
    assert expected.std() > 0.01
    for batch_size, seed in ((7, None), (100, 5), (1, 6)):
        order = list(range(100)) if seed is None else random.Random(seed).sample(range(100), 100)
        found = ours.recall([said[i] for i in order], [wanted[i] for i in order], batch_size)
        assert (found - expected[order]).abs().max() < 1e-6


def test_recall_at_the_edges(zoo: Path) -> None:
    """Nothing said: each word is matched with the begin and the end. Nothing wanted: no value."""
    ours = BertScore(str(zoo / "bert"), None, "encoder", "cpu")
    model = BertModel.from_pretrained(zoo / "bert")
    tokenizer = BertTokenizer.from_pretrained(zoo / "bert")

    def vectors(text: str) -> Tensor:
        with torch.no_grad():
            hidden = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return hidden / hidden.norm(dim=1, keepdim=True)

    expected = (vectors("a fox riding")[1:-1] @ vectors("").T).max(1).values.mean()
    found = ours.recall(["", "a fox", "a fox", " a fox "], ["a fox riding", "", "  ", "a fox"], 3)
    assert vectors("").shape[0] == 2 and found[0] == pytest.approx(expected.item(), abs=1e-6)
    assert found[1:3].isnan().all() and found[3] == pytest.approx(1, abs=1e-6)
    assert ours.recall(["a " * 500], ["fox " * 500], 1).isfinite().all(), (
        "cut to what the encoder reads"
    )
    assert BertScore("emoji", None, "encoder", "cpu").layer == 0
    with pytest.raises(UserError, match="has layers 0 to 3, not 4"):
        BertScore(str(zoo / "bert"), 4, "encoder", "cpu")


def test_alignment_is_its_parts(zoo: Path) -> None:
    """Asked by transformers' pipeline about the JPEG, scored by the authors' package."""
    reward = build(
        "vlm_alignment", pretrained=str(zoo / "llava"), encoder=str(zoo / "bert"), batch_size=4
    )
    ask = pipeline(
        "image-text-to-text", model=str(zoo / "llava"), device="cpu", dtype=torch.float32
    )
    pictures = []
    for picture in to_pil(PICTURES):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80)
        pictures.append(Image.open(file))
    question = "Answer concisely: what is going on in this image?"
    options = {"do_sample": False, "max_new_tokens": 64}
    said = []
    for picture in pictures:
        content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        answer = ask(
            [{"role": "user", "content": content}], return_full_text=False, generate_kwargs=options
        )
        said.append(answer[0]["generated_text"].strip())
    assert len(set(said)) > 1 and said == reward._ask(pictures, [question] * 6)
    oracle = bert_score.BERTScorer(
        model_type=str(zoo / "bert"), num_layers=3, batch_size=1, device="cpu"
    )
    expected = oracle.score(said, [f"The image contains {text}" for text in TEXTS])[1]
    found = reward(PICTURES, TEXTS, [{}] * 6)
    assert (found - expected).abs().max() < 1e-6
    assert reward(PICTURES[:2], ["", "a fox"], [{}] * 2).isnan().tolist() == [True, False]


def test_the_picture_that_is_asked_about(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Image.Image] = []

    def said(shown: list[Image.Image], asked: list[str]) -> list[str]:
        seen[:] = shown
        return ["a fox"] * len(shown)

    for quality, kind in ((None, None), (30, "JPEG")):
        reward = build(
            "vlm_alignment",
            pretrained=str(zoo / "llava"),
            encoder="emoji",
            jpeg_quality=quality,
            question="?",
        )
        monkeypatch.setattr(reward, "_ask", said)
        reward(PICTURES[:2], TEXTS[:2], [{}] * 2)
        assert [picture.format for picture in seen] == [kind] * 2
        worst = (from_pil(seen) - PICTURES[:2]).abs().max()
        assert worst > 0.05 if quality else worst < 1e-6


def test_strict_alignment_counts_right_answers(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = build(
        "vlm_alignment", pretrained=str(zoo / "llava"), strict=True, batch_size=2, jpeg_quality=None
    )
    asked = [
        {"questions": ["How many?", "What?"], "answers": [["two", "2"], "dog"]},
        {"animal": "fox"},
        {"questions": ["What?"], "answers": ["Cat"]},
        {"questions": [], "answers": []},
        {"questions": ["How many?", "What?"], "answers": [["two", "2"], "dog"]},
    ]
    told = {0: ["There are 2 of them.", "A cat"], 2: ["some CATS"], 4: ["three", "a wolf"]}
    heard: list[str] = []

    def answers(
        pictures: Any, questions: Sequence[str], longest: int, batch_size: int
    ) -> list[str]:
        heard.extend(questions)
        known = [picture.tobytes() for picture in to_pil(PICTURES)]
        rows = [known.index(picture.tobytes()) for picture in pictures]
        return [
            told[row][asked[row]["questions"].index(q)]
            for row, q in zip(rows, questions, strict=True)
        ]

    monkeypatch.setattr(reward.vlm, "answers", answers)
    found = reward(PICTURES[:5], ["two dogs"] * 5, asked)
    assert heard == ["How many?", "What?", "What?", "How many?", "What?"]
    assert [found[0], found[2], found[4]] == [0.5, 1, 0] and found[[1, 3]].isnan().all()
    with pytest.raises(UserError, match="'two dogs' does not have one answer"):
        reward(PICTURES[:1], ["two dogs"], [{"questions": ["What?"], "answers": []}])


def plain_probability(
    folder: Path, pixels: Tensor, yes: list[str], no: list[str], text: str
) -> Tensor:
    """Without our code: tokens one by one, and a softmax over those of these words."""
    processor, model = (
        kind.from_pretrained(folder) for kind in (AutoProcessor, AutoModelForImageTextToText)
    )
    tokens = processor.tokenizer(zoo_vlm.captioner.prompt(text), return_tensors="pt")
    vocabulary = processor.tokenizer.get_vocab()
    rows = []
    for i in range(len(pixels)):
        logits = model.eval()(**tokens, pixel_values=pixels[i : i + 1]).logits[0, -1].exp()
        ups, downs = (sum(logits[vocabulary[word]] for word in words) for words in (yes, no))
        rows.append(ups / (ups + downs))
    return torch.stack(rows)


def test_vqa_score_and_its_gradient(zoo: Path) -> None:
    """Over all spellings; the gradient is that of plain preprocessing: resize, crop, normalize."""
    folder = zoo / "spellings"
    processor = AutoProcessor.from_pretrained(zoo / "llava")
    processor.tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("Yes", "NO")])
    model = AutoModelForImageTextToText.from_pretrained(zoo / "llava")
    model.resize_token_embeddings(len(processor.tokenizer))
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    reward = build("vqa_score", pretrained=str(folder), batch_size=2)
    question = "Does this figure show 'a fox'? Please answer yes or no."
    words = (["yes", "Yes"], ["no", "NO"])
    for size in ((64, 64), (64, 96)):
        images = transforms.resize(PICTURES[:3], list(size)).mul(255).round().div(255)
        plain, ours = images.clone().requires_grad_(), images.clone().requires_grad_()
        pixels = transforms.center_crop(
            transforms.resize(plain, [64], transforms.InterpolationMode.BICUBIC), [64]
        )
        expected = plain_probability(folder, (pixels - 0.5) / 0.5, *words, question)
        found = reward(ours, ["a fox"] * 3, [{}] * 3)
        assert (found - expected).abs().max() < 1e-4 * expected.max(), (
            "uint8 in between rounds nothing here"
        )
        assert torch.equal(found.detach(), reward(images, ["a fox"] * 3, [{}] * 3))
        found.sum().backward()
        expected.sum().backward()
        assert ours.grad is not None and plain.grad is not None and plain.grad.abs().max() > 0
        assert (ours.grad - plain.grad).norm() < 1e-3 * plain.grad.norm()
    assert not any(parameter.requires_grad for parameter in reward.vlm.model.parameters())
    assert reward(images[:2], [" ", "a fox"], [{}] * 2).isnan().tolist() == [True, False]


def test_the_embedded_world_is_understood() -> None:
    """Both judges know the scene from one with another animal and from one with another
    activity."""
    rng = random.Random(4)
    animals, activities = list(scenes.ANIMALS), list(scenes.ACTIVITIES)
    pairs = [(rng.choice(animals), rng.choice(activities)) for _ in range(24)]
    shown = from_pil([scenes.draw(scenes.caption(*pair), seed) for seed, pair in enumerate(pairs)])
    others = [
        (rng.choice([a for a in animals if a != animal]), activity)
        if i % 2
        else (animal, rng.choice([a for a in activities if a != activity]))
        for i, (animal, activity) in enumerate(pairs)
    ]
    for reward, bar in (
        (build("vlm_alignment", pretrained="emoji", encoder="emoji"), 0.95),
        (build("vqa_score", pretrained="emoji"), 0.5),
    ):
        right = reward(shown, [scenes.caption(*pair) for pair in pairs], [{}] * 24)
        wrong = reward(shown, [scenes.caption(*pair) for pair in others], [{}] * 24)
        assert (right > wrong).float().mean() > 0.9
        assert (right > bar).float().mean() > 0.9 and (wrong < bar).float().mean() > 0.9


def reference_counts(folder: Path, images: Tensor, text: str, threshold: float) -> list[int]:
    """One picture at a time by the library's own processor, and suppression written out."""
    processor, model = (
        kind.from_pretrained(folder)
        for kind in (AutoProcessor, AutoModelForZeroShotObjectDetection)
    )
    counts = []
    for picture in to_pil(images):
        inputs = processor(text=[[text]], images=picture, return_tensors="pt")
        with torch.no_grad():
            outputs = model.eval()(**inputs)
        size = [(picture.height, picture.width)]
        (found,) = processor.post_process_grounded_object_detection(
            outputs, threshold=threshold, target_sizes=size
        )
        kept: list[list[float]] = []
        for box in found["boxes"][found["scores"].argsort(descending=True)].tolist():
            if all(iou(box, other) <= 0.5 for other in kept):
                kept.append(box)
        counts.append(len(kept))
    return counts


def iou(one: list[float], two: list[float]) -> float:
    wide, high = (min(one[i + 2], two[i + 2]) - max(one[i], two[i]) for i in (0, 1))
    both = max(wide, 0) * max(high, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return both / (sum(areas) - both)


def test_counting(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = transforms.resize(PICTURES, [48, 80])
    options = {"pretrained": str(zoo / "owlv2"), "threshold": 0.5, "batch_size": 4}
    reward = build("counting", **options)
    expected = reference_counts(zoo / "owlv2", images, "a photo of a fox", 0.5)
    assert reward.counts(images, "fox") == expected and len(set(expected)) > 1

    own = {"fox": expected, "wolf": reward.counts(images, "wolf")}
    nouns = ["fox", "wolf", "fox", "wolf", "fox", "fox"]
    rows: list[dict[str, Any]] = [
        {"noun": nouns[i], "animal": "owl", "count": 3 + i} for i in range(6)
    ]
    del rows[4]["count"], rows[5]["noun"], rows[5]["animal"]
    off = [abs(own[nouns[i]][i] - 3 - i) for i in range(4)]
    assert reward(images, [""] * 6, rows).tolist()[:4] == [-n for n in off]
    assert reward(images, [""] * 6, rows)[4:].isnan().all()
    exact = build("counting", score="exact", **options)
    rows[0]["count"] = expected[0]
    assert exact(images[:2], [""] * 2, [rows[0], {"animal": "fox", "count": 99}]).tolist() == [1, 0]


def test_counting_by_grounding_dino(tmp_path: Path) -> None:
    images = transforms.resize(PICTURES, [48, 80])
    reward = build(
        "counting", pretrained=zoo_vlm.grounding_dino(tmp_path), threshold=0.99, batch_size=4
    )
    expected = reference_counts(tmp_path / "dino", images, "a photo of a fox", 0.99)
    assert reward.counts(images, "fox") == expected and len(set(expected)) > 1


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("Open 24h", 1.0),
        ("we are OPEN 2 4 h now", 1.0),
        ("0pen 24h", 6 / 7),
        ("open 24", 6 / 7),
        ("openn 24hh"[:8], 5 / 7),
        ("", 0.0),
        ("a completely different text", 0.0),
    ],
)
def test_ocr_scores_edit_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str, expected: float
) -> None:
    reward = build("ocr", **zoo_vlm.pp_ocr(tmp_path))
    monkeypatch.setattr(reward.reader, "texts", lambda arrays: [read] * len(arrays))
    prompts = ['a sign that says "Open 24h"', "a sign", "a “OPEN” and a “24H”", "a sign"]
    found = reward(PICTURES[:4], prompts, [{}, {"text": "open 24h"}, {}, {}])
    assert found[:3].tolist() == pytest.approx([expected] * 3, abs=1e-6) and found[3].isnan()


def test_lines_of_text_are_cut_out_in_order() -> None:
    """A turned sheet comes out straight; a tall line is laid down."""
    sheet = np.arange(20 * 40 * 3, dtype=np.uint32).reshape(20, 40, 3).astype(np.uint8)
    page = np.zeros((60, 60, 3), np.uint8)
    page[5:25, 10:50] = sheet
    box = np.array([[10, 5], [50, 5], [50, 25], [10, 25]], np.float32)
    assert np.array_equal(cut(page, box), sheet)
    # by half a turn: pixel (x, y) goes to (59 - x, 59 - y)
    turned = np.ascontiguousarray(np.rot90(page, 2))
    assert np.array_equal(cut(turned, 59 - box), sheet)
    tall = np.ascontiguousarray(page.transpose(1, 0, 2))
    assert cut(tall, box[[0, 3, 2, 1], ::-1].copy()).shape == (20, 40, 3)

    at = lambda x, y: np.array([[x, y], [x + 9, y], [x + 9, y + 10], [x, y + 10]], np.float32)  # noqa: E731
    words = [at(30, 22), at(0, 41), at(50, 0), at(0, 20), at(20, 3)]
    assert [box[0].tolist() for box in in_reading_order(np.stack(words))] == [
        [20, 3],
        [50, 0],
        [0, 20],
        [30, 22],
        [0, 41],
    ]
    assert in_reading_order(np.zeros((0, 4, 2), np.float32)) == []


def test_each_line_is_read_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boxes in any order; the lines by the recognizer's own library, from what is within each
    box."""
    reward = build("ocr", **zoo_vlm.pp_ocr(tmp_path))
    pages = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    places = [[(0, 32, 96, 56), (50, 2, 96, 26), (0, 4, 44, 28)], [(8, 30, 80, 62), (4, 0, 90, 24)]]
    reading = [[2, 1, 0], [1, 0]]

    def boxes(outputs: Any, target_sizes: Any) -> list[dict[str, Tensor]]:
        assert [tuple(map(int, size)) for size in target_sizes] == [(64, 96)] * 2
        corners = [
            [[(x, y), (to, y), (to, end), (x, end)] for x, y, to, end in page] for page in places
        ]
        return [{"boxes": torch.tensor(page).float()} for page in corners]

    monkeypatch.setattr(reward.reader.find_inputs, "post_process_object_detection", boxes)
    network = AutoModelForTextRecognition.from_pretrained(tmp_path / "read").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "read")

    def line(page: np.ndarray, x: int, y: int, to: int, end: int) -> str:
        with torch.no_grad():
            outputs = network(**processor(images=page[y:end, x:to], return_tensors="pt"))
        return processor.post_process_text_recognition(outputs)[0]["text"]

    said = [
        [line(page, *box) for box in inside] for page, inside in zip(pages, places, strict=True)
    ]
    every = [text for texts in said for text in texts]
    assert len(set(every)) == 5 and all(every), "lines that can be told apart"
    expected = [
        " ".join(texts[i] for i in order) for texts, order in zip(said, reading, strict=True)
    ]
    assert reward.reader.texts(list(pages)) == expected


@pytest.mark.parametrize("name", ["vlm_alignment", "vqa_score", "counting", "ocr"])
def test_every_place_may_begin_at_home(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = zoo_vlm.ZOO[name](tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    build(name, **{key: str(place).replace(str(tmp_path), "~") for key, place in params.items()})


@pytest.mark.parametrize("name", zoo_vlm.ZOO)
def test_the_zoo_keeps_the_contract(name: str, tmp_path: Path) -> None:
    case = conformance.Case(build(name, **zoo_vlm.ZOO[name](tmp_path)))
    assert [finding for finding in conformance.findings(case) if not finding.passed] == []


@pytest.mark.parametrize("name", ["vlm_alignment", "vqa_score", "counting", "ocr"])
def test_options_out_of_range(name: str) -> None:
    """Said before any weights are loaded."""
    wrong: list[tuple[str, int, str]] = [("batch_size", number, "at least 1") for number in (0, -1)]
    if name == "vlm_alignment":
        wrong += [("jpeg_quality", number, "at least 1 and at most 100") for number in (0, 101)]
    for option, value, words in wrong:
        with pytest.raises(
            UserError, match=f"^rewards.0.params.{option}: must be {words}, got {value}$"
        ):
            config.load({"rewards": [{"name": name, "params": {option: value}}]})


@pytest.mark.parametrize("name", ["jpeg_compressibility", "jpeg_incompressibility"])
def test_qualities_of_jpeg_that_there_are_not(name: str) -> None:
    for quality in (0, 101):
        with pytest.raises(UserError, match="quality: must be at least 1 and at most 100, got"):
            config.load({"rewards": [{"name": name, "params": {"quality": quality}}]})


def test_what_cannot_be_loaded(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the option, the place and the remedy."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    llava, bert = str(zoo / "llava"), str(zoo / "bert")
    for name, params, words in (
        (
            "vlm_alignment",
            {"pretrained": "nobody/nothing"},
            "vlm_alignment.pretrained: nobody/nothing .*HF_HUB_OFFLINE",
        ),
        (
            "vlm_alignment",
            {"pretrained": llava, "encoder": llava + "2"},
            "vlm_alignment.encoder: .*llava2",
        ),
        (
            "vqa_score",
            {"pretrained": bert},
            f"vqa_score.pretrained: {bert} does not hold what is needed",
        ),
        ("counting", {"pretrained": llava}, "counting.pretrained"),
        ("ocr", {"detector": bert}, "ocr.detector"),
        ("emoji_recognition", {"captioner": str(tmp_path)}, "emoji_recognition.captioner"),
    ):
        with pytest.raises(UserError, match=words) as error:
            build(name, **params)
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance.Levenshtein", None)
    with pytest.raises(UserError, match=r'pip install --upgrade "ddpo\[ocr\]"'):
        build("ocr")
