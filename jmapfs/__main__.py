"""`python -m jmapfs` is `jmapfs`."""

from jmapfs.cli.main import main

if __name__ == "__main__":
    main()
