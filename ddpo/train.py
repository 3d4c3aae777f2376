"""Fine-tune a diffusion model on rewards."""

import sys

from ddpo import config
from ddpo.commands import frame
from ddpo.config import Config
from ddpo.errors import UserError

FLAGS = ("--resume RUN_DIR|auto", "--overwrite", "--profile")


def main(argv: list[str]) -> None:
    """`--config FILE_OR_NAME [--section.key value ...] [--overwrite]`, or `--resume RUN_DIR`.

    With `--profile` one iteration's time is looked at.
    """
    profiled = "--profile" in argv
    settings, resume, overwrite = arguments([word for word in argv if word != "--profile"])
    from ddpo.runs.session import Session

    session = Session(settings, resume, overwrite)
    if profiled:
        from ddpo.runs import profile

        profile.attach(session.trainer, session.settings, session.folder)
    session.train()


def arguments(argv: list[str]) -> tuple[Config, bool, bool]:
    """The configuration, and whether to continue or to replace the run in its folder."""
    parser = frame.Parser(prog="ddpo train", add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", const="")
    parser.add_argument("--overwrite", action="store_true")
    flags, rest = parser.parse_known_args(argv)
    resume, overwrite = flags.resume, flags.overwrite
    if resume == "":
        raise UserError("--resume: needs the folder of a run, or auto")
    if resume and overwrite:
        raise UserError("--overwrite: cannot go with --resume, which keeps what is there")
    if resume and resume != "auto":
        if any(word.partition("=")[0] == "--config" for word in rest):
            other = "which reads the run's own; or use --resume auto"
            raise UserError(f"--config: not with --resume RUN_DIR, {other}")
        if any(word.partition("=")[0] == "--run_dir" for word in rest):
            raise UserError(
                "--run_dir: not with --resume RUN_DIR, which goes on in that folder; leave it out"
            )
        run_dir = resume.rstrip("/")
        rest = ["--config", str(config.of_run(run_dir)), "--run_dir", run_dir, *rest]
    return config.parse(rest, flags=FLAGS), bool(resume), overwrite


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))
