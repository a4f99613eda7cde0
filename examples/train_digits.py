"""Train one network on handwritten digits with a learning rate per neuron.

The same network sees the same batches under Adam and under six strategies. A table
compares them, and ``digits_rates.png`` shows the learning rate of every neuron.
"""

from collections import namedtuple

import jax
import matplotlib
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import neuron_optax

EPOCHS, BATCH = 30, 32
FIXED = {"hidden1": 4e-3, "hidden2": 2e-3, "output": 1e-3}
LAYERS = list(FIXED)
HIGH = 1e3  # bounds the factor, which is 1 / eps for a neuron that never had a gradient
OPTIMIZERS = {  # the learning rate that multiplies the factors, and the optimizer
    "adam": (1e-3, optax.adam(1e-3)),
    "layerwise": (1.0, neuron_optax.layerwise(FIXED)),
    "layerwise_decay": (1.0, neuron_optax.layerwise_decay(4e-3, 0.4, LAYERS)),
    "weight_norm_adam": (1e-3, neuron_optax.weight_norm_adam(1e-3, scaling_factor=1.0)),
    "neuron_adagrad": (2e-2, neuron_optax.neuron_adagrad(2e-2, high=HIGH)),
    "neuron_rmsprop": (1e-3, neuron_optax.neuron_rmsprop(1e-3, decay=0.99, high=HIGH)),
    "adam_mini": (1e-3, neuron_optax.adam_mini(1e-3, high=HIGH)),
}
LAYER_COLORS = ["#44AA99", "#DDAA33", "#882255"]
RUN_COLORS = "black", "#56B4E9", "#0072B2", "#332288", "#CC79A7", "#999933", "#D55E00"
LOOK = {"font.size": 15, "axes.titleweight": "bold", "legend.frameon": False}
LOOK |= {"axes.spines.top": False, "axes.spines.right": False}
LOOK |= {"axes.grid": True, "grid.alpha": 0.25}
UNITS = {  # of the rates in each row of panels, with ticks
    "rate of Adam's direction\n[parameter]": [0.0005, 0.001, 0.002, 0.005],
    "rate of the gradient\n[parameter / gradient]": [0.01, 0.1, 1, 10],
}
Run = namedtuple("Run", "accuracies rates state_bytes")  # rates by layer


class Network(nnx.Module):
    """Two hidden layers and an output of ten, 106 neurons."""

    def __init__(self, rngs):
        self.hidden1 = nnx.Linear(64, 64, rngs=rngs)
        self.hidden2 = nnx.Linear(64, 32, rngs=rngs)
        self.output = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        """Return the logits of the ten digits."""
        hidden = nnx.relu(self.hidden1(images))
        return self.output(nnx.relu(self.hidden2(hidden)))


def loss(model, images, labels):
    """Return the mean cross-entropy of a batch."""
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def factors(opt_state):
    """Return the factor last applied to every neuron, by layer; Adam has none."""
    ours = optax.tree.get(opt_state, "NeuronState")
    return {layer: ours.rate[layer]["kernel"].ravel() for layer in LAYERS if ours}


@nnx.jit(static_argnames="watch")
def train_epoch(model, optimizer, images, labels, watch):
    """Take one step per batch; return what was watched in every step."""

    @nnx.scan(in_axes=(nnx.Carry, 0, 0))
    def step(carry, images, labels):
        model, optimizer = carry
        optimizer.update(model, nnx.grad(loss)(model, images, labels))
        return carry, watch(optimizer.opt_state)

    return step((model, optimizer), images, labels)[1]


@nnx.jit
def accuracy(model, images, labels):
    """Return the share of images whose digit is recognised."""
    return (model(images).argmax(axis=-1) == labels).mean()


def split():
    """Return images for training and for testing, then their labels."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    return train_test_split(images, labels, stratify=labels, random_state=0)


def train(model, optimizer, data, name, *, seed=0, watch=factors):
    """Train on the same batches, whatever the optimizer."""
    images, test_images, labels, test_labels = data
    generator = np.random.default_rng(seed)
    accuracies, rates = [], []
    for _ in tqdm(range(EPOCHS), desc=f"{name:16}", unit="epoch"):
        order = generator.permutation(len(images) // BATCH * BATCH)
        batches = order.reshape(-1, BATCH)
        seen = images[batches], labels[batches]
        rates.append(train_epoch(model, optimizer, *seen, watch=watch))
        accuracies.append(float(accuracy(model, test_images, test_labels)))
    return accuracies, rates


def compare(name, data):
    """Train from the same start under one of the optimizers."""
    learning_rate, transformation = OPTIMIZERS[name]
    model = Network(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    accuracies, rates = train(model, optimizer, data, name)
    rates = jax.tree.map(lambda *epochs: learning_rate * np.concatenate(epochs), *rates)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(optimizer.opt_state))
    return Run(accuracies, rates, state_bytes)


def print_table(runs):
    """Print what each run reached, what it costs and how far apart its rates ended."""
    line = "{:16}  {:>8}  {:>11}  {}".format
    print(line("strategy", "accuracy", "state bytes", "rates: min / median / max"))
    for name, run in runs.items():
        last = [rate for rates in run.rates.values() for rate in rates[-1]]
        spread = np.quantile(last, [0, 0.5, 1]) if last else []
        spread = " / ".join(f"{rate:.1e}" for rate in spread) or "-"
        print(line(name, f"{run.accuracies[-1]:.3f}", f"{run.state_bytes:,}", spread))


def draw_rates(axes, rates):
    """Draw one line per neuron in the colour of its layer."""
    for color, (layer, values) in zip(LAYER_COLORS, rates.items(), strict=True):
        steps = np.unique(np.geomspace(1, len(values), 100).astype(int))
        width, alpha = (3, 1) if values.shape[1] == 1 else (1, 0.6)
        axes.plot(steps, values[steps - 1], color=color, lw=width, alpha=alpha)
        axes.plot([], color=color, lw=3, label=layer)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks([1, 10, 100, 1000], [1, 10, 100, 1000])
    axes.minorticks_off()


def draw_accuracy(axes, runs):
    """Draw the accuracy of every run after every epoch."""
    for color, (name, run) in zip(RUN_COLORS, runs.items(), strict=True):
        style = {"color": color, "lw": 2.5, "ls": "--" if name == "adam" else "-"}
        label = f"{name}, {run.accuracies[-1]:.1%}"
        axes.plot(range(1, EPOCHS + 1), run.accuracies, label=label, **style)
    axes.set(title="test accuracy", xlabel="epoch", ylim=(0.8, 1))
    axes.set_yticks([0.8, 0.85, 0.9, 0.95, 1])
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(title="after the last epoch", loc="lower right", alignment="left")


def draw(runs, path):
    """Draw a panel of rates for each strategy and one of accuracies."""
    matplotlib.rcParams.update(LOOK)
    figure = Figure(figsize=(16, 9), dpi=100, layout="constrained")
    figure.suptitle("Learning rates of the 106 neurons of a network that learns digits")
    left, right = figure.subfigures(1, 2, width_ratios=[2.1, 1])
    draw_accuracy(right.subplots(), runs)
    panels = left.subplots(2, 3, sharex=True, sharey="row")
    for axes, name in zip(panels.flat, list(runs)[1:], strict=True):
        draw_rates(axes, runs[name].rates)
        axes.set_title(name)
    for axes, (unit, ticks) in zip(panels[:, 0], UNITS.items(), strict=True):
        axes.set_ylabel(unit)
        axes.set_yticks(ticks, ticks)
    for axes in panels[1]:
        axes.set_xlabel("step")
    panels[0, 2].legend(title="neurons of", loc="lower right", alignment="left")
    panels[1, 2].text(1, 1.2, f"quiet neurons:\nbounded by high={HIGH:g}")
    figure.savefig(path)
    Image.open(path).convert("RGB").quantize().save(path)  # a third of the size


if __name__ == "__main__":
    data = split()
    runs = {name: compare(name, data) for name in OPTIMIZERS}
    print_table(runs)
    draw(runs, "digits_rates.png")
    assert all(run.accuracies[-1] > 0.9 for run in runs.values())
    assert runs["adam_mini"].state_bytes < 0.6 * runs["adam"].state_bytes
