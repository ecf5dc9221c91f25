"""Where the parts of the book are, all relative to the repository's root, and how they are written."""

from pathlib import Path

import yaml


def find_root(start: Path) -> Path:
    """The nearest folder at or above `start` that holds `_config.yml` and `_toc.yml`; raises FileNotFoundError."""
    for folder in (start, *start.parents):
        if (folder / "_config.yml").is_file() and (folder / "_toc.yml").is_file():
            return folder
    raise FileNotFoundError(
        f"no _config.yml and _toc.yml in {start} or above it: run this inside a clone of the repository"
    )


def notebook_names(root: Path) -> list[str]:
    """Names of all notebooks, from their text sources `notebooks/NAME.md`, sorted."""
    return sorted(path.stem for path in (root / "notebooks").glob("*.md"))


def toc_pages(root: Path) -> list[str]:
    """Every page of the table of contents in reading order, as written there (no suffix)."""
    pages: list[str] = []

    def walk(node) -> None:
        if isinstance(node, dict):
            pages.extend(node[key] for key in ("root", "file") if key in node)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    return pages


def chapters(root: Path) -> list[str]:
    """Names of the notebooks that the table of contents holds, in reading order."""
    return [page.removeprefix("notebooks/") for page in toc_pages(root) if page.startswith("notebooks/")]


def notebook_source(root: Path, name: str) -> Path:
    """The text source of a notebook; raises FileNotFoundError that lists the notebooks there are."""
    path = root / "notebooks" / f"{name}.md"
    if not path.is_file():
        known = ", ".join(notebook_names(root)) or "none"
        raise FileNotFoundError(f"there is no notebook {name!r} (notebooks/{name}.md); there are: {known}")
    return path


def write_if_changed(path: Path, content: str | bytes) -> bool:
    """Write `content` to `path` unless it already holds it (equal files keep their time stamp); True if written."""
    content = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == content:
        return False
    path.write_bytes(content)
    return True
