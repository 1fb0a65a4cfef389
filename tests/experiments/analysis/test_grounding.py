"""Where the words of captions look: which tokens name a thing."""

from __future__ import annotations

from types import SimpleNamespace

from datamodules.records import Box, Caption, Phrase
from experiments.analysis.grounding import naming

LEFT, RIGHT = Box(0, 0, 10, 20), Box(10, 0, 20, 20)


def test_only_phrases_with_boxes_name_a_thing_and_their_last_token_is_the_noun() -> None:
    text = "Two balls in the snow next to a red cube ."
    phrases = (
        Phrase(0, 9, "1", "other", (LEFT, RIGHT)),
        Phrase(13, 21, "2", "scene"),
        Phrase(30, 40, "3", "other", (RIGHT,)),
    )
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(text.split()))}
    tokenizer = lambda word, **_: {"input_ids": [vocabulary[word]]}  # noqa: E731
    network = SimpleNamespace(language=SimpleNamespace(hf_tokenizer=tokenizer))

    ids, named = naming(network, Caption("0", text, phrases))

    assert ids == list(range(11))
    assert named == [(1, (LEFT, RIGHT)), (9, (RIGHT,))]
