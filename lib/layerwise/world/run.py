"""One training run of a member of the embedded family: its steps, its log, its checkpoints, what it exports."""

import json
import math
import shutil
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import torch
from torch import distributed
from torch.nn import functional as F

from layerwise.provenance import provenance

from .data import rows
from .recipes import Recipe, build_model, learning_rate, optimizers
from .tokens import FOLDER as TOKENIZER
from .training_state import load_checkpoint, save_checkpoint, write_synced

IGNORED = -100  # cross_entropy leaves targets of this value out


def products(device: torch.device) -> torch.dtype:
    """The dtype that a step computes in: bfloat16, but float32 on a CPU that would only emulate it, for all torch says.

    That is none but x86 with AMX or AVX-512 BF16.
    """
    able = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if able else torch.float32


class Run:
    """One training run: weights rounded to bf16 that compute, float32 masters that learn, the log, and its position.

    Resumes from `folder` if there is a checkpoint in it. Raises ValueError if that is a checkpoint of something else.
    Where torch.distributed is initialised, on a CPU, its processes share the rows of each step; the first one reads
    checkpoints and writes.
    """

    def __init__(self, recipe: Recipe, seed: int, folder: Path, compiled: bool = True, device: str = "cpu"):
        self.recipe, self.seed, self.folder, self.device = recipe, seed, Path(folder), torch.device(device)
        self.step, self.seconds, self.log, self.starts = 0, 0.0, [], []
        self.sums = [0.0, 0.0, 0.0]  # loss, floor, gradient norm since the last line of the log
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.processes = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
        if recipe.batch % self.processes:
            raise ValueError(f"{self.processes} processes can't share the {recipe.batch} rows of a step evenly")
        model = build_model(recipe, seed).to(self.device)
        self.masters = {name: weight.detach().clone().requires_grad_() for name, weight in model.named_parameters()}
        self.model = model.to(products(self.device))
        self.loss = torch.compile(self._loss) if compiled else self._loss
        # four rows at a time stay in a core's second-level cache, which pays on one thread, and on two in bfloat16;
        # more threads wait for each other at every operation, and accelerators want all rows at once
        few = torch.get_num_threads() <= (2 if self.model.dtype == torch.bfloat16 else 1)
        self.rows_at_once = 4 if self.device.type == "cpu" and few else recipe.batch
        self.optimizers = optimizers(recipe, self.masters)
        tokens, floor = rows("test", recipe.test_rows, recipe.length)
        self.test, self.test_floor = torch.from_numpy(tokens.astype("int64")), floor.mean() / (recipe.length - 1)
        self._resume()
        self._round()
        # what trains from this step on: code and machine may be others than those that the run was begun with
        how = {"products": str(self.model.dtype).removeprefix("torch."), "processes": self.processes}
        self.starts.append({"step": self.step} | how | provenance())

    def train_step(self) -> None:
        """One step of the optimiser on `recipe.batch` rows that depend on the seed and the number of the step only."""
        recipe = self.recipe
        rate = learning_rate(recipe, self.step)
        tokens, floor = rows("train", recipe.batch, recipe.length, seed=self.seed, start=self.step * recipe.batch)
        loss, floor = 0.0, floor.mean() / (recipe.length - 1)
        mine = torch.from_numpy(tokens.astype("int64")).chunk(self.processes)[self.rank]
        for part in mine.split(self.rows_at_once):
            partial = self.loss(part.to(self.device)) * (len(part) / recipe.batch)
            partial.backward()
            loss += partial.item()
            for master, weight in zip(self.masters.values(), self.model.parameters(), strict=True):
                master.grad = weight.grad.float() if master.grad is None else master.grad.add_(weight.grad)
                weight.grad = None
        if self.processes > 1:
            loss = self._add_up(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), recipe.clip).item()
        if not math.isfinite(loss + norm):
            raise FloatingPointError(
                f"{recipe.name} diverged at step {self.step} (loss {loss}, gradient norm {norm}); it needs a lower "
                f"learning rate than {recipe.learning_rate}. The checkpoints before it are kept"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self._round()
        self.step += 1
        self.sums = [a + b for a, b in zip(self.sums, (loss, floor, norm), strict=True)]
        if self.step % recipe.log_every == 0 or self.step == recipe.steps:
            self._log_line(rate)

    @torch.no_grad()
    def test_loss(self) -> float:
        """Mean loss in nats over the predicted tokens of the fixed test rows, with the weights as they are shipped."""
        parts = self.test.split(16)
        return sum(self._loss(part.to(self.device)).item() * len(part) for part in parts) / len(self.test)

    def in_any(self, flag: bool) -> bool:
        """Whether `flag` is true in one of the processes at least: what all of them have to do, or none."""
        if self.processes > 1:
            flags = torch.tensor(float(flag))
            distributed.all_reduce(flags, distributed.ReduceOp.MAX)
            flag = bool(flags)
        return flag

    def save(self) -> None:
        if self.rank:
            return
        tensors = {f"weight.{name}": weight.detach() for name, weight in self.masters.items()}
        for name, weight in self.masters.items():
            for key, value in self._trained_by(weight).state[weight].items():
                tensors[f"{key}.{name}"] = value
        state = {name: getattr(self, name) for name in ("step", "seed", "seconds", "sums", "log", "starts")}
        state["recipe"] = asdict(self.recipe)
        save_checkpoint(self.folder, self.step, {k: v.cpu().contiguous() for k, v in tensors.items()}, state)

    def export(self, folder: Path, **notes) -> None:
        """A plain Hugging Face folder: bf16 weights, tokenizer, `training.json`, `loss.csv`; replaces what is there.

        `training.json` says what the run was begun with and, in `resumed`, what it went on with from which step.
        """
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        deepcopy(self.model).to(torch.bfloat16).save_pretrained(part)  # float32 weights have been rounded already
        for file in TOKENIZER.glob("*.json"):
            shutil.copy(file, part)
        # the log's floors are as old as its lines; that of the test text is counted anew and goes into the facts
        log = pd.DataFrame(self.log).drop(columns=["floor", "test_floor"])
        log.to_csv(part / "loss.csv", index=False, float_format="%.6g")
        last = self.log[-1]
        first, *later = [start for start in self.starts if start["step"] < self.step]
        facts = {
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "tokens": self.step * self.recipe.batch * self.recipe.length,
            "parameters": self.model.num_parameters(),
            "train_loss": last["loss"],
            "test_loss": last["test_loss"],
            "test_floor": self.test_floor,
            "seconds": round(self.seconds),
        }
        facts |= {key: value for key, value in first.items() if key != "step"} | notes
        if later:
            facts["resumed"] = later
        (part / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)

    def _loss(self, tokens):
        """Mean loss of tokens [rows, length]; the last position predicts nothing and keeps the shapes even."""
        targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], IGNORED)), 1)
        hidden = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state
        return F.cross_entropy(
            self.model.lm_head(hidden).float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )

    def _add_up(self, loss):
        """Sum the gradients of the masters, and the loss, over all processes."""
        grads = [master.grad for master in self.masters.values()]
        flat = torch.cat([*(grad.flatten() for grad in grads), torch.tensor([loss])])
        distributed.all_reduce(flat)
        for grad, total in zip(grads, flat[:-1].split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(total.view_as(grad))
        return flat[-1].item()

    @torch.no_grad()
    def _round(self):
        shipped = [master.to(torch.bfloat16) for master in self.masters.values()]
        torch._foreach_copy_(list(self.model.parameters()), shipped)

    def _log_line(self, rate):
        recipe, count = self.recipe, (self.step - 1) % self.recipe.log_every + 1
        loss, floor, norm = (value / count for value in self.sums)
        tested = self.step % recipe.test_every == 0 or self.step == recipe.steps
        self.log.append(
            {
                "step": self.step,
                "tokens": self.step * recipe.batch * recipe.length,
                "loss": loss,
                "floor": floor,
                "learning_rate": rate,
                "gradient_norm": norm,
                "test_loss": self.test_loss() if tested else None,
                "test_floor": self.test_floor if tested else None,
            }
        )
        self.sums = [0.0, 0.0, 0.0]
        if self.rank == 0:
            write_synced(self.folder / "loss.csv", pd.DataFrame(self.log).to_csv(index=False, float_format="%.6g"))

    def _resume(self):
        found = [None if self.rank else load_checkpoint(self.folder)]
        if self.processes > 1:
            distributed.broadcast_object_list(found)
        if found[0] is None:
            return
        tensors, state = found[0]
        saved = Recipe(**state["recipe"] | {"betas": tuple(state["recipe"]["betas"])})
        if (saved, state["seed"]) != (replace(self.recipe, tokens=saved.tokens), self.seed):
            raise ValueError(
                f"{self.folder} holds a run of {saved}, seed {state['seed']}: give another folder by --out"
            )
        if saved.tokens != self.recipe.tokens:
            self._may_change(saved, state["step"])
        self.step, self.seconds, self.sums, self.log, self.starts = (
            state[k] for k in ("step", "seconds", "sums", "log", "starts")
        )
        with torch.no_grad():
            for name, weight in self.masters.items():
                weight.copy_(tensors[f"weight.{name}"])
                # torch's fused AdamW keeps its step count, a scalar, beside the weights
                found = {
                    key.removesuffix(f".{name}"): value for key, value in tensors.items() if key.endswith(f".{name}")
                }
                del found["weight"]
                self._trained_by(weight).state[weight] = {k: value.to(weight.device) for k, value in found.items()}

    def _trained_by(self, weight):
        return next(o for o in self.optimizers if any(weight is w for group in o.param_groups for w in group["params"]))

    def _may_change(self, saved, step):
        """The tokens may change while no step taken so far would have had another learning rate."""
        if step > saved.decay_start:
            raise ValueError(
                f"{self.folder} is at step {step} and its learning rate falls since step {saved.decay_start}: only the "
                f"{saved.tokens:,} tokens that it was begun with are possible now"
            )
        if step > self.recipe.decay_start:
            least = math.ceil(step / (1 - saved.decay) + 2) * saved.batch * saved.length
            raise ValueError(
                f"{self.folder} is at step {step}, but with {self.recipe.tokens:,} tokens the learning rate would have "
                f"had to fall since step {self.recipe.decay_start}: give at least {least:,} tokens"
            )
