"""Rows of unequal lengths in canvases of few shapes."""

import numpy as np

from mdlm_jax.sampling.rows import Row, batches, bucket


def row(length, start, row_id=0):
    places = np.arange(length)
    return Row(np.where(places >= start, 9, places).astype(np.int32), places >= start, row_id)


def test_lengths_come_four_to_an_octave():
    found = {bucket(length) for length in range(1, 513)}
    assert sorted(found) == [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512]
    assert all(length <= bucket(length) <= max(32, 1.25 * length) for length in range(1, 9000))
    assert bucket(50, most=50) == 50 and bucket(50, most=1000) == 56


def test_every_row_is_in_one_batch_as_it_was():
    rng = np.random.default_rng(0)
    rows = [row(int(n), int(n) // 2, i) for i, n in enumerate(rng.integers(3, 100, 11))]
    seen, lengths = [], []
    for chosen, canvas in batches(rows, 9, batch_size=4, shards=2, context=3):
        tokens, segment = np.asarray(canvas.tokens), np.asarray(canvas.segment)
        assert len(tokens) in (2, 4) and tokens.shape[1] % 3 == 0
        lengths.append(tokens.shape[1])
        for place in range(len(tokens)):
            one = rows[chosen[min(place, len(chosen) - 1)]]  # a batch is filled up with its last row
            size = len(one)
            np.testing.assert_array_equal(tokens[place, :size], one.tokens)
            np.testing.assert_array_equal(np.asarray(canvas.editable)[place, :size], one.editable)
            assert segment[place].sum() == size and (tokens[place, size:] == 9).all()
            assert (canvas.start[place], canvas.row_ids[place]) == (one.start, one.row_id)
        seen += chosen
    assert sorted(seen) == list(range(11)) and lengths == sorted(lengths)


def test_no_batch_is_larger_than_asked():
    rows = [row(8, 4, i) for i in range(31)]
    sizes = [canvas.shape[0] for _, canvas in batches(rows, 9, batch_size=12)]
    assert sizes == [12, 12, 8]  # seven rows in a power of two
    assert [canvas.shape[0] for _, canvas in batches(rows, 9, batch_size=12, shards=8)] == [16, 16, 8]


def test_row_ids_up_to_the_last():
    (_, canvas), = batches([row(4, 2, 2**32 - 1)], 9, batch_size=1, segments=False)
    assert int(canvas.row_ids[0]) == -1 and canvas.segment is None
