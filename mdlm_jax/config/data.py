"""The ``data`` section of a run."""

import dataclasses
import math

from mdlm_jax.config.choices import CHAT_TEMPLATES, DETOKENIZERS, parse_spec, require_seed
from mdlm_jax.errors import ConfigError, require

PACKINGS = ("concat", "documents", "wrapped")
LINES = (".jsonl", ".jsonl.gz", ".json.gz")  # one object a line
RECORDS = (*LINES, ".parquet")
DIGITS_LENGTH = 64


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from. The same fields, the same tokens: batch(step) is a pure function of them. A path
    is a folder, a text file, a .jsonl, .jsonl.gz, .json.gz or .parquet; prepared:DIR holds the rows that
    launch.prepare made, mixture:0.7*DIR,0.3*DIR mixes several; digits and codes:PATH are images as rows of codes with
    their classes, PATH an .npz or a folder with tokens and labels; trajectories:DIR what launch.trajectories wrote."""

    source: str = "stdlib"  # stdlib | a path | tfds: | language: | prepared: | mixture: | digits | codes: and others
    codes: int = 0  # codes:PATH only: size of the codebook; 0: one more than the largest code
    data_dir: str = ""  # tfds only: the prepared data_dir
    text_field: str = "text"  # jsonl, parquet and tfds only: which field holds the text
    prompt_field: str = ""  # jsonl only: the field with the prompt that the text answers; a row is one such pair
    messages_field: str = ""  # jsonl only: the field with a conversation, [{role, content}, ...]; an answer, a row
    chat_template: str = "chatml"  # with messages_field: how it is written down; one of CHAT_TEMPLATES
    prompt_loss: bool = False  # prompts are noised and counted as well, as text is
    answer_multiple: int = 0  # with prompt_field: end tokens fill answers to a multiple of so many; 0: to the row's end
    detokenizer: str = ""  # rules for a corpus whose words and signs are set apart, one of DETOKENIZERS; "": none
    tokenizer: str = "byte"  # byte | text8 | bpe:VOCAB_SIZE (at most; trained on the training split) | a tokenizer.json
    length: int = 256  # tokens a row
    packing: str = "concat"  # concat: over document ends | documents: attention stops there | wrapped: in [BOS] [EOS]
    valid_fraction: float = 0.05  # share of the documents held out, by a hash of their names (tfds: its own split)
    valid_last: int = 0  # hold out the last so many documents instead; 0: by valid_fraction
    random_length: float = 0.0  # share of the training rows cut to a random length, as LLaDA; the rest is padding
    length_warmup: str = ""  # FROM:STEPS: training rows are cut; where rises from FROM to data.length in STEPS steps
    seed: int = 0  # order of the rows

    def __post_init__(self):
        require(bool(self.source), "data.source", self.source, "must be stdlib, a path, tfds:NAME or language:NAME")
        require(self.length >= 2, "data.length", self.length, "must be at least 2")
        require_seed("data.seed", self.seed)
        require(0.0 < self.valid_fraction < 1.0, "data.valid_fraction", self.valid_fraction, "must lie in (0, 1)")
        require(self.packing in PACKINGS, "data.packing", self.packing, f"choose one of {', '.join(PACKINGS)}")
        require(row_tokens(self.length, self.packing) > 0, "data.length", self.length,
                 "must be at least 3 with data.packing=wrapped")
        if self.detokenizer:
            parse_spec("data.detokenizer", self.detokenizer, DETOKENIZERS)
        _check_split(self)
        if self.tokenizer == "bpe" or self.tokenizer.startswith("bpe:"):
            size = self.tokenizer.partition(":")[2]
            require(size.isdigit() and 260 <= int(size) <= 1_000_000, "data.tokenizer", self.tokenizer,
                     "write bpe:VOCAB_SIZE with a size from 260 to 1000000, as in bpe:4096")
        if self.text_field != DataConfig.text_field:
            require(self.source.startswith("tfds:") or self.source.endswith(RECORDS),
                     "data.text_field", self.text_field,
                     f"is read only from .jsonl and .parquet files and tfds, not from {self.source!r}; leave it out")
        if self.answers:
            _check_fields(self)
            require(self.packing == "concat", "data.packing", self.packing,
                     "rows of prompts and answers are not packed; leave it out")
            require(not self.detokenizer, "data.detokenizer", self.detokenizer,
                     "is for running text, not for prompts and answers; leave it out")
            for name, off in (("random_length", 0.0), ("length_warmup", "")):
                require(getattr(self, name) == off, f"data.{name}", getattr(self, name),
                         "would cut answers off; with data.prompt_field leave it out")
        else:
            for name in ("answer_multiple", "prompt_loss"):
                require(not getattr(self, name), f"data.{name}", getattr(self, name),
                         "has no meaning without data.prompt_field; leave it out")
        require(bool(self.messages_field) or self.chat_template == DataConfig.chat_template, "data.chat_template",
                self.chat_template, "has no meaning without data.messages_field; leave it out")
        parse_spec("data.chat_template", self.chat_template, CHAT_TEMPLATES)
        require(0 <= self.answer_multiple <= self.length, "data.answer_multiple", self.answer_multiple,
                 f"must lie in [0, data.length={self.length}]")
        if self.data_dir:
            require(self.source.startswith("tfds:"), "data.data_dir", self.data_dir,
                     f"is read only with data.source=tfds:NAME, not with {self.source!r}; leave it out")
        _check_images(self)
        require(0.0 <= self.random_length <= 1.0, "data.random_length", self.random_length, "must lie in [0, 1]")
        parse_warmup(self.length_warmup, self.length)
        if parse_prepared(self.source):
            for name in ("valid_fraction", "valid_last"):
                require(getattr(self, name) == getattr(DataConfig, name), f"data.{name}", getattr(self, name),
                         "was settled when the rows were prepared; leave it out")

    @property
    def answers(self) -> bool:
        """Whether a row is a prompt and its answer."""
        return bool(self.prompt_field or self.messages_field)


def _check_fields(data: DataConfig) -> None:
    for name in ("prompt_field", "messages_field"):
        value = getattr(data, name)
        require(not value or data.source.endswith(LINES), f"data.{name}", value,
                f"is read only from .jsonl files, not from {data.source!r}; leave it out")
    require(data.prompt_field != data.text_field, "data.prompt_field", data.prompt_field,
            "names the same field as data.text_field; name two")
    if data.messages_field:
        for name in ("prompt_field", "text_field"):
            value = getattr(data, name)
            require(value == getattr(DataConfig, name), f"data.{name}", value,
                    f"is not read with data.messages_field={data.messages_field!r}; leave it out")


def _check_split(data: DataConfig) -> None:
    require(data.valid_last >= 0, "data.valid_last", data.valid_last, "must not be negative; 0 is by valid_fraction")
    if data.valid_last:
        require(data.valid_fraction == DataConfig.valid_fraction, "data.valid_fraction", data.valid_fraction,
                 f"is not read with data.valid_last={data.valid_last}; leave one of them out")


def row_tokens(length: int, packing: str) -> int:
    """Tokens of the joined documents that a row of ``length`` holds: two fewer where it is wrapped."""
    return length - 2 if packing == "wrapped" else length


def is_images(source: str) -> bool:
    """Whether the rows are images, with a class each."""
    return source == "digits" or source.startswith("codes:")


def _check_images(data: DataConfig) -> None:
    codes = data.source.startswith("codes:")
    require(data.codes >= 0, "data.codes", data.codes, "must not be negative; 0 goes by the largest code")
    require(codes or not data.codes, "data.codes", data.codes, f"is read only with data.source=codes:PATH, not with "
             f"{data.source!r}; leave it out")
    if not is_images(data.source):
        return
    require(data.source != "codes:", "data.source", data.source, "names no file; write codes:PATH")
    require(codes or data.length == DIGITS_LENGTH, "data.length", data.length,
             f"digits have 8 x 8 pixels; set it to {DIGITS_LENGTH}")
    for name in ("tokenizer", "detokenizer", "packing", "valid_last", "random_length", "length_warmup"):
        value, default = getattr(data, name), getattr(DataConfig, name)
        require(value == default, f"data.{name}", value, f"has no meaning for images, and data.source={data.source!r}; "
                 "leave it out")


def parse_warmup(text: str, length: int) -> tuple[int, int]:
    """``"FROM:STEPS"`` as two numbers; (``length``, 0) where it is empty. ConfigError for anything else."""
    if not text:
        return length, 0
    first, _, steps = text.partition(":")
    good = first.isdigit() and steps.isdigit() and 1 <= int(first) < length and int(steps) >= 1
    require(good, "data.length_warmup", text,
             f"write FROM:STEPS with 1 <= FROM < data.length={length} and STEPS >= 1, as in 1:1000")
    return int(first), int(steps)


def parse_prepared(source: str) -> tuple[tuple[float, str], ...]:
    """The folders that ``prepared:DIR`` or ``mixture:WEIGHT*DIR,WEIGHT*DIR`` names, each with its weight.

    Returns:
      (weight, folder) each; weights as written, () for every other kind of source.

    Raises:
      ConfigError: no folder, a weight that is no positive number, the same folder twice.
    """
    kind, _, rest = source.partition(":")
    if kind == "prepared":
        require(bool(rest), "data.source", source, "names no folder; write prepared:DIR")
        return ((1.0, rest),)
    if kind != "mixture":
        return ()
    parts = [part.partition("*") for part in rest.split(",")]
    try:
        found = tuple((float(weight), folder) for weight, _, folder in parts)
    except ValueError:
        found = ()
    if not found or not all(folder and math.isfinite(weight) and weight > 0 for weight, folder in found):
        raise ConfigError(f"data.source={source!r}: write mixture:WEIGHT*DIR,WEIGHT*DIR with positive weights, as in "
                          "mixture:0.7*web,0.3*code")
    folders = [folder for _, folder in found]
    require(len(set(folders)) == len(folders), "data.source", source, "names a folder twice; add its weights up")
    return found
