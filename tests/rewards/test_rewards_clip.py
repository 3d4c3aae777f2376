"""Rewards on image towers against the reference libraries' own models and their own way from a
picture."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import zoo_clip
from open_clip.transform import image_transform
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Dinov2Model,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from ddpo import config, plugins, rewards
from ddpo.commands import frame, score
from ddpo.errors import UserError
from ddpo.images import GUARDS, from_pil

Score = Callable[..., Tensor]
PROMPT = "a fox by a house"
ROUNDING = 1.5 / 255 / 0.26
"""Pillow rounds to bytes after each of the two passes of a resize: half a byte, of which the second
pass makes at most one (some of its weights are negative), and half a byte; over the smallest
deviation."""


def picture(width: int, height: int) -> Image.Image:
    """Noise, flat areas and hard edges: bicubic overshoots on them, and aliases without its
    filter."""
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    drawn = Image.fromarray(noise)
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((width // 3, 0, 2 * width // 3, height // 2), (255, 255, 255))
    draw.ellipse((0, height // 3, width // 2, height - 1), (0, 0, 0), (255, 0, 0))
    return drawn


def build(name: str, **params: Any) -> Any:
    return rewards.build(name, 1.0, params).score


def scored(reward: Score, drawn: Image.Image, prompt: str = PROMPT, **metadata: Any) -> float:
    return reward(from_pil([drawn]), [prompt], [metadata]).item()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The options of every reward here, with its tiny models."""
    folders = {name: tmp_path_factory.mktemp(name) for name in zoo_clip.ZOO}
    return {name: params(folders[name]) for name, params in zoo_clip.ZOO.items()}


# ---- preprocessing: the same numbers as the libraries' own, and gradients
# ------------------------------


HOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SIZES = [(64, 64), (100, 61), (61, 100), (20, 33), (224, 40), (32, 32)]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_is_open_clips(mode: str, interpolation: str) -> None:
    module = plugins.load("rewards", "ddpo.rewards._preprocess:of_open_clip")
    model = nn.Module()
    cfg = {
        "size": 32,
        "resize_mode": mode,
        "interpolation": interpolation,
        "mean": (0.48, 0.45, 0.4),
        "std": (0.27, 0.26, 0.28),
        "fill_color": 0,
    }
    model.visual = nn.Module()
    model.visual.preprocess_cfg = cfg
    ours = module(model)
    theirs = image_transform(
        32,
        is_train=False,
        mean=cfg["mean"],
        std=cfg["std"],
        resize_mode=mode,
        interpolation=interpolation,
    )
    for size in SIZES:
        drawn = picture(*size)
        # newer Pillows make the cheaper pass first, older ones and ours the horizontal one
        first = drawn.resize((32, size[1]), HOW[interpolation]) if mode == "squash" else drawn
        got, expected = ours(from_pil([drawn]))[0], theirs(first)
        assert got.shape == expected.shape == (3, 32, 32)
        assert (got - expected).abs().max() < (1e-5 if size == (32, 32) else ROUNDING), size


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        BitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        SiglipImageProcessor(size={"height": 32, "width": 32}),
        ViTImageProcessor(
            size={"height": 32, "width": 24}, image_mean=[0.4] * 3, image_std=[0.3] * 3
        ),
        CLIPImageProcessor(size=32, crop_size=32, do_normalize=False),
    ],
)
def test_preprocessing_is_transformers(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    ours = plugins.load("rewards", "ddpo.rewards._preprocess:of_transformers")(str(tmp_path))
    for size in SIZES:
        drawn = picture(*size)
        expected = processor(images=drawn, return_tensors="pt")["pixel_values"]
        got = ours(from_pil([drawn]))
        assert got.shape == expected.shape and (got - expected).abs().max() < ROUNDING, size


def test_a_processor_of_another_kind_is_refused(tmp_path: Path) -> None:
    CLIPImageProcessor(size={"longest_edge": 32, "shortest_edge": 16}).save_pretrained(tmp_path)
    of = plugins.load("rewards", "ddpo.rewards._preprocess:of_transformers")
    with pytest.raises(ValueError, match="neither to a side nor to height and width"):
        of(str(tmp_path))


NETWORKS = [
    name for name in zoo_clip.ZOO if getattr(plugins.load("rewards", name), "differentiable", False)
]


def test_which_are_differentiable() -> None:
    assert set(zoo_clip.ZOO) - set(NETWORKS) == {"edge_density", "color_entropy"}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_reaches_the_pixels(name: str, zoo: dict[str, Any]) -> None:
    """It is the derivative: two evaluations along it differ by its size (on pictures without
    overshoot)."""
    reward = build(name, **zoo[name])
    y, x = torch.meshgrid(torch.linspace(0, 3, 40), torch.linspace(0, 4, 48), indexing="ij")
    waves = [torch.sin(x * (i + 1)) * torch.cos(y + i) for i in range(3)]
    images = torch.stack([0.5 + 0.2 * torch.stack(waves), 0.5 + 0.2 * torch.stack(waves[::-1])])
    images.requires_grad_()

    def total(pixels: Tensor) -> Tensor:
        return reward(pixels, [PROMPT, "a cat"], [{}, {}]).double().sum()

    (gradient,) = torch.autograd.grad(total(images), images)
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all()
    along = 0.002 * gradient / gradient.abs().max()
    with torch.no_grad():
        rise = (total(images + along) - total(images - along)).item() / 2
    assert rise == pytest.approx((gradient * along).sum().item(), rel=0.03)


def test_white_areas_keep_their_gradient(zoo: dict[str, Any]) -> None:
    """Clipping the overshoot of a resize must not cut it: a decoder's whites are exactly 1."""
    images = torch.ones(1, 3, 64, 64, requires_grad=True)
    reward = build("clip_score", **zoo["clip_score"])
    (gradient,) = torch.autograd.grad(reward(images, [PROMPT], [{}]).sum(), images)
    assert (gradient.abs().amax((0, 1)) > 0).float().mean() > 0.95


# ---- scores: equal to the reference library's
# -----------------------------------------------------------


def close(
    ours: Callable[[Image.Image], float], theirs: Callable[[Image.Image], float], scale: float
) -> None:
    """At the network's own size nothing is resized and all is exact; else Pillow's bytes move the
    score."""
    for size, tolerance in (((32, 32), 1e-5), ((90, 61), 0.02), ((48, 80), 0.02)):
        drawn = picture(*size)
        assert ours(drawn) == pytest.approx(theirs(drawn), abs=tolerance * scale), size


def by_open_clip(
    model: Any, transform: Any, tokenizer: Any, drawn: Image.Image, prompt: str
) -> float:
    with torch.no_grad():
        image = model.encode_image(transform(drawn)[None], normalize=True)
        return (image @ model.encode_text(tokenizer([prompt]), normalize=True).T).item()


@pytest.mark.parametrize("mode", ["shortest", "longest"])
def test_clip_score_is_open_clips(tmp_path: Path, mode: str) -> None:
    folder = zoo_clip.local_clip(tmp_path / "clip", {"resize_mode": mode, "mean": [0.4, 0.5, 0.6]})
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    for name in (folder, f"local-dir:{folder}"):
        reward = build("clip_score", pretrained=name)
        close(
            lambda drawn, reward=reward: scored(reward, drawn),
            lambda drawn: by_open_clip(model.eval(), transform, tokenizer, drawn, PROMPT),
            scale=1,
        )


def by_transformers(folder: str, drawn: Image.Image, prompt: str) -> Tensor:
    """The logit that CLIPModel gives for a picture and a text out of its own processor."""
    inputs = CLIPProcessor.from_pretrained(folder)(
        text=[prompt],
        images=drawn,
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=zoo_clip.CONTEXT,
    )
    with torch.no_grad():
        return CLIPModel.from_pretrained(folder)(**inputs)


def test_clip_score_and_pick_score_are_transformers(zoo: dict[str, Any]) -> None:
    folder = zoo["pick_score"]["pretrained"]
    model = CLIPModel.from_pretrained(folder)
    scale = model.logit_scale.exp().item()
    assert scale > 10
    pick, clip = build("pick_score", **zoo["pick_score"]), build("clip_score", pretrained=folder)
    close(
        lambda drawn: scored(pick, drawn),
        lambda drawn: by_transformers(folder, drawn, PROMPT).logits_per_image.item(),
        scale,
    )
    drawn = picture(32, 32)
    assert scored(clip, drawn) * scale == pytest.approx(scored(pick, drawn), rel=1e-5)


def test_the_scale_of_pick_score_is_never_rounded(tmp_path: Path) -> None:
    """ln 100 is 4.594 in bfloat16, and exp(4.594) = 98.86."""
    seen = {
        "timm_model_name": "test_vit",
        "timm_pool": "token",
        "timm_proj": "linear",
        "image_size": 160,
    }
    place = zoo_clip.hf_clip(tmp_path / "transformers")
    model = CLIPModel.from_pretrained(place)
    model.logit_scale.data.fill_(math.log(100))
    model.save_pretrained(place)
    places = [place]
    for name, changes in (("open_clip", {}), ("timm", {"vision_cfg": seen})):
        places.append(zoo_clip.local_clip(tmp_path / name, **changes))
        file = tmp_path / name / "open_clip_model.safetensors"
        save_file({**load_file(file), "logit_scale": torch.tensor(math.log(100))}, file)
    for place in places:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            params = {"pretrained": place, "processor": place}
            pick = rewards.build("pick_score", 1.0, params, dtype=dtype).score
            cosine = rewards.build("clip_score", 1.0, {"pretrained": place}, dtype=dtype).score
            one, other = scored(pick, picture(32, 32)), scored(cosine, picture(32, 32))
            assert one == pytest.approx(100 * other, rel=1e-5), (place, dtype)


def test_captions_of_any_length(zoo: dict[str, Any]) -> None:
    """Beyond the context they are cut, as the libraries cut them; the empty one is the empty
    text."""
    drawn, folder = picture(32, 32), zoo["pick_score"]["pretrained"]
    pick = build("pick_score", **zoo["pick_score"])
    local = zoo["clip_score"]["pretrained"]
    clip = build("clip_score", pretrained=local)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{local}")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{local}")
    for prompt in ("", "x", "fox" * 7 + "y", "fox" * 50, "fox" * 50 + "z"):
        assert scored(pick, drawn, prompt) == pytest.approx(
            by_transformers(folder, drawn, prompt).logits_per_image.item(), abs=1e-4
        )
        assert scored(clip, drawn, prompt) == pytest.approx(
            by_open_clip(model.eval(), transform, tokenizer, drawn, prompt), abs=1e-5
        )
    assert scored(pick, drawn, "fox" * 50) == scored(pick, drawn, "fox" * 50 + "z")
    assert scored(pick, drawn, "") != scored(pick, drawn, "x")


@pytest.mark.parametrize("name", ["clip_score", "pick_score", "aesthetic", "hps", "image_reward"])
def test_tokenizers_are_settled_before_threads_share_them(name: str, zoo: dict[str, Any]) -> None:
    """One that a call changes (its padding, its cut) raises "Already borrowed" in another thread's
    call."""
    reward = build(name, **zoo[name])
    if name == "image_reward":
        tokenizer, text = reward.tokenizer, reward.tokens
    else:
        tokenizer, text = reward.encoder.towers.tokens, reward.encoder.texts
    fast = getattr(tokenizer, "tokenizer", tokenizer)._tokenizer  # open_clip wraps it
    before = fast.padding, fast.truncation
    text(["a fox", "fox" * 50])
    assert (fast.padding, fast.truncation) == before and before[1] is not None


def test_hps_pads_as_the_original(zoo: dict[str, Any]) -> None:
    params = zoo["hps"]
    folder = Path(params["pretrained"])
    config = json.loads(Path(params["architecture"]).read_text())
    tokenizer = build("hps", **params).encoder.towers.tokens
    transform = image_transform(32, is_train=False, resize_mode="longest")
    seen = {}
    for version in ("v2", "v2.1"):
        file = folder / f"HPS_{version}_compressed.pt"
        model = open_clip.CLIP(**config).eval()
        model.load_state_dict(torch.load(file)["state_dict"])
        reward = build("hps", version=version, **params)
        close(
            lambda drawn, reward=reward: scored(reward, drawn),
            lambda drawn, model=model: by_open_clip(model, transform, tokenizer, drawn, PROMPT),
            scale=1,
        )
        seen[version] = scored(reward, picture(90, 61))
        direct = build("hps", version=version, **{**params, "pretrained": str(file)})
        assert scored(direct, picture(90, 61)) == seen[version]
    assert seen["v2"] != seen["v2.1"]
    wide = from_pil([picture(90, 30)])
    other = wide.clone()
    other[..., :20] = 0.5  # a center crop would not see it
    whole = build("hps", **params)(torch.cat([wide, other]), ["a fox"] * 2, [{}] * 2)
    assert abs(whole[0] - whole[1]) > 1e-3


def test_openais_weights_get_their_gelu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-L-14/openai and its like: open_clip itself builds the other GELU and warns."""
    config = zoo_clip.clip_config(tmp_path)
    (tmp_path / "tiny-gelu.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-gelu.json")
    torch.save(zoo_clip.spread(open_clip.CLIP(**config)).state_dict(), tmp_path / "weights.pt")
    tags = {
        tag: {"file": str(tmp_path / "weights.pt"), "quick_gelu": tag == "openai"}
        for tag in ("openai", "laion")
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-gelu", tags)
    assert open_clip.get_pretrained_cfg("ViT-L-14", "openai")["quick_gelu"], "the tag says so"
    drawn, transform = picture(32, 32), image_transform(32, is_train=False)
    tokenizer = open_clip.get_tokenizer("tiny-gelu")
    expected = {}
    for tag, quick in (("openai", True), ("laion", False)):
        model = open_clip.CLIP(**config, quick_gelu=quick).eval()
        model.load_state_dict(torch.load(tmp_path / "weights.pt"))
        expected[tag] = by_open_clip(model, transform, tokenizer, drawn, PROMPT)
        reward = build("clip_score", pretrained=f"tiny-gelu/{tag}")
        assert scored(reward, drawn) == pytest.approx(expected[tag], abs=1e-5)
    assert abs(expected["openai"] - expected["laion"]) > 1e-4
    with pytest.raises(
        UserError, match="tiny-gelu has no weights 'opnai'; there are: openai, laion"
    ):
        build("clip_score", pretrained="tiny-gelu/opnai")


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_aesthetic_is_the_published_network(tmp_path: Path, act: str) -> None:
    """The head as its authors define it, loaded strictly; the feature as CLIPModel gives it; either
    GELU."""
    folder, file = zoo_clip.hf_clip(tmp_path / "clip", act), zoo_clip.head(tmp_path / "head.pth")
    layers = nn.Sequential(
        nn.Linear(16, 12),
        nn.Dropout(0.2),
        nn.Linear(12, 10),
        nn.Dropout(0.2),
        nn.Linear(10, 8),
        nn.Dropout(0.1),
        nn.Linear(8, 6),
        nn.Linear(6, 1),
    ).eval()
    published = nn.ModuleDict({"layers": layers})
    published.load_state_dict(torch.load(file), strict=True)

    def theirs(drawn: Image.Image) -> float:
        with torch.no_grad():
            return layers(by_transformers(folder, drawn, "x").image_embeds).item()

    reward = build("aesthetic", pretrained=folder, head=file)
    close(lambda drawn: scored(reward, drawn), theirs, scale=3)
    safe = build("aesthetic", pretrained=folder, head=zoo_clip.head(tmp_path / "head.safetensors"))
    assert scored(safe, picture(32, 32)) == scored(reward, picture(32, 32))
    zoo_clip.head(tmp_path / "hub" / "aesthetic-model.pth")
    inside = build("aesthetic", pretrained=folder, head=str(tmp_path / "hub"))
    assert scored(inside, picture(32, 32)) == scored(reward, picture(32, 32))


def test_the_true_head_fits() -> None:
    affine: Any = plugins.load("rewards", "ddpo.rewards._affine:Affine")
    widths = (768, 1024, 128, 64, 16, 1)
    state = {}
    for number, take, give in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        state |= {
            f"layers.{number}.weight": torch.zeros(give, take),
            f"layers.{number}.bias": torch.ones(give),
        }
    assert affine(state, 768, "cpu")(torch.rand(2, 768)).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"layers.0 takes 768 numbers and gets 512"):
        affine(state, 512, "cpu")


def blip(
    state: dict[str, Tensor], med: dict[str, Any], pixels: Tensor, ids: Tensor, mask: Tensor
) -> Tensor:
    """ImageReward as its authors wrote it (timm's ViT, BERT with cross-attention, a head)."""

    def of(name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, hide: Tensor | float = 0.0) -> Tensor:
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + hide).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    eye, read = "blip.visual_encoder", "blip.text_encoder"
    patches = state[f"{eye}.patch_embed.proj.weight"]
    x = F.conv2d(pixels, patches, state[f"{eye}.patch_embed.proj.bias"], stride=patches.shape[-1])
    x = (
        torch.cat([state[f"{eye}.cls_token"], x.flatten(2).transpose(1, 2)], 1)
        + state[f"{eye}.pos_embed"]
    )
    depth = sum(name.endswith("attn.qkv.weight") for name in state)
    for i in range(depth):
        block = f"{eye}.blocks.{i}"
        q, k, v = of(f"{block}.attn.qkv")(norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + of(f"{block}.attn.proj")(attend(q, k, v, heads=1))
        x = x + of(f"{block}.mlp.fc2")(
            F.gelu(of(f"{block}.mlp.fc1")(norm(f"{block}.norm2", x, 1e-6)))
        )
    image = norm(f"{eye}.norm", x, 1e-6)
    words = state[f"{read}.embeddings.word_embeddings.weight"][ids]
    x = words + state[f"{read}.embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(f"{read}.embeddings.LayerNorm", x, 1e-12)
    hide = (1 - mask[:, None, None].float()) * -1e9
    for i in range(med["num_hidden_layers"]):
        layer = f"{read}.encoder.layer.{i}"
        for kind, source, hidden in (("attention", None, hide), ("crossattention", image, 0.0)):
            there = x if source is None else source
            q, k, v = (of(f"{layer}.{kind}.self.{n}") for n in ("query", "key", "value"))
            found = attend(q(x), k(there), v(there), med["num_attention_heads"], hidden)
            x = norm(
                f"{layer}.{kind}.output.LayerNorm",
                x + of(f"{layer}.{kind}.output.dense")(found),
                1e-12,
            )
        wide = F.gelu(of(f"{layer}.intermediate.dense")(x))
        x = norm(f"{layer}.output.LayerNorm", x + of(f"{layer}.output.dense")(wide), 1e-12)
    x = x[:, 0]
    for number in (0, 2, 4, 6, 7):
        x = of(f"mlp.layers.{number}")(x)
    return (x[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_image_reward_is_the_original(zoo: dict[str, Any]) -> None:
    """Its own transform of the picture, its own cut of the text, a forward written from its own
    source."""
    params = zoo["image_reward"]
    reward = build("image_reward", **params)
    state = torch.load(Path(params["pretrained"]) / "ImageReward.pt")
    transform = transforms.Compose(
        [
            transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(
                (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            ),
        ]
    )
    for prompt in ("a fox", "", "fox" * 30):
        rows = reward.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
        )

        def theirs(drawn: Image.Image, rows: Any = rows) -> float:
            pixels = transform(drawn)[None]
            return blip(state, zoo_clip.MED, pixels, rows.input_ids, rows.attention_mask).item()

        close(lambda drawn, prompt=prompt: scored(reward, drawn, prompt), theirs, scale=4)
    drawn = picture(32, 32)
    assert scored(reward, drawn, "fox" * 30) == scored(reward, drawn, "fox" * 30 + " cat")
    assert scored(reward, drawn, "a fox") != scored(reward, drawn, "a cat")


def test_the_true_image_reward_fits() -> None:
    """Names and shapes of the published checkpoint (BLIP-L at 224, its BERT of 12 layers and 12
    heads)."""
    med = {
        **zoo_clip.MED,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
        "vocab_size": 30524,
    }
    build_blip: Any = plugins.load("rewards", "ddpo.rewards._blip:blip")
    with torch.device("meta"):
        state = zoo_clip.blip_state(med, width=1024, depth=24, side=16, size=224)
        towers = {key[5:]: value for key, value in state.items() if key.startswith("blip.")}
        model = build_blip(towers, med)
        vision, text = model.config.vision_config, model.config.text_config
        assert (vision.num_attention_heads, vision.image_size, vision.num_hidden_layers) == (
            16,
            224,
            24,
        )
        assert text.num_attention_heads == 12
        # transformers' BLIP has 1e-5
        assert (vision.layer_norm_eps, text.layer_norm_eps) == (
            1e-6,
            1e-12,
        )
        del towers["text_encoder.encoder.layer.3.crossattention.self.key.weight"]
        with pytest.raises(
            ValueError, match=r"1 weights are missing or unknown, as .*layer.3.crossattention"
        ):
            build_blip(towers, med)


def test_similarity_and_diversity(zoo: dict[str, Any], tmp_path: Path) -> None:
    """From the class token of Dinov2Model on its processor's pixels."""
    folder = zoo["similarity"]["pretrained"]
    pictures = [
        picture(28, 28),
        picture(28, 28).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        picture(28, 28),
    ]
    BitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(images=pictures, return_tensors="pt")
    with torch.no_grad():
        feature = F.normalize(Dinov2Model.from_pretrained(folder)(**pixels).pooler_output, dim=-1)
    distance = 1 - (feature[0] @ feature[1]).item()
    assert distance > 0.01

    diversity = build("diversity", pretrained=folder)
    assert plugins.load("rewards", "diversity").groupwise  # pyright: ignore
    got = diversity(from_pil(pictures), [""] * 3, [{}] * 3).tolist()
    assert got == pytest.approx([distance / 2, distance, distance / 2], abs=1e-5)
    assert diversity(from_pil(pictures[:1]), [""], [{}]).isnan().tolist() == [True]

    for number, drawn in enumerate(pictures[:2]):
        drawn.save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    near, mean = 1 - distance, 1 - distance / 2
    one, both = str(tmp_path / "0.png"), str(tmp_path)
    rows = [{"reference": one}, {"reference": one}, {"reference": both}]
    for reference, metadata, expected in (
        (one, [{}] * 3, [1, near, 1]),
        (both, [{}] * 3, [mean] * 3),
        ("", rows, [1, near, mean]),
        (one, rows, [1, near, 1]),
        ("", [{}, {"reference": one}, {}], [np.nan, near, np.nan]),
    ):
        reward = build("similarity", pretrained=folder, reference=reference)
        got = reward(from_pil(pictures), [""] * 3, metadata).tolist()
        assert got == pytest.approx(expected, abs=1e-5, nan_ok=True)
    (tmp_path / "empty").mkdir()
    for place, words in (
        ("empty", "empty holds no image"),
        ("notes.txt", "cannot be read as an image"),
        ("none.png", "none.png cannot be read as an image"),
    ):
        with pytest.raises(UserError, match=words):
            build("similarity", pretrained=folder, reference=str(tmp_path / place))


def test_nsfw_is_the_classifiers(zoo: dict[str, Any]) -> None:
    folder = zoo["nsfw"]["pretrained"]
    model = AutoModelForImageClassification.from_pretrained(folder).eval()

    def theirs(drawn: Image.Image) -> float:
        with torch.no_grad():
            pixels = AutoImageProcessor.from_pretrained(folder)(images=drawn, return_tensors="pt")
            return model(**pixels).logits.softmax(-1)[0, 1].item()

    reward = build("nsfw", pretrained=folder)
    close(lambda drawn: scored(reward, drawn), theirs, scale=1)
    normal = build("nsfw", pretrained=folder, label="Normal")
    assert scored(normal, picture(32, 32)) == pytest.approx(1 - theirs(picture(32, 32)), abs=1e-5)
    with pytest.raises(UserError, match="has no class 'nude'; it has: normal, nsfw"):
        build("nsfw", pretrained=folder, label="nude")


# ---- the cheap guards
# -----------------------------------------------------------------------------------


def test_sharpness_in_closed_form() -> None:
    sharpness = build("sharpness")

    def of(*rows: list[float]) -> float:
        return sharpness(torch.tensor(rows).expand(1, 3, -1, -1), [""], [{}]).item()

    assert of(*[[0.7] * 6] * 5) == pytest.approx(0, abs=1e-10)
    assert of(*[[0.1 * x + 0.05 * y for x in range(6)] for y in range(5)]) == pytest.approx(
        0, abs=1e-10
    )
    assert of(*[[float((x + y) % 2) for x in range(6)] for y in range(6)]) == pytest.approx(
        16, rel=1e-5
    )
    point = [[float(x == y == 2) for x in range(5)] for y in range(5)]
    assert of(*point) == pytest.approx(20 / 9, rel=1e-5)  # -4, four times 1, four times 0
    assert np.isnan(of([0.0, 1.0], [1.0, 0.0]))
    drawn = from_pil([picture(40, 40)])
    halves = F.interpolate(F.avg_pool2d(drawn, 2), scale_factor=2.0)
    values = sharpness(torch.cat([drawn, halves]), [""] * 2, [{}] * 2)
    assert values[0] > 2 * values[1]
    red = torch.zeros(1, 3, 6, 6)
    red[:, 0] = torch.tensor([[float((x + y) % 2) for x in range(6)] for y in range(6)])
    assert sharpness(red, [""], [{}]).item() == pytest.approx(16 * 0.299**2, rel=1e-5)


def test_the_other_guards_are_the_logged_statistics() -> None:
    images = torch.zeros(2, 3, 9, 9)
    images[1, :, :, 4:] = (
        1  # the fourth of 8 columns with a right neighbor is an edge; 45 of 81 are white
    )
    for name, expected in (
        ("brightness", [0, 45 / 81]),
        ("edge_density", [0, 1 / 8]),
        ("color_entropy", [0, -(45 * np.log2(45 / 81) + 36 * np.log2(36 / 81)) / 81]),
    ):
        got = build(name)(images, [""] * 2, [{}] * 2)
        assert got.tolist() == pytest.approx(expected, abs=1e-6)
        assert got.tolist() == GUARDS[name](images).tolist()


def test_redness_is_red_beside_green_and_blue() -> None:
    """Of red, cyan, gray and orange pictures."""
    colors = torch.tensor([[1, 0, 0], [0, 1, 1], [0.5, 0.5, 0.5], [1, 0.5, 0]])
    images = colors[:, :, None, None].expand(-1, -1, 8, 8)
    assert build("redness")(images, [""] * 4, [{}] * 4).tolist() == [1.0, -1.0, 0.0, 0.75]


# ---- batches, types, mistakes, the command line
# ----------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if name not in ("brightness", "sharpness", "redness")]
)
def test_any_batch_size_any_type(name: str, zoo: dict[str, Any]) -> None:
    images = torch.cat([from_pil([picture(40, 30).rotate(20 * i)]) for i in range(5)])
    prompts = ["a fox", "a much longer prompt", "", "a fox", "two"]
    params = zoo[name]
    reward = build(name, **params)
    whole = reward(images, prompts, [{}] * 5)
    assert whole.shape == (5,) and whole.dtype == torch.float32 and len(whole.unique()) == 5
    if name != "diversity":
        rows = zip(images.split(1), prompts, strict=True)
        alone = torch.cat([reward(image, [prompt], [{}]) for image, prompt in rows])
        assert torch.allclose(alone, whole, rtol=1e-4, atol=1e-5), "each image with its own prompt"
    for batch_size in (1, 2, 5):
        parts = build(name, batch_size=batch_size, **params)(images, prompts, [{}] * 5)
        assert torch.allclose(parts, whole, rtol=1e-4, atol=1e-5)
    half = rewards.build(name, 1.0, params, dtype=torch.bfloat16).score(images, prompts, [{}] * 5)
    assert half.dtype == torch.float32 and not half.equal(whole)
    # 8 bits in a tiny network
    assert (half - whole).abs().max() < 0.1 * (whole.max() - whole.min())
    with pytest.raises(
        UserError, match=r"^rewards.0.params.batch_size: must be at least 1, got 0$"
    ):
        config.load({"rewards": [{"name": name, "params": {**params, "batch_size": 0}}]})


@pytest.mark.parametrize("name", ["clip_score", "pick_score"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_of_half_precision_have_unit_length_in_full(
    name: str, dtype: torch.dtype, zoo: dict[str, Any]
) -> None:
    """Normalized after the cast: 8 bits would leave a cosine with itself at 0.997 or 1.003."""
    encoder = rewards.build(name, 1.0, zoo[name], dtype=dtype).score.encoder  # pyright: ignore
    prompts = [PROMPT, "an owl", "", "two dogs"]
    images = torch.cat([from_pil([picture(40, 30).rotate(30 * i)]) for i in range(4)])
    for features in (encoder.images(images), encoder.texts(prompts)):
        assert features.dtype == torch.float32
        assert (features.norm(dim=-1) - 1).abs().max() < 1e-6


def test_mistakes_cost_one_line(zoo: dict[str, Any], tmp_path: Path) -> None:
    clip, nowhere = zoo["pick_score"]["pretrained"], str(tmp_path / "nowhere")
    torn = zoo_clip.hf_clip(tmp_path / "torn")
    weights = load_file(f"{torn}/model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, f"{torn}/model.safetensors", {"format": "pt"})
    bare = zoo_clip.local_clip(tmp_path / "bare")
    Path(bare, "open_clip_model.safetensors").unlink()
    short = zoo_clip.head(tmp_path / "short.pth", (16, 12, 10, 8, 6, 2))
    wide = zoo_clip.head(tmp_path / "wide.pth", (17, 12, 10, 8, 6, 1))
    unsafe = tmp_path / "unsafe.pth"
    torch.save({"layers.0.weight": Path}, unsafe)
    for name, params, words in (
        ("clip_score", {"pretrained": nowhere}, f"clip_score.pretrained: there is no {nowhere}"),
        ("clip_score", {"pretrained": "local-dir:nowhere"}, "there is no nowhere"),
        ("clip_score", {"pretrained": str(tmp_path)}, "does not hold what is needed"),
        (
            "clip_score",
            {"pretrained": torn},
            "1 weights of CLIPModel are missing, as visual_projection",
        ),
        ("clip_score", {"pretrained": bare}, "does not hold what is needed"),
        ("clip_score", {"pretrained": "ViT-L-14"}, "ViT-L-14 has no weights ''; there are: openai"),
        ("clip_score", {}, "openai/clip-vit-large-patch14 is no folder here"),
        ("clip_score", {}, "HF_HUB_OFFLINE is set: unset it"),
        ("clip_score", {"pretrained": "hf-hub:owner/name"}, "HF_HUB_OFFLINE is set: unset it"),
        ("pick_score", {"pretrained": clip}, "pick_score.pretrained"),
        (
            "aesthetic",
            {"pretrained": clip},
            "aesthetic.head: trl-lib/ddpo-aesthetic-predictor is no folder",
        ),
        (
            "aesthetic",
            {"pretrained": clip, "head": nowhere},
            f"aesthetic.head: there is no {nowhere}",
        ),
        ("aesthetic", {"pretrained": clip, "head": short}, "do not end in one number"),
        ("aesthetic", {"pretrained": clip, "head": wide}, "layers.0 takes 17 numbers and gets 16"),
        ("aesthetic", {"pretrained": clip, "head": str(unsafe)}, "aesthetic.head"),
        ("aesthetic", {"pretrained": clip, "head": clip}, "does not hold what is needed"),
        ("hps", {}, "hps.pretrained: xswu/HPSv2 is no folder here"),
        ("hps", {"pretrained": clip}, "HPS_v2.1_compressed.pt"),
        ("hps", {"pretrained": clip, "architecture": "ViT-H-15"}, "hps.architecture"),
        ("hps", {"pretrained": clip, "architecture": nowhere + ".json"}, "hps.architecture"),
        ("hps", {**zoo["hps"], "architecture": "RN50"}, "hps.pretrained"),
        ("image_reward", {"pretrained": clip}, "image_reward.pretrained"),
        (
            "image_reward",
            {"pretrained": zoo["image_reward"]["pretrained"]},
            "image_reward.tokenizer",
        ),
        ("nsfw", {"pretrained": nowhere}, "nsfw.pretrained"),
        ("similarity", {}, "similarity.pretrained: facebook/dinov2-base is no folder here"),
    ):
        with pytest.raises(UserError) as error:
            build(name, **params)
        told = str(error.value)
        assert words in told and "\n" not in told and len(told) < 600, told


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB."),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to get 9 B"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_called_so(
    error: Exception, zoo: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr("ddpo.rewards._towers.pretrained", full)
    place = zoo["pick_score"]["pretrained"]
    with pytest.raises(UserError) as caught:
        build("clip_score", pretrained=place)
    told = str(caught.value)
    assert told.startswith(
        f"clip_score.pretrained: {place} does not fit into memory ({type(error).__name__}"
    )
    assert "\n" not in told


def test_a_tower_without_text_is_refused_where_text_is_needed(zoo: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="has no text tower"):
        build("clip_score", pretrained=zoo["similarity"]["pretrained"])


def test_emoji_is_the_embedded_world() -> None:
    folder: Any = plugins.load("rewards", "ddpo.rewards._embedded:folder")
    assert Path(folder("emoji", "captioner"), "config.json").is_file()
    assert Path(folder("emoji", "clip")).parts[-3:] == ("emoji", "weights", "clip")
    assert folder("openai/clip", "clip") == "openai/clip"
    assert folder("~/clip", "clip") == str(Path.home() / "clip")


def test_every_place_may_begin_at_home(
    zoo: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path_factory.getbasetemp()
    monkeypatch.setenv("HOME", str(home))
    drawn = picture(32, 32)
    for name, params in zoo.items():
        if params:
            short = {key: "~" + str(value).removeprefix(str(home)) for key, value in params.items()}
            assert all(value.startswith("~/") for value in short.values())
            found = [
                build(name, **each)(from_pil([drawn]), [PROMPT], [{}]) for each in (params, short)
            ]
            assert torch.equal(*found) or name == "diversity"
    file = f"{zoo['hps']['pretrained']}/HPS_v2_compressed.pt".replace(str(home), "~")
    build("hps", **{**zoo["hps"], "pretrained": file}, version="v2")
    with pytest.raises(UserError, match=f"hps.pretrained: there is no {home}/nowhere"):
        build("hps", **{**zoo["hps"], "pretrained": "~/nowhere"})


def test_from_the_command_line(
    zoo: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(40, 30).save("wide.png")
    picture(30, 40).save("high.png")
    picture(40, 30).rotate(180).save("turned.png")
    for name, params in zoo.items():
        # a group has one size
        files = [
            "wide.png",
            "turned.png" if name == "diversity" else "high.png",
        ]
        argv = ["--reward", name, "--params", json.dumps(params), "--prompt", PROMPT, *files]
        assert frame.run(score.main, argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("\t")[1] for line in lines] == files
        assert not any(line.startswith("nan") for line in lines)
    for params, words in (
        ({"pretraind": "x"}, "did you mean pretrained?"),
        ({"batch_size": "many"}, "expected"),
        ({"pretrained": "./nowhere"}, "clip_score.pretrained: there is no nowhere"),
    ):
        argv = ["--reward", "clip_score", "--params", json.dumps(params), "wide.png"]
        assert frame.run(score.main, argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("ddpo: ") and words in line


@pytest.mark.weights
def test_image_reward_of_its_authors_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The four scores that the authors' README prints for the pictures of their repository."""
    from urllib.request import urlretrieve

    reward = build("image_reward")
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    place = "https://github.com/THUDM/ImageReward/raw/main/assets/images"
    got = []
    for number in range(1, 5):
        file, _ = urlretrieve(f"{place}/{number}.webp", tmp_path / f"{number}.webp")
        got.append(scored(reward, Image.open(file), prompt))
    assert got == pytest.approx(
        [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492], abs=0.02
    )
