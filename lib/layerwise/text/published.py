"""Published corpora, as files of one commit each but for PTB, so that everybody reads the same text."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from layerwise.text import hub

EVERY = 5  # of a corpus that was published as one piece, every fifth row is in the test split
BUFFER = 10_000  # documents among which the next one is drawn


@dataclass(frozen=True)
class Published:
    """A corpus on the Hub: a file for each split, the field with the text, and what its rows are.

    Rows are documents, unless `joined` says what they are joined by into one long text, of which windows are then drawn
    from everywhere. Of a corpus with one file for both splits every fifth row is for testing. `also` has other files
    that the text of a split was published in.
    """

    dataset: str
    revision: str
    files: Mapping[str, str]
    text: str = "text"
    joined: str | None = None
    also: Mapping[str, str] = field(default_factory=dict)

    def documents(self, split: str, seed: int, data=None) -> Iterator[str]:
        """Texts of a split, read as they are asked for; documents in an order that `seed` draws.

        From the Hub's cache, or from a copy of the file in the folder `data`. Raises HubError where the Hub can't give
        it, ValueError where the folder hasn't got it or has another text under its name.
        """
        path = hub.file(self.dataset, self.files[split], self.revision) if data is None else self._copy(split, data)
        found = _rows(path, self.text)
        if self.joined is not None:
            yield self.joined.join(found)
        elif len(set(self.files.values())) == 1:
            rows = [row for i, row in enumerate(found) if (i % EVERY == EVERY - 1) == (split == "test")]
            random.Random(seed).shuffle(rows)
            yield from rows
        else:
            yield from (row[self.text] for row in _table(path).shuffle(seed=seed, buffer_size=BUFFER))

    def _copy(self, split: str, data) -> Path:
        """The file of a split in a local folder: by its path in the data set, or by its name alone."""
        folder = Path(data).expanduser()
        names = [name for name in (self.files[split], self.also.get(split)) if name in SHA256]
        if not names:
            raise ValueError(
                f"the hash of {self.files[split]} of {self.dataset} isn't known here, so a copy of it can't be told "
                "from another text: leave out data, and it is read from the Hub or its cache"
            )
        for name in names:
            for path in (folder / name, folder / PurePosixPath(name).name):
                if path.is_file():
                    return _checked(path, name)
        there = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
        raise ValueError(f"{folder} has no {' or '.join(names)}; there is {there}")


def _checked(path: Path, name: str) -> Path:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256[name]:
        raise ValueError(f"{path} is not the {name} that was published: its SHA-256 is {digest}, not {SHA256[name]}")
    return path


def _rows(path: Path, text: str) -> Iterator[str]:
    """The texts of a file: of rows, or of the lines of a .raw file, in which a blank one is empty, as on the Hub."""
    if path.suffix == ".raw":
        with path.open(encoding="utf-8") as lines:
            yield from (line if line.strip() else "" for line in lines)
    else:
        yield from (row[text] for row in _table(path))


def _table(path: Path):
    import datasets

    kind = "parquet" if path.suffix == ".parquet" else "json"
    return datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)


# Of published files, the Hub's by their path in the data set. Those that are missing could not be learnt.
SHA256 = {
    "wikitext-2-raw-v1/train-00000-of-00001.parquet": (
        "e83889baabc497075506f91975be5fac0d45c5290b6b20582c8cd1e853d0c9f7"
    ),
    "wikitext-2-raw-v1/validation-00000-of-00001.parquet": (
        "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c"
    ),
    "wikitext-2-raw-v1/test-00000-of-00001.parquet": (
        "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91"
    ),
    "wiki.valid.raw": "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7",
    "wiki.test.raw": "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
    "en/c4-train.00000-of-01024.json.gz": "8ef8d75b0e045dec4aa5123a671b4564466b0707086a7ed1ba8721626dfffbc9",
    "data/validation-00000-of-00001-0f92e2337f79aeac.parquet": (
        "81680529564d4ead1c0e3859509a62d86c7126c32afc95dce6bd98e729e491ef"
    ),
    "data/test-00000-of-00001-29a571947c0b5ccc.parquet": (
        "9aae5ddf035760257458cff08d2575d78a15f84eff867af7a87eff0681b01bfc"
    ),
}

CORPORA = {
    # Rows are lines; joined as in the papers that report perplexity on it.
    "wikitext2": Published(
        "Salesforce/wikitext",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        {
            "calibration": "wikitext-2-raw-v1/train-00000-of-00001.parquet",
            "validation": "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
            "test": "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        },
        joined="\n\n",
        also={"validation": "wiki.valid.raw", "test": "wiki.test.raw"},  # of the archive that it was published in
    ),
    # The Hub's own conversion, a branch of which no commit could be read when this was written.
    "ptb": Published(
        "ptb-text-only/ptb_text_only",
        "refs/convert/parquet",
        {"calibration": "penn_treebank/train/0000.parquet", "test": "penn_treebank/test/0000.parquet"},
        text="sentence",
        joined=" ",
    ),
    "c4": Published(
        "allenai/c4",
        "1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        {"calibration": "en/c4-train.00000-of-01024.json.gz", "test": "en/c4-validation.00000-of-00008.json.gz"},
    ),
    "alpaca": Published(
        "tatsu-lab/alpaca",
        "dce01c9b08f87459cf36a430d809084718273017",
        dict.fromkeys(("calibration", "test"), "data/train-00000-of-00001-a09b74b3ef9c3b56.parquet"),
    ),
    # Books; its validation split, since the training split is 11 GB.
    "pg19": Published(
        "emozilla/pg19",
        "c021754c8e01c5b1cc83a1f549c1f97fbbb756b8",
        {
            "calibration": "data/validation-00000-of-00001-0f92e2337f79aeac.parquet",
            "test": "data/test-00000-of-00001-29a571947c0b5ccc.parquet",
        },
        joined="\n\n",  # so that windows come from all books, of which each is longer than most draws
    ),
}
