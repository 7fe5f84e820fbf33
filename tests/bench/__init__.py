"""Benchmarks on real mounts, in comparison with other programs (`scripts/bench`).

Each measurement is a module with a function `measure` that returns figures; `__main__` lists them.
A figure reports whether it met its target; nothing is asserted. Programs that are compared run in
alternation, so that their ratio is more reliable than their figures, which vary with the machine
by a factor of two.

- `fixtures` has what measurements share: a Cyrus with mail (`source_account`), and the peak memory
  of all daemons. `harness` and `disk` provide homes on a real disk and timed commands.
- The peers are `mbsync`, `one_by_one` and a tree on the local disk; `proxy` adds latency.
- `tables` and `plot` print `figures`, and `history` records complete runs.

Every wait has a deadline. A run leaves no mount, process or file behind, however it ends.
"""
