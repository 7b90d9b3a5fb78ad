"""Does the encoder learn? Nearest neighbours among a fixed sample of the training images, as the run goes on.

With labels: accuracy of a weighted kNN vote. Without: how much more similar the captions of an image and of its
nearest image are than those of random pairs. Of a graph with codes: how far the order of all pairs follows the graph's.
All leave the image itself out and watch training data, so they say whether a run is alive, not how well it will score.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from shards.errors import UserError
from shards.graph import Graph
from shards.reader import Shards
from trainer.augment import BadImage, Image8, decode
from trainer.data import IMAGENET, Batch, to_views
from trainer.model import Encoder
from trainer.recipe import Statistics

__all__ = ["Monitor", "mostly_labelled"]

SAMPLES = 1024
MOSTLY = 0.5
BYTES = 1 << 29  # of their images: beyond 418 pixels fewer are looked at
NEIGHBOURS = 10
TEMPERATURE = 0.07  # of the kNN vote (Wu et al. 2018)


class Monitor:
    """Holds the decoded images of a seeded sample; `measure` embeds them. Raises UserError where there are too few."""

    def __init__(
        self, shards: Shards, graph: Graph | None, image_size: int, seed: int, statistics: Statistics = IMAGENET
    ) -> None:
        self.statistics = statistics
        rng = np.random.default_rng(seed)
        most = max(2, min(SAMPLES, BYTES // (3 * image_size**2)))
        chosen = np.sort(rng.permutation(_pool(shards))[:most])
        images = np.empty((len(chosen), 1, image_size, image_size, 3), np.uint8)
        kept: list[int] = []
        for sample in chosen:
            try:
                images[len(kept), 0] = _whole(decode(shards.image(int(sample))), image_size)
                kept.append(int(sample))
            except BadImage:
                continue  # counted when training meets it
        if len(kept) < 2:
            raise UserError(
                f"of {len(chosen)} pictures of {shards.root} for the online kNN {len(kept)} can be read: look at the"
                " source, or set run.knn_every = 0"
            )
        self.images = torch.from_numpy(images[: len(kept)])  # [n, 1, size, size, 3]
        labels = shards.index.label[kept]
        self.labels = torch.from_numpy(labels.astype(np.int64)) if (labels >= 0).all() else None
        texts = shards.index.text_id[kept]
        self.codes: torch.Tensor | None = None
        if graph is not None and graph.codes is not None and graph.code_scale is not None:
            codes = graph.codes[texts].astype(np.float32) * graph.code_scale[texts, None]
            self.codes = torch.from_numpy(codes)
        one, other = np.triu_indices(len(texts), 1)
        self.pairs = torch.from_numpy(np.stack([one, other])[:, texts[one] != texts[other]])

    @torch.no_grad()
    def measure(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """knn (labelled) or knn_similarity (captioned); RankMe, the effective rank of the features; graph_correlation,
        Spearman's, of the features' cosines with the codes' similarities, over pairs of different texts. Nothing where
        features are not finite."""
        training = encoder.training
        encoder.eval()
        parts = []
        for images in torch.split(self.images, 256):
            ids = torch.zeros(len(images), dtype=torch.int64)
            parts.append(encoder.features(to_views(Batch(images, ids, ids, ids), device, self.statistics)).cpu())
        encoder.train(training)
        features = torch.cat(parts)
        if not features.isfinite().all():
            return {}
        values = {"rankme": _rankme(features)}
        similarity = functional.normalize(features, dim=1) @ functional.normalize(features, dim=1).T
        similarity.fill_diagonal_(-torch.inf)
        top, nearest = similarity.topk(min(NEIGHBOURS, len(features) - 1), dim=1)
        if self.labels is not None:
            votes = torch.zeros(len(features), int(self.labels.max()) + 1)
            votes.scatter_add_(1, self.labels[nearest], (top / TEMPERATURE).softmax(1))
            values["knn"] = float((votes.argmax(1) == self.labels).float().mean())
        elif self.codes is not None:
            near = (self.codes * self.codes[nearest[:, 0]]).sum(1).mean()
            n = len(self.codes)
            random = (self.codes.sum(0).square().sum() - self.codes.square().sum()) / (n * (n - 1))
            values["knn_similarity"] = float(near - random)
        if self.codes is not None and self.pairs.shape[1] > 1:
            one, other = self.pairs
            ranked = [_ranks(x[one, other]) for x in (similarity, self.codes @ self.codes.T)]
            correlation = float(torch.corrcoef(torch.stack(ranked))[0, 1])
            if math.isfinite(correlation):  # where all pairs are alike, to one or the other, there is no order
                values["graph_correlation"] = correlation
        return values


def mostly_labelled(shards: Shards) -> bool:
    """Whether labels say how well the encoder does: of samples that have one."""
    return bool((shards.index.label >= 0).mean() >= MOSTLY) if len(shards) else False


def _pool(shards: Shards) -> npt.NDArray[np.int64]:
    """Samples to choose from: all, or of the first shards enough, where any shard is a random share of all; of mostly
    labelled ones those with a label.

    A sample of all would fetch every tar of shards that are read by URL.
    """
    count = len(shards)
    if shards.manifest.layout != "in-place":
        sizes = np.cumsum([shard.samples for shard in shards.manifest.shards])
        count = int(sizes[min(int(np.searchsorted(sizes, SAMPLES)), len(sizes) - 1)])
    if not mostly_labelled(shards):
        return np.arange(count)
    return np.flatnonzero(shards.index.label[:count] >= 0)


def _ranks(x: torch.Tensor) -> torch.Tensor:
    """Of each value among all, [n] float64; equal ones share the mean of theirs."""
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    ranks: torch.Tensor = (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]
    return ranks


def _rankme(features: torch.Tensor) -> float:
    """exp of the entropy of the normalised singular values (Garrido et al. 2023)."""
    singular = torch.linalg.svdvals(features - features.mean(0))
    if not singular.sum() > 0:
        return 1.0  # all features are one: collapsed, which 0 / 0 would not say
    share = singular / singular.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def _whole(image: Image8, size: int) -> Image8:
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))
