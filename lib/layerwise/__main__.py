"""python -m layerwise fit NAME --bytes 4GB --out FOLDER: a model that takes so many bytes, where they count most."""

import argparse
import os
import sys
from pathlib import Path

from layerwise.costs import fit
from layerwise.models import load, save
from layerwise.models.folders import check_target


def fit_parser() -> argparse.ArgumentParser:
    """The command line: one command a job."""
    command = argparse.ArgumentParser(prog="python -m layerwise")
    job = command.add_subparsers(dest="job", required=True).add_parser(
        "fit", help="quantize a model to a number of bytes", description=__doc__
    )
    job.add_argument("name", metavar="NAME", help="what lw.load takes: a name on the Hub, a folder, a GGUF file")
    job.add_argument("--bytes", required=True, help='of the model as stored, such as 4GB or "800 MiB"')
    job.add_argument("--out", required=True, metavar="FOLDER", help="where the model goes; lw.load reads it")
    job.add_argument("--quantizer", default="rtn", help="rtn (default), quanto, hqq, gguf, gptq")
    job.add_argument("--corpus", default="wikitext2", help="what lw.tokens takes, or a text file of your own")
    job.add_argument("--data", help="a folder with a copy of the corpus, where the Hub can't be reached")
    job.add_argument("--context", type=int, default=0, help="tokens whose keys and values have to fit too")
    job.add_argument("--fused", action="store_true", help="one width for queries, keys, values; one for gate and up")
    job.add_argument("--device", default="auto")
    return command


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 when all went well, 1 with the reason on standard error, 130 when stopped by Ctrl-C."""
    options = fit_parser().parse_args(arguments)
    try:
        check_target(Path(options.out))  # before an hour's work
        model, tokenizer = load(options.name, device=options.device)
        fitted = fit(
            model, tokenizer, options.bytes, options.quantizer, corpus=options.corpus, data=options.data,
            context=options.context, fused=options.fused,
        )  # fmt: skip
        print(fitted.report)
        folder = save(fitted.model, options.out, tokenizer)
        (folder / "plan.json").write_text(fitted.plan.to_json(), encoding="utf-8")
        print(f"{'saved in':18} {os.path.relpath(folder)}, with its plan in plan.json")
    except (ValueError, ImportError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Nothing was saved.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
