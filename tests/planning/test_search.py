"""The search of meshes, the budget of tokens and the picture, without jax."""

import dataclasses
import math

import pytest

from mdlm_jax.config import DataConfig, RunConfig, TrainConfig
from mdlm_jax.config.model import ModelConfig
from mdlm_jax.errors import ConfigError
from mdlm_jax.models import presets
from mdlm_jax.planning import budget, estimate, picture, remedies, search, search_report, topologies


def run_of(preset, rows, length=4096, **train):
    fields = presets.fields(preset) | {"dtype": "bfloat16", "remat": "full", "backend": "splash"}
    return RunConfig(model=ModelConfig(**fields), data=DataConfig(length=length),
                     train=TrainConfig(batch_size=rows, ema_decay=0.0, **train))


def test_every_candidate_is_a_mesh_of_the_devices():
    config, topology = run_of("llada2-mini", 1024), topologies.parse("v5e:16x16", 2)
    found = list(search.candidates(config, topology))
    assert len(found) > 100
    for one, sizes in found:
        assert math.prod(sizes.values()) == 512 and sizes["replica"] % 2 == 0
        assert sizes["tensor"] in (1, 2, 4) and 256 % sizes["expert"] == 0
        assert topologies.mesh_sizes(topology, one.train.mesh) == sizes
        estimate.check_rows(one, sizes)
    assert len({(one.train.mesh, one.train.microbatches) for one, _ in found}) == len(found)


def test_meshes_of_tpus_run_over_rings():
    config = run_of("llada-8b", 1024)
    inner = {sizes["fsdp"] * sizes["tensor"] for _, sizes in search.candidates(config, topologies.parse("v5p:8x8x8"))}
    assert inner == {1, 2, 4, 8, 64, 512}
    inner = {sizes["fsdp"] * sizes["tensor"] for _, sizes in search.candidates(config, topologies.parse("tpu7x:4x4x4"))}
    assert inner == {1, 2, 4, 8, 32, 128}
    inner = {sizes["fsdp"] * sizes["tensor"] for _, sizes in search.candidates(config, topologies.parse("h100:8x16"))}
    assert inner == {1, 2, 4, 8, 16, 32, 64, 128}


def test_a_part_of_a_weight_fills_whole_tiles():
    """SMDM-1028M's 1792 are 28 on each of 64 devices, 56 on 32; GPUs do not care."""
    config = run_of("smdm-1028m", 1024, 2048)
    shares = {sizes["fsdp"] for _, sizes in search.candidates(config, topologies.parse("v5p:8x8x8"))}
    assert shares == {1, 2, 4, 8, 32}
    assert 64 in {sizes["fsdp"] for _, sizes in search.candidates(config, topologies.parse("h100:8x64"))}


def test_all_of_a_small_slice_by_hand():
    """Four chips in a square, eight rows: fsdp 4 is a whole slice of two axes and left out; heads allow tensor 2."""
    config = RunConfig(model=ModelConfig(heads=2, vocab_size=100), train=TrainConfig(batch_size=8))
    found = {(one.train.mesh, one.train.microbatches)
             for one, _ in search.candidates(config, topologies.parse("v5e:2x2"))}
    assert found == {("replica:4", 1), ("replica:4", 2), ("replica:2,fsdp:2", 1), ("replica:2,fsdp:2", 2),
                     ("replica:2,tensor:2", 1), ("replica:2,tensor:2", 2), ("replica:2,tensor:2", 4),
                     ("fsdp:2,tensor:2", 1), ("fsdp:2,tensor:2", 2), ("fsdp:2,tensor:2", 4)}


def test_the_order_is_what_fits_by_bound_then_the_rest_by_memory():
    ranked = search.search(run_of("llada-8b", 512), topologies.parse("v5e:16x16"))
    fits = [one["fits"] for one in ranked]
    assert True in fits and False in fits and fits == sorted(fits, reverse=True)
    steps = [one["bound"]["step"] for one in ranked if one["fits"]]
    peaks = [one["memory"]["peak"] for one in ranked if not one["fits"]]
    assert steps == sorted(steps) and peaks == sorted(peaks)
    assert all(one["memory"]["peak"] <= 0.96 * 16 * 2**30 for one in ranked if one["fits"])


def test_the_best_is_no_worse_than_the_default_mesh():
    config, topology = run_of("llada-8b", 512), topologies.parse("v5e:16x16")
    default = estimate.estimate(config, topology, topology.default_mesh())
    assert search.search(config, topology)[0]["bound"]["step"] <= default["bound"]["step"]


def test_what_does_not_fit_anywhere_is_said_so():
    ranked = search.search(run_of("llada2-flash", 8), topologies.parse("v5e:2x2"))
    assert not any(one["fits"] for one in ranked)
    text = search_report.text(ranked, 0.1)
    assert "does not fit" in text and "flags" not in text


def test_what_would_fit_is_found_by_trying():
    config, topology = run_of("llada-8b", 1280), topologies.parse("v6e:8x8")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="none"))
    first = search.search(config, topology)[0]
    found = remedies.remedies(config, topology)
    assert not first["fits"] and [words.partition("=")[0] for words, _ in found][0] == "model.remat"
    assert all(one["fits"] for _, one in found)
    text = search_report.misfit_text(first, found)
    short = (first["memory"]["peak"] - first["available"]) / 2**30
    assert text.startswith("misfit     nothing fits: the best, ") and f", {short:.2f} too many\n" in text
    assert "\nmight fit  model.remat=full: " in text


def test_more_devices_are_named_as_the_cloud_does():
    found = remedies.remedies(run_of("llada-8b", 1280), topologies.parse("v5e:2x4"))
    assert [words for words, _ in found] == ["v5e:4x4, 16 devices (v5litepod-16)"]
    (words, one), = remedies.remedies(run_of("llada2-flash", 1024), topologies.parse("h100:8x1"))
    assert words.startswith("h100:8x") and one["devices"] > 8


def test_what_nothing_helps_is_said_so():
    config, topology = run_of("llada2-flash", 1), topologies.parse("v5e:1x1")
    assert remedies.remedies(config, topology) == []
    text = search_report.misfit_text(search.search(config, topology)[0], [])
    assert "nor with model.remat=full, fewer rows or more devices; lower data.length" in text


def test_gpus_attend_by_cudnn():
    config = run_of("llada-8b", 1024)
    ranked = search.search(config, topologies.parse("h100:8x16"))
    assert search_report.text(ranked, 0.1).splitlines()[-1].endswith(" --config.model.backend=cudnn")
    assert "note       model.backend=splash does not run on h100" in search_report.estimate_text(ranked[0])
    assert "note       interconnect: NVLink inside a node" in search_report.estimate_text(ranked[0])
    assert "note       ICI: NVLink inside a node" in search_report.text(ranked, 0.1)
    assert "backend" not in search_report.text(search.search(config, topologies.parse("v5e:16x16")), 0.1)


def test_experts_are_split_where_that_is_all_that_fits():
    ranked = search.search(run_of("llada2-flash", 64), topologies.parse("v6e:8x8"))
    assert all(one["mesh"].get("tensor", 1) > 1 or one["mesh"].get("fsdp", 1) > 1 or one["mesh"].get("expert", 1) > 1
               for one in ranked if one["fits"])


def test_rows_that_no_mesh_can_share():
    with pytest.raises(ConfigError, match="train.batch_size=7: no mesh of 256 devices"):
        search.search(run_of("llada-8b", 7), topologies.parse("v5e:16x16"))


def test_what_is_compiled_is_what_was_estimated():
    config, topology = run_of("smdm-1028m", 1024, 2048), topologies.parse("v5e:16x16")
    best = search.search(config, topology)[0]
    one, sizes = search.changed(config, best)
    assert estimate.estimate(one, topology, sizes) == best


def test_a_budget_by_hand():
    """1e6 tokens a step of 2 s: 43.2e9 a day; 432e9 take ten days, 128 chips of two devices 128 * 240 hours."""
    config = RunConfig(data=DataConfig(length=1000), train=TrainConfig(batch_size=1000, steps=500))
    topology = topologies.parse("tpu7x:4x4x8")
    found = budget.budget(config, topology, 2.0, 432e9, 0.5)
    assert found["steps"] == 432_000 and found["chips"] == 128 and found["at_bound"] == {
        "step": 2.0, "tokens_per_day": 43.2e9, "days": 10.0, "chip_hours": pytest.approx(128 * 240)}
    assert found["at_efficiency"]["days"] == pytest.approx(20.0)
    assert budget.budget(config, topology, 2.0, None, 1.0)["tokens"] == 500e6


def test_the_texts():
    config, topology = run_of("llada-8b", 1024), topologies.parse("v5e:16x16", 2)
    found = estimate.estimate(config, topology, topologies.mesh_sizes(topology, None))
    text = search_report.estimate_text(found)
    assert "2 x v5e:16x16, 512 devices: replica 32 x fsdp 16" in text and "to other slices 0.0" in text
    assert "nothing compiled" in text and "fits" in text
    table = search_report.text([found], 0.001)
    assert f"a device has {found['available'] / 2**30:.2f} GiB to use" in table
    assert "flags      --config.train.mesh=replica:32,fsdp:16 --config.train.microbatches=1" in table
    compiled = {"fits": True, "memory": {"peak": 2 * found["memory"]["peak"]}}
    assert "(0.50 of it)" in search_report.predicted_text(found, compiled)
    assert "does not fit" in search_report.predicted_text(found, {"fits": False, "needed": 1.0})


def test_the_best_of_what_was_compiled():
    """The first of the search need not be the first of the compiler."""
    config, topology = run_of("llada-8b", 512), topologies.parse("v5e:16x16")
    first, second = search.search(config, topology)[:2]
    slower = first | {"bound": first["bound"] | {"step": 2 * second["bound"]["step"]}}
    large = {key: first[key] for key in ("mesh", "microbatches")} | {"fits": False, "needed": 20.0 * 2**30}
    assert search.best([slower, large, second]) is second
    assert search.best([large | {"needed": 2.0**40}, large]) is large
    text = search_report.compiled_text([slower, large, second])
    assert text.startswith("compiled   3 meshes") and "20.00  does not fit" in text
    assert text.splitlines()[-1] == (f"flags      --config.train.mesh={topologies.mesh_text(second['mesh'])} "
                                     f"--config.train.microbatches={second['microbatches']}")


def test_the_picture(tmp_path):
    config, topology = run_of("llada-8b", 512), topologies.parse("h200:8x32")
    found = estimate.estimate(config, topology, topologies.mesh_sizes(topology, None))
    memory, seconds = picture.plan_figure(found).axes
    widths = [bar.get_width() for bar in memory.patches]
    assert sum(widths) == pytest.approx(found["memory"]["peak"] / 2**30)
    assert [bar.get_width() for bar in seconds.patches] == list(found["bound"]["seconds"].values())
    picture.plan_png(found, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_frozen_weights_have_no_moments():
    config = run_of("smdm-1028m", 1024, 2048)
    frozen = dataclasses.replace(config, train=dataclasses.replace(config.train, freeze="network/layers/*"))
    sizes = topologies.parse("v5e:16x16").default_mesh()
    network = estimate.network_of(config)
    whole, part = (estimate.memory_of(one, network, sizes) for one in (config, frozen))
    assert part["state"] < whole["state"] / 2 and part["gradients"] < whole["gradients"] / 4
