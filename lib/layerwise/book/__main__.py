"""python -m layerwise.book: execute the notebooks, build the book, keep derived files up to date."""

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

from layerwise.experiments.ledger import add_table

from .build import BuildError, build, named_figures
from .check import check_pages, external_links
from .execute import NotebookError, ask, execute
from .paths import find_root
from .sync import sync

UNASKED = "study.unasked().to_string(index=False, na_rep='')"


def parser() -> argparse.ArgumentParser:
    """The command line: one command a job."""
    command = argparse.ArgumentParser(prog="python -m layerwise.book", description=__doc__)
    jobs = command.add_subparsers(dest="job", required=True)
    jobs.add_parser("sync", help="write notebooks from their text, and the address of _config.yml to all its copies")
    jobs.add_parser("build", help="execute the chapters that changed, build all pages, check them")
    jobs.add_parser("check", help="check the built pages")
    jobs.add_parser("links", help="list the links of the built pages to other sites; none is followed")
    for job, text in (
        ("execute", "execute notebooks that changed (quick profile)"),
        ("full", "execute notebooks with PROFILE='full'; they write results/"),
        ("unasked", "execute notebooks, and list the committed results of their models that they don't ask for"),
    ):
        jobs.add_parser(job, help=text).add_argument("names", nargs="+", metavar="NAME")
    add = jobs.add_parser("add", help="put rows that a notebook offered on Colab into results/")
    add.add_argument("archive", metavar="CHAPTER-results.zip")
    return command


def check_built(root: Path) -> None:
    """Check the built pages; raises BuildError that lists what is wrong."""
    problems = check_pages(root)
    if problems:
        raise BuildError("The built pages have faults:\n" + "\n".join(f"  {problem}" for problem in problems))


def full(root: Path, name: str) -> None:
    """Execute one notebook in the full profile; its named figures go to `results/figures/`, for pages like the README.

    The notebook itself writes its rows to `results/`. Both are meant to be committed.
    """
    result = execute(root, name, {"PROFILE": "full"}, folder="full")
    folder = root / "results" / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for figure, image in named_figures(result.path).items():
        (folder / f"{figure}.png").write_bytes(image)
        print(f"wrote results/figures/{figure}.png")


def add(root: Path, archive: str) -> None:
    """Put the rows of an archive that `layerwise.book.offer` made into `results/`; those of other models stay."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(archive) as rows:
        rows.extractall(folder)
        files = sorted((Path(folder) / "results").glob("*/*.csv"))
        if not files:
            raise ValueError(f"{archive} has no rows of the full profile: run the notebook with PROFILE = 'full'")
        for file in files:
            path = root / "results" / file.parent.name / file.name
            print(f"{path.relative_to(root)}: {', '.join(add_table(path, file))}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when all went well, 1 with the reason on standard error, 130 when stopped by Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        root = find_root(Path.cwd())
        if options.job == "sync":
            for path in sync(root):
                print(f"wrote {path}")
        elif options.job == "build":
            page = build(root)
            check_built(root)
            print(f"The book is built. Open {page}")
        elif options.job == "check":
            check_built(root)
        elif options.job == "links":
            print("\n".join(external_links(root)))
        elif options.job == "add":
            add(root, options.archive)
        elif options.job == "execute":
            for name in options.names:
                result = execute(root, name)
                print(f"{result.path.relative_to(root)}: {'executed' if result.ran else 'up to date'}")
        elif options.job == "unasked":
            for name in options.names:
                print(f"{name}\n{ask(root, name, UNASKED)}")
        else:
            for name in options.names:
                full(root, name)
    except (NotebookError, BuildError, FileNotFoundError, ValueError, zipfile.BadZipFile) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Chapters that were finished stay finished; run it again to go on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
