"""How fast, and how large: measurements on real mounts, beside their peers (`scripts/bench`).

A measurement is a module here with a `measure` that returns figures; `__main__` names them all.
Nothing is asserted: a figure says whether its target was met. What is compared takes turns in one
run, so that the ratio says more than the figures, which vary with the machine by a factor of two.

- `stage` has what they share: a Cyrus that is filled once (`stored`), homes on a real disk
  (`surroundings`, `disk`), and the peak memory of every daemon.
- The peers are `mbsync`, `one_by_one` and a tree on the local disk; behind `proxy` a server is far
  away.
- `figures` come out as `tables` and as a `plot`, and a run that counts goes into the `history`.

Every wait has a deadline, and however a run ends, it leaves no mount, process or file behind.
"""
