"""What pyproject.toml has no stable words for: the one part that is compiled."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "tandem.router._fastpath",
            ["src/tandem/router/_fastpath.c"],
            define_macros=[("_GNU_SOURCE", "1")],
            extra_compile_args=["-std=c11", "-Wall", "-Wextra"],
            py_limited_api=True,
            optional=True,  # without a compiler, or on a system without epoll, streams go the long way
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
