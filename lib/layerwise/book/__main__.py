"""python -m layerwise.book: execute the notebooks, build the book, keep derived files up to date."""

import argparse
import sys
from pathlib import Path

from .build import BuildError, build
from .check import check
from .execute import NotebookError, execute
from .paths import find_root
from .sync import sync


def parser() -> argparse.ArgumentParser:
    """The command line: one command a job."""
    command = argparse.ArgumentParser(prog="python -m layerwise.book", description=__doc__)
    jobs = command.add_subparsers(dest="job", required=True)
    jobs.add_parser("sync", help="write notebooks from their text, and the address of _config.yml to all its copies")
    jobs.add_parser("build", help="execute the chapters that changed, build all pages, check them")
    jobs.add_parser("check", help="check the built pages")
    for job, text in (
        ("execute", "execute notebooks that changed (quick profile)"),
        ("full", "execute notebooks with PROFILE='full'; they write results/"),
    ):
        jobs.add_parser(job, help=text).add_argument("names", nargs="+", metavar="NAME")
    return command


def checked(root: Path) -> None:
    """Check the built pages; raises BuildError that lists what is wrong."""
    problems = check(root)
    if problems:
        raise BuildError("The built pages have faults:\n" + "\n".join(f"  {problem}" for problem in problems))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when all went well, else 1 with the reason on standard error."""
    options = parser().parse_args(arguments)
    try:
        root = find_root(Path.cwd())
        if options.job == "sync":
            for path in sync(root):
                print(f"wrote {path}")
        elif options.job == "build":
            page = build(root)
            checked(root)
            print(f"The book is built. Open {page}")
        elif options.job == "check":
            checked(root)
        else:
            parameters = {"PROFILE": "full"} if options.job == "full" else None
            for name in options.names:
                result = execute(root, name, parameters, folder="full" if parameters else "executed")
                print(f"{result.path.relative_to(root)}: {'executed' if result.ran else 'up to date'}")
    except (NotebookError, BuildError, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
