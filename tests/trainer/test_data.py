"""Batches from shards: the same for any number of workers; undecodable images are counted."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from shards.errors import UserError
from shards.reader import Shards
from tests.make import make_shards
from tests.trainer.ranks import Ranks
from trainer import data
from trainer.augment import IMAGENET_MEAN, IMAGENET_STD, AugmentConfig, decode, sample_rng, two_views
from trainer.data import Batch, ViewDataset, batches_of, make_loader, to_views
from trainer.plan import BatchPlan
from trainer.world import World

CPU = torch.device("cpu")


def batches(root: Path, workers: int, start: int = 0, rank: int = 0, size: int = 1, stop: int = 6) -> list[Batch]:
    shards = Shards.open(root)
    plan = BatchPlan(shard_sizes=[s.samples for s in shards.manifest.shards], batch_size=8, seed=5)
    world = World(rank=rank, size=size, device=CPU)
    return list(make_loader(shards, plan, AugmentConfig(image_size=16), world, start=start, stop=stop, workers=workers))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_workers_do_not_change_the_batches(tmp_path: Path, workers: int) -> None:
    root = make_shards(tmp_path)
    for one, other in zip(batches(root, 0), batches(root, workers), strict=True):
        assert torch.equal(one.views, other.views)
        assert torch.equal(one.samples, other.samples)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError(), ConnectionRefusedError()])
def test_a_worker_that_ends_as_it_hands_a_batch_over_has_ended(error: Exception) -> None:
    """The command tells it by these words from other errors (xclr-train, LoaderGone)."""

    def handed() -> Iterator[Batch]:
        yield batch
        raise error

    nothing = torch.zeros(1, dtype=torch.int64)
    batch = Batch(nothing, nothing, nothing, nothing)
    found = batches_of(handed())
    assert next(found) is batch
    with pytest.raises(RuntimeError, match="a DataLoader worker ended"):
        next(found)


def test_a_batch_can_be_sent_field_by_field() -> None:
    """As Lightning does: it copies the batch, then sets each field. It refuses frozen dataclasses."""
    nothing = torch.zeros(1, dtype=torch.int64)
    batch = deepcopy(Batch(nothing, nothing, nothing, nothing))
    for field in fields(batch):
        if field.name != "bad":
            setattr(batch, field.name, getattr(batch, field.name).to("meta"))
    assert batch.views.device.type == batch.labels.device.type == "meta"


def test_a_worker_s_own_error_stays_its_own() -> None:
    def handed() -> Iterator[Batch]:
        raise ConnectionError("Caught ConnectionError in DataLoader worker process 0.")
        yield

    with pytest.raises(ConnectionError, match="Caught"):
        next(batches_of(handed()))
    assert list(batches_of([])) == []


def test_views_are_drawn_by_seed_epoch_and_sample(tmp_path: Path) -> None:
    shards, config = Shards.open(make_shards(tmp_path)), AugmentConfig(image_size=16)
    for step, batch in enumerate(batches(tmp_path, 0)):  # an epoch has four steps
        for views, sample in zip(batch.views, batch.samples.tolist(), strict=True):
            expected = two_views(decode(shards.image(sample)), config, sample_rng(5, step // 4, sample))
            assert torch.equal(views, torch.from_numpy(expected))


def test_ranks_and_resuming_give_the_same_views(tmp_path: Path) -> None:
    root = make_shards(tmp_path)
    whole = batches(root, 0)[2:]
    shares = [batches(root, 0, start=2, rank=rank, size=2) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(batch.views, torch.cat([first.views, second.views]))
        assert torch.equal(batch.texts, torch.cat([first.texts, second.texts]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_stopping_and_going_on_with_other_ranks_and_workers(tmp_path: Path) -> None:
    """Two ranks of two workers for three steps, then four ranks of one: what one process sees in one go."""
    root = make_shards(tmp_path)
    whole = batches(root, 0)
    before = [batches(root, 2, rank=rank, size=2, stop=3) for rank in range(2)]
    after = [batches(root, 1, rank=rank, size=4, start=3) for rank in range(4)]
    joined = [*zip(*before, strict=True), *zip(*after, strict=True)]
    assert len(joined) == len(whole) == 6  # an epoch has four steps
    for batch, shares in zip(whole, joined, strict=True):
        assert torch.equal(batch.views, torch.cat([share.views for share in shares]))
        assert torch.equal(batch.samples, torch.cat([share.samples for share in shares]))


def test_texts_and_labels_belong_to_the_samples(tmp_path: Path) -> None:
    shards = Shards.open(make_shards(tmp_path))
    for batch in batches(tmp_path, 0):
        assert batch.texts.tolist() == shards.index.text_id[batch.samples].tolist()
        assert batch.labels.tolist() == shards.index.label[batch.samples].tolist()


def test_a_batch_is_read_in_the_order_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disks, and the servers behind them, are fast at that alone; the batch keeps the order of the plan."""
    shards = Shards.open(make_shards(tmp_path))
    read, image = list[int](), shards.image

    def noted(sample: int) -> bytes:
        read.append(sample)
        return image(sample)

    monkeypatch.setattr(shards, "image", noted)
    batch = ViewDataset(shards, AugmentConfig(image_size=16), 0).batch([(0, 9), (0, 30), (0, 2)])
    assert read == [2, 9, 30]
    assert batch.samples.tolist() == [9, 30, 2]


def test_undecodable_images_are_counted_and_grey(tmp_path: Path) -> None:
    root = make_shards(tmp_path, bad=(3, 20))
    found = [batch for batch in batches(root, 0) if batch.bad]
    assert {sample for batch in found for sample in batch.bad} <= {3, 20}
    assert sum(len(batch.bad) for batch in batches(root, 0)[:4]) <= 2
    assert found
    assert all((batch.views[(batch.samples == 3) | (batch.samples == 20)] == 128).all() for batch in found)


def test_a_plan_of_other_shards_is_told(tmp_path: Path) -> None:
    shards, config = Shards.open(make_shards(tmp_path, (20, 10))), AugmentConfig(image_size=16)
    for sizes in ((10, 20), (20,), (20, 10, 5)):
        plan = BatchPlan(shard_sizes=sizes, batch_size=5, seed=0)
        with pytest.raises(ValueError, match="the plan is of other shards: its shard_sizes are"):
            make_loader(shards, plan, config, World(device=CPU), start=0, stop=2, workers=0)
    plan = BatchPlan(shard_sizes=[20, 10], batch_size=5, seed=0)
    with pytest.raises(ValueError, match="workers is a number of processes, 0 for none, not -1"):
        make_loader(shards, plan, config, World(device=CPU), start=0, stop=2, workers=-1)


def test_views_are_normalised_with_first_views_first(tmp_path: Path) -> None:
    batch = batches(make_shards(tmp_path), 0)[0]
    views = to_views(batch, CPU)
    assert views.shape == (16, 3, 16, 16)
    assert views.is_contiguous(memory_format=torch.channels_last)
    pixel = batch.views[2, 1, 4, 5].float() / 255
    expected = (pixel - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(views[8 + 2, :, 4, 5], expected)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    own = to_views(batch, CPU, (mean, std))
    torch.testing.assert_close(own[8 + 2, :, 4, 5], (pixel - torch.tensor(mean)) / torch.tensor(std))


def test_too_little_shared_memory_is_said_before_a_worker_dies_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "free_shared_memory", lambda: 10_000)
    with pytest.raises(UserError, match=r"2 loader processes .* /dev/shm: lower --workers, or .*shm-size"):
        batches(make_shards(tmp_path), 2)
    assert len(batches(tmp_path, 0)) == 6


def test_a_batch_of_a_rank_is_two_views_of_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which each worker of each rank of the machine may hold in the shared memory; of bytes, 6,144 here."""
    shards = Shards.open(make_shards(tmp_path, (32,)))
    plan = BatchPlan(shard_sizes=[32], batch_size=8, seed=0)
    world, config = World(size=2, local_size=2, device=CPU), AugmentConfig(image_size=16)

    def ahead(free: int, most: int = 4) -> int | None:
        monkeypatch.setattr(data, "free_shared_memory", lambda: free)
        made = make_loader(shards, plan, config, world, start=0, stop=2, workers=2, most_ahead=most)
        return made.prefetch_factor

    assert ahead(4 * 6144) == 1
    with pytest.raises(UserError, match="4 loader processes"):
        ahead(4 * 6144 - 2)
    assert ahead(1 << 30) == 4
    assert ahead(1 << 30, most=1) == 1


def loader_of(world: World, shards: Path, workers: list[int]) -> int:
    opened = Shards.open(shards)
    plan = BatchPlan(shard_sizes=[shard.samples for shard in opened.manifest.shards], batch_size=4, seed=0)
    config = AugmentConfig(image_size=16)
    return make_loader(opened, plan, config, world, start=0, stop=2, workers=workers[world.rank]).num_workers


def ahead_of(world: World, shards: Path, free: list[int]) -> int | None:
    opened = Shards.open(shards)
    plan = BatchPlan(shard_sizes=[12], batch_size=4, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "free_shared_memory", lambda: free[world.rank])
        made = make_loader(opened, plan, AugmentConfig(image_size=16), world, start=0, stop=2, workers=1)
    return made.prefetch_factor


def test_ranks_go_by_the_least_shared_memory_of_all(tmp_path: Path, ranks: Ranks) -> None:
    shards = make_shards(tmp_path / "shards", sizes=(12,), classes=3)
    assert ranks(2, ahead_of, shards, [1 << 40, 2 * 3072]) == [1, 1]  # two batches of 3,072 bytes


def test_ranks_may_have_workers_or_none(tmp_path: Path, ranks: Ranks) -> None:
    """They ask each other for the shared memory, whether they need it or not."""
    shards = make_shards(tmp_path / "shards", sizes=(12,), classes=3)
    assert ranks(2, loader_of, shards, [0, 2]) == [0, 2]
