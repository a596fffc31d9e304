"""The few statistics that the tables, the plots and the gate are made of. Pure functions over lists of numbers."""

import math
import statistics

# Draws of a bootstrap: enough for the second digit of an interval's end.
RESAMPLES = 4_000


def summarize(values):
    """A figure of all rounds as the history keeps it."""
    values = [rounded(value) for value in values]
    return {"median": rounded(statistics.median(values)), "all": values}


def rounded(value):
    """Four decimals of microseconds are a tenth of a nanosecond: more is noise in the file."""
    return round(value, 4) if isinstance(value, float) else value


def ratios(ours, theirs):
    """Round by round, since a machine's speed drifts between rounds but hardly within one.

    Rounds that one side lacks, or in which the other has nothing, are left out.
    """
    return [a / b for a, b in zip(ours, theirs) if a is not None and b]


def spread(values):
    """Standard deviation over the mean; 0 for a single value."""
    mean = statistics.fmean(values)
    return statistics.stdev(values) / mean if len(values) > 1 and mean else 0.0


def interval(values, rng, level=0.95):
    """Bootstrap interval of the median. None below five values: there would be nothing to draw from."""
    if len(values) < 5:
        return None
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = (1 - level) / 2
    return medians[int(tail * RESAMPLES)], medians[min(RESAMPLES - 1, int((1 - tail) * RESAMPLES))]


def upper_tail(x, mean, deviation):
    """The share of a normal distribution above `x`."""
    if deviation == 0:
        return 1.0 if mean > x else 0.0
    return 0.5 * math.erfc((x - mean) / (deviation * math.sqrt(2)))


def alarm(ceiling, mean, deviation, retry=True):
    """How often a gate goes red whose figure has this mean and deviation.

    With `retry`, a first red verdict counts only if a second one with twice the rounds agrees. Twice the rounds
    make the deviation smaller by the square root of two, if rounds are independent.
    """
    first = upper_tail(ceiling, mean, deviation)
    return first * upper_tail(ceiling, mean, deviation / math.sqrt(2)) if retry else first


def caught(ceiling, mean, deviation, power=0.95):
    """The smallest relative slow-down that goes red with probability `power`."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        # What is slower varies in proportion.
        if alarm(ceiling, mean * (1 + middle), deviation * (1 + middle)) >= power:
            high = middle
        else:
            low = middle
    return high
