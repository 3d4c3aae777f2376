"""A fine-tuning from its configuration to its folder: what `ddpo train` and `ddpo.finetune` do."""

import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ddpo import config
from ddpo.config import Config, checks
from ddpo.errors import Stopped, UserError, refusal
from ddpo.evaluation import card, matched
from ddpo.evaluation.table import table
from ddpo.models._precision import Precision
from ddpo.parallel import launcher, ranks
from ddpo.records import checkpoint, metrics
from ddpo.records.files import whole
from ddpo.records.tracking import Trackers
from ddpo.runs import build
from ddpo.runs import folder as run_folder
from ddpo.runs.finished import Run

log = logging.getLogger("ddpo")


def finetune(settings: Config, resume: bool = False, overwrite: bool = False) -> Run:
    """Fine-tune as the configuration says and return the run, to sample from.

    `resume` continues the run in `run_dir`, if it holds one; `overwrite` replaces it. Raises
    UserError before anything is written, Stopped when a run ends early with its state saved.
    """
    settings = config.load(settings)
    Session(settings, resume, overwrite).train()
    ranks.gather([])  # nobody reads what is still being written
    return Run(settings.run_dir)


class Session:
    """A run in progress: the trainer, its folder, and what is written when.

    `settings` are resolved.
    """

    def __init__(self, settings: Config, resume: bool = False, overwrite: bool = False) -> None:
        # before accelerate itself looks at what it was asked for
        launcher.check(settings.model.dtype)
        self.main = ranks.state().is_main_process
        self.best: dict[str, Any] | None = None
        self._saved = -1
        with ranks.together():  # at its end all have looked, and only then the first one writes
            self.settings = settings
            checks.check(self.settings, ranks.state().num_processes)
            self.folder = Path(self.settings.run_dir)
            run_folder.check(self.folder, resume, overwrite)
            continues = resume and (self.folder / "config.yaml").exists()
            if continues:
                run_folder.check_given(self.settings)
                run_folder.check_changes(self.folder, self.settings)
            dtype = build.precision(self.settings)
        self.settings = self._settled(dtype)
        with ranks.together():
            self.trainer = build.trainer(self.settings)
            self.sets = build.evaluation_sets(self.settings)
            device = self.trainer.policy.device
            judges = build.reward_list(
                self.settings.eval_rewards, device, self.settings.model.dtype
            )
            self.judges = [*self.trainer.mixture.rewards, *judges]
            provenance = run_folder.provenance(
                self.trainer.prompts.hash, self.judges, self.settings
            )
            if continues:
                run_folder.check_origin(self.folder, provenance)
        if continues:
            self.restore()
        with ranks.together():
            if self.main:
                run_folder.create(self.folder, self.settings, overwrite, provenance)
                if continues:
                    metrics.cut(self.folder / "metrics.jsonl", self.trainer.iteration)
            trackers = self.settings.log.trackers if self.main else []
            flat, project = config.flat(self.settings), self.settings.log.project
            self.trackers = Trackers(trackers, self.folder, flat, project)
        self._asked_to_stop = False
        self._row: dict[str, Any] = {}

    def _settled(self, dtype: Precision) -> Config:
        """The settings with rank 0's choice for `model.dtype: auto`, on all ranks.

        config.yaml keeps it.
        """
        if self.settings.model.dtype != "auto":
            return self.settings
        everyone: list[Precision] = ranks.gather([dtype])
        chosen = everyone[0]
        log.info("model.dtype: auto takes %s on this machine", chosen)
        return config.in_precision(self.settings, chosen)

    def train(self) -> None:
        """All iterations that are left. A finished run says so and does nothing."""
        total, trainer = self.settings.trainer.iterations, self.trainer
        if trainer.iteration >= total:
            with self.in_flight(), ranks.together():
                if not run_folder.is_finished(self.folder):
                    self.finish()  # a kill came between the last checkpoint and the end
            text = "%s has finished its %d iterations; --trainer.iterations goes further"
            log.info(text, self.folder, total)
            return
        stop = False
        with self.signals(), self.bars(total) as bar, self.in_flight():
            if trainer.iteration == 0:
                self.pictures()
            while trainer.iteration < total and not stop:
                self.iterate(bar)
                stop = any(ranks.gather([self._asked_to_stop]))
            with ranks.together():
                self.save()
                if trainer.iteration == total:
                    self.finish()
        if trainer.iteration < total:
            raise Stopped(
                f"stopped after iteration {trainer.iteration}; go on with --resume {self.folder}"
            )

    def iterate(self, bar: tqdm) -> None:
        """One iteration, a word to whoever watches, and then the metrics, then the checkpoint.

        A kill between them leaves a line too many, which a resume cuts, never one too few.
        """
        self._row = {}
        row = self._row = self.trainer.iterate()
        if self.due(self.settings.evaluation.every):
            row |= self.evaluate()
        with ranks.together():
            bar.update()
            bar.set_postfix(reward=f"{row['reward/mean']:.3f}", clip=f"{row['clip_frac']:.2f}")
            self.write(row)
            if self.due(self.settings.log.every) and bar.disable:
                text = "reward %(reward/mean).4f, clip_frac %(clip_frac).2f, %(time/total).1f s"
                log.info(f"iteration %(iteration)d of {bar.total}: {text}", row)
        if self.due(self.settings.log.every):
            self.pictures()
        with ranks.together():
            is_best = self.best is not None and self.best["iteration"] == self.trainer.iteration
            if self.due(self.settings.checkpoint.every) or is_best:
                self.save()

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """A mistake that shows during training, or a full disk, stops it and says how to go on.

        The state is saved, if no optimizer step of a broken iteration has moved the weights.
        """
        try:
            yield
        except ranks.Lost as error:
            raise Stopped(f"{error}; {self._way_on()}") from error
        except OSError as error:
            raise Stopped(f"{_words(error)}; once that is mended, {self._way_on()}") from error
        except (Stopped, UserError) as error:
            if not self.trainer.rewind():
                raise Stopped(
                    f"{error} (the weights had begun to move; {self._way_on()})"
                ) from error
            try:
                with ranks.together():
                    if self._row:  # the iteration was done, and what came after it failed
                        self.write(self._row)
                    self.save()
            except OSError as full:
                line = f"{error}, and the state cannot be saved ({_words(full)}); {self._way_on()}"
                raise Stopped(line) from error
            raise Stopped(f"{error} (state saved; go on with --resume {self.folder})") from error
        except Exception as error:
            if line := refusal(error):
                raise Stopped(f"{line}; once that is mended, {self._way_on()}") from error
            raise

    def _way_on(self) -> str:
        saved = checkpoint.all_of(self.folder)
        place = f"iteration {int(saved[-1].name)}" if saved else "the start"
        return f"--resume {self.folder} goes on from {place}"

    def due(self, every: int) -> bool:
        return bool(every) and self.trainer.iteration % every == 0

    def write(self, row: dict[str, Any]) -> None:
        """The iteration's line, once."""
        self._row = {}
        if self.main:
            metrics.write(self.folder / "metrics.jsonl", row)
            self.trackers.log(row, self.trainer.iteration)

    def pictures(self) -> None:
        """The same prompts at the same seeds each time.

        Ranks share the work, and the first one writes.
        """
        count, prompts = min(self.settings.log.images, len(self.sets[0])), self.sets[0]
        if not count:
            return
        seeds = [len(prompts) * i // count for i in range(count)]
        chosen = [prompts[i] for i in seeds]
        with self.trainer.policy.weights(self.shown):
            arguments = (self.trainer.policy, self.trainer.sampler, chosen, seeds, self.judges[:1])
            shots = matched.shared(*arguments, timeout_s=self.settings.trainer.reward_timeout_s)
        with ranks.together():
            if self.main:
                self.show(shots)

    def show(self, shots: Sequence[matched.Shot]) -> None:
        """samples/000010/*.png, and samples/000010.png: one picture of all, with captions."""
        name, iteration = self.judges[0].name, self.trainer.iteration
        texts, images = [shot.prompt for shot in shots], [shot.image for shot in shots]
        scores = [f"{shot.scores[name]:.3f}" for shot in shots]
        target = self.folder / "samples" / f"{iteration:06d}"
        with whole(target) as folder:
            folder.mkdir()
            for i, image in enumerate(images):
                image.save(folder / f"{i:02d}.png")
        with whole(target.with_suffix(".png")) as file:
            table([images], [f"iteration {iteration}"], texts, [scores]).save(file)
        captions = [f"{text} | {score}" for text, score in zip(texts, scores, strict=True)]
        self.trackers.log_images(images, captions, iteration)

    def evaluate(self) -> dict[str, float]:
        """Means of all rewards over the evaluation prompts (held out, if any) at fixed seeds.

        The iteration with the highest `standing` is the best.
        """
        trainer, per_prompt = self.trainer, self.settings.evaluation.samples_per_prompt
        with self.trainer.policy.weights(self.shown):
            arguments = (trainer.policy, trainer.sampler, self.sets[-1], per_prompt, self.judges)
            timeout_s, seed = self.settings.trainer.reward_timeout_s, self.settings.evaluation.seed
            shots = matched.all_shots(*arguments, timeout_s, seed)
        names = [judge.name for judge in self.judges]
        values = {name: torch.tensor([shot.scores[name] for shot in shots]) for name in names}
        means = {name: column.nanmean().item() for name, column in values.items()}
        mean = trainer.mixture.standing(values)
        if math.isnan(mean):
            log.warning(
                "iteration %d cannot be the best: its evaluation has no value", trainer.iteration
            )
        if mean > (self.best["mean"] if self.best else float("-inf")):
            self.best = {"iteration": trainer.iteration, "mean": mean}
        return {f"eval/{name}": mean for name, mean in means.items()}

    def save(self) -> None:
        """A checkpoint of all that the next iteration depends on, if this iteration has none."""
        iteration = self.trainer.iteration
        if not self.main or self._saved == iteration:
            return
        state = {**self.trainer.state(), "best": self.best}
        checkpoint.save(
            self.folder / "checkpoints" / f"{iteration:06d}", state.pop("tensors"), state
        )
        self._saved = iteration
        best = self.best["iteration"] if self.best else None
        checkpoint.keep(self.folder, self.settings.checkpoint.keep_last, best)

    def restore(self) -> None:
        """Go back to the newest whole checkpoint, or to the start; every rank to the same one."""
        with ranks.together():
            newest = checkpoint.newest(self.folder) if self.main else None
        (name, *_) = ranks.gather([newest and newest[0].name])
        with ranks.together():
            if name:
                folder = self.folder / "checkpoints" / name
                tensors, state = newest[1] if newest else checkpoint.load(folder)
                try:
                    self.trainer.restore({**state, "tensors": tensors})
                except UserError as error:
                    raise UserError(f"{folder} is of another model: {error}") from error
                self._saved, self.best = self.trainer.iteration, state["best"]
        log.info("going on from iteration %d of %s", self.trainer.iteration, self.folder)

    def finish(self) -> None:
        """lora/ and the model card."""
        if self.main:
            with self.trainer.policy.weights(self.shown), whole(self.folder / "lora") as aside:
                self.trainer.policy.save(aside)
            card.write(self.folder)
            self.trackers.finish()
            what = "LoRA" if self.settings.lora else "UNet"
            text = "done: %s holds the %s; see what changed with: ddpo evaluate %s"
            log.info(text, self.folder / "lora", what, self.folder)

    @property
    def shown(self) -> str:
        """Whose weights are shown, judged and saved: their running average, where one is kept."""
        return "average" if "average" in self.trainer.policy.snapshots else "present"

    @contextmanager
    def bars(self, total: int) -> Iterator[tqdm]:
        """A bar of iterations, and under it one of the phase that runs.

        Both are silent without a terminal.
        """
        quiet = None if self.main else True
        with (
            tqdm(
                total=total, initial=self.trainer.iteration, desc="iterations", disable=quiet
            ) as outer,
            tqdm(total=1, leave=False, disable=quiet) as inner,
        ):

            def progress(phase: str, done: int, total: int) -> None:
                inner.set_description(phase)
                inner.total, inner.n = total, done
                inner.refresh()

            self.trainer.progress = progress
            yield outer

    @contextmanager
    def signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM saves and stops after the iteration.

        The second stops at once.

        A launcher of many processes passes on the signal that the terminal sent to all: that is no
        second.
        """
        echo_s = 1.0 if ranks.state().num_processes > 1 else 0.0
        signals: list[float] = []

        def ask(number: int, frame: object) -> None:
            signals.append(time.monotonic())
            if len(signals) > 1 and signals[-1] - signals[0] >= echo_s:
                raise KeyboardInterrupt
            if not self._asked_to_stop:
                log.info("stopping after this iteration (once more to stop at once)")
            self._asked_to_stop = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _words(error: OSError) -> str:
    return (
        f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    )
