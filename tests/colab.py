"""Every notebook as Colab would run it: `python tests/colab.py [--latest] [NAME ...]`, or `make test-colab`.

A new virtual environment has torch and Jupyter's kernel, a stand-in for the module `google.colab`, and nothing of ours.
Each notebook is run in it from an empty folder, at its smallest: the quick profile on the smallest embedded model. Its
own set-up cell installs the package, from the last commit of this clone in place of GitHub; the one before is
uninstalled first, so that each set-up cell has to do it. With `--latest`, torch and transformers are the newest there
are, as Colab has them; else torch is the one of the lock, and transformers comes with the package. Notebooks that ask
for the quantizers come last, so that the others do without. What must hold then: it ran to its end, torch is the one
that was there, and the browser was offered an archive of rows.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import papermill
from layerwise.book import sync
from layerwise.book.paths import chapters, notebook_source

ROOT = Path(__file__).parent.parent
ADDRESS = f"https://github.com/{sync.repository(ROOT)}"
STAND_IN = {
    "google/colab/__init__.py": "from google.colab import files, userdata\n",
    "google/colab/files.py": "def download(path):\n    print('offered', path)\n",
    "google/colab/userdata.py": "class SecretNotFoundError(Exception):\n    pass\n\n\n"
    "def get(name):\n    raise SecretNotFoundError(name)\n",
}
SMALLEST = {"PROFILE": "quick", "MODELS": "embedded/6L"}
# Those that take no models, or calibration text as long as that of large ones.
OWN = {"claims": {}, "what_fits": SMALLEST | {"WINDOWS": 8, "LENGTH": 128}}


def environment(folder: Path, latest: bool) -> Path:
    """The Python of a new virtual environment, which is also Jupyter's kernel "colab"."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for package in ("torch", "ipykernel"):
        install(python, "install", "--quiet", package if latest else f"{package}=={pinned[package]}")
    if latest:
        install(python, "install", "--quiet", "transformers")
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for name, text in STAND_IN.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    kernel = folder / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    return python


def install(python: Path, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def torch_version(python: Path) -> str:
    command = [python, "-c", "import importlib.metadata as m; print(m.version('torch'))"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def run(name: str, folder: Path, python: Path) -> None:
    """Run one notebook; raises what went wrong."""
    install(python, "uninstall", "--quiet", "--yes", "layerwise")
    content = folder / "content" / name  # Colab's folder, with nothing of a clone around it
    content.mkdir(parents=True)
    before, started = torch_version(python), time.perf_counter()
    papermill.execute_notebook(
        str(ROOT / "notebooks" / f"{name}.ipynb"),
        str(folder / f"{name}.ipynb"),
        parameters=OWN.get(name, SMALLEST),
        kernel_name="colab",
        cwd=str(content),
        progress_bar=False,
    )
    assert torch_version(python) == before, "the set-up cell has changed torch"
    (archive,) = content.glob("*.zip")
    with zipfile.ZipFile(archive) as rows:
        names = [file for file in rows.namelist() if file.startswith("tables/") and file.endswith(".csv")]
    assert names, "no table was offered"
    print(f"{name}: {time.perf_counter() - started:.0f} s, {len(names)} tables offered", flush=True)


def main() -> None:
    command = argparse.ArgumentParser(description="Run notebooks as Colab would.")
    command.add_argument("names", nargs="*", metavar="NAME")
    command.add_argument("--latest", action="store_true", help="newest torch and transformers")
    options = command.parse_args()
    names = sorted(
        options.names or chapters(ROOT), key=lambda name: "[quantizers]" in notebook_source(ROOT, name).read_text()
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        python = environment(folder, options.latest)
        os.environ |= {
            "JUPYTER_PATH": str(folder),
            "PYTHONPATH": "",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{ROOT.resolve()}.insteadOf",
            "GIT_CONFIG_VALUE_0": ADDRESS,
        }
        for name in names:
            run(name, folder, python)


if __name__ == "__main__":
    main()
