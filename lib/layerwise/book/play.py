"""What the page `book/play` runs: an embedded model and its tokenizer, and text of its world that no training had.

The page computes by itself, in the reader's browser (`book/_static/play.js`). Its scripts with data are written when
the book is staged, from the installed package: nothing of them is committed. They are scripts, not files of data,
because a page that is opened from a disk may load only those. The weights are a script of their own, which the page
loads when it is asked to.
"""

import base64
import json
import re
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig

from layerwise.models.names import WEIGHTS
from layerwise.quantization import RTN
from layerwise.world import KINDS, data
from layerwise.world.tokens import FOLDER, tokenizer

NAME = "6L"
SCRIPT = Path("book", "_static", "play_data.js")  # of the staged book
WEIGHTS_SCRIPT = SCRIPT.with_name("play_weights.js")

WIDTHS = (8, 4, 3, 2)  # bits that a block may have
TEXTS = 2  # held-out texts of each kind
READ = 20_000  # documents whose words are those of the world
WORD = "[A-Za-z]+"


def held_out() -> list[dict]:
    """Texts of the test split, `kind` and `text`, as many of each kind: drawn anew, of facts that training has, too."""
    return [
        {"kind": kind, "text": text} for kind in KINDS for text, _ in islice(data.documents("test", kind=kind), TEXTS)
    ]


def beginnings() -> list[dict]:
    """The first of these of each kind: its `text` without the last word, and the `word`."""
    found = []
    for one in held_out()[::TEXTS]:
        text, word = one["text"].rsplit(" ", 1)
        found.append({"kind": one["kind"], "text": text, "word": re.sub(r"\W+$", "", word)})
    return found


def known_words() -> list[str]:
    """Words of the world, sorted: those of many training documents. A word that isn't there was hardly ever read."""
    texts = (text for text, _ in islice(data.documents("train"), READ))
    return sorted({word for text in texts for word in re.findall(WORD, text)})


def weights() -> tuple[list, bytes]:
    """The model's tensors as `[name, shape]` in order, and their numbers, bfloat16, one tensor after the other.

    bfloat16 is what the model is stored in, so the page has its weights as they are.
    """
    names, parts = [], []
    with safe_open(WEIGHTS / NAME / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 not a mapping
            tensor = file.get_tensor(name)
            if tensor.dtype != torch.bfloat16:
                raise ValueError(f"{name} of {NAME} is {tensor.dtype}, and the page reads bfloat16")
            names.append([name, list(tensor.shape)])
            parts.append(tensor.view(torch.int16).numpy().astype("<i2").tobytes())
    return names, b"".join(parts)


def weights_script() -> str:
    """The script that gives the page its weights."""
    return f'globalThis.playWeights = "{base64.b64encode(weights()[1]).decode()}";\n'


def data_script() -> str:
    """The script that gives the page all else."""
    config, model = AutoConfig.from_pretrained(WEIGHTS / NAME), json.loads((FOLDER / "tokenizer.json").read_text())
    vocabulary, tensors = model["model"]["vocab"], weights()[0]
    found = {
        "name": NAME,
        "megabytes": round(len(weights_script()) / 1e6, 1),
        "widths": WIDTHS,
        "config": {
            "blocks": config.num_hidden_layers,
            "width": config.hidden_size,
            "head": config.head_dim,
            "theta": config.rope_parameters["rope_theta"],
            "epsilon": config.rms_norm_eps,
            "context": config.max_position_embeddings,
            "group": RTN().group,
            "tensors": tensors,
        },
        "tokenizer": {
            "vocabulary": sorted(vocabulary, key=vocabulary.get),
            "merges": [" ".join(pair) for pair in model["model"]["merges"]],
            "end": tokenizer().eos_token_id,
        },
        "words": known_words(),
        "texts": held_out(),
        "beginnings": beginnings(),
    }
    return f"globalThis.playData = {json.dumps(found, separators=(',', ':'))};\n"
