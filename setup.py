"""What pyproject.toml has no stable words for: the one part that is compiled."""

import sys
import sysconfig

from setuptools import Extension, setup

FAST_PATH = Extension(
    "tandem.router._fastpath",
    ["src/tandem/router/_fastpath.c"],
    define_macros=[("_GNU_SOURCE", "1")],
    extra_compile_args=["-std=c11", "-Wall", "-Wextra"],
    py_limited_api=True,
    optional=True,  # without a compiler, streams go the long way
)

# Others have no epoll; and a Python without its lock has no stable interface.
if sys.platform == "linux" and not sysconfig.get_config_var("Py_GIL_DISABLED"):
    setup(ext_modules=[FAST_PATH], options={"bdist_wheel": {"py_limited_api": "cp311"}})
else:
    setup()
