"""What launch.sample does with a file of prompts once its options are checked."""

import sys

import numpy as np

from mdlm_jax.generation.answer_file import Answers
from mdlm_jax.generation.answering import write

from ._memory import enough_memory
from ._prompts import encoded
from .run_sample import check, load


def main(options, answers: Answers) -> None:
    """Answers this process's share of the prompts, batch by batch, and joins the output when all is answered."""
    check(options, lambda model: [_given(one.prompt, model.tokenizer) for one in options.prompts])
    with answers:
        if left := answers.open():
            with enough_memory("lower --batch_size or --new_tokens"):
                model, generate = load(options)
                prompts = [one._replace(prompt=_given(one.prompt, model.tokenizer)) for one in options.prompts]
                write(model, answers, left, prompts, num=options.sample.num, new_tokens=options.new_tokens,
                      progress=answers.speaks, **generate)
        missing = answers.join()
    done = len(answers.keys) - missing
    where = answers.output if not missing else "the others are under way, or need the same command again"
    print(f"{done} of {len(answers.keys)} answers: {where}", file=sys.stderr)


def _given(prompt, tokenizer):
    """Text, or token ids: those that stand in the text where nothing else can read it."""
    return np.array(encoded("--prompts", prompt, None, False), np.int32) if tokenizer is None else prompt
