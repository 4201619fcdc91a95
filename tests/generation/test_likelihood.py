"""log p(answer | prompt): against LLaDA's recorded masks, enumeration of all masks, and the chain rule."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mdlm_jax
from mdlm_jax.core.prediction import Prediction
from mdlm_jax.core.process import Process
from mdlm_jax.errors import ConfigError
from mdlm_jax.evaluation.answers import Ruler, log_likelihood, predict, weighted_nats
from mdlm_jax.evaluation.greedy import _surest
from mdlm_jax.models.denoise import Denoiser, as_model
from mdlm_jax.sampling.canvas import canvas
from mdlm_jax.sampling.rows import Row
from tests.generation.models import MASK, tokens_model
from tests.marks import slow_unless
from tests.models.hf.support import GOLDEN

PROMPT, ANSWER = [3, 1, 4], [1, 5, 9]


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def llada():
    return mdlm_jax.load(GOLDEN / "llada_ckpt")


SLOW = slow_unless(["nocfg", "long"])


@pytest.mark.parametrize("case", ["cfg0p5", "single_token", *SLOW])
def test_the_masks_that_llada_drew(case, llada):
    """Its weight is A / k on the masked tokens, and the mask keeps its probability."""
    golden = np.load(GOLDEN / f"llada_loglik_{case}.npz")
    row = np.concatenate([golden["prompt"], golden["answer"]])
    noisy = golden["perturbed"].reshape(-1, len(row))
    answer = np.broadcast_to(np.arange(len(row)) >= len(golden["prompt"]), noisy.shape)
    masked = (noisy == 250) & answer
    assert (masked.sum(1) == golden["n_masked"].reshape(-1)).all()
    shape = canvas(np.broadcast_to(row, noisy.shape), answer)
    guidance = jnp.float32(golden["cfg_scale"]) if golden["cfg_scale"] else None
    measure = jax.jit(functools.partial(weighted_nats, Denoiser(llada.config), Process(256, 250), suppress=False))
    weight = 1 / golden["p_mask"].reshape(noisy.shape)
    found = measure(llada.params, shape, jnp.asarray(noisy, jnp.int32), masked, weight, guidance=guidance)
    means = np.asarray(found).reshape(golden["n_masked"].shape).mean(1)
    np.testing.assert_allclose(-means, golden["per_iter_loss"], rtol=2e-5)
    np.testing.assert_allclose(means.mean(), golden["log_likelihood"], rtol=2e-5)


def smdm_network(params, tokens, time):
    hidden = params["emb"][tokens] + params["pos"][: tokens.shape[-1]]
    mixed = hidden + hidden.mean(-2, keepdims=True) @ params["U"]
    return Prediction.from_logits(jnp.tanh(mixed) @ params["W"])


SMDM = as_model(smdm_network), Process(12, 11, head_size=11)


@pytest.fixture(params=[0, 1])
def smdm(request):
    """Golden arrays, index of the guidance (0 and 0.8), its strength, weights, the row, where its target begins."""
    golden, index = np.load(GOLDEN.parent / "mdm_smdm.npz"), request.param
    weights = {name: jnp.asarray(golden[f"net_{name}"]) for name in ("emb", "pos", "U", "W")}
    guidance = jnp.float32(golden["cfgs"][index]) if golden["cfgs"][index] else None
    return golden, index, guidance, weights, np.concatenate([golden["prefix"], golden["target"]]), len(golden["prefix"])


def test_the_masks_that_smdm_drew(smdm):
    """Its two estimates, by random masks and along the chain, without guidance and with 0.8."""
    golden, index, guidance, weights, row, start = smdm

    def nats(noisy, masked, weight):
        whole = canvas(np.broadcast_to(row, noisy.shape), np.broadcast_to(np.arange(len(row)) >= start, noisy.shape))
        return np.asarray(weighted_nats(*SMDM, weights, whole, jnp.asarray(noisy, jnp.int32), masked, weight,
                                        guidance=guidance))

    noisy = golden[f"mc_noisy_{index}"].reshape(-1, len(row))
    found = nats(noisy, noisy == 11, 1 / golden[f"mc_p_mask_{index}"].reshape(noisy.shape))
    np.testing.assert_allclose(-found.mean(), golden[f"mc_nll_{index}"], rtol=1e-5)
    chain = golden[f"chain_noisy_{index}"]
    next_one = np.arange(len(row)) == start + np.arange(len(chain))[:, None]
    np.testing.assert_allclose(-nats(chain, next_one, 1.0).sum(), golden[f"chain_nll_{index}"], rtol=1e-5)


def test_smdm_s_greedy_match(smdm):
    """Its target is missed; what the network writes itself, the surest token first, is hit."""
    golden, index, guidance, weights, row, start = smdm
    answer = np.arange(len(row)) >= start
    noisy = np.where(answer, 11, row)
    while (noisy[start:] == 11).any():
        whole = canvas(noisy[None], answer[None])
        scores = predict(SMDM[0], weights, whole, jnp.asarray(noisy[None]), jnp.ones(1), 11, guidance).logits()[0]
        sure = np.where(answer & (noisy == 11), jax.nn.log_softmax(scores).max(-1), -np.inf)
        noisy[sure.argmax()] = scores[sure.argmax()].argmax()

    def hit(tokens):
        hidden, right = answer[None].copy(), True
        while right and hidden.any():
            found, position = _surest(*SMDM, 0, weights, canvas(tokens[None], answer[None]), hidden, guidance)
            right, hidden[0, int(position[0])] = bool(found[0]), False
        return right

    assert hit(row) == bool(golden[f"greedy_hit_{index}"]) and hit(noisy)


def log_probs(model, tokens):
    """[B, L, V] without the mask. All calls share one program: nothing sees the rows and places that fill them up."""
    rows, length = np.shape(tokens)
    padding = np.pad(np.ones((rows, length), int), ((0, 16 - rows), (0, 8 - length)), constant_values=((0, 1), (0, 0)))
    scores = model.logits(np.pad(tokens, ((0, 16 - rows), (0, 8 - length))), padding)
    scores = np.array(scores, np.float64)[:rows, :length]
    scores[..., MASK] = -np.inf
    return scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)


def enumerated(model, row, places):
    """E over all masks among ``places`` of (A / k) sum over the masked of log p."""
    total = 0.0
    for k in range(1, len(places) + 1):
        subsets = list(itertools.combinations(places, k))
        noisy = np.tile(row, (len(subsets), 1))
        for one, subset in zip(noisy, subsets, strict=True):
            one[list(subset)] = MASK
        scores = log_probs(model, noisy)
        total += np.mean([scores[i, list(s), row[list(s)]].sum() for i, s in enumerate(subsets)]) / k
    return total


@pytest.mark.parametrize(("method", "draws"), [("bound", 16), ("any_order", 4)])
def test_the_bound_of_a_masked_network_is_the_mean_over_all_masks(method, draws):
    model = tokens_model()
    answer = [*ANSWER, 2, 6]
    row = np.array(PROMPT + answer)
    found = model.log_likelihood([PROMPT] * 64, [answer] * 64, method=method, draws=draws, batch_size=1024)
    expected = enumerated(model, row, [3, 4, 5, 6, 7])
    spread = found.nats.std() / 8
    assert abs(found.nats.mean() - expected) < 4 * spread < 0.5
    np.testing.assert_allclose(np.sqrt(np.mean(found.stderr**2)), found.nats.std(), rtol=0.3)  # the errors are honest
    assert (found.tokens == 5).all() and not found.exact.any()
    assert (found.forwards == (16 if method == "bound" else 20)).all()


def test_few_masks_are_all_taken():
    model = tokens_model()
    expected = enumerated(model, np.array(PROMPT + ANSWER), [3, 4, 5])
    found = model.log_likelihood(PROMPT, ANSWER, draws=8)
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
    assert found.forwards == 7 and found.stderr == 0 and not found.exact


def test_as_many_draws_as_the_error_takes():
    model = tokens_model()
    answer = [*ANSWER, 2, 6, 5, 3, 5, 8]
    every = model.log_likelihood(PROMPT, answer, draws=512, batch_size=64)
    few = model.log_likelihood(PROMPT, answer, error=10.0, batch_size=64)
    assert few.forwards == 64 and few.stderr < 10  # a pilot of 32, and as many again that count
    more = model.log_likelihood(PROMPT, answer, error=float(few.stderr) / 2, draws=512, batch_size=64)
    assert 64 < more.forwards <= 32 + 512 and more.stderr < few.stderr
    assert abs(more.nats - every.nats) < 4 * np.hypot(more.stderr, every.stderr)
    most = model.log_likelihood(PROMPT, answer, error=1e-9, draws=128, batch_size=64)
    assert most.forwards == 32 + 128 and most.stderr > 1e-9
    orders = model.log_likelihood(PROMPT, answer, method="any_order", error=1e-9, draws=16, batch_size=64)
    assert orders.forwards == (8 + 16) * 9


def test_stopping_leans_towards_nothing():
    """A tokens that are all alike: the network knows none where it sees none, and all where it sees one. Only one mask
    in A costs anything, so that draws which agree are the rule, and stopping on them would lose the cost."""
    length, size, pairs = 24, 4, 600

    class AllAlike:
        contract, network = "bidirectional", types.SimpleNamespace(learned_positions=0)

        def run(self, params, call):
            seen = (call.tokens[:, :, None] == jnp.arange(size)).any(1, keepdims=True)
            return Prediction.from_logits(jnp.broadcast_to(40.0 * seen, (*call.tokens.shape, size))), None

    ruler = Ruler(AllAlike(), None, Process(size + 1, size, head_size=size))
    rows = [Row(np.full(length, 2, np.int32), np.ones(length, bool), i) for i in range(pairs)]
    found = log_likelihood(ruler, rows, error=0.3, draws=256, batch_size=4096)
    assert found.nats.mean() == pytest.approx(-np.log(size), abs=4 * found.nats.std() / np.sqrt(pairs))
    assert len(set(found.forwards.tolist())) > 1


def test_a_network_that_reads_the_time_is_measured_without_noise():
    model = tokens_model(conditioning="time", condition_dim=8, time_features=8)
    for how in ({"method": "chain_rule"}, {"draws": 8}):
        found = [model.log_likelihood(PROMPT, ANSWER, seed=seed, **how) for seed in range(2)]
        assert found[0].nats == found[1].nats and found[0].stderr == 0
    assert model.log_likelihood(PROMPT, [7]).nats == model.log_likelihood(PROMPT, [7], seed=1).nats


@pytest.mark.parametrize("attention", ["bidirectional", "block_causal"])
def test_the_chain_rule_is_the_law_of_writing_from_left_to_right(attention):
    """Token i is scored where all after it are hidden, up to the end of its block of 4."""
    model = tokens_model(attention, block_length=4) if attention == "block_causal" else tokens_model()
    row, expected = np.array(PROMPT + ANSWER), 0.0
    for i in (3, 4, 5):
        noisy = row.copy()
        noisy[i:] = MASK
        expected += log_probs(model, noisy[None])[0, i, row[i]]
    found = model.log_likelihood(PROMPT, ANSWER, method="chain_rule")
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
    assert found.exact and found.stderr == 0 and found.forwards == (2 if attention == "block_causal" else 3)


@pytest.mark.parametrize("attention", slow_unless(
    ["bidirectional", "block_causal", "causal"], "bidirectional", "block_causal"))
def test_greedy_match_is_what_one_token_at_a_time_writes(attention):
    model = tokens_model(attention, **({"block_length": 4} if attention == "block_causal" else {}))
    prompts = [[*PROMPT, 2], [1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 0, 1]]
    how = {} if attention == "causal" else {"decoder": "low_confidence", "steps": 4}
    written = [model.generate(one, new_tokens=4, temperature=0.0, stop_id=None, **how).tokens for one in prompts]
    assert model.greedy_match(prompts, written).tolist() == [True] * 3
    for place in range(4):
        wrong = [np.where(np.arange(4) == place, (row + 1) % MASK, row) for row in written]
        assert model.greedy_match(prompts, wrong).tolist() == [False] * 3
    assert model.greedy_match(prompts[0], written[0])


def test_one_token_is_exact_and_costs_one_draw():
    model = tokens_model()
    found = model.log_likelihood(PROMPT, [7], draws=64)
    scores = log_probs(model, np.array([PROMPT + [MASK]]))
    assert found.exact and found.stderr == 0 and found.tokens == 1
    np.testing.assert_allclose(found.nats, scores[0, 3, 7], rtol=1e-5)


@pytest.mark.parametrize("family", ["", "llama"])
def test_a_causal_network_follows_the_chain_rule(family):
    """Ours have a token before every row; published ones need one in the prompt."""
    model = tokens_model("causal", family)
    row = np.array([PROMPT + ANSWER])
    if family:
        scores = np.asarray(jax.nn.log_softmax(model.logits(row)), np.float64)[0]
    else:
        scores = log_probs(model, np.concatenate([[[MASK]], row], axis=1))[0, 1:]
    expected = sum(scores[i, row[0, i]] for i in (3, 4, 5))
    found = model.log_likelihood([PROMPT], [ANSWER])
    np.testing.assert_allclose(found.nats, [expected], rtol=1e-5)
    assert found.exact.all() and not found.stderr.any()


def test_blocks_are_bounded_one_by_one_given_clean_ones_before():
    """Blocks of 4: the answer has one place in the first and two, or four, in the second."""
    model = tokens_model("block_causal", block_length=4)
    row = np.array([*PROMPT, *ANSWER, 2, 6])
    expected = enumerated(model, row[:6], [3]) + enumerated(model, row[:6], [4, 5])
    found = model.log_likelihood(PROMPT, ANSWER, draws=32)
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
    assert found.forwards == 3 and found.stderr == 0 and not found.exact
    expected = enumerated(model, row, [3]) + enumerated(model, row, [4, 5, 6, 7])
    for method, draws in (("bound", 8), ("any_order", 2)):
        found = model.log_likelihood([PROMPT] * 64, [row[3:]] * 64, method=method, draws=draws, batch_size=1024)
        assert abs(found.nats.mean() - expected) < 4 * found.nats.std() / 8 < 0.5
    exact = model.log_likelihood(PROMPT, ANSWER[:2], draws=8)  # one place in each
    np.testing.assert_allclose(
        exact.nats, enumerated(model, row[:5], [3]) + enumerated(model, row[:5], [4]), rtol=1e-5
    )
    assert exact.exact


def test_any_order_is_read_from_left_to_right():
    model = tokens_model("permutation")
    denoise, row = Denoiser(model.config), np.array(PROMPT + ANSWER)
    expected = 0.0
    for i in (3, 4, 5):
        noisy = jnp.asarray([[*row[:i], *[MASK] * (6 - i)]])
        scores = denoise(model.params, noisy).logits()[0, i].at[MASK].set(-jnp.inf)
        expected += float(jax.nn.log_softmax(scores)[row[i]])
    found = model.log_likelihood(PROMPT, ANSWER)
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
    assert found.exact


def test_pairs_do_not_depend_on_their_batch():
    model = tokens_model()
    prompts, answers = [PROMPT, [1], [2, 7, 1, 8, 2]], [ANSWER, [2, 3, 4, 5], [8]]
    together = model.log_likelihood(prompts, answers, draws=8, seed=3, batch_size=8)
    alone = [model.log_likelihood(p, a, draws=8, seed=3, row_ids=[i], batch_size=8)
             for i, (p, a) in enumerate(zip(prompts, answers, strict=True))]
    np.testing.assert_allclose(together.nats, [one.nats for one in alone], rtol=1e-5)
    one_prompt = model.log_likelihood(PROMPT, [ANSWER, [7]], draws=8, batch_size=8)
    assert one_prompt.nats.shape == (2,) and one_prompt.exact.tolist() == [False, True]


@pytest.mark.parametrize(("prompts", "answers", "options", "message"), [
    ([], [], {}, "answers: there are none"),
    ([PROMPT], [ANSWER, ANSWER], {}, "answers: 2 for 1 prompts"),
    ([PROMPT], [np.zeros(0, int)], {}, r"answers\[0\]: is empty"),
    ([PROMPT], [[MASK]], {}, r"answers\[0\]: holds the mask"),
    ([PROMPT], [[12]], {}, r"answers\[0\]: holds the id 12; ids must lie in 0..11"),
    ([PROMPT], ["text"], {}, r"answers\[0\]: is text, and the model's files hold no tokenizer"),
    ([[1] * 62], [ANSWER], {}, r"prompts\[0\]: 62 tokens and an answer of 3 do not fit max_length=64"),
    ([PROMPT], [ANSWER], {"draws": 12}, "draws=12: must be a positive multiple of 8, as 8 or 32: the spread"),
    ([PROMPT], [ANSWER], {"method": "any_order", "draws": 1}, "draws=1: must be at least 2 orders"),
    ([PROMPT], [ANSWER], {"method": "chain_rule", "draws": 8}, "draws=8: the chain rule has no noise"),
    ([PROMPT], [ANSWER], {"method": "mc"}, "method='mc': choose one of bound, any_order, chain_rule"),
    ([PROMPT], [ANSWER], {"error": 0}, "error=0: must be a positive number of nats"),
    ([PROMPT], [ANSWER], {"steps": 12}, "steps: is no option here"),
    ([np.zeros(0, int)], [ANSWER], {"guidance": 1.0}, r"prompts\[0\]: is empty, and guidance=1.0"),
])
def test_mistakes(prompts, answers, options, message):
    with pytest.raises(ConfigError, match=message):
        tokens_model().log_likelihood(prompts, answers, **options)


def test_models_that_do_not_fit():
    with pytest.raises(ConfigError, match="process.mixing=0.2: the bound by counts is for masks alone"):
        tokens_model(mixing=0.2).log_likelihood(PROMPT, ANSWER)
    with pytest.raises(ConfigError, match="guidance=1.0: masks the prompt, which a causal network reads as text"):
        tokens_model("causal").log_likelihood(PROMPT, ANSWER, guidance=1.0)
    with pytest.raises(ConfigError, match="is empty, and this network scores a token from the one before it"):
        tokens_model("causal", "llama").log_likelihood([np.zeros(0, int)], [ANSWER])
