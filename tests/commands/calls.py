"""Call the command line in this process, and check that it succeeds or fails with one line."""

from click.testing import CliRunner, Result

from repsim.cli import main


def run(*args: object) -> Result:
    """Call ``repsim ARGS``; an error that the command does not handle is raised."""
    return CliRunner().invoke(main, [str(arg) for arg in args], catch_exceptions=False)


def succeed(*args: object) -> Result:
    """Call ``repsim ARGS`` and check that the exit code is 0."""
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result


def fail(*args: object) -> str:
    """Call ``repsim ARGS``, check that it prints one line to stderr with exit code 2, and return the line."""
    result = run(*args)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    return result.stderr.removeprefix("Error: ").strip()
