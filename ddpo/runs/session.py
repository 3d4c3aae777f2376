"""A fine-tuning from its configuration to its folder: what `ddpo train` and `ddpo.finetune` do."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ddpo import config
from ddpo.building import build, sharding
from ddpo.config import Config, checks
from ddpo.errors import Broken, Stopped, UserError, refusal
from ddpo.evaluation import card, matched
from ddpo.evaluation.overoptimization import Alarm
from ddpo.evaluation.table import table
from ddpo.parallel import launcher, pieces, ranks
from ddpo.parallel.interruption import Interruption
from ddpo.records import checkpoint, metrics
from ddpo.records.files import remove, whole
from ddpo.records.tracking import Trackers
from ddpo.runs import folder as run_folder
from ddpo.runs import settling
from ddpo.runs.finished import Run
from ddpo.runs.panel import Panel
from ddpo.scoring.encoding import encoder

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
        self.settings, chosen = settling.settled(self.settings)
        with ranks.together():
            self.trainer = build.trainer(self.settings)
            if chosen:
                self.settings = settling.tried(self.settings, self.trainer)
        self.settings = settling.agreed(self.settings, self.trainer, chosen)
        with ranks.together():
            self.sampler = build.evaluation_sampler(self.settings, self.trainer.policy)
            self.sets = build.evaluation_sets(self.settings)
            device = self.trainer.policy.device
            judges = build.reward_list(
                self.settings.eval_rewards, device, self.settings.model.dtype
            )
            self.judges = [*self.trainer.mixture.rewards, *judges]
            watches = self.settings.evaluation.every
            wanted = self.settings.evaluation.features, self.settings.model.pretrained
            self.encode = encoder(*wanted, self.trainer.policy) if watches else None
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
            guards = self.trainer.policy.medium.guards
            self.panel = Panel(self.folder, self.settings, self.judges, guards)
            if continues:
                self.panel.cut(self.trainer.iteration, self.main)
            trackers = self.settings.log.trackers if self.main else []
            flat, project = config.flat(self.settings), self.settings.log.project
            self.trackers = Trackers(trackers, self.folder, flat, project)
        self.interruption = Interruption()
        self._row: dict[str, Any] = {}
        self._alarm: Alarm | None = None

    def train(self) -> None:
        """All iterations that are left. A finished run says so and does nothing."""
        total, trainer = self.settings.trainer.iterations, self.trainer
        if trainer.iteration >= total:
            with self.in_flight():
                if not ranks.gather([run_folder.is_finished(self.folder)])[0]:
                    self.finish()  # a kill came between the last checkpoint and the end
            text = "%s has finished its %d iterations; --trainer.iterations goes further"
            log.info(text, self.folder, total)
            return
        stop = False
        with self.interruption.listening(), self.bars(total) as bar, self.in_flight():
            if trainer.iteration == 0:
                first = ranks.gather([not self.panel.rows])[0]
                if self.settings.evaluation.every and first:
                    self.evaluate()
                self.pictures()
            while trainer.iteration < total and not stop:
                self.iterate(bar)
                stop = any(ranks.gather([self.interruption.asked]))
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
        self.keep_sizes()
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
        is_best = self.best is not None and self.best["iteration"] == self.trainer.iteration
        if self.due(self.settings.checkpoint.every) or is_best:
            self.save()
        self.react()

    def keep_sizes(self) -> None:
        """In config.yaml, those of calls that were halved in the iteration when memory ran out."""
        found = settling.with_sizes(self.settings, self.trainer)
        if found == self.settings:
            return
        log.warning("memory ran out: from here on %s", settling.told(found))
        with ranks.together():
            self.settings = found
            self.sampler = build.evaluation_sampler(found, self.trainer.policy)
            if self.main:
                with whole(self.folder / "config.yaml") as aside:
                    aside.write_text(config.dump(found), encoding="utf-8")

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """A mistake that shows during training, or a full disk, stops it and says how to go on.

        The state is saved, if no optimizer step of a broken iteration has moved the weights.
        """
        try:
            yield
        except (Broken, ranks.Lost) as error:
            raise type(error)(f"{error}; {self._way_on()}") from error
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
            arguments = (self.trainer.policy, self.sampler, chosen, seeds, self.judges[:1])
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

        The iteration that `Panel.best` puts highest is the best; that of iteration 0 is what all
        others are compared with.
        """
        trainer, per_prompt = self.trainer, self.settings.evaluation.samples_per_prompt
        with self.trainer.policy.weights(self.shown):
            arguments = (trainer.policy, self.sampler, self.sets[-1], per_prompt, self.judges)
            timeout_s, seed = self.settings.trainer.reward_timeout_s, self.settings.evaluation.seed
            kl_pictures = self.settings.evaluation.kl_pictures if trainer.iteration else 0
            shots = matched.all_shots(*arguments, timeout_s, seed, None, kl_pictures)
        values = {name: torch.tensor([s.scores[name] for s in shots]) for name in shots[0].scores}
        with ranks.together():
            means = self.panel.add(trainer.iteration, shots, self.encode, self.main)
            mean = self.panel.best(trainer.mixture.standing(values))
            told = (mean, self.panel.alarm())
        (mean, self._alarm), *_ = ranks.gather([told])  # rank 0's, which has read the whole file
        if trainer.iteration == 0:
            return {}
        if math.isnan(mean):
            log.warning("iteration %d cannot be the best by its evaluation", trainer.iteration)
        if mean > (self.best["mean"] if self.best else float("-inf")):
            self.best = {"iteration": trainer.iteration, "mean": mean}
        return {f"eval/{name}": mean for name, mean in means.items()}

    def react(self) -> None:
        """To over-optimization, where the last evaluation shows it, as the configuration says.

        Raises Stopped unless it only warns.
        """
        alarm, self._alarm = self._alarm, None
        if alarm is None:
            return
        line = f"over-optimization at iteration {alarm.iteration}: {alarm.reason}"
        action = self.settings.evaluation.on_over_optimization
        if action == "warn":
            log.warning("%s; evaluation.on_over_optimization: stop or rollback ends it", line)
            return
        if action == "rollback":
            line = f"{line}; {self.roll_back(alarm.good)}"
        raise Stopped(line)

    def roll_back(self, iteration: int) -> str:
        """To the newest checkpoint up to this iteration, with lora/ and the card; in words."""
        with ranks.together():
            there = [path for path in checkpoint.all_of(self.folder) if self.main]
        names = ranks.gather([path.name for path in there])
        good = [name for name in names if int(name) <= iteration]
        if not good:
            return f"no checkpoint up to iteration {iteration} is kept, so nothing is rolled back"
        with ranks.together():
            for name in names if self.main else ():
                if int(name) > iteration:
                    remove(self.folder / "checkpoints" / name)
        self.restore()
        with ranks.together():
            self.panel.cut(self.trainer.iteration, self.main)
            if self.main:
                metrics.cut(self.folder / "metrics.jsonl", self.trainer.iteration)
        self.finish()
        return f"rolled back to checkpoint {good[-1]}"

    def save(self) -> None:
        """A checkpoint of all that the next iteration depends on, if this iteration has none.

        All ranks call it, since each may hold a piece of the weights.
        """
        iteration = self.trainer.iteration
        if self._saved == iteration:
            return
        state = {**self.trainer.state(), "best": self.best}
        with ranks.together():
            if self.main:
                folder = self.folder / "checkpoints" / f"{iteration:06d}"
                checkpoint.save(folder, state.pop("tensors"), state)
                best = self.best["iteration"] if self.best else None
                own = self.settings.checkpoint
                kept = (own.keep.last, own.keep.spaced) if own.keep else (own.keep_last, 0)
                checkpoint.keep(self.folder, kept[0], best, kept[1], own.every)
        self._saved = iteration

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
        """lora/ and the model card. All ranks call it, as `save`."""
        policy, name = self.trainer.policy, self.shown
        best = self.best if self.settings.evaluation.best else None
        shown = policy.parameters() if name == "present" else policy.snapshots[name]
        values = {} if best else pieces.gathered(shown)
        with ranks.together():
            if not self.main:
                return
            if best:
                name = f"{best['iteration']:06d}"
                tensors, _ = checkpoint.load(self.folder / "checkpoints" / name)
                values = tensors.get("ema", tensors["parameters"])
            with sharding.saving(policy, name, values), whole(self.folder / "lora") as aside:
                policy.save(aside)
            card.write(self.folder)
            self.trackers.finish()
            what = "network" if self.settings.trains_whole else "adapter"
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


def _words(error: OSError) -> str:
    return (
        f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    )
