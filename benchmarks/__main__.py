"""Run benchmarks: all of them, or those named."""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

import benchmarks


def names() -> list[str]:
    """Benchmark modules: those with a `main`."""
    found = [m.name for m in iter_modules(benchmarks.__path__) if m.name != "__main__"]
    return [name for name in found if hasattr(import_module(f"benchmarks.{name}"), "main")]


def run(chosen: list[str]) -> int:
    """Run the chosen benchmarks; 2 if one is unknown."""
    known = names()
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    for name in chosen or known:
        import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
