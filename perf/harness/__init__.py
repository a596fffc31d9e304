"""What perf/compare, perf/gate and perf/render are made of.

A measurement walks one way: `scenario` reads what to measure from a file, `bench` starts the API and the
contenders and checks that each does the job, `measures` drives them in turns, `statistics` condenses the rounds,
`history` keeps a line per result, and `render` turns lines into tables and plots. `gate` holds lines against
`ceilings`. Only the standard library is used, from Python 3.11 on.
"""
