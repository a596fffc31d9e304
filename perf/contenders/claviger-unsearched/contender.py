"""Claviger with a key that is too short to be searched for in answers, to see what the search costs: the same program
and configuration. Nobody should run it so, hence it takes part only where it is named.

perf/compare --contenders claviger,claviger-unsearched --scenarios saturated,open
"""

from harness import contender


class Contender(type(contender.load("claviger"))):
    name = "claviger-unsearched"
    title = "Claviger, nothing searched"
    short_key = True
