"""What can be set, in one model a section; the strings under the fields are what --help prints."""

from collections.abc import Callable
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ddpo.config import words, yaml_text
from ddpo.errors import UserError
from ddpo.plugins.python_objects import Given
from ddpo.plugins.ranges import (
    Finite,
    NonBlank,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    UnitFloat,
)

REWARDS = ("rewards", "eval_rewards")

NUMBERS = {bool, int, float}
WRITTEN = {*NUMBERS, list, tuple, dict, Any}
"""What the text of a flag may stand for, as YAML says; an option of another class gets the text."""


class Part(BaseModel):
    """Options read from YAML and flags: none unknown, true is no int and 2.0 neither."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        hint = cls.model_fields[str(info.field_name)].annotation
        classes, leaves = _classes(hint), _classes(hint, inside=True)
        if isinstance(value, str) and classes & WRITTEN:
            with suppress(yaml.YAMLError):
                yaml_text.refuse_twice("", value)
                read = yaml.safe_load(value)
                fits = str not in classes or type(read) in classes
                value = read if fits and read is not None else value
        for inner in value if isinstance(value, list | tuple) else [value]:
            exact = type(inner) in leaves or (type(inner) is int and float in leaves)
            if type(inner) in NUMBERS and leaves & NUMBERS and not exact:
                raise PydanticCustomError("exact_type", "of another type")
        return value


def _classes(hint: Any, inside: bool = False) -> set[Any]:
    """The classes that a type is a union of; `inside`: those of its elements in place of a list."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {type(value) for value in args}
    if origin is Annotated:
        return _classes(args[0], inside)
    if origin and not inside and origin not in (Union, UnionType):
        return {origin}
    return set().union(*(_classes(inner, inside) for inner in args)) if args else {hint}


class Named(Part):
    """A section whose `name` names a thing, and which takes the options of that."""

    name: str


def is_named(hint: Any) -> TypeGuard[type[Named]]:
    """Whether a type is such a section."""
    return isinstance(hint, type) and issubclass(hint, Named)


class Open(Named):
    """One that has these options flat beside its own, as in `{name: ddpo, clip_range: 1e-4}`."""

    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = {key: value for key, value in values.items() if key in cls.model_fields}
        others = {key: value for key, value in values.items() if key not in own}
        return own | {"options": {**own.get("options", {}), **others}}


class Model(Open):
    """The diffusion model that is fine-tuned."""

    name: str = "stable_diffusion"
    """an adapter of `ddpo list models`"""
    pretrained: str = "emoji"
    """Hub name or folder of the weights; `emoji` is the small model that comes with ddpo"""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """precision of the network; log-probabilities and the trained weights are always fp32. auto: on
    a GPU bf16 if it has that, else fp16; on a CPU fp32, unless bf16 proves faster when the run
    begins"""
    loras: list[str] = Field(default_factory=list)
    """LoRA files or Hub names fused into the weights before training"""
    gradient_checkpointing: bool = False
    """less memory and more time: activations are computed again in the backward pass"""


class Lora(Part):
    """The low-rank adapter that is trained; `lora: null` trains the whole denoiser."""

    rank: PositiveInt = 16
    """rank of the update"""
    alpha: PositiveFloat | None = None
    """the update is scaled by alpha / rank; null: alpha = rank, the only choice every program reads
    alike"""
    target_modules: list[str] = Field(default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0"])
    """ends of the names of the denoiser's layers that get an adapter; [] with text_encoder: none"""
    text_encoder: bool = False
    """adapt the text encoder too"""


class Sampler(Open):
    """How images are sampled, in training and evaluation."""

    name: str = "ddim"
    """a sampler of `ddpo list samplers`"""
    num_steps: PositiveInt = 50
    """denoising steps per image"""
    guidance_scale: NonNegativeFloat = 5.0
    """classifier-free guidance; 1 is none and takes half the time"""
    negative_prompt: str = ""
    """what guidance leads away from; empty: from no prompt at all"""
    batch_size: PositiveInt = 8
    """images a network call; sets speed and memory, never the result"""


class Prompts(Part):
    """The prompts of training: a named set, a file of one's own, or a data set."""

    name: str | None = "animals"
    """a set of `ddpo list prompts`"""
    path: str | None = None
    """a txt, jsonl, csv or py file; takes the place of name"""
    dataset: str | None = None
    """a data set of the Hub, or a folder of parquet or jsonl files; takes the place of name"""
    split: str = "train"
    """of the data set"""
    column: str = "prompt"
    """of the data set: the prompts; its other columns of text, numbers and truth values are
    metadata"""
    template: str | None = None
    """text around each prompt, as in "A painting of a {prompt}" """

    @model_validator(mode="after")
    def _one_source(self) -> "Prompts":
        self.name = None if self.path or self.dataset else self.name
        return self


def _text_of(value: Any, read: Callable[[Any], str]) -> str:
    """An object given from Python as the text that carries it; pydantic would copy a bare text."""
    text = Given(value) if callable(value) else value
    return text if isinstance(text, Given) else read(text)


class Reward(Named):
    """One term of the reward, or one judge of the evaluation."""

    name: Annotated[str, WrapValidator(_text_of)]  # pyright: ignore[reportIncompatibleVariableOverride]
    """a reward of `ddpo list rewards`, package.module:attribute or path/file.py:function; from
    Python also the function, class or instance itself"""
    weight: Finite = 1.0
    """factor in the sum of rewards; 0: it is only logged, or only a gate"""
    params: dict[str, Any] = Field(default_factory=dict)
    min: Finite | None = None
    """an image with less is gated: it counts as the worst of its prompt and gets no positive
    advantage"""
    max: Finite | None = None
    """an image with more is gated likewise"""
    cache: str | None = None
    """folder that keeps values from run to run; null: they are computed each time"""
    label: str | None = None
    """its name in metrics and results; null: the name without module or folder"""


class Objective(Open):
    """The loss."""

    name: str = "ddpo"
    """an objective of `ddpo list objectives`"""
    kl_weight: NonNegativeFloat = 0.0
    """weight, in the loss, of the closed-form KL of a step to the pretrained model, per latent
    dimension"""
    block_size: PositiveInt = 1
    """denoising steps in a row that share one ratio; sampler.num_steps: one ratio a trajectory"""
    timestep_fraction: Share = 1.0
    """random share of the denoising steps that is trained on, drawn each iteration"""
    timestep_window: tuple[NonNegativeInt, PositiveInt] | None = None
    """[first, end): train on these steps alone, counted from 0, the noisiest; null: all"""
    drop_last: NonNegativeInt = 0
    """this many steps at the end are not trained on"""
    guidance_scale: NonNegativeFloat | None = None
    """guidance in the update; null: that of the sampler, the policy that drew the images"""
    draws: PositiveInt | None = None
    """(timestep, noise) pairs per image and pass, for rwr and dpo; null: sampler.num_steps"""
    offline: bool = False
    """learn from recorded pairs: prompts.path has columns chosen and rejected, images; rewards only
    judge"""


class Advantage(Open):
    """What a sample's reward is compared with."""

    name: str = "per_prompt"
    """an advantage of `ddpo list advantages`"""
    clip: PositiveFloat = 5.0
    """advantages are clipped to [-clip, clip]"""
    per_reward: bool = False
    """compare each reward by itself, then add up by weight; false: compare the weighted sum"""
    keep_extremes: PositiveInt | None = None
    """train only on the k best and the k worst images of each prompt; null: on all"""


class Trainer(Part):
    """The loop. All sizes are global: they do not depend on the number of processes."""

    iterations: PositiveInt = 100
    """rounds of sampling and learning"""
    prompts_per_iteration: PositiveInt = 32
    """prompts drawn an iteration; one that is drawn twice makes two groups"""
    samples_per_prompt: PositiveInt = 8
    """images of each of them; an iteration makes prompts_per_iteration x samples_per_prompt"""
    minibatches: PositiveInt = 2
    """optimizer steps per pass; divides prompts_per_iteration, since the samples of a prompt stay
    together"""
    epochs: PositiveInt = 1
    """passes over the images of an iteration"""
    micro_batch: PositiveInt = 16
    """(sample, step) pairs a network call; sets speed and memory, never the result"""
    lr: PositiveFloat = 3e-4
    """learning rate of AdamW"""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """cosine and linear go down to 0 at the last iteration"""
    warmup_steps: NonNegativeInt = 0
    """optimizer steps in which the learning rate rises from 0"""
    betas: tuple[UnitFloat, UnitFloat] = (0.9, 0.999)
    """AdamW's averages of the gradient and of its square"""
    adam_eps: PositiveFloat = 1e-8
    """AdamW's epsilon"""
    weight_decay: NonNegativeFloat = 1e-4
    """AdamW's decoupled weight decay"""
    max_grad_norm: PositiveFloat = 1.0
    """gradients with a larger norm are scaled down to it"""
    reward_timeout_s: PositiveFloat | None = 600.0
    """seconds to wait for the rewards of a chunk of images before the run stops; null: no end"""
    max_missing: UnitFloat = 0.5
    """share of an iteration's images without a value of some reward above which the run stops"""


class Ema(Part):
    """A running average of the trained weights."""

    decay: UnitFloat = 0.0
    """weight of the past at each optimizer step; 0: no average is kept"""


class Checkpoint(Part):
    """The state from which `--resume` goes on."""

    every: PositiveInt = 10
    """iterations from one checkpoint to the next; the last iteration always makes one"""
    keep_last: PositiveInt = 3
    """older checkpoints are deleted"""


class Evaluation(Part):
    """Base and tuned model side by side at matched seeds."""

    prompts: str | None = None
    """a held-out set judged besides the training prompts"""
    every: NonNegativeInt = 0
    """iterations between evaluations during training; 0: only at the end"""
    samples_per_prompt: PositiveInt = 2
    """images of each prompt"""
    num_prompts: PositiveInt | None = None
    """this many prompts of each set, from its beginning; null: all"""
    seed: Seed = 0
    """of the first picture of a set, whatever the run's own seed is; the others count up"""


class Log(Part):
    """What is written down on the way."""

    trackers: list[Literal["jsonl", "tensorboard", "wandb"]] = Field(
        default_factory=lambda: ["jsonl"]
    )
    """any of jsonl, tensorboard, wandb; metrics.jsonl is always written"""
    project: NonBlank = "ddpo"
    """project of wandb, where the run has the name of its folder; refused without this tracker"""
    images: NonNegativeInt = 8
    """pictures in samples/ each time"""
    every: PositiveInt = 10
    """iterations from one set of pictures to the next"""


class Config(Part):
    """A run, completely described."""

    model: Model = Field(default_factory=Model)
    lora: Lora | None = Field(default_factory=Lora)
    sampler: Sampler = Field(default_factory=Sampler)
    prompts: Prompts = Field(default_factory=Prompts)
    rewards: list[Reward] = Field(default_factory=list)
    eval_rewards: list[Reward] = Field(default_factory=list)
    objective: Objective = Field(default_factory=Objective)
    advantage: Advantage = Field(default_factory=Advantage)
    trainer: Trainer = Field(default_factory=Trainer)
    ema: Ema = Field(default_factory=Ema)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    log: Log = Field(default_factory=Log)
    plugins: list[str] = Field(default_factory=list)
    """folders with rewards/ prompts/ objectives/ models/ samplers/ advantages/ of your own"""
    seed: Seed = 0
    """all randomness is a function of (seed, iteration, sample)"""
    run_dir: NonBlank = "runs/default"
    """the folder everything is written into"""

    def __init__(self, **values: Any) -> None:
        """Raises UserError with the place, the value and the remedy.

        What is named is not looked up.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(words.line(error, words.schema_of(type(self)))) from error
