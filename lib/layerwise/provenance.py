"""Where a number comes from: versions, commit, date, machine."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "numpy", "scipy", "pandas", "lm_eval", "datasets", "safetensors")


def provenance() -> dict:
    """Where a number comes from: versions, commit, date, machine. What can't be known is absent, not made up.

    Holds no path and no name of the machine or its user, so that it can be published.
    """
    known = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "layerwise": _version(),
        "packages": {name: version for name in PACKAGES if (version := _installed(name))},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if cpu := _cpu():
        known["cpu"] = cpu
    if torch.cuda.is_available():
        known["gpu"] = torch.cuda.get_device_name()
    return known | _commit()


def _version():
    from layerwise import __version__

    return __version__


def _installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _commit():
    """Commit of the checkout that this library runs from, and whether its code was changed since.

    That is: any tracked file, or one of the library or the notebooks that git doesn't know yet and isn't told to
    ignore. Rows don't count: of two tables that a run writes, the first doesn't make the second one's code another.
    """
    here = Path(__file__).parent

    def git(*command):
        return subprocess.run(["git", *command], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A package installed inside some other checkout (a virtual environment in it) is not part of that one.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        added = git("ls-files", "--others", "--exclude-standard", "--", ".", ":/notebooks")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed or added)}
    except (OSError, subprocess.CalledProcessError):
        return _installed_commit()


def _installed_commit():
    """The commit that pip has installed from the repository's address, as on Colab."""
    try:
        told = importlib.metadata.distribution("layerwise").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return {}
    commit = json.loads(told or "{}").get("vcs_info", {}).get("commit_id")
    return {"commit": commit, "dirty": False} if commit else {}
