"""Flags and their errors, without a process: launch/_cli.py and launch/_help.py."""

import ast
import dataclasses
import tokenize
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import _cli, _help
from mdlm_jax import config as config_module
from mdlm_jax.config import ConfigError, RunConfig
from mdlm_jax.data.languages.registry import LANGUAGES

FLAGS = (
    _cli.Flag("workdir", "DIR", "a folder"),
    _cli.Flag("num", "N", "how many", int),
    _cli.Flag("dry_run", "", "", bool),
)


def parse(*argv, config=True):
    return _cli.parse(argv, FLAGS, config=config)


def test_both_spellings_and_every_type():
    arguments = parse(
        "--workdir",
        "a b",
        "--num=3",
        "--dry_run",
        "--config.train.steps",
        "7",
        "--config.process.mixing=1e-1",
        "--config.model.tied=true",
        "--config.train.half_head",
        "false",
        "--config.data.source=x=y",
        "--config.process.eps=1",
    )
    assert arguments.flags == {"workdir": "a b", "num": 3, "dry_run": True}
    assert arguments.overrides == {
        "train.steps": 7,
        "process.mixing": 0.1,
        "model.tied": True,
        "train.half_head": False,
        "data.source": "x=y",
        "process.eps": 1.0,
    }
    assert type(arguments.overrides["process.eps"]) is float


def test_the_last_of_two_wins_and_switches_can_be_undone():
    assert parse("--num=3", "--num=4").flags == {"num": 4}
    assert parse("--dry_run=false").flags == {"dry_run": False}


def test_negative_numbers_are_values():
    assert parse("--num", "-3").flags == {"num": -3}
    assert parse("--config.train.mesh", "fsdp:-1").overrides == {"train.mesh": "fsdp:-1"}


def test_help_wins_over_every_mistake():
    assert parse("--nonsense", "--help").help and parse("-h").help


@pytest.mark.parametrize(
    ("argument", "fragments"),
    [
        ("--wrokdir=x", ["--wrokdir", "no such flag", "did you mean --workdir?"]),
        ("--steps=3", ["did you mean --config.train.steps or --config.sample.steps?"]),
        ("--config.steps=3", ["did you mean --config.train.steps or --config.sample.steps?"]),
        ("--config.trian.warmup_steps=3", ["no such section", "did you mean --config.train.warmup_steps?"]),
        ("--config.train.step=3", ["no such field", "did you mean --config.train.steps?"]),
        ("--config.train.lr=3", ["did you mean --config.train.learning_rate or --config.train.lora_rank?"]),
        ("--config.train.bs=3", ["did you mean --config.train.batch_size or --config.train.block_schedule?"]),
        ("--config.train.d_model=3", ["no such field; did you mean --config.model.d_model?"]),
        ("--config.train.zzzzzzzzzzzz=3", ["no such field"]),
        ("--config.train=3", ["is a section", "--config.train.steps=VALUE"]),
        ("--config.train.steps.x=3", ["no such field"]),
        ("--config.train.steps", ["needs a value"]),
        ("--config.train.steps=", ["--config.train.steps=", "a whole number"]),
        ("--config.train.steps=1.5", ["--config.train.steps=1.5", "a whole number"]),
        ("--config.train.learning_rate=fast", ["=fast", "a finite number"]),
        ("--config.model.tied=maybe", ["=maybe", "true or false"]),
        ("--num=many", ["--num=many", "a whole number"]),
        ("--", ["no such flag", "--help"]),
        ("quickstart", ["'quickstart': is not a flag", "--name=value"]),
        ("-x", ["'-x': is not a flag"]),
        ("--qqqq=1", ["no such flag", "see --help, which lists them all"]),
    ],
)
def test_mistakes_name_the_argument_and_the_remedy(argument, fragments):
    with pytest.raises(ConfigError) as caught:
        parse(argument)
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_a_value_may_not_look_like_a_flag():
    with pytest.raises(ConfigError, match="--workdir: needs a value"):
        parse("--workdir", "--num=3")


def test_config_fields_are_flags_only_where_a_config_is_read():
    with pytest.raises(ConfigError, match="no such flag"):
        parse("--config.train.steps=3", config=False)


@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_command_line_is_parsed_or_refused(argv):
    try:
        arguments = parse(*argv)
    except ConfigError as error:
        assert str(error)
    else:
        assert arguments.help or len(arguments.flags) + len(arguments.overrides) <= len(argv)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (ConfigError("a\nb"), 2),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "No such file", "x.txt"), 2),
    ],
)
def test_exit_status_while_preparing(error, status, capsys):
    def prepare(argv):
        if error:
            raise error

    assert _cli.run(prepare, []) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (error is not None)
    assert lines == ["error: a b"] if isinstance(error, ConfigError) else True


def test_exit_status_of_the_work(capsys):
    def fail(error):
        def work():
            raise error

        return lambda argv: work

    assert _cli.run(fail(ConfigError("train.mesh: does not fit")), []) == 2
    assert capsys.readouterr().err == "error: train.mesh: does not fit\n"
    assert _cli.run(fail(KeyboardInterrupt()), []) == 130
    with pytest.raises(OSError, match="disk full"):  # not the user's arguments: the traceback is wanted
        _cli.run(fail(OSError("disk full")), [])


def test_help_holds_every_field_with_its_default_and_comment():
    text = " ".join(_help.config_lines().split())
    docs = _help.field_docs()
    names = [f"{s.name}.{f.name}" for s in dataclasses.fields(RunConfig) for f in dataclasses.fields(s.default)]
    assert list(_cli.field_types()) == names and set(docs) == {*names, *(n.split(".")[0] for n in names)}
    for name in names:
        section, field = name.split(".")
        default = getattr(getattr(RunConfig(), section), field)
        shown = str(default).lower() if isinstance(default, bool) else default
        assert f"--config.{name}={shown} {docs[name]}".strip() in text


def test_the_comments_are_those_of_the_source():
    folder = Path(config_module.__file__).parent
    with open(folder / "data.py", "rb") as file:
        comments = [t.string for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT]
    docs = _help.field_docs()
    assert docs["data.length"] == "tokens a row" and "# tokens a row" in comments
    source = ast.parse((folder / "process.py").read_text())
    assert docs["process"] == next(
        ast.get_docstring(n) for n in source.body if getattr(n, "name", "") == "ProcessConfig"
    )


def test_help_lists_the_names_that_fields_take():
    text = _help.name_lines()
    for registry in ("SCHEDULES", "OBJECTIVES", "WEIGHTINGS", "LEVEL_LAWS", "TIME_SAMPLINGS"):
        for name, choice in getattr(config_module, registry).items():
            assert f"\n  {choice.form}" in text and choice.form.partition(":")[0] == name
            assert choice.meaning in " ".join(text.split())
    assert all(f"\n  {name}" in text for name in LANGUAGES) and "copy:vocab=16,noise=0.05," in text
    fields = {item for line in text.splitlines() for item in line.split("--config.")[1:]}
    assert {field.rstrip(")") for field in fields if "=" not in field} <= set(_cli.field_types())


def test_help_lines_fit_a_terminal():
    assert max(map(len, (_help.config_lines() + _help.name_lines()).splitlines())) <= 120
