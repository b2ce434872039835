"""How the Python that runs this was built.

A script of the standard library alone, so that any interpreter can be asked: it prints :func:`look` as JSON, and its
exit status says whether that Python is a good one to make Tandem's environment with. ``make`` asks before there is one.
"""

import importlib.util
import json
import sys
import sysconfig
from pathlib import Path

OLDEST = (3, 11)


def look() -> dict[str, object]:
    """What matters to Tandem, as JSON has it.

    - ``version``: such as ``3.11.7``.
    - ``optimised``: whether it was built with profile-guided optimisation
      (https://docs.python.org/3/using/configure.html#cmdoption-enable-optimizations); pyenv leaves that out by default.
      Debian's and Ubuntu's builds have it and do not say so, so a distribution's own are believed to.
    - ``headers``: whether ``Python.h`` is there, which Triton and torch compile against.
    - ``environments``: whether ``python -m venv`` can make an environment with pip in it.
    """
    configured = sysconfig.get_config_var("CONFIG_ARGS")  # None on Windows, where all builds are optimised
    return {
        "version": ".".join(map(str, sys.version_info[:3])),
        "optimised": configured is None or "--enable-optimizations" in configured or sys.base_prefix == "/usr",
        "headers": Path(sysconfig.get_path("include"), "Python.h").exists(),
        "environments": importlib.util.find_spec("ensurepip") is not None,
    }


if __name__ == "__main__":
    found = look()
    print(json.dumps(found))
    sys.exit(sys.version_info < OLDEST or not all(found.values()))
