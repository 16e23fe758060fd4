"""Install packages into this environment with uv, using the configuration of pip: install_with_uv.py -e '.[dev]'

`scripts/setup` calls this script. uv does not read the configuration of pip. Therefore the settings that
`pip config list` shows, from files and PIP_* variables, are passed to uv as variables. Variables that the user has set
for uv are kept. If uv is not available, if it fails, or if pip has a setting without a counterpart in uv, the script
prints one line with the reason, and the exit code is 1. `scripts/setup` then installs with pip.
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
"""First version of uv with UV_DEFAULT_INDEX; older ones would ignore the configured index and search the public one."""
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
"""Variables of uv for every setting of pip."""
OVERRIDING = {"cert", "client-cert", "proxy"}
"""Settings of pip that take precedence over the variables, because other programs also use these variables."""
LISTS = {"extra-index-url": " ", "find-links": ",", "constraint": " ", "trusted-host": " "}
"""Separators of uv for settings with several values; pip separates values with white space."""
IRRELEVANT = {
    "break-system-packages", "cache-dir", "config-file", "debug", "disable-pip-version-check", "exists-action",
    "log", "no-color", "no-input", "no-python-version-warning", "no-warn-conflicts", "no-warn-script-location",
    "progress-bar", "quiet", "require-virtualenv", "root-user-action", "use-feature", "use-pep517", "verbose",
}  # fmt: skip
"""Settings of pip that do not influence which packages are installed."""


class NotPossibleError(Exception):
    """uv cannot install; the message gives the reason, and continues a sentence that starts with "uv"."""


def settings(listing: str) -> dict[str, str]:
    """Return the settings of `pip install` from the output of `pip config list`.

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
    """Return whether pip interprets the value of a switch as true."""
    return value.lower() in {"y", "yes", "t", "true", "on", "1"}


def translate(pip: Mapping[str, str], environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return variables and options with which uv installs as pip would.

    Raises NotPossibleError for a setting that is neither irrelevant nor has a counterpart in uv.
    """
    # pip chooses the best version of all indexes; uv by default the best version of the first index with the package
    variables, options = {"UV_INDEX_STRATEGY": "unsafe-best-match"}, list[str]()
    # pip trusts the certificates of the system, or of these variables; uv by default those that come with uv
    bundle = environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE")
    variables |= {"SSL_CERT_FILE": bundle} if bundle and Path(bundle).is_file() else {"UV_NATIVE_TLS": "true"}
    # uv lets Python save bytecode at the first import; if Python may not save it, every process would compile again
    variables |= {"UV_COMPILE_BYTECODE": "true"} if environment.get("PYTHONDONTWRITEBYTECODE") else {}
    overriding = dict[str, str]()
    for name, value in pip.items():
        if name == "no-index":
            options += ["--no-index"] if is_true(value) else []
        elif name == "no-cache-dir":
            variables |= {"UV_NO_CACHE": "true"} if is_true(value) else {}
        elif name in VARIABLES:
            text = LISTS[name].join(value.split()) if name in LISTS else value
            text = str(max(1, int(float(text)))) if "timeout" in name else text  # uv accepts integers only
            (overriding if name in OVERRIDING else variables).update(dict.fromkeys(VARIABLES[name], text))
        elif name not in IRRELEVANT:
            raise NotPossibleError(f"has no counterpart of pip's setting `{name}`")
    return variables | dict(environment) | overriding, options


def version(uv: str) -> tuple[int, ...]:
    """Return the version of a uv executable; (0,) if it cannot be run."""
    try:
        done = subprocess.run([uv, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return (0,)
    return tuple(map(int, re.findall(r"\d+", done.stdout)[:3])) or (0,)


def find_uv() -> str:
    """Return the path of a recent uv: on the PATH, in this environment, or installed into it with pip."""
    own = str(Path(sys.prefix) / "bin" / "uv")
    for uv in filter(None, (shutil.which("uv"), own)):
        if version(uv) >= OLDEST:
            return uv
    wanted = f"uv>={'.'.join(map(str, OLDEST))}"
    # only a wheel: building uv from source would take longer than the complete installation with pip
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", "uv", wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or version(own) < OLDEST:
        raise NotPossibleError(f"is not available here ({error_line(done.stderr, -1)})")
    return own


def error_line(text: str, index: int) -> str:
    """Return one line of a program's standard error, without decoration."""
    lines = [line.strip(" ×╰─▶├│") for line in text.splitlines()]
    return ([line for line in lines if line and not line.startswith("[notice]")] or ["no message"])[index]


def install(requirements: list[str]) -> None:
    """Install with uv; raise NotPossibleError if this is not possible."""
    # the settings quiet and verbose would change the output of pip
    environment = os.environ | {"PIP_QUIET": "0", "PIP_VERBOSE": "0"}
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise NotPossibleError(f"cannot use the configuration of pip ({error_line(listed.stderr, -1)})")
    variables, options = translate(settings(listed.stdout), os.environ)
    # pass settings in the environment: every user of the machine can read passwords on a command line
    command = [find_uv(), "pip", "install", "--quiet", "--python", sys.executable, *options, *requirements]
    done = subprocess.run(command, env=variables, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise NotPossibleError(f"could not install ({error_line(done.stderr, 0)})")


def main() -> None:
    """Install with uv, or exit with one line that gives the reason why pip must install."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C must also end scripts/setup, not start pip
    try:
        install(sys.argv[1:])
    except NotPossibleError as reason:
        sys.exit(f"scripts/setup: uv {reason}; pip installs instead, which takes some minutes")


if __name__ == "__main__":
    main()
