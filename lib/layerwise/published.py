"""Published corpora, as files of one commit each but for PTB, so that everybody reads the same text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from layerwise import hub

EVERY = 5  # of a corpus that was published as one piece, every fifth row is in the test split
BUFFER = 10_000  # documents among which the next one is drawn


@dataclass(frozen=True)
class Published:
    """A corpus on the Hub: a file for each split, the field with the text, and what its rows are.

    Rows are documents, unless `joined` says what they are joined by into one long text, of which windows are then drawn
    from everywhere. Of a corpus with one file for both splits every fifth row is for testing.
    """

    dataset: str
    revision: str
    files: Mapping[str, str]
    text: str = "text"
    joined: str | None = None

    def documents(self, split: str, seed: int) -> Iterator[str]:
        """Texts of a split, read as they are asked for; documents in an order that `seed` draws."""
        import datasets

        path = hub.file(self.dataset, self.files[split], self.revision)
        kind = "parquet" if path.suffix == ".parquet" else "json"
        found = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True)
        if self.joined is not None:
            yield self.joined.join(row[self.text] for row in found)
        elif len(set(self.files.values())) == 1:
            rows = [row[self.text] for i, row in enumerate(found) if (i % EVERY == EVERY - 1) == (split == "test")]
            random.Random(seed).shuffle(rows)
            yield from rows
        else:
            yield from (row[self.text] for row in found.shuffle(seed=seed, buffer_size=BUFFER))


CORPORA = {
    # Rows are lines; joined as in the papers that report perplexity on it.
    "wikitext2": Published(
        "Salesforce/wikitext",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        {
            "calibration": "wikitext-2-raw-v1/train-00000-of-00001.parquet",
            "test": "wikitext-2-raw-v1/test-00000-of-00001.parquet",
        },
        joined="\n\n",
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
