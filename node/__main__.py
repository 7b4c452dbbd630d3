"""`python -m node`: the same as the console script `fishernet`."""

from node.cli import main

if __name__ == "__main__":
    main()
