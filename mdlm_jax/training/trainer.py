"""The loop: batches in, steps, metrics and checkpoints out; resumable at any step, bit for bit.

Batches and noise are functions of (seeds, step), so a checkpoint needs the state and nothing else. The trainer knows
nothing of evaluation or sampling: the caller hands it a function.
"""

import dataclasses
import math
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mdlm_jax.config import ConfigError, TrainConfig
from mdlm_jax.data.pipeline import Pipeline
from mdlm_jax.data.prefetch import prefetch
from mdlm_jax.errors import Preempted
from mdlm_jax.models.sharding import batch_sharding
from mdlm_jax.progress import Progress
from mdlm_jax.training import adapters, hosts, keeping, optimizers, schedules
from mdlm_jax.training.ceiling import matmul_ceiling
from mdlm_jax.training.checkpoints import Checkpoints
from mdlm_jax.training.metrics import MetricsWriter, Silent
from mdlm_jax.training.objectives.base import Objective
from mdlm_jax.training.preemption import Preemption
from mdlm_jax.training.profiling import Profile
from mdlm_jax.training.state import TrainState, abstract_state, sharded_init
from mdlm_jax.training.step import make_train_step
from mdlm_jax.training.wandb_run import WandbRun

Evaluate = Callable[[dict], Mapping[str, float]]  # parameters -> numbers for the metrics
BOUND = "eval/loss"  # the one of them that says which checkpoint is the best


class NonFiniteLoss(ConfigError):
    """The loss or its gradient was NaN or infinite too many times in a row."""


@dataclasses.dataclass(frozen=True)
class Trainer:
    """One run. ``workdir`` receives the metrics; ``files`` (tokenizer, configuration) go into each checkpoint."""

    train: TrainConfig
    objective: Objective
    pipeline: Pipeline
    mesh: Mesh
    workdir: Path
    checkpoints: Checkpoints
    files: Mapping[str, str | bytes]
    eval_every: int
    start_from: Callable[[], dict] | None = None  # by name, the weights that a fresh run does not draw
    profile: tuple[int, int] | None = None  # first and last step to trace
    push: Callable[[], None] | None = None  # called in the background before a checkpoint is whole
    also: Callable[[], WandbRun] | None = None  # opens another receiver of the metrics

    def run(self, evaluate: Evaluate) -> TrainState:
        """Trains to ``train.steps`` from the newest whole checkpoint, or from the start.

        ``evaluate`` is called every ``eval_every`` steps and after the last one, with the averaged weights where there
        are some; its numbers go into the metrics.

        Raises:
          NonFiniteLoss: naming the step; the checkpoints written before it stay.
          Preempted: SIGTERM came; the step after it is saved, without the evaluation that may be due at it.
        """
        optimizer = optimizers.optimizer(self.train)
        state = jax.block_until_ready(self._restore_or_init(optimizer))  # jax 0.10 on a CPU: int() hangs without memory
        start = int(state.step)
        steps = {}  # objective -> step function; an objective may change on the way
        if start < self.train.steps:
            print("compiling the first step ...", flush=True)
        log = _Window(self, matmul_ceiling(self.objective.network.dtype) if start < self.train.steps else 1.0)
        with (
            self._metrics(start) if hosts.speaks() else Silent() as metrics,
            Progress(self.train.steps, start, "train", shown=hosts.speaks()) as progress,
            prefetch(self.pipeline, start, rows=hosts.local_rows(self._layout, self.train.batch_size)) as batches,
            Preemption() as preemption,
            Profile(self.workdir, self.profile if hosts.speaks() else None) as profile,
            self.checkpoints,
        ):
            for step in range(start + 1, self.train.steps + 1):
                _, batch = next(batches)
                objective = self.objective.at(step - 1)
                if objective not in steps:
                    steps[objective] = make_train_step(objective, optimizer, self.train, self.mesh)
                    log.compiles()
                log.counts(objective)
                profile.before(step)
                placed = hosts.place(batch, self._layout, self.train.batch_size)
                state, numbers = steps[objective](state, placed)
                profile.after(step, numbers)
                log.add(numbers)
                stops = preemption.reached(step)
                saves = stops or step % self.train.checkpoint_every == 0 or step == self.train.steps
                if saves or step % self.train.log_every == 0:  # a window never spans a checkpoint: resuming repeats it
                    record = log.close(step) | {"input_wait": batches.mean_wait()}  # seconds a step
                    metrics.write(step, **record)
                    speed = {"tokens_per_s": record["tokens_per_second"]} if "tokens_per_second" in record else {}
                    progress.update(step, loss=record["loss"], **speed)
                bound = None
                if not stops and (step % self.eval_every == 0 or step == self.train.steps):
                    log.pause()
                    measured = evaluate(averaged(state, self.train))
                    metrics.write(step, **measured)
                    bound = measured.get(BOUND)
                    log.resume()
                if saves:
                    log.pause()
                    self._save(state, step, bound)
                    log.resume()
                if stops:
                    self.checkpoints.wait()
                    raise Preempted(f"asked to stop; saved step {step} in {self.checkpoints.directory}")
        return state

    def _metrics(self, start: int) -> MetricsWriter:
        return MetricsWriter(self.workdir, start or None, self.also() if self.also else None)

    @property
    def _layout(self) -> NamedSharding:
        return batch_sharding(self.mesh)

    def _restore_or_init(self, optimizer) -> TrainState:
        use_ema = self.train.ema_decay > 0
        plan = adapters.of(self.train)
        restored = self.checkpoints.restore(abstract_state(self.objective, optimizer, use_ema, self.mesh, plan))
        if restored is None:
            self._refuse_damaged()
            return self._fresh(optimizer, use_ema)
        stored = restored.meta["data"]["fingerprint"]
        if stored != self.pipeline.fingerprint:
            raise ConfigError(
                f"{restored.path}: was trained on other data (fingerprint {stored[:12]}, now "
                f"{self.pipeline.fingerprint[:12]}); restore the data, or choose another --workdir"
            )
        print(f"resuming from step {restored.step} ({restored.path})", flush=True)
        return restored.tree

    def _fresh(self, optimizer, use_ema: bool) -> TrainState:
        plan = adapters.of(self.train)
        state = sharded_init(self.objective, optimizer, use_ema, self.mesh, self.train.seed, plan)
        if self.start_from is None:
            return state
        trainable, frozen = adapters.started(plan, state.trainable, state.frozen, self.start_from())
        ema = jax.tree.map(jnp.copy, trainable) if use_ema else None
        return dataclasses.replace(state, trainable=trainable, ema=ema, frozen=frozen)

    def _refuse_damaged(self) -> None:
        """Starting anew would throw away the metrics and, at the next save, what is left of the checkpoints."""
        if self.checkpoints.passed_over:
            step, reason = self.checkpoints.passed_over[0]
            raise ConfigError(
                f"{self.checkpoints.directory}: no step is whole (step {step}: {reason}); restore one from a copy, or "
                "choose another --workdir"
            )

    def _save(self, state: TrainState, step: int, bound: float | None) -> None:
        meta = {"data": {"next_step": step, "fingerprint": self.pipeline.fingerprint}} | keeping.measured(bound)
        self.checkpoints.begin_save(step, state, meta, dict(self.files), self.push)


def averaged(state: TrainState, train: TrainConfig) -> dict:
    """The weights to evaluate and sample with: the moving average where there is one, adapters added."""
    return adapters.merged(adapters.of(train), state.trainable if state.ema is None else state.ema, state.frozen)


class _Window:
    """The steps since the last record. Nothing is fetched from the device before the record is made."""

    def __init__(self, trainer: Trainer, ceiling: float):
        length = trainer.pipeline.length
        rows = trainer.train.batch_size
        self._tokens = rows * length
        self._rows, self._length = rows, length
        self._objective: Objective | None = None
        shared = jax.default_backend() == "cpu"  # virtual CPU devices are one machine
        self._ceiling = ceiling * (jax.process_count() if shared else jax.device_count())
        self._rate = schedules.learning_rate(trainer.train)
        self._checkpoints = trainer.checkpoints
        self._pending: list[dict] = []
        self._bad, self._most_bad = 0, min(trainer.train.max_bad_steps, max(1, trainer.train.steps // 2))
        self._intervals: list[float] = []  # between the ends of two steps
        self._under_way: dict | None = None  # the numbers of the newest step, while it is not timed
        self._seconds, self._since = 0.0, time.perf_counter()
        self._last = self._since  # the end of the newest step that is timed

    def compiles(self) -> None:
        """The next step compiles; what its window was timed before is forgotten."""
        self._compiled = False

    def counts(self, objective: Objective) -> None:
        """FLOPs are from here on those of ``objective``."""
        if objective != self._objective:
            self._objective, self._flops = objective, objective.train_flops(self._rows, self._length)

    def add(self, numbers: dict) -> None:
        if not self._compiled:  # the first step compiles; its time is no step time
            jax.block_until_ready(numbers)
            self._compiled, self._since = True, time.perf_counter()
            self._timed, self._seconds = 0, 0.0
            self._intervals, self._under_way, self._last = [], None, self._since
        else:
            self._timed += 1
            self._end_of_step()  # of the one before: the devices have this one to go on with
            self._under_way = numbers
        self._pending.append(numbers)

    def _end_of_step(self) -> None:
        """Waits for the step under way, and times it."""
        if self._under_way is not None:
            jax.block_until_ready(self._under_way)
            now = time.perf_counter()
            self._intervals.append(now - self._last)
            self._under_way, self._last = None, now

    def pause(self) -> None:
        self._end_of_step()
        self._seconds += self._last - self._since

    def resume(self) -> None:
        self._since = self._last = time.perf_counter()

    def close(self, step: int) -> dict[str, float]:
        """The record of the window: means, the standard error of the loss over its steps, and the speed."""
        self.pause()
        fetched = jax.device_get(self._pending)
        good = self._without_skipped(step, fetched)
        record = {"loss": math.nan}
        if good:
            losses = np.array([float(numbers["totals"].mean()) for numbers in good])
            totals = sum((numbers["totals"] for numbers in good[1:]), good[0]["totals"])
            record = {"loss": float(totals.mean())}
            if len(losses) > 1:
                record["loss_stderr"] = float(losses.std(ddof=1) / len(losses) ** 0.5)
            record |= {f"loss/{name}": float(value / totals.count) for name, value in totals.sums.items()}
            record |= {name: float(np.mean([n[name] for n in good])) for name in ("grad_norm", "update_norm")}
            record |= _by_level(good)
        if len(good) < len(fetched):
            record["skipped_steps"] = len(fetched) - len(good)
        record["learning_rate"] = float(self._rate(step - 1))
        if self._timed:  # not where the window is the step that compiled
            seconds = self._seconds / self._timed
            record["step_seconds"] = seconds
            record["tokens_per_second"] = self._tokens / seconds
            record["flops_per_second"] = self._flops / seconds
            record["mfu"] = self._flops / seconds / self._ceiling
        if self._intervals:
            record |= {f"step_seconds_p{q}": float(np.percentile(self._intervals, q)) for q in (50, 95)}
        record |= _memory()
        self._pending, self._timed, self._seconds, self._intervals = [], 0, 0.0, []
        self.resume()
        return record

    def _without_skipped(self, step: int, fetched: list[dict]) -> list[dict]:
        """The steps whose loss and gradient were finite. NonFiniteLoss after too many others in a row."""
        for number, numbers in enumerate(fetched, step - len(fetched) + 1):
            self._bad = 0 if numbers["finite"] else self._bad + 1
            if self._bad == self._most_bad:
                self._checkpoints.wait()
                again = "start another --workdir" if self._checkpoints.steps() else "start again"
                raise NonFiniteLoss(
                    f"loss: it or its gradient is not finite at step {number}, {self._bad} time(s) in a row "
                    f"(train.max_bad_steps); {again} with a lower train.learning_rate or a longer train.warmup_steps; "
                    "what is written stays"
                )
        return [numbers for numbers in fetched if numbers["finite"]]


def _by_level(good: list[dict]) -> dict[str, float]:
    """Nats a token at the four quarters of the noise, where rows have one level."""
    if "by_level" not in good[0]:
        return {}
    nats, tokens = np.sum([np.asarray(numbers["by_level"], np.float64) for numbers in good], axis=0)
    return {f"loss_by_level/{n + 1}_of_{len(nats)}": float(nats[n] / tokens[n]) for n in np.flatnonzero(tokens)}


def _memory() -> dict[str, float]:
    """Bytes in use at most on the first local device, where it tells, and of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    found = {"memory/device_peak": float(stats["peak_bytes_in_use"])} if "peak_bytes_in_use" in stats else {}
    return found | {"memory/host_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
