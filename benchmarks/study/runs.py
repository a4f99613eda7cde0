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
from benchmarks.study.problem import Draw, Problem
from benchmarks.study.records import MARKS, Record, line, next_run, parse
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
    known, trainer = list(done), Trainer(problem, contender)
    while run := next_run(known, contender.rates, seeds):
        known.append(trainer.run(name, *run))
        yield known[-1]


class Trainer:
    """Trains a contender on a problem; it compiles once for all rates and seeds."""

    def __init__(self, problem: Problem, contender: Contender):
        self.problem, self.contender = problem, contender
        self.build = contender.build
        if contender.advised:
            layout = advice(states(problem, contender.advised))
            self.build = functools.partial(contender.build, layout=layout)
        self.part = jax.jit(self._part, donate_argnums=0)
        self.measure = jax.jit(problem.measure)

    def optimizer(self, rate: Any) -> tuple[Any, Callable[..., Any]]:
        """Return the optimizer of all params at a rate, and its step."""
        problem, contender = self.problem, self.contender
        schedule = contender.schedule(rate, problem.steps)
        whole = contender.schedule(1.0, problem.steps)
        made = decayed(self.build(schedule), whole, problem.l2, problem.decoupled)
        if problem.make:
            return problem.make(made, contender.sparse)
        return made, functools.partial(dense_step, problem.loss, made)

    def _part(self, carry: Carry, batches: Any, rate: jax.Array) -> Carry:
        _, step = self.optimizer(rate)
        return jax.lax.scan(step, carry, batches)[0]

    def course(self, drawn: Draw, rate: float) -> Iterator[tuple[Carry, float]]:
        """Yield params, rest and state twelve times, and the seconds of a step."""
        params = jax.tree.map(jnp.array, drawn.params)  # a copy, to be overwritten
        rest = jax.tree.map(jnp.array, drawn.rest)
        carry = params, rest, self.optimizer(rate)[0].init(params)
        marks = np.linspace(0, self.problem.steps, MARKS + 1).astype(int)
        for first, end in itertools.pairwise(marks):
            batches = jax.tree.map(jnp.asarray, drawn.batches(first, end - first))
            begun = time.perf_counter()
            carry = jax.block_until_ready(self.part(carry, batches, rate))
            yield carry, (time.perf_counter() - begun) / (end - first)

    def run(self, name: str, rate: float, seed: int) -> Record:
        """Train once; a loss that is not finite ends it."""
        drawn, losses, seconds = self.problem.draw(seed), [], []
        carry: Any = None
        for carry, took in self.course(drawn, rate):
            at = self.measure(*carry[:2], drawn.validation)
            losses.append(float(at["loss"]))
            seconds.append(took)
            if not math.isfinite(losses[-1]):
                break
        found = self.measure(*carry[:2], drawn.test)
        record = Record(
            problem=self.problem.name,
            optimizer=name,
            steps=self.problem.steps,
            rate=rate,
            seed=seed,
            validation=losses,
            test={of: float(value) for of, value in found.items()},
            state_bytes=sum(leaf.nbytes for leaf in jax.tree.leaves(carry[2])),
            milliseconds=1e3 * min(seconds),
            rates=spread(carry[2], rate) if seed and self.contender.factors else {},
        )
        return parse(line(record))  # as it will be read, so that it chooses alike


def dense_step(loss: Any, optimizer: Any, carry: Carry, batch: Any) -> Any:
    """Take a step of all params along the gradient of a loss."""
    params, rest, state = carry
    grads, rest = jax.grad(loss, has_aux=True)(params, rest, batch)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), rest, state), None


def states(problem: Problem, contender: Contender) -> list[Any]:
    """Return the states of an optimizer in the course of a training at its rate."""
    course = Trainer(problem, contender).course(problem.draw(0), contender.rate)
    return [jax.tree.map(np.array, state) for (_, _, state), _ in course]


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
