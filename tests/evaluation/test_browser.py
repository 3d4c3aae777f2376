"""The page in headless Chromium: nothing on the console, nothing from outside, every key and
control.

Its folder is drawn: three columns, two sets, and trajectories of the first sample.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from browser import Browser, Page
from PIL import Image
from test_report import CONFIG, JPEG, JUDGE, write_json_lines, write_training

from ddpo.evaluation import page as report
from ddpo.models.emoji.scenes import ANIMALS, draw

pytestmark = pytest.mark.browser

ANIMAL = list(ANIMALS)
COLUMNS = ("base", "runs/a", "runs/b")
PROMPTS, SEEDS = 10, 3


def write_columns(
    folder: Path, pictures: list[Image.Image], prompts: list[str], seeds: int
) -> None:
    """An evaluation of three columns; runs/b gains the more the later the prompt."""
    evaluation = folder / "evaluation"
    (evaluation / "images").mkdir(parents=True)
    files = [evaluation / f"{number}.png" for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    rows: list[dict[str, Any]] = []
    for number, prompt in enumerate(p for p in prompts for _ in range(seeds)):
        for place, column in enumerate(COLUMNS):
            image = f"images/animals_{number:05d}_{place}.png"
            os.link(files[(number + place) % len(files)], evaluation / image)
            gain = {"base": 0.0, "runs/a": 0.25, "runs/b": prompts.index(prompt) / 10}[column]
            scores = {JPEG: -3 + gain, JUDGE: None if number == 0 and place else 0.5 - 0.1 * place}
            row = {"set": "animals", "prompt": prompt, "seed": number, "column": column}
            rows.append({**row, "image": image, "scores": scores})
    write_json_lines(evaluation / "samples.jsonl", rows)
    entry: dict[str, Any] = {"base": {"mean": -3.0, "se": 0.1, "n": 30}}
    change = {"difference": {"mean": 0.3, "low": 0.2, "high": 0.4}, "win_rate": 0.9}
    for column in COLUMNS[1:]:
        entry[column] = {"mean": -2.7, "se": 0.1, "n": 30, **change}
    sets = {"animals": {JPEG: entry, JUDGE: entry}}
    results = {"columns": COLUMNS, "sets": sets, "versions": {}, "config": {}}
    (evaluation / "results.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "three columns"
    write_training(folder)
    names = ANIMAL[:PROMPTS]
    pictures = [draw(f"a {name}", i, "plain") for i, name in enumerate(names)]
    write_columns(folder, pictures, [f"a {name}" for name in names], SEEDS)
    for place in range(3):
        steps = folder / "evaluation" / "trajectories" / f"animals_00000_{place}"
        steps.mkdir(parents=True)
        for step in (1, 5, 9):
            Image.new("RGB", (64, 64), (25 * step, 0, 80 * place)).save(
                steps / f"step_{step:03d}_of_010.webp", lossless=True
            )
    report.write(folder)
    return folder


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Page]:
    """The page, opened anew; at the end nothing stands on its console, and all it asked for is
    its own."""
    opened = browser.page((folder / "index.html").as_uri())
    yield opened
    opened.wait("[...document.images].every(image => image.complete || image.loading === 'lazy')")
    assert opened.complaints == []
    outside = [url for url in opened.requests if not url.startswith((folder.as_uri(), "data:"))]
    assert outside == []
    opened.close()


def shown(page: Page) -> list[str]:
    """Prompt and seed of the cards in view, in order."""
    cards = "[...document.querySelectorAll('.card:not([hidden])')]"
    return page(
        f"{cards}.map(card => card.querySelector('figcaption').innerText.replace('\\n', ' '))"
    )


def choose(page: Page, control: str, value: str) -> None:
    page(
        f"(() => {{ const c = document.getElementById('{control}'); c.value = '{value}'; "
        "c.dispatchEvent(new Event('change')); })()"
    )


def seen(page: Page, card: int = 1) -> list[str]:
    """The columns whose pictures show on a card."""
    pictures = f".card:nth-child({card} of :not([hidden])) .picture"
    return page(
        f"[...document.querySelectorAll('{pictures}')].filter(p => p.checkVisibility("
        "{visibilityProperty: true})).map(p => p.innerText.trim())"
    )


FIRST = ".card:nth-child(1 of :not([hidden]))"


def test_opens_with_all_columns_side_by_side(page: Page) -> None:
    assert seen(page) == list(COLUMNS)
    assert len(shown(page)) == 24
    assert page("document.getElementById('count').value") == "24 of 30 shown"
    page.click(".more")
    assert len(shown(page)) == 30 and page("document.querySelector('.more').hidden")


def test_every_picture_has_words_and_every_control_a_name(page: Page) -> None:
    assert page("[...document.images].filter(image => !image.alt.trim()).length") == 0
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "searchbox", "slider", "link", "image"}
    named = [n for n in nodes if n.get("role", {}).get("value") in roles and not n["ignored"]]
    assert len(named) > 40
    assert [n["role"] for n in named if not n.get("name", {}).get("value", "").strip()] == []


def test_prompts_are_filtered(page: Page) -> None:
    page.key("/")
    word = ANIMAL[2]
    for letter in word:
        page.key(letter)
    assert {text.rpartition(" ")[0] for text in shown(page)} == {f"a {word} animals, seed"}
    assert page("document.getElementById('count').value") == "3 of 30 shown"


def test_sorted_by_the_gain_between_two_columns(page: Page) -> None:
    choose(page, "order", "1")
    choose(page, "to", "2")
    assert shown(page)[0] == f"a {ANIMAL[0]} animals, seed 0"
    choose(page, "order", "-1")
    assert shown(page)[0] == f"a {ANIMAL[PROMPTS - 1]} animals, seed 27"
    # of the judge the first sample has no value: last, in either order
    choose(page, "score", "1")
    page.click(".more")
    assert shown(page)[-1].endswith("seed 0")
    choose(page, "order", "1")
    assert shown(page)[-1].endswith("seed 0")


def test_prompt_by_prompt(page: Page) -> None:
    choose(page, "to", "2")
    page.click("#by-prompt summary")
    page.wait("document.querySelector('#by-prompt tbody tr')")
    rows = page(
        "[...document.querySelectorAll('#by-prompt tbody tr')].map(row => "
        "[...row.cells].map(cell => cell.innerText))"
    )
    animals = ANIMAL[:PROMPTS]
    gains = {f"a {name}": i / 10 for i, name in enumerate(animals)}
    assert [row[0] for row in rows] == sorted(gains, key=lambda name: -gains[name])
    for prompt, base, tuned, gain, count in rows:
        numbers = [float(cell.replace("−", "-")) for cell in (base, tuned, gain)]
        assert numbers == pytest.approx([-3, -3 + gains[prompt], gains[prompt]])
        assert count == "3"


def test_flip_on_hover_and_by_key(page: Page) -> None:
    page.key("v")
    assert seen(page) == ["base"]
    page.point(f"{FIRST} .images")
    assert seen(page) == ["runs/a"] and seen(page, 2) == ["base"]
    page.point("h1")
    page.key("f")
    assert seen(page) == ["runs/a"] == seen(page, 2)
    assert page("document.getElementById('flip').getAttribute('aria-pressed')") == "true"
    page.key("f")
    choose(page, "to", "2")
    page.point(f"{FIRST} .images")
    assert seen(page) == ["runs/b"]


def test_the_slider_follows_the_pointer(page: Page) -> None:
    page.key("v")
    page.key("v")
    page.point(f"{FIRST} .images", across=0.25)
    cut = page(
        f"parseFloat(document.querySelector('{FIRST} .images').style.getPropertyValue('--cut'))"
    )
    assert cut == pytest.approx(25, abs=1)
    clip = page(f"getComputedStyle(document.querySelector('{FIRST} .b img')).clipPath")
    assert clip.startswith("inset(0px 0px 0px 2")


def test_a_click_opens_the_sample_and_keys_go_on(page: Page) -> None:
    page.click(f"{FIRST} .picture")
    page.wait("document.querySelector('dialog').open")
    title = "document.getElementById('title').textContent"
    assert page(title) == f"a {ANIMAL[0]}"
    for _ in range(3):
        page.key("ArrowRight")
    assert page(title) == f"a {ANIMAL[1]}"
    page.key("ArrowLeft")
    assert page(title) == f"a {ANIMAL[0]}"
    files = page("[...document.querySelectorAll('.stage img')].map(i => i.src.split('/').pop())")
    assert files == ["animals_00002_0.png", "animals_00002_1.png"]
    page.key("f")
    assert page("document.getElementById('cut').value") == "0"
    values = page("[...document.querySelectorAll('#values td')].map(c => c.innerText)")
    assert values == [JPEG, "−3", "−2.75", "−3", JUDGE, "0.5", "0.4", "0.3"]
    page.key("Escape")
    assert not page("document.querySelector('dialog').open")
    assert page("document.activeElement.matches('.picture')"), "the focus is back on the card"


def test_the_keyboard_alone_opens_a_sample(page: Page) -> None:
    page("document.querySelector('.card:not([hidden]) .picture').focus()")
    page.key("Enter")
    page.wait("document.querySelector('dialog').open")


def test_the_trajectory_is_walked(page: Page) -> None:
    page.click(f"{FIRST} .picture")
    page.wait("document.querySelector('dialog').open")
    files = "[...document.querySelectorAll('.stage img')].map(image => image.src.split('/'))"
    stage = f"{files}.map(parts => parts.slice(-2).join('/'))"
    page.key(",")
    steps = [f"animals_00000_{place}/step_009_of_010.webp" for place in (0, 1)]
    assert page(stage) == steps
    assert page("document.getElementById('step-name').textContent") == "step 9 of 10"
    page.key(".")
    assert page(stage) == ["images/animals_00000_0.png", "images/animals_00000_1.png"]
    page.key("ArrowRight")
    assert page("document.getElementById('step-label').hidden"), "only the first one has steps"


def test_a_chart_tells_its_values(page: Page, folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    chart = "svg[aria-label^='reward/mean']"
    page(f'document.querySelector("{chart}").focus({{preventScroll: true}})')
    page.key("ArrowRight")
    page.key("ArrowRight")
    text = page("document.querySelector('.tip').innerText")
    assert text.splitlines()[0] == "iteration 2"
    assert float(text.split()[-1].replace("−", "-")) == pytest.approx(
        rows[1]["reward/mean"], rel=1e-4
    )
    page.point(chart, across=0.97)
    page.point(chart, across=0.98)
    page.wait("document.querySelector('.tip').innerText.startsWith('iteration 40')")


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_no_width_scrolls_to_the_side(browser: Browser, folder: Path, width: int) -> None:
    page = browser.page((folder / "index.html").as_uri(), width=width, dark=width == 360)
    assert page("document.documentElement.scrollWidth") <= width
    ground = page("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (width != 360)
    assert page.complaints == []
    page.close()


def test_prints_with_its_pictures_and_without_its_controls(page: Page, tmp_path: Path) -> None:
    page.send("Emulation.setEmulatedMedia", media="print")
    assert not page("document.querySelector('.controls').checkVisibility()")
    assert page("document.querySelector('.card:not([hidden])').checkVisibility()")
    page("dispatchEvent(new Event('beforeprint'))")  # and a headless browser would not wait
    page.wait("[...document.images].every(image => image.complete)")
    page.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().count(b"/Subtype /Image") >= PROMPTS


def test_three_columns_of_45_prompts_and_4_seeds(browser: Browser, tmp_path: Path) -> None:
    """The page and all that it shows: under 10 MB, first paint under 2 s."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    rng = np.random.default_rng(0)
    grain = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(6)]
    pictures = [Image.fromarray(g).resize((240, 240), Image.Resampling.BICUBIC) for g in grain]
    write_columns(folder, pictures, [f"a {name}" for name in ANIMALS][:45], 4)
    report.write(folder)
    page = browser.page((folder / "index.html").as_uri())
    page.wait("performance.getEntriesByName('first-contentful-paint').length")
    paint_ms = page("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    page("document.querySelector('.more').click()")
    page("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.wait("[...document.images].every(image => image.complete)")
    files = {Path(url.removeprefix("file://")) for url in page.requests if url.startswith("file")}
    size = sum(file.stat().st_size for file in files)
    assert len(files) > 3 * 45 * 4
    assert size < 10e6, f"{size / 1e6:.1f} MB"
    assert paint_ms < 2000
    assert page.complaints == []
    page.close()
