"""lm-eval's model around one of ours: it changes nothing of the caller's, and knows which prompts it had to cut.

Importing this imports lm-eval, which takes seconds: `tasks` does so when it is asked for an accuracy.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import nn

from layerwise.backbone.structure import twin


class Harness(HFLM):
    """A model and its tokenizer as lm-eval takes them.

    What doesn't fit in the model's positions lm-eval cuts off at the left; `cut` holds what such requests asked. Raises
    ValueError for a tokenizer that lm-eval can't work with.
    """

    def __init__(self, model: nn.Module, tokenizer, batch: int):
        super().__init__(pretrained=twin(model), tokenizer=_own(tokenizer), batch_size=batch)
        self.cut: set = set()
        self.longest = 1  # tokens of the longest answer among those being compared
        self.in_part = "logits_to_keep" in inspect.signature(model.forward).parameters  # not so in every family

    def check_room(self, tasks: Mapping) -> None:
        """Raise unless the model has positions for a prompt before the longest answer that each task may generate."""
        for name, task in tasks.items():
            if task.get_config("output_type") == "generate_until":
                answer = normalize_gen_kwargs(task.get_config("generation_kwargs"), self.max_gen_toks)["max_gen_toks"]
                if answer >= self.max_length:
                    raise ValueError(
                        f"{name} generates answers of up to {answer} tokens, and the model has {self.max_length} "
                        "positions, which leaves none for the prompt"
                    )

    def was_cut(self, arguments) -> bool:
        """Whether the prompt of one request, as lm-eval logs its arguments, was cut."""
        return _asked(arguments) in self.cut

    def _loglikelihood_tokens(self, requests, *args, **options):
        for asked, context, answer in requests:
            if len(answer) > self.max_length:
                raise ValueError(f"an answer has {len(answer)} tokens, and the model {self.max_length} positions")
            if len(context) + len(answer) > self.max_length + 1:  # nothing is predicted from the last token
                self.cut.add(asked)
        self.longest = max((len(answer) for _, _, answer in requests), default=1)
        return super()._loglikelihood_tokens(requests, *args, **options)

    def _model_call(self, inps, *args, **options):
        """Logits of the last positions of `inps` `[n, length]`, `[n, kept, V]`: those that predict an answer.

        lm-eval counts back from the last position, and before it there is at most the padding, which is of zeros.
        """
        if not self.in_part:
            return super()._model_call(inps, *args, **options)
        padding = int((inps.flip(1).cumsum(1) == 0).sum(1).max())
        with torch.no_grad():
            return self.model(inps, use_cache=False, logits_to_keep=self.longest + padding).logits

    def tok_batch_encode(self, strings, padding_side="left", left_truncate_len=None, truncation=False):
        ids, mask = super().tok_batch_encode(strings, padding_side, truncation=truncation)
        if left_truncate_len is None:
            return ids, mask
        lengths = mask.sum(1).tolist()
        self.cut.update(text for text, length in zip(strings, lengths, strict=True) if length > left_truncate_len)
        return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]


def _asked(arguments):
    """Prompt and answer where answers are compared, the prompt alone where they are generated."""
    prompt, answer = arguments
    return (prompt, answer) if isinstance(answer, str) else prompt


def _own(tokenizer):
    """A copy, since lm-eval gives a tokenizer that has no padding token one, with the tokens that lm-eval asks for."""
    if tokenizer is None:
        raise ValueError("there is no tokenizer: a model saved without one can't be asked anything in words")
    if tokenizer.eos_token is None and tokenizer.bos_token is None:
        raise ValueError(
            "the tokenizer has no token that ends text and none that begins it, of which lm-eval needs one: it puts it "
            "before an empty prompt, and answers end there. Name it, as by tokenizer.eos_token = '<|endoftext|>'"
        )
    own = copy.deepcopy(tokenizer)
    if own.eos_token is None:
        own.eos_token = own.bos_token
    return own
