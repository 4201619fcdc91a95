"""The flags of launch.sample and the text of its --help."""

from mdlm_jax.sampling.caching import FORMS

from . import _cli, _decoders, _distributed, _help

FLAGS = (
    _cli.Flag("checkpoint", "DIR", "a run's workdir, its checkpoints folder (the newest whole step is taken), or one "
              "step in it; gs://BUCKET/NAME too; or a Hugging Face directory. Required."),
    _cli.Flag("prompt", "TEXT", "text that every sample starts with; default none. Where the files hold no tokenizer: "
              "token ids, as in '3 1 4'"),
    _cli.Flag("num", "N", "how many samples; default: the run's sample.num, 1 with --prompts", int),
    _cli.Flag("steps", "N", "denoising steps: more is slower and better; default: the run's sample.steps, or as many "
              "as new tokens", int),
    _cli.Flag("temperature", "T", "below 1 sharper, 0 greedy; default: the run's sample.temperature, or the "
              "--decoder's", float),
    _cli.Flag("top_p", "P", "draw from the likeliest tokens that hold this much probability; default: likewise", float),
    _cli.Flag("top_k", "K", "draw from the K likeliest tokens, 0 from all; default: likewise", int),
    _cli.Flag("label", "K", "the class of all samples, for networks with classes; -1: none; default: every class in "
              "turn", int),
    _cli.Flag("labels", "K,K,...", "their classes in turn; as many samples unless --num says otherwise"),
    _cli.Flag("guidance", "W", "towards the class, p(x|class)^(1+W) / p(x)^W, or unsupervised, towards the prompt: "
              "each token follows p(x|prompt)^(1+W) / p(x|masks)^W; for twice the work; default 0, none", float),
    _cli.Flag("seed", "N", "the same seed gives the same samples; default: the run's sample.seed", int),
    _cli.Flag("length", "N", "tokens a sample, prompt included; default: the run's data.length", int),
    _cli.Flag("new_tokens", "N", "tokens a sample, prompt not included, in place of --length; default 128, or what "
              "fits behind the longest prompt", int),
    _cli.Flag("output", "FILE", "write the samples there too; with --prompts a .jsonl file, required; of images .png "
              "(digits) or .npz (tokens and labels)", written=True),
    _cli.Flag("picture", "FILE", "draw the first sample's denoising: an .html page or a .png image", written=True),
    _cli.Flag("live", "", "show the denoising in this terminal as it happens", bool),
    _cli.Flag("prompts", "FILE", "answer every prompt of a file, each once: text, one a line, or .jsonl. The same "
              "command again goes on where it was killed"),
    _cli.Flag("prompt_field", "NAME", "the field of a .jsonl file that holds the prompt; default prompt"),
    _cli.Flag("batch_size", "N", "prompts at a time; default 32", int),
    _cli.Flag("decoder", "NAME", "how a canvas of masks becomes text (below); default: what suits the model"),
    _cli.Flag("twin", "DIR", "the run of train.objective=autoregressive, on the same tokenizer, that --decoder=copula "
              "joins with the model"),
    _cli.Flag("block_length", "N", "write blocks of so many tokens, one after another; 0: everything at once; default: "
              "what suits the model", int),
    _cli.Flag("cache", "NAME", f"{' | '.join(FORMS)}, of keys and values; default: block for block-causal models, else "
              "none"),
    _cli.Flag("grid", "NAME", "uniform | cosine, of the steps' times; default: the decoder's"),
    _cli.Flag("stop", "TEXT", "cut a sample before this text or special token, and write no block after it; several as "
              "a JSON list"),
    _cli.Flag("end", "true|false", "whether the model's end of text ends a sample; default: false for runs without "
              "--prompts, else true", bool),
    _cli.Flag("special", "", "names of special tokens in prompts stand for those tokens (chat templates)", bool),
    _cli.Flag("max_length", "N", "positions that prompt and sample may take; default: what the model was made for",
              int),
    _cli.Flag("mesh", "SPEC", "share weights and rows among the devices here, as in fsdp:-1; default: one device"),
    _cli.Flag("dtype", "NAME", "float32 | bfloat16: compute in it; default: as stored"),
    _cli.Flag("mask_id", "N", "the mask token, where the files do not name one (LLaDA-MoE, LLaDA2)", int),
    _distributed.FLAG,
)

TEXT = """\
Samples from a diffusion language model: one of launch.train, or a published one.

usage: {program} --checkpoint=DIR [--prompt=TEXT] [--num=N] [--steps=N] ...
       {program} --checkpoint=DIR --prompts=FILE --output=FILE.jsonl ...

{flags}

decoders and their numbers

{decoders}

With --prompts every line of the output holds what the prompt's line held, and index, sample, text, finish (eos, stop or
length), tokens and forwards: names that the prompt's line must leave free. Several processes share the prompts: start
them with launch.local, or on a cluster with --distributed. Killed and started again, by any number of processes, the
command answers what is left; an answer depends on the seed and the prompt's line alone, and
without --new_tokens on the room behind the longest prompt.

examples
  {program} --checkpoint=runs/first
  {program} --checkpoint=runs/first --prompt="def main(" --num=2 --steps=128 --temperature=0.8 --live
  {program} --checkpoint=runs/first/checkpoints/00000500 --num=1 --picture=denoising.html
  {program} --checkpoint=runs/digits --labels=0,1,2,3,4,5,6,7,8,9 --guidance=1 --output=digits.png
  {program} --checkpoint=LLaDA-8B-Instruct --prompts=questions.jsonl --output=answers.jsonl --mesh=fsdp:-1

exit status: 0 done, 2 something in the command or its files is wrong, 130 interrupted
"""


def text() -> str:
    """What --help prints."""
    return TEXT.format(program=_help.program("sample"), flags=_help.flag_lines(FLAGS), decoders=_decoders.lines())
