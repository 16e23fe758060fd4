"""Run the command ``repsim`` as ``python -m repsim``."""

from repsim.runtime import interrupts


def run() -> None:
    """Run the command line.

    Signal handlers are installed before the imports, which take most of the time at the start.
    """
    interrupts.install()
    from repsim.cli import main  # noqa: PLC0415

    main()


if __name__ == "__main__":
    run()
