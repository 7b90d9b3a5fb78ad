"""The objective `clip`: its loss, its text tower, and how captions become numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from tests.trainer.small import ALONE
from trainer.clip import clip_loss
from trainer.recipe import TextConfig
from trainer.text import BEGIN, END, FIRST_WORD, PAD, Captions, TextTower, vocabulary


def test_clips_temperature_comes_back_from_its_bound() -> None:
    tower = TextTower(TextConfig(width=32, layers=1, heads=2), 4, 8, 0.001)
    assert float(tower.log_scale.detach().exp()) == pytest.approx(100)
    with torch.no_grad():
        tower.log_scale.fill_(9.0)
    tower.bound()
    assert float(tower.log_scale.detach().exp()) == pytest.approx(100)
    tower(torch.tensor([[BEGIN, END]])).sum().backward()
    assert float(tower.log_scale.grad) != 0


def test_clip_loss_and_its_gradient_are_by_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(10, 4, generator=generator), 7 * torch.randn(5, 4, generator=generator)
    z, text = (x.double().requires_grad_() for x in given)
    total = torch.zeros((), dtype=torch.float64)
    for view in (z[:5], z[5:]):
        for i in range(5):
            logits = [functional.normalize(view[i], dim=0) @ text[j] for j in range(5)]
            back = [functional.normalize(view[j], dim=0) @ text[i] for j in range(5)]
            for row in (logits, back):
                total = total - torch.stack(row).log_softmax(0)[i] / (4 * 5)
    total.backward()  # type: ignore[no-untyped-call]
    ours = [x.clone().requires_grad_() for x in given]
    found = clip_loss(*ours, ALONE)
    found.backward()  # type: ignore[no-untyped-call]
    assert found.item() == pytest.approx(total.item(), abs=1e-5)
    for x, expected in zip(ours, (z, text), strict=True):
        torch.testing.assert_close(x.grad, expected.grad.float(), atol=1e-6, rtol=1e-5)  # type: ignore[union-attr]


def test_the_text_tower_learns_its_temperature_and_reads_to_the_end() -> None:
    torch.manual_seed(0)
    tower = TextTower(TextConfig(width=16, layers=1, heads=2, length=8), words=4, out=6, tau=0.1)
    short = torch.tensor([[BEGIN, FIRST_WORD, END]])
    padded = torch.tensor([[BEGIN, FIRST_WORD, END, PAD, PAD]])
    torch.testing.assert_close(tower(short), tower(padded))
    assert float(tower(short).detach().norm()) == pytest.approx(10, rel=1e-5)
    other = torch.tensor([[BEGIN, FIRST_WORD + 1, END]])
    assert not torch.allclose(tower(short), tower(other))
    tower(short).sum().backward()
    assert tower.log_scale.grad is not None


def test_captions_become_words_and_unknown_words_bytes() -> None:
    texts = ["a red star\na star, red", "a Blue star"]
    words = vocabulary(texts, 10)
    assert words == ["a", "star", "red"]  # blue comes once
    captions = Captions(texts, words, length=8)
    assert captions.encode("A star") == [BEGIN, FIRST_WORD, FIRST_WORD + 1, END]
    assert captions.encode("é") == [BEGIN, *"é".encode(), END]
    assert len(captions.encode("a " * 50)) == 8
    first, second = (captions.tokens(torch.tensor([0]), torch.tensor([4]), epoch) for epoch in (0, 1))
    assert first[0].tolist() == captions.encode("a red star")
    assert second[0].tolist() == captions.encode("a star, red")
    other = captions.tokens(torch.tensor([0]), torch.tensor([5]), 0)  # another sample of the text
    assert other[0].tolist() == second[0].tolist()
    both = captions.tokens(torch.tensor([0, 1]), torch.tensor([0, 0]), 0)
    assert (both[0] == PAD).sum() == len(captions.encode("a Blue star")) - len(captions.encode("a red star"))
