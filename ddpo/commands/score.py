"""Score image files with a reward.

A reward that compares images takes them all as images of the one prompt.
"""

import sys

from ddpo.commands import frame, single_reward
from ddpo.errors import UserError


def main(argv: list[str]) -> None:
    """`ddpo score --reward NAME [--params '{...}'] [--prompt TEXT] [--metadata '{...}'] FILES`."""
    parser = frame.Parser(prog="ddpo score", description=__doc__, allow_abbrev=False)
    parser.add_argument("images", nargs="+", help="image files, of any sizes")
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
    from PIL import Image

    from ddpo import rewards
    from ddpo.images import from_pil
    from ddpo.models import DTYPES
    from ddpo.parallel import ranks

    def read(file: str) -> Image.Image:
        try:
            with Image.open(file) as picture:
                return picture.convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            raise UserError(f"{file}: cannot be read as an image ({error})") from error

    for file in arguments.images:
        read(file)  # a mistake in the last one should not come after the first one's score
    device = str(ranks.state().device)
    reward = rewards.build(wanted.name, 1.0, wanted.params, device, DTYPES[dtype])
    together = rewards.groupwise(reward.score)
    for files in [arguments.images] if together else [[file] for file in arguments.images]:
        pictures = [read(file) for file in files]
        if len({picture.size for picture in pictures}) > 1:
            sizes = ", ".join(
                f"{f} {p.width}x{p.height}" for f, p in zip(files, pictures, strict=True)
            )
            raise UserError(
                f"{reward.name} compares the images, which must be of one size: {sizes}"
            )
        asked = [arguments.prompt] * len(files), [arguments.metadata] * len(files)
        with torch.no_grad():
            values = reward(from_pil(pictures).to(device), *asked).tolist()
        for value, file in zip(values, files, strict=True):
            print(f"{value:.6g}\t{file}", flush=True)


if __name__ == "__main__":
    raise SystemExit(frame.run(main, sys.argv[1:]))
