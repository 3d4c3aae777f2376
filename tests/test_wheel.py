"""Outside the checkout: the wheel beside a foreign `rewards`, and two processes by our accelerate
files."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import helpers
import pytest
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "configs" / "accelerate"


def run(*words: str, cwd: Path = ROOT, path: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**helpers.one_thread(), "PYTHONPATH": path, "DDPO_PLUGINS": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))
    return next(folder.glob("*.whl"))


def test_everything_is_inside_and_nothing_generic_beside(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    ours: set[str] = set()
    bundled = {kind: f"ddpo/bundled/{kind}" for kind in ("rewards", "prompts", "configs")}
    for top, place in {"ddpo": "ddpo", **bundled}.items():
        files = [path.relative_to(ROOT / top) for path in (ROOT / top).rglob("*") if path.is_file()]
        ours |= {f"{place}/{path.as_posix()}" for path in files if "__pycache__" not in path.parts}
    assert len(ours) > 80 and ours <= inside
    assert {name.partition("/")[0].partition("-")[0] for name in inside} == {"ddpo"}
    assert not [name for name in inside if "__pycache__" in name]
    assert {
        "ddpo/bundled/configs/accelerate/cpu2.yaml",
        "ddpo/evaluation/pages/report.html.j2",
        "ddpo/evaluation/pages/gallery.js",
        "ddpo/evaluation/pages/style.css",
        "ddpo/py.typed",
    } <= inside
    assert "ddpo/models/emoji/weights/pipeline/unet/diffusion_pytorch_model.safetensors" in inside


USED = """
import json, sys
from pathlib import Path
import rewards
assert rewards.MINE == "theirs"
import ddpo
from ddpo import plugins
from ddpo.__main__ import main
from ddpo.models.emoji import sprites
from ddpo.models._shared.families import EMBEDDED
site = Path(sys.argv[1])
assert Path(ddpo.__file__).is_relative_to(site), ddpo.__file__
folders = [Path(folder) for kind in plugins.SUFFIXES for folder in plugins.folders(kind)]
assert all(folder.is_relative_to(site) for folder in folders)
for kind in (*plugins.SUFFIXES, "metrics"):
    assert main(["list", kind]) == 0
for folder in EMBEDDED.values():
    assert (folder / "model_index.json").is_file() and folder.is_relative_to(site)
assert main(["train", *sys.argv[2:]]) == 0
assert main(["evaluate", "run"]) == 0
assert main(["check", "reward", "jpeg_compressibility"]) == 0
assert sprites.__file__ and Path(sprites.__file__).is_relative_to(site)
import ddpo.rewards.jpeg_compressibility as reward
assert Path(reward.__file__).is_relative_to(site) and sys.modules["rewards"].MINE == "theirs"
"""


def test_the_wheel_beside_a_foreign_package(wheel: Path, tmp_path: Path) -> None:
    """Installed into an empty folder; the working directory has a `rewards` that is not ours."""
    site, work = tmp_path / "site", tmp_path / "work"
    quiet = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    run("-m", "pip", "install", *quiet, "--target", str(site), str(wheel))
    (work / "rewards").mkdir(parents=True)
    (work / "rewards" / "__init__.py").write_text('MINE = "theirs"\n')
    (work / "use.py").write_text(USED)
    argv = helpers.smoke(Path("run"), "--trainer.iterations", "1", "--evaluation.num_prompts", "2")
    said = run("use.py", str(site), *argv, cwd=work, path=str(site))
    for name in ("jpeg_compressibility", "animals_heldout", "ddpo_sf", "stable_diffusion", "smoke"):
        assert any(line.startswith(f"{name} ") for line in said.splitlines()), name
    assert (work / "run" / "index.html").stat().st_size > 10_000
    assert {file.name for file in work.iterdir()} == {"rewards", "use.py", "run"}


def test_two_cpu_processes_by_our_accelerate_file(tmp_path: Path) -> None:
    launch = [
        "accelerate.commands.launch",
        "--config_file",
        str(LAUNCH / "cpu2.yaml"),
        "--main_process_port",
        "0",
    ]
    argv = helpers.smoke(tmp_path / "run", "--trainer.iterations", "1")
    run("-m", *launch, "-m", "ddpo.train", *argv, path=str(ROOT))
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["num_processes"] == 2


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("one_gpu", "NO", 1),
        ("multi_gpu", "MULTI_GPU", 4),
        ("multi_node", "MULTI_GPU", 16),
        ("cpu2", "MULTI_GPU", 2),
    ],
)
def test_accelerate_reads_its_files(name: str, kind: str, processes: int) -> None:
    """Which refuses unknown keys; the first line of each is the command that uses it."""
    file = LAUNCH / f"{name}.yaml"
    found = load_config_from_file(str(file))
    assert (found.distributed_type.value, found.num_processes, found.use_cpu) == (
        kind,
        processes,
        name == "cpu2",
    )
    words = file.read_text().splitlines()[0].split()
    assert words[:3] == ["#", "accelerate", "launch"] and f"configs/accelerate/{name}.yaml" in words
    assert {path.stem for path in LAUNCH.iterdir()} == {
        "one_gpu",
        "multi_gpu",
        "multi_node",
        "cpu2",
    }
