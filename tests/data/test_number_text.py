"""Numbers found in a text are those that Python reads there."""

from __future__ import annotations

import json
import random

import numpy as np

from detector.data.number_text import PADDING, find_numbers, pad

SPECIAL = [
    "0", "1", "00", "01", "0.0", "00.1", ".5", "5.", ".", "..", "1.2.3", "1.2345678901.5",
    "99999999", "123456789", "1234567.8", "0.123456", "0.1234567", "12345678.12345678",
    "0.00000001", "1" * 32, "1" * 33, "0." + "3" * 40, "123.4500",
]  # fmt: skip


def test_every_number_is_found_and_read_exactly():
    draw = random.Random(0)
    written = list(SPECIAL)
    for _ in range(4000):
        written.append(repr(round(draw.uniform(0, 1000), draw.randrange(0, 11))))
        written.append(str(draw.randrange(10 ** draw.randrange(1, 13))))
    draw.shuffle(written)
    gaps = [",", ", ", "],[", "e", "-", '{"a":', "/"]
    text = "".join(word + draw.choice(gaps) for word in written)
    numbers = find_numbers(pad(text.encode()))
    starts, ends = (numbers.starts - PADDING).tolist(), (numbers.ends - PADDING).tolist()
    assert [text[slice(*span)] for span in zip(starts, ends, strict=True)] == written
    assert numbers.is_long.tolist() == [len(word) > 8 for word in written]
    sound = [_is_json(word) and len(word) <= 32 for word in written]
    assert numbers.is_valid.tolist() == sound
    assert (numbers.has_point & sound).tolist() == [
        "." in word and good for word, good in zip(written, sound, strict=True)
    ]
    short = np.array(sound) & ~numbers.is_long
    assert short.sum() > 3000
    expected = [float(word) for word, chosen in zip(written, short, strict=True) if chosen]
    assert numbers.values[short].tolist() == expected


def test_a_number_may_be_first_and_last():
    assert find_numbers(pad(b"7")).values.tolist() == [7]
    assert find_numbers(pad(b"12.5,3")).values.tolist() == [12.5, 3]
    for text in (b"", b"no number"):
        assert len(find_numbers(pad(text)).starts) == 0


def _is_json(word: str) -> bool:
    try:
        json.loads(word)
    except ValueError:
        return False
    return True
