"""Install packages into this interpreter's environment with uv, configured as pip is: install_with_uv.py -e '.[dev]'

`scripts/setup` calls it. uv does not read pip's configuration, so the files and PIP_* variables that `pip config list`
shows are passed on as uv's own variables; those that the user has set for uv stay. The exit code is 1, after one line
that gives the reason, if uv is not available, if it fails, or if pip has a setting that uv has no counterpart for.
pip is then the one to install.
"""

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

OLDEST = (0, 4, 23)
"""Version of uv that brought UV_DEFAULT_INDEX; before it, uv would search the public index instead of the one named."""
VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX",),
    "extra-index-url": ("UV_INDEX",),
    "find-links": ("UV_FIND_LINKS",),
    "constraint": ("UV_CONSTRAINT",),
    "trusted-host": ("UV_INSECURE_HOST",),
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "proxy": ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
    "retries": ("UV_HTTP_RETRIES",),
    "no-cache-dir": ("UV_NO_CACHE",),
}
"""The variables of uv for a setting of pip."""
OVERRIDING = {"cert", "client-cert", "proxy"}
"""Settings that pip prefers to the variables of the same name, which are not uv's alone."""
LISTS = {"extra-index-url": " ", "find-links": ",", "constraint": " ", "trusted-host": " "}
"""Settings with several values, and what uv separates these with. pip separates them with white space."""
IRRELEVANT = {
    "break-system-packages", "cache-dir", "config-file", "debug", "disable-pip-version-check", "exists-action",
    "log", "no-color", "no-input", "no-python-version-warning", "no-warn-conflicts", "no-warn-script-location",
    "progress-bar", "quiet", "require-virtualenv", "root-user-action", "use-feature", "use-pep517", "verbose",
}  # fmt: skip
"""Settings of pip that have no influence on which packages are installed."""


class NotPossibleError(Exception):
    """uv cannot install: the reason, to follow after "uv"."""


def settings(listing: str) -> dict[str, str]:
    """Settings of `pip install`, from the output of `pip config list`.

    As in pip, the section [install] precedes [global], variables precede both, and empty values count as absent.
    """
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listing.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in sections and (text := str(ast.literal_eval(value)).strip()):
            sections[section][name] = text
    return sections["global"] | sections["install"] | sections[":env:"]


def is_true(value: str) -> bool:
    """Whether pip takes the value of a switch for yes."""
    return value.lower() in {"y", "yes", "t", "true", "on", "1"}


def translate(pip: Mapping[str, str], environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Variables and options with which uv does what pip would do.

    Raises NotPossibleError for a setting that is neither known to be irrelevant nor has a counterpart in uv.
    """
    # pip takes the best version of all indexes, uv by default the best version of the first index that has any
    variables, options = {"UV_INDEX_STRATEGY": "unsafe-best-match"}, list[str]()
    # a new pip trusts the certificates of the system, uv those that it carries; requests, in pip, follows the others
    bundle = environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE")
    variables |= {"SSL_CERT_FILE": bundle} if bundle and Path(bundle).is_file() else {"UV_NATIVE_TLS": "true"}
    # uv leaves it to Python to keep the bytecode of what is imported; where Python may not, each process would compile
    variables |= {"UV_COMPILE_BYTECODE": "true"} if environment.get("PYTHONDONTWRITEBYTECODE") else {}
    overriding = dict[str, str]()
    for name, value in pip.items():
        if name == "no-index":
            options += ["--no-index"] if is_true(value) else []
        elif name == "no-cache-dir":
            variables |= {"UV_NO_CACHE": "true"} if is_true(value) else {}
        elif name in VARIABLES:
            text = LISTS[name].join(value.split()) if name in LISTS else value
            text = str(max(1, int(float(text)))) if "timeout" in name else text  # uv knows whole seconds only
            (overriding if name in OVERRIDING else variables).update(dict.fromkeys(VARIABLES[name], text))
        elif name not in IRRELEVANT:
            raise NotPossibleError(f"has no counterpart of pip's setting `{name}`")
    return variables | dict(environment) | overriding, options


def version(uv: str) -> tuple[int, ...]:
    """Version of an executable; (0,) if it cannot be run."""
    try:
        done = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return (0,)
    return tuple(map(int, re.findall(r"\d+", done.stdout)[:3])) or (0,)


def find_uv() -> str:
    """Path of a uv that is new enough: the one on the PATH, that of this environment, or one that pip installs here."""
    here = str(Path(sys.prefix) / "bin" / "uv")
    for uv in filter(None, (shutil.which("uv"), here)):
        if version(uv) >= OLDEST:
            return uv
    wanted = f"uv>={'.'.join(map(str, OLDEST))}"
    # only a wheel: building uv from its source would take longer than pip takes for everything
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", "uv", wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or version(here) < OLDEST:
        raise NotPossibleError(f"is not available here ({last_words(done.stderr, -1)})")
    return here


def last_words(text: str, which: int) -> str:
    """One line of what a program wrote to standard error, without its marks."""
    lines = [line.strip(" ×╰─▶├│") for line in text.splitlines()]
    return ([line for line in lines if line and not line.startswith("[notice]")] or ["no message"])[which]


def install(requirements: list[str]) -> None:
    """Install with uv; raises NotPossibleError where it cannot."""
    # quiet and verbose would change what pip prints
    environment = os.environ | {"PIP_QUIET": "0", "PIP_VERBOSE": "0"}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise NotPossibleError(f"cannot be told how pip is configured ({last_words(listed.stderr, -1)})")
    variables, options = translate(settings(listed.stdout), os.environ)
    # in the environment, not on the command line, where every user of the machine could read passwords of indexes
    command = [find_uv(), "pip", "install", "--quiet", "--python", sys.executable, *options, *requirements]
    done = subprocess.run(command, env=variables, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise NotPossibleError(f"could not install ({last_words(done.stderr, 0)})")


def main() -> None:
    """Install, or say in one line why pip has to."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends scripts/setup, which would go on with pip after an exit
    try:
        install(sys.argv[1:])
    except NotPossibleError as reason:
        sys.exit(f"scripts/setup: uv {reason}; pip installs instead, which takes some minutes")


if __name__ == "__main__":
    main()
