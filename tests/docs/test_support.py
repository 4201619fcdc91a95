"""README's tables of what goes with what are what the library's own checks say today."""

from docs.site import support
from mdlm_jax.config import OBJECTIVES, ConfigError
from mdlm_jax.sampling import caching, registry


def test_readme_holds_the_tables():
    text = support.README.read_text(encoding="utf-8")
    assert support.written(text) == text, "run python -m docs.site.support"


def test_everything_goes_with_something():
    """An empty line would say that what is asked here lacks what the library needs."""
    objectives, decoders = list(support.objectives()), list(support.decoders())
    assert len(objectives) == len(OBJECTIVES) and len(decoders) == len(registry.DECODERS)
    assert all(any(cells) for _, *cells in [*objectives, *decoders])
    assert set(support.LETTERS) == set(caching.CACHES)
    assert set("".join("".join(cells) for _, *cells in decoders)) == set(support.LETTERS.values())


def test_what_is_known_to_fail_is_left_out():
    by_name = {name.strip("`").partition(":")[0]: cells for name, *cells in support.objectives()}
    assert by_name["autoregressive"] == ["", "masks", "", ""] and "mixed" not in by_name["count"][0]
    by_name = {name.strip("`"): dict(zip(support.MODELS, cells, strict=True)) for name, *cells in support.decoders()}
    assert not by_name["maria"]["causal"] and not by_name["assd"]["bidirectional"]
    assert by_name["ancestral"]["block_causal"] == "·b"


def test_what_only_the_making_of_an_objective_refuses_is_left_out(monkeypatch):
    assert support.takes({})

    def refused(*arguments):
        raise ConfigError("train.objective: is refused late; choose another")

    monkeypatch.setattr(support, "build_objective", refused)
    assert not support.takes({})
