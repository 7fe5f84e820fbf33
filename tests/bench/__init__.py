"""How fast, and how large: measurements on real mounts, as a table (`scripts/bench`).

A measurement is a module here with a `measure` that returns figures; `__main__` names them all.
Nothing is asserted: a figure says whether its target was met. All have deadlines.
"""
