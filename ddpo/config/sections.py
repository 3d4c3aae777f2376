"""What can be set, in one model a section; the strings under the fields are what --help prints."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, WrapValidator, model_validator

from ddpo.config import words
from ddpo.config.parts import Named, Open, Part
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
    ZeroToOne,
)

REWARDS = ("rewards", "eval_rewards")


class Taste(Open):
    """A user's taste, which the denoiser is given attention of its own for (PPD)."""

    name: str  # pyright: ignore[reportIncompatibleVariableOverride]
    """where tastes come from: one of `ddpo list tastes`"""
    tokens: PositiveInt = 1
    """tokens of a taste"""
    dim: PositiveInt
    """numbers of each: as many as where they come from has, which an error says"""
    dropout: UnitFloat = 0.1
    """share of the prompts that are rendered to nobody's taste: it keeps a mode without one"""


class Model(Open):
    """The diffusion model that is fine-tuned."""

    name: str = "auto"
    """a family of `ddpo list models`; auto: the one that the weights are of, by the class in their
    model_index.json"""
    pretrained: str = "emoji"
    """Hub name or folder of the weights; `emoji` and `emoji_flow` are the small models that come
    with ddpo"""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """precision of the network; log-probabilities and the trained weights are always fp32. auto: on
    a GPU bf16 if it has that, else fp16; on a CPU fp32, unless bf16 proves faster when the run
    begins"""
    loras: list[str] = Field(default_factory=list)
    """LoRA files or Hub names fused into the weights before training"""
    gradient_checkpointing: bool = False
    """less memory and more time: activations are computed again in the backward pass"""
    compile: Literal["auto"] | bool = False
    """compile the denoiser's repeated blocks, for rollout and update alike, which takes a minute or
    more at the start. auto: on a GPU, for a run long enough to gain by it"""
    taste: Taste | None = None
    """layers for a user's taste, which are trained beside the LoRA, and where tastes come from;
    null: none"""


class Lora(Part):
    """The low-rank adapter that is trained; `lora: null` trains the whole denoiser, or, with
    model.taste, nothing of it."""

    rank: PositiveInt = 16
    """rank of the update"""
    alpha: PositiveFloat | None = None
    """the update is scaled by alpha / rank; null: alpha = rank, the only choice every program reads
    alike"""
    target_modules: list[str] | None = None
    """ends of the names of the denoiser's layers that get an adapter; null: its attention, as
    docs/models.md lists it for each family; [] with text_encoder: none"""
    text_encoder: bool = False
    """adapt the CLIP text encoders too: one of Stable Diffusion and FLUX, both of SDXL and SD 3"""


class SdeWindow(Part):
    """The steps that have noise; all others are deterministic, in the rollout too (MixGRPO)."""

    size: PositiveInt
    """steps inside, of those with a log-probability; sampler.num_steps: all"""
    start: NonNegativeInt = 0
    """the first step inside in the first iteration, counted from 0, the noisiest"""
    stride: NonNegativeInt = 1
    """steps by which the window moves each time; behind the last place comes the first again; 0: it
    stays"""
    every: PositiveInt = 25
    """iterations after which it moves"""


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
    batch_size: Literal["auto"] | PositiveInt = 8
    """images a network call; sets speed and memory, never the result. auto: the most that fit,
    found once"""
    sde_window: SdeWindow | None = None
    """noise, and training, in these steps alone; null: in all"""


class PromptSource(Part):
    """One prompt set: a named one, a file of one's own, or a data set."""

    name: str | None = None
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


class WeightedPrompts(PromptSource):
    """One set of several, and how often it is drawn."""

    weight: PositiveFloat = 1.0
    """prompts that are drawn of this set, relative to those of the others"""


class Prompts(PromptSource):
    """The prompts of training: a named set, a file of one's own, a data set, or several of them."""

    name: str | None = "animals"
    """a set of `ddpo list prompts`"""
    sets: list[WeightedPrompts] | None = None
    """several sets in the place of one, each with name, path or dataset, and a weight, by which it
    is drawn: [{name: animals, weight: 2}, {name: activities}], which may stand in the place of the
    whole section"""

    @model_validator(mode="after")
    def _one_source(self) -> "Prompts":
        self.name = None if self.path or self.dataset or self.sets else self.name
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
    """[first, end): train on these steps alone, counted from 0, the noisiest; null: all; see
    sampler.sde_window too, which has no noise elsewhere"""
    drop_last: NonNegativeInt = 0
    """this many steps at the end are not trained on"""
    guidance_scale: NonNegativeFloat | None = None
    """guidance in the update; null: that of the sampler, the policy that drew the images"""
    draws: PositiveInt | None = None
    """(timestep, noise) pairs per image and pass, for rwr, dpo and nft; null:
    sampler.num_steps"""
    noise_window: tuple[ZeroToOne, ZeroToOne] = (0.0, 1.0)
    """part of the noise schedule that their timesteps are drawn from, [low, high]: 0 is the
    least noise, 1 the most, where it is decided what a picture looks like as a whole"""
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
    shared_noise: bool = False
    """the samples of a prompt begin from one noise and differ by that of the steps, as in
    DanceGRPO and MixGRPO; false: each has its own, as in Flow-GRPO"""
    minibatches: PositiveInt = 2
    """optimizer steps per pass; divides prompts_per_iteration, since the samples of a prompt stay
    together"""
    epochs: PositiveInt = 1
    """passes over the images of an iteration"""
    micro_batch: Literal["auto"] | PositiveInt = 16
    """(sample, step) pairs a network call; sets speed and memory, never the result. auto: the most
    that fit, found once"""
    while_sampling: Literal["auto"] | bool = "auto"
    """collect the gradient of an iteration's first update while its images are sampled, so that it
    scores none of them again: the same gradient, in less time. auto: with one minibatch, where the
    objective and memory allow it"""
    ratio_gate: Literal["auto"] | PositiveFloat = "auto"
    """before the first update, the run stops where scoring a step again gives a ratio further from
    1 than this. auto: a tenth of the objective's clip range, at most 0.01 and at least 1e-6 in
    fp32, 1e-5 in half precision; a number is for a device that rounds more"""
    decode_batch: PositiveInt | None = None
    """images decoded and scored at a time where the reward is differentiated; null: micro_batch"""
    optimizer: Literal["adamw", "adamw8bit", "adafactor"] = "adamw"
    """adamw8bit keeps AdamW's averages in 8 bits, by bitsandbytes; adafactor those of rows and
    columns alone"""
    lr: PositiveFloat = 3e-4
    """learning rate"""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """cosine and linear go down to 0 at the last iteration"""
    warmup_steps: NonNegativeInt = 0
    """optimizer steps in which the learning rate rises from 0"""
    betas: tuple[UnitFloat, UnitFloat] = (0.9, 0.999)
    """AdamW's averages of the gradient and of its square; adafactor has others"""
    adam_eps: PositiveFloat = 1e-8
    """AdamW's epsilon; adafactor has others"""
    weight_decay: NonNegativeFloat = 1e-4
    """decoupled weight decay"""
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


class Keep(Part):
    """Which checkpoints are not deleted."""

    last: PositiveInt = 3
    """the newest ones"""
    spaced: NonNegativeInt = 8
    """at most so many more, evenly spaced since the start"""


class Checkpoint(Part):
    """The state from which `--resume` goes on."""

    every: PositiveInt = 10
    """iterations from one checkpoint to the next; the last iteration always makes one"""
    keep_last: PositiveInt = 3
    """older checkpoints are deleted, but for the best one and those of keep"""
    keep: Keep | None = None
    """takes the place of keep_last: the newest ones, and some spaced over the whole run, so that
    where over-optimization began is still there"""


class Evaluation(Part):
    """Base and tuned model side by side at matched seeds."""

    prompts: str | list[str] | None = None
    """a held-out set judged besides the training prompts, or several: names or files"""
    every: NonNegativeInt = 0
    """iterations between evaluations during training, the first one before it; 0: only at the
    end"""
    samples_per_prompt: PositiveInt = 2
    """images of each prompt"""
    num_prompts: PositiveInt | None = None
    """this many prompts of each set, from its beginning; null: all"""
    seed: Seed = 0
    """of the first picture of a set, whatever the run's own seed is; the others count up"""
    features: NonBlank | None = None
    """the image encoder by which diversity and the distance to the base in distribution are
    measured: a CLIP of the Hub or open_clip's, as openai/clip-vit-large-patch14-336, or emoji;
    null: that of the embedded world for its models, else none"""
    best: Literal["trained", "judge", "front"] | None = None
    """which evaluation of a training is the best one, @best and, where this is set, lora/: by the
    trained rewards, by the judges' gain, or by the trained rewards as long as nothing shows
    over-optimization; null: by the judges where there are any, and lora/ is the last iteration's"""
    on_over_optimization: Literal["warn", "stop", "rollback"] = "warn"
    """what happens when the rule of docs/evaluation.md finds it: a line in the log; the run stops;
    or it stops and goes back to the last checkpoint before the signs"""
    kl_pictures: NonNegativeInt = 4
    """trajectories of each set, evenly spaced over its prompts, whose KL to the base is measured
    when they are made; each takes one more network row per step"""
    sampler: Sampler | None = None
    """how these pictures are made; what it leaves out is as in `sampler`; null: as in training, all
    steps with their noise"""


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


class Parallel(Part):
    """How processes share the work; how many there are is the launcher's to say."""

    shard: bool = False
    """keep the denoiser in pieces, one on each process (FSDP2): less memory, more messages; with
    lora: null its gradients and the optimizer's averages, too; false: every process has it whole"""


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
    parallel: Parallel = Field(default_factory=Parallel)
    plugins: list[str] = Field(default_factory=list)
    """folders with rewards/ prompts/ objectives/ models/ samplers/ advantages/ of your own"""
    seed: Seed = 0
    """all randomness is a function of (seed, iteration, sample)"""
    run_dir: NonBlank = "runs/default"
    """the folder everything is written into"""

    @property
    def trains_whole(self) -> bool:
        """Whether the denoiser itself is trained, in the place of what is added to it."""
        return self.lora is None and self.model.taste is None

    def __init__(self, **values: Any) -> None:
        """Raises UserError with the place, the value and the remedy.

        What is named is not looked up.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(words.line(error, words.schema_of(type(self)))) from error
