"""Edit labels against a plain twin, on every pair of short blocks over a tiny vocabulary."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.core import levenshtein

MASK, DELETE, INSERT = 3, 4, 5
IDS = {"mask_id": MASK, "delete_id": DELETE, "insert_id": INSERT}
BLOCKS = np.array(list(itertools.product(range(4), repeat=4)), np.int32)  # drafts: two tokens, mask and one more
TARGETS = np.array(list(itertools.product(range(3), repeat=4)), np.int32)
PAIRS = [np.repeat(BLOCKS, len(TARGETS), 0), np.tile(TARGETS, (len(BLOCKS), 1))]


@functools.partial(jax.jit, static_argnums=2)
def run(drafts, targets, wildcard):
    def one(draft, target):
        found = levenshtein.labels(draft, target, **IDS, wildcard=wildcard)
        after = levenshtein.apply_labels(draft, found, **IDS)
        return levenshtein.anchors(draft, target, mask_id=MASK, wildcard=wildcard), found, after

    return jax.vmap(one)(drafts, targets)


@functools.cache
def everything(wildcard):
    return [np.asarray(x) for x in run(jnp.asarray(PAIRS[0]), jnp.asarray(PAIRS[1]), wildcard)]


def matches(draft, target, wildcard):
    return draft == target or (wildcard and draft == MASK)


def longest(draft, target, wildcard):
    """Length of the longest common subsequence by trying every subset of the draft."""
    for size in range(len(draft), 0, -1):
        for mine in itertools.combinations(range(len(draft)), size):
            for theirs in itertools.combinations(range(len(target)), size):
                if all(matches(draft[i], target[j], wildcard) for i, j in zip(mine, theirs, strict=True)):
                    return size
    return 0


def labelled(draft, target, anchored):
    """The rule, gap by gap."""
    found, previous, begin = [DELETE] * len(draft), -1, 0
    for i, j in enumerate(anchored):
        if j < 0:
            continue
        gap, wanted = range(previous + 1, i), list(target[begin:j])
        for place, token in itertools.zip_longest(gap, wanted[: len(gap)]):
            found[place] = DELETE if token is None else token
        found[i] = INSERT if len(wanted) > len(gap) else target[j]
        previous, begin = i, j + 1
    return found


def applied(draft, marks):
    out = []
    for token, mark in zip(draft, marks, strict=True):
        out += [] if mark == DELETE else [MASK, token] if mark == INSERT else [mark]
    return (out + [MASK] * len(draft))[: len(draft)]


@pytest.mark.parametrize("wildcard", [False, True])
def test_anchors_are_a_longest_common_subsequence(wildcard):
    anchored = everything(wildcard)[0]
    for k in np.random.default_rng(0).choice(len(anchored), 300, replace=False):
        draft, target = PAIRS[0][k], PAIRS[1][k]
        pairs = [(i, j) for i, j in enumerate(anchored[k]) if j >= 0]
        assert all(a[1] < b[1] for a, b in itertools.pairwise(pairs))
        assert all(matches(draft[i], target[j], wildcard) for i, j in pairs)
        assert len(pairs) == longest(draft, target, wildcard)


@pytest.mark.parametrize("wildcard", [False, True])
def test_labels_and_their_application_are_the_rule(wildcard):
    for draft, target, anchored, marks, after in zip(*PAIRS, *everything(wildcard), strict=True):
        assert marks.tolist() == labelled(draft, target, anchored)
        assert after.tolist() == applied(draft, marks)


def test_a_draft_that_is_the_target_is_kept():
    _, marks, after = run(jnp.asarray(TARGETS), jnp.asarray(TARGETS), False)
    np.testing.assert_array_equal(marks, TARGETS)
    np.testing.assert_array_equal(after, TARGETS)


def test_rounds_with_masks_for_wildcards_reach_the_target_from_every_draft():
    now, targets = jnp.asarray(PAIRS[0]), jnp.asarray(PAIRS[1])
    for _ in range(2 * 4):
        now = run(now, targets, True)[2]
    np.testing.assert_array_equal(np.asarray(now), PAIRS[1])


@pytest.mark.parametrize(("draft", "target", "marks"), [
    ([0, 1, 2], [0, 1, 2], [0, 1, 2]),
    ([0, 2], [0, 1, 2], [0, INSERT]),
    ([0, 1, 1, 2], [0, 2], [0, DELETE, DELETE, 2]),
    ([7, 8, 9], [1, 2, 3], [DELETE, DELETE, DELETE]),
    ([7, 0, 9], [1, 0, 2], [1, 0, DELETE]),
])
def test_examples_by_hand(draft, target, marks):
    found = jax.jit(functools.partial(levenshtein.labels, **IDS))(jnp.asarray(draft), jnp.asarray(target))
    assert found.tolist() == marks
