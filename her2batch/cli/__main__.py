"""`python -m her2batch.cli` is the command `her2batch`."""

from her2batch.cli.app import main

if __name__ == "__main__":
    main()
