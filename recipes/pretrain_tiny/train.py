"""Pre-train the embedded model ``tiny``: ``python recipes/pretrain_tiny/train.py --corpus DIR --out DIR``.

A run follows a plan of stages (``plans.py``): growing resolution; scenes first, then photos and names mixed in. ``--start
MODEL`` begins from the weights of an earlier run. Stop it with Ctrl-C or kill it at any time: the same command goes on
from the last checkpoint. See README.md.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from averaging import Average
from corpus import Batches, Corpus, normalize
from muon import optimizers_for
from network import build, export, load_weights, trainable
from plans import PLANS, learning_rate, stage_at
from tokenizer import load_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from vlsm_adapter.errors import DataError, TrainingError, UserError
from vlsm_adapter.files import atomic_path
from vlsm_adapter.models.clipseg import CLIPSeg
from vlsm_adapter.models.features import TextFeatures

COLUMNS = ("step", "minutes", "stage", "size", "learning_rate", "loss", "bce", "dice", "patch", "iou", "images_per_s")


@dataclass
class Budget:
    """How long a run is: ``minutes`` of training, or ``steps`` (then the same seed gives the same weights)."""

    minutes: float
    steps: int | None = None

    def progress(self, step: int, elapsed: float) -> float:
        """Position in the run, 0 to 1. ``elapsed``: seconds of training so far, over all sittings."""
        done = step / self.steps if self.steps else elapsed / (60 * self.minutes)
        return min(1.0, done)


def losses(model: CLIPSeg, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
    """Mask loss (BCE and Dice on logits) and, beside it, patch-text agreement; with their values for the log.

    Patch-text agreement: the projected last activation of each patch against the projected text, as a scaled cosine,
    should say what share of the patch belongs to the mask; the class token should say whether anything does. It gives
    both encoders a short way to each other, and CLIP's ``visual_projection`` and ``logit_scale`` a meaning.
    """
    pixels, masks = normalize(batch["pixels"]), batch["masks"].to(torch.float32)
    index = batch["image_index"]
    image = model.encode_image(pixels)
    text = TextFeatures(model.encode_text(batch["input_ids"]).condition[batch["text_index"]])
    logits = model.decode(image, text, index)
    bce = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean(dim=(1, 2))
    probability = logits.sigmoid()
    shared = (probability * masks).sum(dim=(1, 2))
    both = probability.sum(dim=(1, 2)) + masks.sum(dim=(1, 2))
    present = (masks.amax(dim=(1, 2)) > 0).to(torch.float32)
    dice = (1 - (2 * shared + 1) / (both + 1)) * present  # nothing to overlap with where the object is absent

    clip = model.clipseg.clip
    tokens = F.normalize(clip.visual_projection(clip.vision_model.post_layernorm(image.activations[-1])), dim=-1)
    words = F.normalize(text.condition, dim=-1)
    agreement = torch.einsum("ptd,pd->pt", tokens[index], words) * clip.logit_scale.exp() - 5.0
    share = F.adaptive_avg_pool2d(masks[:, None], image.grid).flatten(1)
    patch = F.binary_cross_entropy_with_logits(agreement[:, 1:], share)
    patch = patch + 0.05 * F.binary_cross_entropy_with_logits(agreement[:, 0] + 5.0, present)
    loss = 2 * bce.mean() + dice.sum() / present.sum().clamp(min=1) + 0.5 * patch
    with torch.no_grad():
        hard = (logits > 0).to(torch.float32)
        union = torch.maximum(hard, masks).sum(dim=(1, 2))
        iou = ((hard * masks).sum(dim=(1, 2)) / union.clamp(min=1))[present > 0].mean()
        values = {
            "loss": loss,
            "bce": bce.mean(),
            "dice": dice.sum() / present.sum().clamp(min=1),
            "patch": patch,
            "iou": iou,
        }
    return loss, {name: value.detach().item() for name, value in values.items()}


class Run:
    """State of a run and its files: ``state.pt`` (resume), ``log.csv``, ``tokenizer.json``, ``model/`` (the result)."""

    def __init__(self, options: argparse.Namespace, tokenizer: Tokenizer) -> None:
        self.out, self.seed, self.tokenizer = options.out, options.seed, tokenizer
        self.plan = options.plan
        self.stages = PLANS[self.plan].stages
        self.peak = options.learning_rate or PLANS[self.plan].peak
        torch.manual_seed(self.seed)
        self.model = build(tokenizer.get_vocab_size(), self.stages[-1].mixture.size)
        if options.start is not None:
            load_weights(self.model, options.start)
        self.staged = trainable(self.model)
        self.optimizers = optimizers_for(self.model, self.peak)
        self.average = Average(self.model)
        self.step, self.elapsed = 0, 0.0
        self.numbers = [0] * len(self.stages)  # batches used per stage

    def resume(self) -> bool:
        """Take up the checkpoint, if there is one.

        Raises:
            DataError: it is damaged or of another seed.
        """
        path = self.out / "state.pt"
        if not path.is_file():
            return False
        try:
            state = torch.load(path, weights_only=True)
            for name, mine in (("seed", self.seed), ("plan", self.plan)):
                if state[name] != mine:
                    raise DataError(f"{path}: was begun with --{name} {state[name]}; use that or another --out")
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.average.load_state_dict(state["average"])
            self.step, self.elapsed, self.numbers = state["step"], state["elapsed"], state["numbers"]
        except DataError:
            raise
        except Exception as error:  # a damaged archive raises many kinds
            raise DataError(
                f"{path}: cannot be resumed from ({type(error).__name__}); delete it to start anew"
            ) from error
        return True

    def save(self) -> None:
        """Write the checkpoint; a crash meanwhile leaves the previous one."""
        state = {
            "seed": self.seed,
            "plan": self.plan,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "numbers": self.numbers,
        }
        with atomic_path(self.out / "state.pt") as temporary:
            torch.save(state, temporary)

    def export(self) -> None:
        """Write ``model/``: the running average of the weights, which is better than the last ones."""
        with self.average.applied(self.model):
            export(self.model, self.tokenizer, self.out / "model")

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to ``log.csv``."""
        path = self.out / "log.csv"
        fresh = not path.is_file()
        with path.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow(row)

    def trim_log(self) -> None:
        """Drop the rows of steps that a killed run logged after its last checkpoint: they are done again."""
        path = self.out / "log.csv"
        if not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as handle:
            rows = [row for row in csv.DictReader(handle) if row["step"] and int(row["step"]) <= self.step]
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, COLUMNS)
            writer.writeheader()
            writer.writerows({name: row[name] for name in COLUMNS} for row in rows)


@dataclass(frozen=True)
class Team:
    """The processes that train together, each on one thread and its share of the batch.

    On a machine with other work two processes that meet once per step are several times as fast as one process of two
    threads, which meet at every operation.
    """

    rank: int = 0
    size: int = 1

    def mean(self, model: nn.Module, extra: list[float]) -> list[float]:
        """Average the gradients of all processes in place, and ``extra``, which is returned."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if self.size == 1:
            return extra
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor(extra, dtype=torch.float32)])
        torch.distributed.all_reduce(flat)
        flat /= self.size
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()
        return [float(value) for value in flat[start:]]


def batches(run: Run, corpus: Corpus | None, stage: int, team: Team, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """This process's remaining batches of a stage, rendered ahead by a process of their own."""
    mixture = run.stages[stage].mixture
    mixture = replace(mixture, images=-(-mixture.images // team.size))
    dataset = Batches(corpus, run.tokenizer, mixture, run.seed, stage)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        sampler=range(run.numbers[stage] * team.size + team.rank, len(dataset), team.size),
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)


def fit(run: Run, corpus: Corpus | None, budget: Budget, team: Team, workers: int, save_every: float = 120.0) -> bool:
    """Train to the end of the budget, with a checkpoint every ``save_every`` seconds; False if Ctrl-C ended it.

    Raises:
        TrainingError: a gradient is not a number; the last checkpoint stays.
    """
    interrupted: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _frame: interrupted.append(number))
    stage = -1
    source: Iterator[dict[str, torch.Tensor]] = iter(())
    saved = shown = begun = time.monotonic()
    since: list[dict[str, float]] = []
    pictures = 0
    stopped = False
    while not stopped and (progress := budget.progress(run.step, run.elapsed)) < 1.0:
        if (now := stage_at(progress, run.stages)) != stage:
            stage, source = now, batches(run, corpus, now, team, workers)
        batch = next(source)
        rate = learning_rate(progress, run.peak)
        for optimizer in run.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["share"]
        loss, values = losses(run.staged, batch)
        run.model.zero_grad(set_to_none=True)
        loss.backward()
        # The processes agree on the clock and on Ctrl-C, so that they change stage and stop at the same step.
        seconds, begun = time.monotonic() - begun, time.monotonic()
        spent, stop, *means = team.mean(run.model, [seconds, float(bool(interrupted)), *values.values()])
        norm = nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise TrainingError(f"step {run.step}: a gradient is not a number; resume with a lower --learning-rate")
        for optimizer in run.optimizers:
            optimizer.step()
        with torch.no_grad():
            run.model.clip.logit_scale.clamp_(0.0, 4.6)
        run.step += 1
        if team.rank == 0:
            run.average.update(run.model, run.step)
        run.numbers[stage] += 1
        run.elapsed += spent
        stopped = stop > 0
        if team.rank:
            continue
        since.append(dict(zip(values, means, strict=True)))
        pictures += len(batch["pixels"]) * team.size
        if run.step % 25 == 0:
            seconds = time.monotonic() - shown
            row: dict[str, Any] = {name: round(sum(v[name] for v in since) / len(since), 4) for name in since[0]}
            row |= {"step": run.step, "minutes": round(run.elapsed / 60, 2), "stage": stage}
            row |= {"size": run.stages[stage].mixture.size, "learning_rate": round(rate, 7)}
            row["images_per_s"] = round(pictures / seconds, 1)
            run.log(row)
            print(" ".join(f"{name}={row[name]}" for name in COLUMNS), flush=True)
            shown, since, pictures = time.monotonic(), [], 0
        if time.monotonic() - saved > save_every:
            run.save()
            saved = time.monotonic()
    signal.signal(signal.SIGINT, previous)
    return not stopped


def work(rank: int, size: int, options: argparse.Namespace, meeting: str, errors: Any) -> None:
    """One process of the run. What the user has to mend goes to the queue ``errors``, on one line, and ends it."""
    try:
        _work(Team(rank, size), options, meeting)
    except (UserError, OSError) as error:
        # One raised while rendering comes wrapped in the report of the rendering process; its last line is it.
        errors.put(str(error).strip().splitlines()[-1].split("Error: ")[-1])
        os._exit(2)  # the others wait for this process: end at once, the parent ends them


def _work(team: Team, options: argparse.Namespace, meeting: str) -> None:
    torch.set_num_threads(options.threads)
    if team.size > 1:
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=team.rank, world_size=team.size)
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    run = Run(options, tokenizer)
    resumed = run.resume()
    if resumed and team.rank == 0:
        run.trim_log()
        print(f"{options.out}: goes on after step {run.step}, {run.elapsed / 60:.1f} minutes", flush=True)
    finished = fit(run, Corpus(options.corpus), Budget(options.minutes, options.steps), team, options.workers)
    if team.rank == 0:
        run.save()
        if finished:
            run.export()
            print(f"{options.out / 'model'}: written after {run.step} steps, {run.elapsed / 60:.1f} minutes")
        else:
            print(f"{options.out}: stopped after step {run.step}; the same command goes on", file=sys.stderr)
    if team.size > 1:
        torch.distributed.destroy_process_group()


def main(arguments: list[str] | None = None) -> int:
    """Parse, load or begin the run, train, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder of photos and cut-outs (see README.md)")
    parser.add_argument("--out", type=Path, required=True, help="run folder; an unfinished run there is continued")
    parser.add_argument("--minutes", type=float, default=65.0, help="training time; the schedule follows the clock")
    parser.add_argument("--steps", type=int, help="instead: number of steps; repeatable bit for bit on one machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan", choices=list(PLANS), default="first", help="the stages (plans.py)")
    parser.add_argument("--start", type=Path, help="model folder whose weights and tokenizer the run begins with")
    parser.add_argument("--learning-rate", type=float, help="its peak; by default the plan's")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="each trains on its share of a batch"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--workers", type=int, default=1, help="rendering processes beside each; 0 renders in between")
    parser.add_argument("--export", action="store_true", help="only write OUT/model from the last checkpoint")
    options = parser.parse_args(arguments)
    try:
        if options.minutes <= 0 or options.processes < 1 or (options.steps is not None and options.steps < 1):
            raise UserError("--minutes, --steps and --processes must be positive")
        corpus = Corpus(options.corpus)
        vocabulary = options.out / "tokenizer.json"
        if not vocabulary.is_file():
            trained = load_tokenizer(options.start) if options.start else train_tokenizer(corpus.all_names)
            with atomic_path(vocabulary) as temporary:
                trained.save(str(temporary))
        if options.export:
            run = Run(options, Tokenizer.from_file(str(vocabulary)))
            if not run.resume():
                raise DataError(f"{options.out}: holds no checkpoint (state.pt) to export; train first")
            run.export()
            return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    # Threads that wait by spinning starve each other as soon as anything else runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        context = multiprocessing.get_context("spawn")
        errors = context.SimpleQueue()
        team = [
            context.Process(target=work, args=(rank, options.processes, options, meeting, errors))
            for rank in range(options.processes)
        ]
        for process in team:
            process.start()
        code = _wait(team)
        if not errors.empty():
            print(f"error: {errors.get()}", file=sys.stderr)
        return code


def _wait(team: list[Any]) -> int:
    """Wait for all processes; when one fails end the others. Ctrl-C reaches them all and they stop by themselves."""
    while True:
        try:
            codes = [process.exitcode for process in team]
            failed = [code for code in codes if code]
            if failed or None not in codes:
                for process in team:
                    process.terminate()
                return abs(failed[0]) if failed else 0
            time.sleep(0.3)
        except KeyboardInterrupt:
            continue


if __name__ == "__main__":
    raise SystemExit(main())
