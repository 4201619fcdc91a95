"""mdlm_jax.harness against lm-evaluation-harness itself, on tasks made of files (extra ``eval``)."""

import dataclasses
import json
import types

import numpy as np
import pytest

from mdlm_jax.core.process import Process
from mdlm_jax.data.tokenizers import ByteTokenizer
from mdlm_jax.errors import ConfigError
from mdlm_jax.language_model import LanguageModel
from mdlm_jax.loading import save_checkpoint
from mdlm_jax.models.config import TransformerConfig
from mdlm_jax.models.hf.rules import Description
from mdlm_jax.sampling import registry
from tests.generation.models import bytes_model, random_weights

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra eval")
from lm_eval.tasks import TaskManager  # noqa: E402

from mdlm_jax.harness import HarnessModel  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.interop]


def model(attention="bidirectional"):
    """Bytes, random weights; rows of at most 48."""
    tokenizer = ByteTokenizer()
    network = TransformerConfig(tokenizer.vocab_size, tokenizer.vocab_size, layers=1, d_model=16, heads=2, kv_heads=2,
                                d_ff=32, attention=attention, logit_shift=attention == "causal")
    described = Description(network, "", tokenizer.mask_id, None, tokenizer.eos_id, tokenizer.pad_id, 48)
    process = Process(tokenizer.vocab_size, tokenizer.mask_id)
    return LanguageModel(random_weights(network), described, process, tokenizer)


def requests(*arguments):
    return [types.SimpleNamespace(args=one) for one in arguments]


def by_chain_rule(model, prompt, answer):
    """From logits, one token after another."""
    row = model.tokenizer.encode(prompt + answer)
    start, total, greedy = len(model.tokenizer.encode(prompt)), 0.0, True
    for i in range(start, len(row)):
        noisy = row.copy()
        noisy[i:] = model.tokenizer.mask_id
        scores = np.array(model.logits(noisy[None])[0, i], np.float64)
        scores[model.tokenizer.mask_id] = -np.inf
        total += scores[row[i]] - np.logaddexp.reduce(scores)
        greedy &= scores.argmax() == row[i]
    return total, greedy


def test_log_likelihoods_are_those_of_the_whole_text_split_at_the_context():
    own = model()
    found = HarnessModel(model=own, method="chain_rule").loglikelihood(
        requests(("ab", " cd"), ("ab ", "cd"), ("", "xyz"), ("a" * 60, "b")))
    assert found[0] == found[1]  # spaces that end the context are the answer's
    np.testing.assert_allclose(found[0][0], by_chain_rule(own, "ab", " cd")[0], rtol=1e-4)
    np.testing.assert_allclose(found[2][0], by_chain_rule(own, "", "xyz")[0], rtol=1e-4)
    np.testing.assert_allclose(found[3][0], by_chain_rule(own, "a" * 47, "b")[0], rtol=1e-4)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_results_do_not_depend_on_the_batch_nor_on_the_other_requests(attention):
    own = model(attention)
    pairs = [("the cat", " sat on the mat"), ("a", "b"), ("one two three", " four five six seven")]
    generate = [(prompt, {"until": ["\n"], "max_gen_toks": 8}) for prompt, _ in pairs]
    decoding = {} if attention == "causal" else {"decoder": "ancestral", "steps": 4}
    large, small = (HarnessModel(model=own, draws=16, batch_size=size, **decoding) for size in (64, 1))
    together, alone = large.loglikelihood(requests(*pairs)), [small.loglikelihood(requests(one))[0] for one in pairs]
    np.testing.assert_allclose([x for x, _ in together], [x for x, _ in alone], rtol=1e-5)
    assert [hit for _, hit in together] == [hit for _, hit in alone]
    assert large.generate_until(requests(*generate)) == [
        small.generate_until(requests(one))[0] for one in reversed(generate)][::-1]


def test_samples_of_one_request_differ_whatever_the_batch_and_whatever_else_is_asked():
    """As the harness asks for pass@k: the same request several times over."""
    made, told = bytes_model(), {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    large, small = (HarnessModel(model=made, batch_size=size, steps=8) for size in (8, 1))
    samples = large.generate_until(requests(*[("x", told)] * 3))
    assert len(set(samples)) == 3
    assert small.generate_until(requests(*[("x", told)] * 3)) == samples
    mixed = [("y", told), ("x", told), ("x", told | {"max_gen_toks": 4}), ("x", told), ("y", told), ("x", told)]
    found = large.generate_until(requests(*mixed))
    assert [found[i] for i in (1, 3, 5)] == samples and found[0] != found[4]
    assert large.generate_until(requests(("x", told))) == samples[:1]


SAMPLED = {"do_sample": True, "temperature": 5.0}


@pytest.mark.parametrize(("told", "decoding", "greedy"), [
    ({}, {}, True), ({"do_sample": False}, {}, True), ({"temperature": 0.0}, {}, True),
    ({"do_sample": False, "temperature": 5.0}, {}, True), ({"do_sample": True, "temperature": 0.0}, {}, True),
    (SAMPLED, {}, False), ({"temperature": 5.0}, {}, False), ({"do_sample": True}, {}, False),
    (SAMPLED, {"temperature": 0.0}, True), ({}, {"temperature": 5.0}, False), (SAMPLED, {"decoder": "margin"}, False),
])
def test_a_request_samples_where_its_task_does_unless_the_caller_gave_a_temperature(told, decoding, greedy):
    """The default decoder of our own models is ancestral, at temperature 1; a is likelier than b."""
    adapter = HarnessModel(model=bytes_model({"a": 0.0, "b": -0.3}), **decoding)
    answers = adapter.generate_until(requests(*[("x", {"until": [], "max_gen_toks": 8} | told)] * 4))
    assert (answers == ["aaaaaaaa"] * 4) == greedy


def test_a_decoder_that_is_an_object_has_its_temperature():
    made = bytes_model({"a": 0.0, "b": -0.3})
    decoder = registry.make("ancestral", process=made.process, numbers={"temperature": 2.0})
    (answer,) = HarnessModel(model=made, decoder=decoder).generate_until(requests(("x", {"max_gen_toks": 16})))
    assert set(answer) == {"a", "b"}


def test_rolling_asks_for_no_greedy_decoding_and_counts_in_words(monkeypatch, capsys):
    monkeypatch.delattr(LanguageModel, "greedy_match")
    (found,) = HarnessModel(model=bytes_model(), draws=8).loglikelihood_rolling(requests(("ab",)))
    np.testing.assert_allclose(found, 2 * np.log(0.5), rtol=1e-4)
    assert "log-likelihoods: 3/3 forwards (100%)" in capsys.readouterr().err


def test_rolling_windows_count_every_token_once():
    """A causal network of ours scores a first token too; windows of 48 with one token of context."""
    own, text = model("causal"), "abcdefghij" * 11
    (found,) = HarnessModel(model=own).loglikelihood_rolling(requests((text,)))
    ids, total = own.tokenizer.encode(text), 0.0
    for start in range(0, len(ids), 47):
        context = [own.tokenizer.eos_id] if start == 0 else [ids[start - 1]]
        total += float(own.log_likelihood(np.array(context), ids[start : start + 47]).nats)
    last = len(ids) - len(ids) // 47 * 47  # the last window is filled up with context on its left
    total -= float(own.log_likelihood(np.array([ids[-last - 1]]), ids[-last:]).nats)
    total += float(own.log_likelihood(ids[-48:-last], ids[-last:]).nats)
    np.testing.assert_allclose(found, total, rtol=1e-5)


@pytest.fixture
def tasks(tmp_path):
    """A multiple-choice task and one of generation, in the harness's own files."""
    rows = [{"question": f"q{n}", "choices": ["aa", "bb"], "gold": n % 2, "target": "aaaa"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["dataset_path: json", "dataset_kwargs:", "  data_files:", f"    test: {tmp_path / 'rows.jsonl'}",
              "test_split: test", "doc_to_text: '{{question}}'"]
    choice = ["task: local_choice", *common, "output_type: multiple_choice", "doc_to_choice: choices",
              "doc_to_target: gold", "metric_list:", "  - metric: acc"]
    write = ["task: local_write", *common, "output_type: generate_until", "doc_to_target: target",
             "generation_kwargs:", "  until: ['b']", "  max_gen_toks: 4", "metric_list:", "  - metric: exact_match"]
    for name, lines in (("choice", choice), ("write", write)):
        (tmp_path / f"{name}.yaml").write_text("\n".join(lines) + "\n")
    return TaskManager(include_path=str(tmp_path), include_defaults=False)


def test_the_harness_runs_it_from_a_checkpoint(tasks, tmp_path):
    """A model that writes a alone: right where the first choice is, and in every answer."""
    made = bytes_model({"a": 0.0, "b": -3.0})
    made.tokenizer.save(tmp_path / "tokenizer.json")
    save_checkpoint(tmp_path / "model", made, (tmp_path / "tokenizer.json").read_bytes())
    arguments = f"checkpoint={tmp_path / 'model'},draws=8,decoder=low_confidence,temperature=0.0,steps=4"
    found = lm_eval.simple_evaluate("mdlm_jax", arguments, tasks=["local_choice", "local_write"], task_manager=tasks,
                                    bootstrap_iters=0)["results"]
    assert found["local_choice"]["acc,none"] == 0.5 and found["local_write"]["exact_match,none"] == 1.0


def test_a_chat_template_is_rendered_and_its_special_tokens_read(tmp_path):
    made = bytes_model({"a": 0.0})
    made.tokenizer.save(tmp_path / "tokenizer.json")
    save_checkpoint(tmp_path / "model", made, (tmp_path / "tokenizer.json").read_bytes())
    template = "{% for m in messages %}<|pad|>{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}A:{% endif %}")
    adapter = HarnessModel(str(tmp_path / "model"))
    text = adapter.apply_chat_template([{"role": "user", "content": "hi"}])
    assert text == "<|pad|>user: hi<|endoftext|>A:" and adapter.tokenizer_name
    assert adapter._encoded(text)[0] == made.tokenizer.pad_id
    with pytest.raises(ConfigError, match="has no chat_template"):
        HarnessModel(model=made).apply_chat_template([])


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_shifted_network_reads_a_token_before_a_text_that_has_no_context(attention):
    """Dream's kind, and published causal ones; the longest request is what the caller says."""
    made = model("causal")
    described = dataclasses.replace(made.description, family="dream" if attention == "bidirectional" else "llama",
                                    config=dataclasses.replace(made.config, attention=attention))
    shifted = dataclasses.replace(made, description=described)
    (found,) = HarnessModel(model=shifted, method="chain_rule").loglikelihood(requests(("", "xyz")))
    before = np.array([made.tokenizer.eos_id])
    expected = shifted.log_likelihood(before, made.tokenizer.encode("xyz"), method="chain_rule").nats
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    longer = HarnessModel(model=shifted, method="chain_rule", max_length=80)
    assert len(longer._pair("a" * 100, "b")[0]) == 79 and longer.loglikelihood(requests(("a" * 100, "b")))


def test_requests_and_models_that_do_not_fit():
    with pytest.raises(ConfigError, match="checkpoint, model: give one of them"):
        HarnessModel()
    with pytest.raises(ConfigError, match="holds no tokenizer.json"):
        HarnessModel(model=dataclasses.replace(model(), tokenizer=None))
    with pytest.raises(ConfigError, match="is no token of its own"):
        HarnessModel(model=model()).loglikelihood(requests(("a", "")))


MISTAKES = [
    ({"draw": 16}, "draw=16: there is no such option.*did you mean draws"),
    ({"erorr": 0.1}, "erorr=0.1: there is no such option.*did you mean error"),
    ({"temperatur": 0.5}, r"temperatur=0.5.*did you mean temperature\?"),
    ({"draws": 100}, "draws=100: must be a multiple of 8"),
    ({"error": -1}, "error=-1: must be a positive number"),
    ({"method": "bond"}, "method='bond': choose one of bound"),
    ({"method": "chain_rule", "draws": 8}, "draws=8: the chain rule has no noise; leave it out"),
    ({"decoder": "ancestrl"}, "decoder='ancestrl': choose one of ancestral,[^?]*$"),
    ({"temperature": -1.0}, "temperature=-1.0: must be 0"),
    ({"threshold": 0.5}, "threshold=0.5: there is no such option; the decoder ancestral has temperature"),
    ({"decoder": "joint_threshold", "steps": 4}, "steps=4: .*leave them out"),
    ({"block_length": -1}, "block_length=-1: must be a whole number of at least 0$"),
    ({"batch_size": "auto"}, "batch_size='auto': must be a whole number"),
    ({"seed": -1}, "seed=-1: must be a whole number"),
    ({"max_length": 0}, "max_length=0: must be a whole number of at least 1"),
    ({"guidance": -1.0}, "guidance=-1.0: must be a finite number"),
    ({"stop": "x"}, "stop='x': is for the task to say"),
]


@pytest.mark.parametrize(("given", "said"), MISTAKES)
def test_arguments_that_the_model_would_refuse_later(given, said):
    with pytest.raises(ConfigError, match=said):
        HarnessModel(model=bytes_model(), **given)


def test_they_are_refused_before_the_weights_are_read(tmp_path, monkeypatch):
    made = bytes_model()
    made.tokenizer.save(tmp_path / "tokenizer.json")
    save_checkpoint(tmp_path / "model", made, (tmp_path / "tokenizer.json").read_bytes())
    monkeypatch.setattr("mdlm_jax.loading.load", lambda *args, **options: pytest.fail("reads the weights"))
    for given, said in MISTAKES:
        with pytest.raises(ConfigError, match=said):
            HarnessModel(str(tmp_path / "model"), **given)


def test_a_model_of_mixed_noise_answers_though_it_has_no_likelihood_here():
    made = bytes_model()
    mixed = dataclasses.replace(made, process=dataclasses.replace(made.process, mixing=0.1))
    adapter = HarnessModel(model=mixed, draws=8)
    assert len(adapter.generate_until(requests(("x", {"max_gen_toks": 4})))[0]) == 4
    with pytest.raises(ConfigError, match="process.mixing=0.1"):
        adapter.loglikelihood(requests(("a", "b")))
