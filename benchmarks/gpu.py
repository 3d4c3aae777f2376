"""What a GPU makes of ddpo, in one command: speed, memory, ratios, host synchronisations; random
weights.

    python benchmarks/gpu.py --out gpu.json                                  # everything
    python benchmarks/gpu.py --out gpu.json --parts peak,sampling --dtypes bf16 --seconds 120
    python benchmarks/gpu.py --out gpu.json --parts plan                     # adds to what is there
    python benchmarks/gpu.py --out gpu.json --archs sdxl,sd35 --parts sampling,training
    python benchmarks/gpu.py --out /tmp/tiny.json --tiny                     # toy sizes, on a CPU

Every measurement is printed and written as soon as it is made; a part that fails is noted, and the
next one begins.
"""

import argparse
import json
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from gpu_model import ARCHITECTURES, ARITHMETIC, Case
from gpu_more import OF_MACHINE, OF_MODEL
from gpu_parts import TINY, Bench, Sizes
from gpu_tools import machine

from ddpo.parallel import ranks


class Record:
    """The JSON: hardware, versions and commit, then part -> case -> measurement -> numbers."""

    def __init__(self, file: Path, head: dict[str, Any]) -> None:
        self.file, self.started = file, time.perf_counter()
        old = json.loads(file.read_text()) if file.is_file() else {}
        self.data: dict[str, Any] = {"runs": [*old.get("runs", []), head]}
        self.data |= {"measured": old.get("measured", {}), "failed": old.get("failed", {})}

    def add(self, part: str, case: str, name: str, numbers: dict[str, Any]) -> None:
        numbers = {"run": len(self.data["runs"]) - 1, **numbers}
        self.data["measured"].setdefault(part, {}).setdefault(case, {})[name] = numbers
        self._say(f"{part} {case} {name}: {json.dumps(numbers)}")

    def fail(self, part: str, case: str, why: str) -> None:
        self.data["failed"][f"{part} {case}"] = why
        self._say(f"{part} {case} FAILED: {why}")

    def _say(self, line: str) -> None:
        print(f"[{time.perf_counter() - self.started:6.1f} s] {line}", flush=True)
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.data, indent=1))
        new.replace(self.file)

    def peaks(self) -> dict[str, float]:
        """TFLOP/s of the matrix products, of an earlier run too."""
        found = self.data["measured"].get("peak", {}).get("machine", {})
        return {k.removeprefix("matmul_"): v["tflops"] for k, v in found.items() if "tflops" in v}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = [*OF_MACHINE, *OF_MODEL]
    parser.add_argument(
        "--out", type=Path, required=True, help="the JSON; an earlier one is added to"
    )
    parser.add_argument("--parts", type=_some(names), default=names, help=", ".join(names))
    parser.add_argument("--archs", type=_some(list(ARCHITECTURES)), help=", ".join(ARCHITECTURES))
    parser.add_argument("--dtypes", type=_some(list(ARITHMETIC)), help=", ".join(ARITHMETIC))
    parser.add_argument("--tiny", action="store_true", help="toy sizes, in fp32")
    parser.add_argument("--bench", help="the folder of bare.py, for the part bare")
    parser.add_argument(
        "--seconds", type=float, default=540.0, help="after these nothing new is begun"
    )
    parser.add_argument("--commit", help="of the code; default: what git says")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="changes"
    )
    return parser.parse_args()


def _some(known: list[str]) -> Any:
    def chosen(text: str) -> list[str]:
        for word in text.split(","):
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(known)}")
        return text.split(",")

    return chosen


def commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def measure(part: str, label: str, bench: Bench, record: Record, limit: float) -> None:
    """One part, until it ends, fails or time is up."""
    try:
        for name, numbers in {**OF_MACHINE, **OF_MODEL}[part](bench):
            record.add(part, label, name, numbers)
            if time.perf_counter() - record.started > limit:
                record.fail(part, label, f"left after {name}: --seconds {limit:g} are over")
                return
    except Exception as error:  # the next part may work
        lines = traceback.format_exception(error)
        record.fail(part, label, "".join(lines)[-1500:])
    bench.case.forget_gradients()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    given = arguments()
    head = {
        **machine(ranks.state().device),
        "commit": given.commit or commit(),
        "tiny": given.tiny,
        "parts": given.parts,
        "changes": given.changes,
        "date": time.strftime("%Y-%m-%d"),
    }
    record = Record(given.out, head)
    record._say(json.dumps(head))
    changes = dict(change.split("=", 1) for change in given.changes)
    sizes, peaks = TINY if given.tiny else Sizes(), record.peaks()
    archs = given.archs or ["tiny" if given.tiny else "sd15"]
    machine_case = Case(archs[0], "fp32", {})
    for part in given.parts:
        if part in OF_MACHINE:
            measure(part, "machine", Bench(sizes, machine_case, peaks), record, given.seconds)
    del machine_case
    for arch in archs:
        for dtype in given.dtypes or (["fp32"] if given.tiny else ["bf16", "fp16"]):
            bench = Bench(sizes, Case(arch, dtype, changes), peaks, given.bench)
            for part in given.parts:
                late = time.perf_counter() - record.started > given.seconds
                if part in OF_MODEL and not late:
                    measure(part, f"{arch} {dtype}", bench, record, given.seconds)
            del bench  # and its model with it
    print(f"{len(record.data['failed'])} failed; written to {given.out}", flush=True)


if __name__ == "__main__":
    main()
