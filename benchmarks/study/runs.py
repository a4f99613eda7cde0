"""One training after another: the rates of a contender, then more seeds of the best."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.study.contenders import Contender, advice, decayed
from benchmarks.study.problem import Problem
from benchmarks.study.records import MARKS, Record, best
from neuron_optax.introspection import learning_rates
from neuron_optax.introspection.rates import has_rates
from neuron_optax.trees import named_leaves

QUANTILES = 0.0, 0.25, 0.5, 0.75, 1.0  # of the rates of the neurons of a leaf
Carry = tuple[Any, Any, Any]  # params, rest of the model, state of the optimizer


def trained(
    problem: Problem, name: str, contender: Contender, seeds: int, done: list[Record]
) -> Iterator[Record]:
    """Yield the runs of a contender that are not done: rates, then seeds of the best.

    Args:
      problem: what it learns.
      name: of the contender.
      contender: who learns.
      seeds: at the best rate; the rates are tried with the first.
      done: earlier records of this contender and problem.
    """
    known = {record.run: record for record in done}

    @functools.cache
    def trainer():
        return Trainer(problem, contender)

    def run(rate, seed):
        which = (rate, seed)
        if which not in known:
            known[which] = trainer().run(name, rate, seed)
            yield known[which]

    for rate in contender.rates:
        yield from run(rate, 0)
    chosen = best([known[rate, 0] for rate in contender.rates])
    for seed in range(1, seeds):
        yield from run(chosen, seed)


class Trainer:
    """Trains a contender on a problem; whatever the rate and seed, it compiles once."""

    def __init__(self, problem: Problem, contender: Contender):
        self.problem, self.contender = problem, contender
        self.build = contender.build
        if contender.advised:
            layout = advice(problem, states)
            self.build = functools.partial(contender.build, layout=layout)
        self.part = jax.jit(self._part, donate_argnums=0)
        self.measure = jax.jit(problem.measure)

    def optimizer(self, rate: Any) -> tuple[Any, Callable[..., Any]]:
        """Return the optimizer of all params at a rate, and its step."""
        problem, contender = self.problem, self.contender
        schedule = contender.schedule(rate, problem.steps)
        made = decayed(self.build(schedule), schedule, problem.l2, problem.decoupled)
        if problem.make:
            return problem.make(made, contender.sparse)
        return made, functools.partial(dense_step, problem.loss, made)

    def _part(self, carry: Carry, batches: Any, rate: jax.Array) -> Carry:
        _, step = self.optimizer(rate)
        return jax.lax.scan(step, carry, batches)[0]

    def course(self, rate: float, seed: int) -> Iterator[tuple[Carry, int, float]]:
        """Yield params, rest and state, the steps so far, and seconds of a step."""
        drawn = self.problem.draw(seed)
        params = jax.tree.map(jnp.array, drawn.params)  # a copy, to be overwritten
        rest = jax.tree.map(jnp.array, drawn.rest)
        carry = params, rest, self.optimizer(rate)[0].init(params)
        marks = np.linspace(0, self.problem.steps, MARKS + 1).astype(int)
        for first, end in itertools.pairwise(marks):
            batches = jax.tree.map(jnp.asarray, drawn.batches(first, end - first))
            begun = time.perf_counter()
            carry = jax.block_until_ready(self.part(carry, batches, rate))
            yield carry, int(end), (time.perf_counter() - begun) / (end - first)

    def run(self, name: str, rate: float, seed: int) -> Record:
        """Train once; a loss that is not finite ends it."""
        drawn, losses, seconds = self.problem.draw(seed), [], []
        carry: Any = None
        for carry, _, took in self.course(rate, seed):
            at = self.measure(*carry[:2], drawn.validation)
            losses.append(float(at["loss"]))
            seconds.append(took)
            if not math.isfinite(losses[-1]):
                break
        found = self.measure(*carry[:2], drawn.test)
        return Record(
            problem=self.problem.name,
            optimizer=name,
            steps=self.problem.steps,
            rate=rate,
            seed=seed,
            validation=losses,
            test={of: float(value) for of, value in found.items()},
            state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(carry[2])),
            milliseconds=1e3 * min(seconds),
            rates=spread(carry[2], rate) if seed else {},
        )


def dense_step(loss: Any, optimizer: Any, carry: Carry, batch: Any) -> Any:
    """Take a step of all params along the gradient of a loss."""
    params, rest, state = carry
    grads, rest = jax.grad(loss, has_aux=True)(params, rest, batch)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), rest, state), None


def states(problem: Problem, contender: Contender, rate: float, seed: int) -> list[Any]:
    """Return the states of an optimizer in the course of a training."""
    course = Trainer(problem, contender).course(rate, seed)
    return [jax.tree.map(np.array, state) for (_, _, state), _, _ in course]


def spread(state: Any, rate: float) -> dict[str, list[float]]:
    """Return quantiles of the rates of the neurons of every kernel, at the full rate.

    Those of a strategy that stores none, or none of its own, are left out.
    """
    if not has_rates(state):
        return {}
    leaves = named_leaves(learning_rates(state, rate))
    return {
        path: [float(of) for of in np.quantile(np.asarray(rates), QUANTILES)]
        for path, rates in leaves
        if np.size(rates) and not path.endswith(("bias", "scale"))
    }
