"""``python -m repsim`` is the command ``repsim``."""

from repsim.runtime import interrupts


def run() -> None:
    """Run the command line. Signals are handled before its imports, which take longer than all else at the start."""
    interrupts.install()
    from repsim.cli import main  # noqa: PLC0415

    main()


if __name__ == "__main__":
    run()
