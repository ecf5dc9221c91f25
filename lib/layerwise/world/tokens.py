"""The world's tokenizer: byte-level BPE with 2,048 tokens, digits one by one, trained on the world's own text.

`save(train(), FOLDER)` makes the shipped files again, byte by byte.
"""

import json
from functools import lru_cache
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

FOLDER = Path(__file__).parent / "tokenizer"
VOCABULARY = 2048
END = "<|endoftext|>"


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    """The shipped tokenizer. END (id 0) begins every document and pads on the left where padding is asked for."""
    return PreTrainedTokenizerFast.from_pretrained(FOLDER)


def train_tokenizer(documents: int = 60_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the first `documents` documents of the training text."""
    from .data import documents as source

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator((text for text, _ in islice(source("train"), documents)), trainer)
    backend.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=END, padding_side="left", model_max_length=256
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` so that transformers 4 reads them, too.

    Transformers 5 itself writes `TokenizersBackend`, its own new name of the class, which transformers 4 doesn't know.
    """
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
