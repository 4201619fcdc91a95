"""GenMD4 on rows of two tokens over three ids and the mask: its chain and its bounds by enumeration, in plain numpy."""

import itertools

import numpy as np

SIZE, MASK, LENGTH = 4, 3, 2
POWERS = np.array([0.4, 1.0, 2.5, 1.3])  # the mask's own is of no account
RAW = np.log(np.expm1(POWERS)).astype(np.float32)
STATES = np.array(list(itertools.product(range(SIZE), repeat=LENGTH)))  # [16, 2]: row s is state s
CODE = SIZE ** np.arange(LENGTH)[::-1]
CLEAN = np.flatnonzero((STATES != MASK).all(1))  # [9]
JOINT = np.exp(1.5 * np.random.default_rng(0).normal(size=len(CLEAN)))
JOINT /= JOINT.sum()


def imperfect(t):
    """[state, L, V]: a law of each token that sees the whole noisy row and the time, and knows nothing of the data."""
    logits = 1.5 * np.random.default_rng(1).normal(size=(2, len(STATES), LENGTH, SIZE))
    return _softmax(logits[0] + t * logits[1])


def exact(t):
    """[state, L, V]: the law of each token of `JOINT` given the noisy row, of a mask that says something of its id."""
    table = np.zeros((len(STATES), LENGTH, SIZE))
    weights = JOINT[:, None] * noisy_law(t)[CLEAN]  # [clean, state]
    for place, token in itertools.product(range(LENGTH), range(MASK)):
        table[:, place, token] = weights[STATES[CLEAN, place] == token].sum(0)
    total = table.sum(-1, keepdims=True)
    return np.where(total > 0, table / np.where(total > 0, total, 1.0), np.append(np.full(MASK, 1 / MASK), 0.0))


def noisy_law(t):
    """[clean state, state]: q(x_t | x) with alpha_v(t) = 1 - t^{w_v}."""
    law = np.zeros((len(STATES), len(STATES)))
    for clean, noisy in itertools.product(range(len(STATES)), repeat=2):
        factors = []
        for x, z in zip(STATES[clean], STATES[noisy], strict=True):
            share = t ** POWERS[x]
            factors.append(share if z == MASK else (1 - share) * (x == z))
        law[clean, noisy] = np.prod(factors)
    return law


def step(denoiser, s, t):
    """[state, state]: p(x_s | x_t), a masked position v with mu_v (alpha_v(s) - alpha_v(t)) / (1 - alpha_v(t))."""
    mu = denoiser(t)
    law = np.zeros((len(STATES), len(STATES)))
    for now, then in itertools.product(range(len(STATES)), repeat=2):
        factors = []
        for place, (z, y) in enumerate(zip(STATES[now], STATES[then], strict=True)):
            if z != MASK:
                factors.append(float(y == z))
                continue
            shown = [mu[now, place, v] * (t ** POWERS[v] - s ** POWERS[v]) / t ** POWERS[v] for v in range(MASK)]
            factors.append(1 - sum(shown) if y == MASK else shown[y])
        law[now, then] = np.prod(factors)
    return law


def grid(steps):
    """The times of the sampler: 1 to 0 in equal steps, as (s, t)."""
    return [(1 - (i + 1) / steps, 1 - i / steps) for i in range(steps)]


def chain_law(denoiser, steps):
    """[state]: of the rows after ``steps`` steps from nothing but masks."""
    law = (STATES == MASK).all(1).astype(float)
    for s, t in grid(steps):
        law = law @ step(denoiser, s, t)
    return law


def price(denoiser, t):
    """[clean]: E over x_t of -log mu of the masked tokens."""
    mu = denoiser(t)
    cost = np.zeros((len(CLEAN), len(STATES)))
    for row, (clean, noisy) in itertools.product(range(len(CLEAN)), enumerate(STATES)):
        for place in np.flatnonzero(noisy == MASK):
            cost[row, clean] -= np.log(mu[clean, place, STATES[CLEAN[row], place]])
    return (noisy_law(t)[CLEAN] * cost).sum(1)


def steps_bound(denoiser, times):
    """[clean]: sum of E KL(q(x_s | x_t, x) || p(x_s | x_t)) over pairs (s, t); s = 0 is the reconstruction."""
    total = np.zeros(len(CLEAN))
    for s, t in times:
        mu, law = denoiser(t), noisy_law(t)[CLEAN]
        stay = (s / t) ** POWERS[:MASK]
        for row, noisy in itertools.product(range(len(CLEAN)), range(len(STATES))):
            for place in np.flatnonzero(STATES[noisy] == MASK):
                x, mu_here = STATES[CLEAN[row], place], mu[noisy, place, :MASK]
                kl = -(1 - stay[x]) * np.log(mu_here[x])
                if s > 0:
                    kl += stay[x] * np.log(stay[x] / (mu_here @ stay))
                total[row] += law[row, noisy] * kl
    return total


def _softmax(logits):
    probs = np.exp(logits) * (np.arange(SIZE) != MASK)
    return probs / probs.sum(-1, keepdims=True)
