"""NorMuon as others publish it, for one matrix whose rows are the neurons."""

import torch

EPS = 0.05  # beside a root of v of 0.1 to 0.7: where it stands matters

RATES = {
    "outside": lambda v: 1 / (v.sqrt() + EPS),
    "inside": lambda v: 1 / (v + EPS).sqrt(),
    "clamped": lambda v: v.clamp(min=EPS).rsqrt(),
}
SIZES = {  # of the step, given what was orthogonalized and what became of it
    "kept": lambda o, q: o.norm() / (q.norm() + 1e-10),
    "paper": lambda o, q: 0.2 * q.numel() ** 0.5 / q.norm(),
    "aspect": lambda o, q: SIZES["kept"](o, q) * max(1, len(o) / len(o.T)) ** 0.5,
    "spectral": lambda o, q: SIZES["kept"](o, q) * (len(o) / len(o.T)) ** 0.5,
}


def newton_schulz(u):
    x = (u if len(u) <= len(u.T) else u.T) / (u.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if len(x) == len(u) else x.T


def normuon(gradients, b1, b2, nesterov, rate, size, short):
    """Yield the update of every step; v is of the shorter axis if ``short``."""
    m, v = torch.zeros(()), torch.zeros(())
    for g in gradients:
        m = b1 * m + (1 - b1) * g
        o = newton_schulz((1 - b1) * g + b1 * m if nesterov else m)
        rows = o.T if short and len(o) < len(o.T) else o
        v = b2 * v + (1 - b2) * torch.stack([(row**2).mean() for row in rows])
        scaled = [r * row for r, row in zip(RATES[rate](v), rows, strict=True)]
        q = torch.stack(scaled) if rows is o else torch.stack(scaled).T
        yield SIZES[size](o, q) * q
