"""What is wrong with a run, by its metrics, and what to do about it. Each complaint is made once a run.

A run can be worthless without failing: a target so sharp that X-CLR is SimCLR, or so flat that it teaches nothing;
features that are all alike; a loss that is no better than chance; a device that waits for its data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.recipe import Recipe

__all__ = ["Adviser", "at_start", "fitting_batch"]

ONE_HOT = 0.98  # target mass on a row's own positives; 0.76 on real captions at tau_s = 0.1 and batch 1024
SIBLING = 1.5  # effective positives (exp of the entropy): fewer are the other view alone
UNIFORM = 0.98  # entropy of the target over the largest possible
ALIKE = 0.99  # mean cosine of different samples' projections
LEARNT = 0.02  # of the way from the loss of projections that know nothing down to the target's entropy, the least loss
RANK = 2.0  # RankMe: features that vary along a line or two
WAIT = {"cuda": 0.1, "cpu": 0.5}  # share of the time; on a CPU the loader's work is the model's too
AT_ONCE = ("one-hot", "uniform", "rank")  # what training does not change, or what no chance brings about
FEW, FITTING = 10, 60  # steps an epoch that are too few, and that do: flickr8k's recipe has 93, the paper's 2,700
ROWS = 3  # lines of metrics in a row before a complaint: the first ones see the loader start


def fitting_batch(samples: int) -> int:
    """A batch for as few samples as these: the largest power of two in some FITTING steps an epoch, yet not so small
    that a contrastive loss has nothing to tell apart."""
    return min(samples, max(32, 1 << max(0, (samples // FITTING).bit_length() - 1)))


def at_start(recipe: Recipe, *, samples: int, texts: int, classes: int) -> list[str]:
    """What a recipe, and how many samples, texts and classes there are, show to be wrong before the first step."""
    warmup, epochs, objective = recipe.optimiser.warmup_epochs, recipe.epochs, recipe.objective.name
    due = []
    steps, better = samples // recipe.data.batch_size, fitting_batch(samples)
    if steps < FEW and better < recipe.data.batch_size:
        due.append(
            f"an epoch of {samples:,} samples is {steps} step{'s' * (steps > 1)} of {recipe.data.batch_size}, "
            f"{steps * recipe.epochs:,} in all: a smaller batch learns more in as many epochs (--batch-size {better})"
        )
    if warmup >= epochs:
        due.append(
            f"the warm-up of {warmup:g} epochs takes the whole run of {epochs}, so the learning rate only rises, to "
            f"{epochs / warmup:.0%} of its peak: lower --warmup-epochs, or raise --epochs"
        )
    if (objective in ("xclr", "clip") and texts == 1) or (objective == "supcon" and classes == 1):
        what = "are of one class" if objective == "supcon" else "have one and the same text"
        due.append(f"all samples {what}, so {objective} has nothing to tell apart: use --objective simclr")
    return due


@dataclass(slots=True, kw_only=True)
class Adviser:
    recipe: Recipe
    device: str
    workers: int
    graph_kind: str = ""
    """What the graph is made of; empty for other objectives than xclr."""
    coded: bool = True
    """Whether it has codes, which tail `code` needs."""
    rows: dict[str, int] = field(default_factory=dict)
    """Lines in a row that gave cause for each complaint."""
    said: set[str] = field(default_factory=set)

    def look(self, values: Mapping[str, float]) -> list[str]:
        """New complaints, with this line of metrics."""
        due = []
        for kind, text in self._complaints(values).items():
            self.rows[kind] = self.rows.get(kind, 0) + 1 if text else 0
            if text and kind not in self.said and self.rows[kind] >= (1 if kind in AT_ONCE else ROWS):
                self.said.add(kind)
                due.append(text)
        return due

    def _complaints(self, values: Mapping[str, float]) -> dict[str, str | None]:
        objective, batch = self.recipe.objective, self.recipe.data.batch_size
        out: dict[str, str | None] = {}
        if objective.name == "xclr" and "target_entropy" in values:
            own, entropy = values["target_mass_positive"], values["target_entropy"] / math.log(2 * batch - 1)
            sibling = math.exp(values["target_entropy"]) < SIBLING
            out["one-hot"] = (
                f"{own:.1%} of the target lies on each sample's own text, so this is "
                f"{'SimCLR' if sibling else 'SupCon, of texts,'} in all but name: raise --tau-s (now "
                f"{objective.tau_s:g})" + (" or use --tail code" if self.coded and objective.tail != "code" else "")
                if own > ONE_HOT and (sibling or self.graph_kind != "class")  # which is meant to be SupCon
                else None
            )
            out["uniform"] = (
                f"the target is all but uniform (entropy {entropy:.1%} of the largest), so there is nothing to learn "
                f"from it: lower --tau-s (now {objective.tau_s:g}), or see by `xclr-shards preview` whether the "
                "graph's encoder tells these texts apart"
                if entropy > UNIFORM
                else None
            )
        if "mean_cosine" in values:
            cosine = values["mean_cosine"]
            out["alike"] = (
                f"the projections of different images are all alike (mean cosine {cosine:.3f}), collapsed: lower --lr, "
                "lengthen optimiser.warmup_epochs, or lower --tau"
                if cosine > ALIKE
                else None
            )
        if values.get("epoch", 0) >= 1 and "target_entropy" in values and "loss" in values:
            chance, least = math.log(2 * batch - 1), values["target_entropy"]
            learnable = least < UNIFORM * chance and values.get("mean_cosine", 0) <= ALIKE
            out["chance"] = (
                f"after {values['epoch']:.3g} epochs the loss, {values['loss']:.2f}, is that of projections that know "
                f"nothing ({chance:.2f}): raise --lr, lower --tau, or train longer"
                if learnable and chance - values["loss"] < LEARNT * (chance - least)
                else None
            )
        if "rankme" in values:
            rank = values["rankme"]
            out["rank"] = (
                f"the features vary along {rank:.1f} directions only (RankMe), collapsed: lower --lr, lengthen "
                "optimiser.warmup_epochs, or start from another --seed"
                if rank < RANK
                else None
            )
        if "data_wait" in values:
            wait = values["data_wait"]
            out["wait"] = (
                f"{wait:.0%} of the time goes by waiting for images: raise --workers (now {self.workers} a rank), put "
                "the shards on a faster disk, or at a smaller size"
                if wait > WAIT.get(self.device, WAIT["cuda"])
                else None
            )
        return out
