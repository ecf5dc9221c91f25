"""llm-compressor's GPTQ (arXiv 2210.17323), with a group of its configuration for every width of a plan."""

from __future__ import annotations

import copy
import io
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from layerwise.backbone.structure import blocks, blocks_path
from layerwise.quantization.blockwise import Bits, bits_by_path, check_bits, check_matrices, whole_groups
from layerwise.quantization.packages import needs
from layerwise.text.corpora import check_text

BATCH = 8  # windows that are calibrated at a time


@dataclass(frozen=True)
class GPTQ:
    """`(model, bits, tokens) -> model`: rounds the columns of a matrix one after the other, each time correcting those
    that are left for the error made on `tokens` `[n, length]`, block by block, each fed by those before it, quantized.

    The result saves to compressed-tensors, which transformers loads.

    Parameters
    ----------
    group
        So many weights of a row have a scale (in the model's dtype) and, unless `symmetric`, a zero point; it must
        divide the rows of every matrix.
    symmetric
        Without zero points. Symmetric mixes of 4 and 8 bits are meant for vLLM, which was not run.
    """

    group: int = 64
    symmetric: bool = False
    name: ClassVar[str] = "gptq"
    widths: ClassVar[tuple[int, ...]] = (8, 4, 3, 2)
    needs_tokens: ClassVar[bool] = True
    layers: ClassVar[type] = nn.Linear  # llm-compressor knows no Conv1D of GPT-2

    def __call__(self, model: nn.Module, bits: Sequence[Bits], tokens: Tensor | None = None) -> nn.Module:
        check_bits(self, model, bits)
        if tokens is None:
            raise ValueError("gptq needs calibration text: give tokens=lw.tokens(...)")
        check_text(model, tokens)
        entry = _entry()
        check_matrices(self, model, bits)
        self._oneshot(entry, model, bits, tokens)
        return model.eval().requires_grad_(False)

    def check_columns(self, columns: int) -> None:
        """Raise ValueError for rows that have no whole number of groups."""
        whole_groups(columns, self.group)

    def stored(self, bits: int, rows: int, columns: int) -> int:
        """Bytes of a matrix in a model of 16 bits."""
        return _bytes(rows, columns, -(-columns // self.group), bits, self.symmetric, 2)

    def _oneshot(self, entry, model, bits, tokens):
        batches = -(-len(tokens) // BATCH)  # each passes a block twice: to be measured, and to feed the next
        windows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in tokens]
        with (
            tempfile.TemporaryDirectory() as folder,
            torch.inference_mode(False),
            _progress(model, 2 * batches),
        ):
            name = model.config.name_or_path
            try:
                # It looks at the configuration on disk, whether the model is quantized already; a model that was made
                # or changed in memory has none there.
                model.config.save_pretrained(folder)
                model.config.name_or_path = folder
                modifier = needs("llmcompressor.modifiers.gptq", "llmcompressor").GPTQModifier
                recipe = modifier(config_groups=self._groups(model, bits), ignore=[])
                entry(
                    model=model,
                    recipe=recipe,
                    dataset=DataLoader(windows, batch_size=BATCH),
                    pipeline="sequential",
                    processor=False,  # there is no text to process; None would look for a tokenizer
                )
                # It leaves its wrappers for offloading, and a save_pretrained that copies share with their original.
                needs("compressed_tensors.offload", "compressed-tensors").remove_dispatch(model)
                vars(model).pop("save_pretrained", None)
            finally:
                model.config.name_or_path = name
        done = compressed(model).bytes
        if missed := [path for path in _asked(model, bits) if path not in done]:
            raise ValueError(
                f"GPTQ left {len(missed)} matrices as they were, such as {missed[0]}: llm-compressor doesn't find all "
                "of this model. Load it anew, and take 'rtn', 'quanto', 'hqq' or 'outliers'"
            )
        if fell_back := recipe._rtn_fallback_module_names:
            warnings.warn(
                f"GPTQ could not invert what enters {len(fell_back)} matrices, such as {fell_back[0]}, and rounded "
                "them to nearest: more calibration text may help",
                stacklevel=3,
            )

    def _groups(self, model: nn.Module, bits: Sequence[Bits]) -> dict:
        """compressed-tensors' `config_groups`: a scheme per width, whose targets are the matrices that get it.

        Blocks may differ in what gets a width, also because they differ in kind, such as those with attention and those
        with a convolution: those that are alike are a target.
        """
        root, groups = re.escape(blocks_path(model)), {}
        every = [bits_by_path(block, each) for block, each in zip(blocks(model), bits, strict=True)]
        for width in dict.fromkeys(width for each in every for width in each.values()):
            kinds: dict[str, list[str]] = {}  # numbers of blocks, by the paths of their matrices
            for i, each in enumerate(every):
                if paths := "|".join(re.escape(path) for path, bits in each.items() if bits == width):
                    kinds.setdefault(paths, []).append(str(i))
            groups[f"bits_{width}"] = {
                "targets": [rf"re:{root}\.({'|'.join(at)})\.({paths})$" for paths, at in kinds.items()],
                "weights": {
                    "num_bits": width,
                    "type": "int",
                    "symmetric": self.symmetric,
                    "strategy": "group",
                    "group_size": self.group,
                },
            }
        return groups


def _asked(model: nn.Module, bits: Sequence[Bits]) -> list[str]:
    """Paths in the model of the matrices that get bits."""
    root = blocks_path(model)
    each = enumerate(zip(blocks(model), bits, strict=True))
    return [f"{root}.{i}.{path}" for i, (block, own) in each for path in bits_by_path(block, own)]


def _entry() -> Callable:
    """llm-compressor's way in; importing it logs, and turns its log on."""
    if "llmcompressor" not in sys.modules:
        with redirect_stdout(io.StringIO()):
            needs("llmcompressor", "llmcompressor")
        needs("llmcompressor.logger", "llmcompressor").configure_logger()  # which goes to the stdout that it finds
    return needs("llmcompressor", "llmcompressor").oneshot


class Compressed(NamedTuple):
    """The matrices that GPTQ did: the bytes of each once it is saved, and the tensors in memory that stand for them."""

    bytes: dict[str, int]
    left_out: set[str]


def compressed(model: nn.Module) -> Compressed:
    """What GPTQ did to a model. In memory its weights lie unpacked, for computing; scales count as it stores them."""
    found = Compressed({}, set())
    scale = (getattr(model, "stored_dtype", None) or model.dtype).itemsize
    for path, module in model.named_modules():
        weights = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if weights is not None and isinstance(module, nn.Linear):
            rows, columns, groups = module.out_features, module.in_features, module.weight_scale.shape[1]
            found.bytes[path] = _bytes(rows, columns, groups, weights.num_bits, weights.symmetric, scale)
            found.left_out.update(f"{path}.{name}" for name, _ in module.named_parameters() if name != "bias")
    return found


def write_gptq(model: nn.Module, folder: Path) -> None:
    """Write a model that GPTQ did as compressed-tensors; the model itself stays unpacked."""
    with quiet_gptq():
        kind = needs("compressed_tensors.compressors", "compressed-tensors").ModelCompressor
        packed = copy.deepcopy(model)  # since packing is done in place
        compressor = kind.from_pretrained_model(packed)
        compressor.compress_model(packed)
        packed.save_pretrained(folder)
        compressor.update_config(folder)


def _bytes(rows: int, columns: int, groups: int, bits: int, symmetric: bool, scale: int) -> int:
    """Codes, and zero points along the rows, in whole words of 32 bits; scales; two numbers for the size."""
    zeros = 0 if symmetric else _words(rows, bits) * groups
    return rows * _words(columns, bits) + zeros + scale * rows * groups + 16


def _words(count: int, bits: int) -> int:
    """Bytes of `count` codes in whole words of 32 bits."""
    return 4 * -(-count * bits // 32)


@contextmanager
def _progress(model: nn.Module, passes: int) -> Iterator[None]:
    """One bar over the `passes` of each block, in place of llm-compressor's, which has one for every block."""
    handles, out = [], sys.stderr
    with tqdm(total=passes * len(blocks(model)), desc="gptq", leave=False, delay=5, file=out) as bar, quiet_gptq():
        try:
            handles += [block.register_forward_hook(lambda *_: bar.update() and None) for block in blocks(model)]
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def quiet_gptq() -> Iterator[None]:
    """llm-compressor and compressed-tensors without log lines for every matrix, and without bars for every step."""
    needs("compressed_tensors", "compressed-tensors")  # where it is imported, it turns its log on
    logger, tracing = needs("loguru", "loguru").logger, logging.getLogger("torch.fx._symbolic_trace")
    level = tracing.level
    try:
        tracing.setLevel(logging.ERROR)
        for name in (own := ("llmcompressor", "compressed_tensors")):
            logger.disable(name)
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            yield
    finally:
        tracing.setLevel(level)
        for name in own:
            logger.enable(name)
