"""Draw clicks on a million items of which most are rare, with the odds of each click.

Items follow Zipf's law and users are alike. The log-odds of a click are those of a base
rate, plus the appeal of the item, plus how its theme meets the taste of the user; both
are normal with variance 1.
"""

from collections import namedtuple

import numpy as np

ITEMS, USERS = 1_000_000, 10_000
ZIPF, BASE_LOG_ODDS, THEMES = 1.1, -1.5, 4
Traffic = namedtuple("Traffic", "items users clicks odds")


def zipf():
    """Return the share of impressions of each item, the most frequent first."""
    weights = np.arange(1.0, ITEMS + 1) ** -ZIPF
    return weights / weights.sum()


def draw_traffic(seed, count):
    """Draw a world and impressions in it, one after the other."""
    generator = np.random.default_rng(seed)
    popularity = generator.permutation(zipf())
    appeal = generator.standard_normal(ITEMS)
    theme = generator.standard_normal((ITEMS, THEMES))
    taste = generator.standard_normal((USERS, THEMES)) / np.sqrt(THEMES)
    items = generator.choice(ITEMS, count, p=popularity)
    users = generator.integers(USERS, size=count)
    affinity = np.sum(theme[items] * taste[users], axis=1)
    odds = np.exp(BASE_LOG_ODDS + appeal[items] + affinity)
    clicks = generator.random(count) < odds / (1 + odds)
    ids = items.astype(np.int32), users.astype(np.int32)
    return Traffic(*ids, clicks.astype(np.float32), odds)


def part(traffic, first, last):
    """Return the impressions from one place on, before another."""
    return Traffic(*(column[first:last] for column in traffic))


def log_losses(odds, clicks):
    """Return the log-loss of each impression, in nats, of who foresees these odds."""
    return np.log1p(odds) - clicks * np.log(odds)


def references(trained, held_out):
    """Return the log-losses of the base rate, and of the odds that drew the clicks."""
    share = trained.clicks.mean()
    base = log_losses(share / (1 - share), held_out.clicks)
    return {"base rate": base, "generator": log_losses(held_out.odds, held_out.clicks)}


def deciles(trained, held_out):
    """Split held-out impressions of seen items by how often training saw their item.

    Impressions are ordered from the rarest item to the most frequent and cut in ten
    equal parts; those of items that training never saw are in none of them.

    Returns:
      The places of the impressions of each decile, and how often each item was seen.
    """
    seen = np.bincount(trained.items, minlength=ITEMS)
    often = seen[held_out.items]
    order = np.argsort(often, kind="stable")
    return np.array_split(order[np.count_nonzero(often == 0) :], 10), seen


if __name__ == "__main__":
    traffic = draw_traffic(seed=0, count=500_000)
    trained, held_out = part(traffic, 0, 400_000), part(traffic, 400_000, None)
    (rarest, *_), seen = deciles(trained, held_out)
    print(f"{np.count_nonzero(seen):,} of {ITEMS:,} items seen")
    print(f"rarest decile: seen {seen[held_out.items[rarest]].max()} times at most")
    busiest = np.sort(seen)[-1000:].sum() / seen.sum()
    print(f"the busiest 1,000 have {busiest:.1%} of impressions")
    losses = {name: at.mean() for name, at in references(trained, held_out).items()}
    print("log-loss:", *(f"{name} {loss:.4f}" for name, loss in losses.items()))
    assert abs(busiest - zipf()[:1000].sum()) < 0.01
    assert losses["generator"] < losses["base rate"] - 0.05
