"""SIGKILL at every file operation, and at random instants of real saves: an earlier or the new step is always whole."""

import random
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.training import manifest
from mdlm_jax.training.checkpoints import Checkpoints


def run(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], text=True, **options)


# Forks, and kills the fork with SIGKILL at its n-th operation on a file, for every n, while it finishes step 30.
KILL_AT_EVERY_OPERATION = """
    import os, shutil, signal, sys
    from pathlib import Path
    from mdlm_jax.training import manifest
    from mdlm_jax.training.checkpoints import Checkpoints

    source, scratch, keep, existing = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "damaged"
    WATCHED = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}

    def attempt(last):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(source, scratch)
        shutil.copytree(scratch / "00000020" / "state", scratch / "00000030.unfinished" / "state")
        if existing:
            (scratch / "00000030").mkdir()
            (scratch / "00000030" / "meta.json").write_text("{}")
        child = os.fork()
        if child == 0:
            count = 0
            def hook(event, arguments):
                nonlocal count
                if event in WATCHED:
                    count += 1
                    if count == last:
                        os.kill(os.getpid(), signal.SIGKILL)
            sys.addaudithook(hook)
            Checkpoints(scratch, keep)._finish(30, scratch / "00000030.unfinished", {"meta.json": "{}", "x": "y" * 99})
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        return os.WIFSIGNALED(status), status

    killed, seen, last = True, set(), 0
    while killed:
        last += 1
        killed, status = attempt(last)
        assert killed or status == 0
        keeper = Checkpoints(scratch, keep)
        good = keeper.latest_good()
        assert good is not None and good.name in ("00000020", "00000030"), (last, good)
        damaged = [step for step, _ in keeper.passed_over]
        assert damaged == ([30] if existing and (scratch / "00000030").exists() and good.name != "00000030" else [])
        assert not any(manifest.verify(keeper.path(step)) for step in keeper.steps() if step < 30), last
        seen.add(good.name)
        if good.name == "00000030":
            assert manifest.verify(good) == []
    assert seen == {"00000020", "00000030"}
    print(last, sorted(p.name for p in scratch.iterdir()))
"""


@pytest.mark.parametrize("keep, existing, left", [(2, "none", ["00000020", "00000030"]), (1, "damaged", ["00000030"])])
def test_killed_at_every_file_operation_of_finishing_a_step(tmp_path, keep, existing, left):
    for step in (10, 20):
        folder = tmp_path / "saved" / f"{step:08d}"
        (folder / "state").mkdir(parents=True)
        for name in ("meta.json", "state/array"):
            (folder / name).write_text(f"{step}")
        manifest.write(folder)
    process = run(KILL_AT_EVERY_OPERATION, tmp_path / "saved", tmp_path / "run", keep, existing, stdout=subprocess.PIPE)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    count, _, names = output.strip().partition(" ")
    assert int(count) > 20 and names == str(left)


# Saves 4 MB again and again; each state is a function of its step, so the parent can tell whether it is whole.
SAVE_FOR_EVER = """
    import sys
    import jax, jax.numpy as jnp
    from mdlm_jax.training.checkpoints import Checkpoints

    def state(step):
        return {"w": jax.random.normal(jax.random.key(step), (1024, 1024)), "step": jnp.int32(step)}

    keeper = Checkpoints(sys.argv[1], keep=1)
    restored = keeper.restore(jax.eval_shape(lambda: state(0)))
    step = restored.step if restored else 0
    while True:
        step += 1
        ready = state(step)
        print(step, flush=True)
        keeper.save(step, ready, {"position": step}, {"tokenizer.json": "{}"})
"""


def kill_while_saving(directory, rng):
    """Starts the program above, lets it save twice, kills it in the third save; gives the step it was writing."""
    process = run(SAVE_FOR_EVER, directory, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    begun = [(int(process.stdout.readline()), time.monotonic()) for _ in range(3)]
    duration = begun[2][1] - begun[1][1]
    time.sleep(rng.uniform(0.0, duration))
    process.send_signal(signal.SIGKILL)
    process.wait()
    last = process.stdout.read().split()
    process.stdout.close()
    return int(last[-1]) if last else begun[-1][0]


def check_kills(directory, inside, seed):
    """Kills until that many kills have fallen inside a save; checks what is left after each."""
    rng, previous = random.Random(seed), 0
    for _ in range(5 * inside):
        writing = kill_while_saving(directory, rng)
        assert writing >= previous + 3  # it went on from the step that was restored
        inside -= (directory / f"{writing:08d}.unfinished").is_dir()
        wanted = {"w": jax.ShapeDtypeStruct((1024, 1024), jnp.float32), "step": jax.ShapeDtypeStruct((), jnp.int32)}
        restored = Checkpoints(directory).restore(wanted)
        assert restored.passed_over == []  # what is not whole does not even look like a step
        assert restored.step in (writing - 1, writing)
        assert restored.meta == {"position": restored.step}
        expected = jax.random.normal(jax.random.key(restored.step), (1024, 1024))
        np.testing.assert_array_equal(np.asarray(restored.tree["w"]), np.asarray(expected))
        previous = restored.step
        if inside == 0:
            return
    pytest.fail(f"{inside} more kills should have fallen inside a save")


def test_killed_while_saving_leaves_a_restorable_directory(tmp_path):
    check_kills(tmp_path / "checkpoints", inside=2, seed=0)


@pytest.mark.slow
def test_killed_many_times_while_saving(tmp_path):
    check_kills(tmp_path / "checkpoints", inside=12, seed=1)
