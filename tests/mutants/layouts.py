"""Errors in which axes are neurons."""

from tests.mutants.mutant import PARITY, Mutant

LAYOUTS = {
    "neurons on the first axis": Mutant(
        "axes/neurons.py",
        "output: tuple[int, ...] | EllipsisType = (-1,)",
        "output: tuple[int, ...] | EllipsisType = (0,)",
        PARITY,
    ),
    "one neuron per feature of an embedding": Mutant(
        "axes/libraries.py",
        r'Rule(r"(^|/)embedding$", _ROWS, ranks=(2,)),'
        '\n        Rule(r"(^|/)(query|key|value)',
        r'Rule(r"(^|/)embedding$", Neurons(output=(1,)), ranks=(2,)),'
        '\n        Rule(r"(^|/)(query|key|value)',
        "tests/test_axes.py",
    ),
    "heads merged": Mutant(
        "axes/libraries.py",
        '(query|key|value)/kernel$", Neurons(output=(1, 2)), ranks=(3,)',
        '(query|key|value)/kernel$", Neurons(output=(2,)), ranks=(3,)',
        "tests/test_axes.py",
    ),
    "torch weights the Flax way": Mutant(
        "axes/libraries.py",
        "    fallback=_ROWS,",
        "    fallback=Neurons(output=(-1,)),",
        "tests/test_axes.py",
    ),
    "transposed kernels of Haiku the other way": Mutant(
        "axes/libraries.py",
        'transpose[^/]*/w$", Neurons((-2,), stack), ranks=taps)',
        'transpose[^/]*/w$", Neurons((-1,), stack), ranks=taps)',
        "tests/test_probe.py -k haiku-Conv",
    ),
    "positions of a local convolution merged": Mutant(
        "axes/libraries.py",
        "Neurons(output=(0, 1, -1)), ranks=(4,)",
        "Neurons(output=(1, -1)), ranks=(4,)",
        "tests/test_probe.py -k ConvLocal",
    ),
    "every other entry in one head": Mutant(
        "axes/neurons.py",
        "(counts[axis], size // counts[axis]) if axis",
        "(size // counts[axis], counts[axis]) if axis",
        "tests/test_heads.py -k folded",
    ),
    "mesh axes of the fan-in kept": Mutant(
        "axes/neurons.py",
        "if axis in self.fan_in\n",
        "if False\n",
        "tests/test_boxes.py -k hand",
    ),
    "mesh axes kept by blocks they cut": Mutant(
        "axes/neurons.py",
        "return known and count %",
        "return True or count %",
        "tests/test_boxes.py -k blocks",
    ),
    "one vector tells a stack": Mutant(
        "axes/evidence.py",
        "return any(len(vector) == stack + 1 for vector in vectors)",
        "return True",
        "tests/test_describe.py -k tell",
    ),
    "stacked copies taken for neurons": Mutant(
        "axes/evidence.py",
        "copies = gaps[-1] if gaps and fit[-1] == ndim - 1 else 0",
        "copies = 0",
        "tests/test_describe.py -k inferred",
    ),
    "stack axes of a bias forgotten": Mutant(
        "axes/layouts.py",
        "return resolve(said._replace(stack=stack), bias, theirs.shape)",
        "return theirs",
        "tests/test_axes.py -k stack",
    ),
    "copies and neurons swapped": Mutant(
        "axes/siblings.py",
        "jnp.transpose(numbers, ours.stack + ours.output + ours.fan_in)",
        "jnp.transpose(numbers, ours.output + ours.stack + ours.fan_in)",
        "tests/test_axes.py -k stack",
    ),
}
