"""Each file that jmapfs has on disk, in each state in which it should not be."""
