"""Captions of the embedded data set: sentences that name an object, its colour and its texture.

The caption is all X-CLR learns from, so its wording decides what the encoder cares about. Two choices follow:

- No caption mentions the background. A caption says which part of a picture matters, and here that is the object; one
  that named the ground too would make pictures of unlike objects on like grounds similar, and teach the very
  correlation that the test variants are there to expose.
- The object is named early or as the head of the sentence, colour and texture as adjectives or afterthoughts. Sentence
  encoders weigh the head most, so that texts sharing the object lie closest, then those sharing a colour or texture.

With 36 sentences for 280 combinations, 6,000 draws give some 4,500 different texts: about as many images share a text
with another image as not, as in real collections.
"""

from __future__ import annotations

import re

import numpy as np

__all__ = ["TEMPLATES", "caption"]

# What a texture is called as an adjective and after a noun.
PATTERNS = {
    "plain": "without any pattern",
    "striped": "with stripes",
    "spotted": "with spots",
    "checkered": "with checks",
}

# {object} and {colour} are names; {texture} is the adjective, {pattern} the phrase that goes after a noun.
TEMPLATES = (
    "a {colour} {texture} {object}",
    "a {texture} {colour} {object}",
    "a {object}, {colour} and {texture}",
    "a {object} that is {texture} and {colour}",
    "a {object} in {colour}, {texture}",
    "a {colour} {object} {pattern}",
    "one {object}, {colour}, {pattern}",
    "there is a {object}, {colour} and {texture}",
    "there is a {texture} {object} and it is {colour}",
    "there is one {colour} {object} {pattern}",
    "the {object} is {colour} and {texture}",
    "the {object} here is {texture}, in {colour}",
    "the {object} is {colour} {pattern}",
    "this {object} is {texture} and {colour}",
    "this is a {object}, a {colour} one {pattern}",
    "this is a {colour} {texture} {object}",
    "a photo of a {object}, {colour} and {texture}",
    "a photo of a {texture} {colour} {object}",
    "a picture of a {object}, {colour}, {pattern}",
    "a picture of a {colour} {texture} {object}",
    "an image of a {object} in {texture} {colour}",
    "a close view of a {colour} {object} {pattern}",
    "here is a {object} and it is {colour} and {texture}",
    "here is a {texture} {object} in {colour}",
    "look at the {object}, {colour} and {texture}",
    "you can see a {object}, {texture} and {colour}",
    "we see a {colour} {object} {pattern}",
    "somebody left a {object} here, a {colour} {texture} one",
    "some {object}, {texture}, {colour}",
    "just a {object}: {colour}, {texture}",
    "{object}, {colour}, {texture}",
    "{object} in {colour} {pattern}",
    "{texture} {object}, {colour}",
    "{colour} {object}, {texture}",
    "it is a {object}, {texture} and {colour}",
    "that {colour} {object} is {texture}",
)


def caption(object: str, colour: str, texture: str, rng: np.random.Generator) -> str:
    """One sentence about the object, drawn from TEMPLATES."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    words = template.format(object=object, colour=colour, texture=texture, pattern=PATTERNS[texture])
    return re.sub(r"\ba(?= [aeiou])", "an", words)
