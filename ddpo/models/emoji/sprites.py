"""Builds the sprite sheet from the font: `python -m ddpo.models.emoji.sprites NotoColorEmoji.ttf`.

Run once by whoever changes the list of sprites; everything else reads the committed sprites.png.
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .scenes import COLUMNS, SPRITE, SPRITES

GLYPH = 109
"""The one size in pixels that the bitmap font has."""


def sheet(font_file: str) -> Image.Image:
    """All sprites, RGBA, `COLUMNS` to a row, each scaled to fill its cell and centered in it."""
    font = ImageFont.truetype(font_file, GLYPH)
    rows = -(-len(SPRITES) // COLUMNS)
    image = Image.new("RGBA", (COLUMNS * SPRITE, rows * SPRITE))
    for i, character in enumerate(SPRITES.values()):
        glyph = Image.new("RGBA", (2 * GLYPH, 2 * GLYPH))
        ImageDraw.Draw(glyph).text((0, 0), character, font=font, embedded_color=True)
        glyph = glyph.crop(glyph.getbbox())
        scale = SPRITE / max(glyph.size)
        glyph = glyph.resize(
            (round(glyph.width * scale), round(glyph.height * scale)), Image.Resampling.LANCZOS
        )
        x, y = SPRITE * (i % COLUMNS), SPRITE * (i // COLUMNS)
        image.paste(glyph, (x + (SPRITE - glyph.width) // 2, y + (SPRITE - glyph.height) // 2))
    return image


if __name__ == "__main__":
    sheet(sys.argv[1]).save(Path(__file__).with_name("sprites.png"), optimize=True)
