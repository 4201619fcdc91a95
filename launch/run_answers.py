"""What launch.sample does with a file of prompts once its options are checked."""

import sys

import numpy as np

from mdlm_jax.training.progress import Progress

from ._answers import Answers, Key
from ._memory import enough_memory
from ._prompts import encoded
from .run_sample import check, load


def main(options, answers: Answers) -> None:
    """Answers this process's share of the prompts, batch by batch, and joins the output when all is answered."""
    check(options, lambda model: [_given(one.prompt, model.tokenizer) for one in options.prompts])
    left = answers.open()
    if left:
        with enough_memory("lower --batch_size or --new_tokens"):
            _answer(options, answers, left)
    missing = answers.join()
    done = len(answers.keys) - missing
    where = answers.output if not missing else "the others are under way, or need the same command again"
    print(f"{done} of {len(answers.keys)} answers: {where}", file=sys.stderr)


def _answer(options, answers: Answers, left: list[Key]) -> None:
    model, generate = load(options)
    prompts, size = {one.index: one for one in options.prompts}, options.generate.get("batch_size", 32)
    given = {index: _given(one.prompt, model.tokenizer) for index, one in prompts.items()}
    left = sorted(left, key=lambda key: len(given[key[0]]))  # alike, so that little is padding
    share = len(answers.share())
    before = share - len(left)
    with Progress(share, before, desc="answers", unit="answer", shown=answers.speaks) as progress:
        for begin in range(0, len(left), size):
            keys = left[begin : begin + size]
            found = model.generate(
                [given[index] for index, _ in keys], new_tokens=options.new_tokens,
                row_ids=[index * options.sample.num + sample for index, sample in keys], **generate,
            )
            answers.add([_line(prompts[key[0]].fields, key, one) for key, one in zip(keys, found, strict=True)])
            progress.update(before + begin + len(keys))


def _given(prompt, tokenizer):
    """Text, or token ids: those that stand in the text where nothing else can read it."""
    return np.array(encoded("--prompts", prompt, None, False), np.int32) if tokenizer is None else prompt


def _line(fields: dict, key: Key, one) -> dict:
    found = {"index": key[0], "sample": key[1], "text": one.text, "finish": one.finish, "tokens": len(one.tokens),
             "forwards": one.forwards}
    if one.text is None:
        found["token_ids"] = one.tokens.tolist()
    return fields | found
