"""A real model through the chapters: `python benchmarks/real.py MODEL`, in ten minutes on a GPU, or resumed later.

It executes chapters with the parameters below, one after the other, on WikiText-2; their tables go to `results/` as
each is finished. Finished results are kept, so that a call that runs out of time says what it left, and the next one
goes on from there. The tree has to be clean, or results don't enter tables. On CPUs this takes hours: `--cpu` runs it
all the same.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
JOBS = (  # what decides comes first
    ("beyond_position", {"PAIRS": "4→3", "SLICES": "10", "SEEDS": ""}),
    ("layer_importance", {}),
    ("dynamic_slicing", {"MEANS": "10, 15", "STEP": 5}),
    ("quantization_vs_pruning", {"DRAWS": 1, "RANDOM": 0, "CUTS": "5 to 30", "LEFT_OUT": "greedy, reversed, random"}),
    ("variable_quantization", {"PAIRS": "4→2", "TECHNIQUES": "quanto", "PARTS": 4, "DRAWS": 19}),
)
ONE = "import sys, json, pathlib; from layerwise.book.execute import execute; root, name, given = sys.argv[1:]; "
ONE += "execute(pathlib.Path(root), name, json.loads(given), folder='real')"


def run(name: str, parameters: dict, seconds: float) -> str:
    """Execute a chapter for at most so many seconds; how it went, in a word."""
    command = [sys.executable, "-c", ONE, str(ROOT), name, json.dumps(parameters)]
    child = subprocess.Popen(command)
    try:
        return "done" if child.wait(timeout=seconds) == 0 else "failed"
    except subprocess.TimeoutExpired:
        child.kill()  # its kernel ends when it sees that its parent is gone
        child.wait()
        return "out of time"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="what lw.load takes, such as packaged/smollm2-135m")
    parser.add_argument("--data", default="", help="a folder with WikiText-2, where the Hub can't be reached")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--cpu", action="store_true", help="run it without a GPU too")
    options = parser.parse_args()
    if options.model is None:
        print("Name a model, such as packaged/smollm2-135m: its results go to results/.")
        return 0
    if not (torch.cuda.is_available() or options.cpu):
        print("There is no GPU here, and on CPUs this takes hours: --cpu runs it all the same.")
        return 0
    same = {"PROFILE": "full", "MODELS": options.model, "CORPUS": "wikitext2", "LENGTH": 512, "BESIDE": ""}
    same["DATA"] = str(Path(options.data).resolve()) if options.data else ""
    end, left = time.monotonic() + 60 * options.minutes, []
    for name, parameters in JOBS:
        remaining = end - time.monotonic()
        became = run(name, same | parameters, remaining) if remaining > 0 else "not begun"
        print(f"{name}: {became}", flush=True)
        if became != "done":
            left.append(name)
    print(f"Left for another call: {', '.join(left)}" if left else "All chapters are done.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
