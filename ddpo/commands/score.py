"""Score files with a reward: images, or sequences in FASTA.

A reward that compares images takes them all as images of the one prompt.
"""

import sys
from pathlib import Path

from ddpo import plugins
from ddpo.commands import frame, single_reward
from ddpo.errors import UserError


def main(argv: list[str]) -> None:
    """`ddpo score --reward NAME [--params '{...}'] [--prompt TEXT] [--metadata '{...}'] FILES`."""
    parser = frame.Parser(prog="ddpo score", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "files",
        nargs="+",
        help="image files, of any sizes, or FASTA files for a reward on sequences",
    )
    parser.add_argument(
        "--reward", required=True, help="a name, module:attribute or file.py:function"
    )
    single_reward.add_flags(parser)
    parser.add_argument("--prompt", default="", help="what the images should show")
    parser.add_argument(
        "--metadata", type=frame.mapping, default={}, help="a prompt file's fields as JSON"
    )
    arguments = parser.parse_args(argv)
    wanted, dtype = single_reward.wanted(arguments.reward, arguments)
    import torch

    from ddpo import rewards
    from ddpo.models import DTYPES
    from ddpo.parallel import ranks

    files = [Path(file) for file in arguments.files]
    medium = rewards.medium_of(plugins.load("rewards", wanted.name))
    for file in files:
        medium.read(file)  # a mistake in the last one should not come after the first one's score
    device = str(ranks.state().device)
    reward = rewards.build(wanted.name, 1.0, wanted.params, device, DTYPES[dtype])
    together = rewards.groupwise(reward.score)
    for part in [files] if together else [[file] for file in files]:
        samples = [sample for file in part for sample in medium.read(file)]
        if together and len({sample.shape for _, sample in samples}) > 1:
            sizes = ", ".join(f"{name} {medium.size(sample)}" for name, sample in samples)
            raise UserError(
                f"{reward.name} compares the {medium.shown}, which must be of one size: {sizes}"
            )
        batches = [samples] if together else [[sample] for sample in samples]
        for names, rows in (zip(*batch, strict=True) for batch in batches):
            asked = [arguments.prompt] * len(names), [arguments.metadata] * len(names)
            with torch.no_grad():
                values = reward(torch.cat(rows).to(device), *asked).tolist()
            for value, name in zip(values, names, strict=True):
                print(f"{value:.6g}\t{name}", flush=True)


if __name__ == "__main__":
    frame.leave(frame.run(main, sys.argv[1:]))
