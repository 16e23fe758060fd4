"""``python -m repsim`` is the command ``repsim``."""

from repsim.cli import main

if __name__ == "__main__":
    main()
