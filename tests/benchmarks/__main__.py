"""Run every benchmark: `make bench`, or `python -m tests.benchmarks NAME`."""

import importlib
import pkgutil
import sys

from tests import benchmarks


def main(names: list[str]) -> None:
    """Run the benchmarks of these names, or all."""
    found = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name.startswith("bench_")]
    for name in found:
        if not names or name.removeprefix("bench_") in names:
            importlib.import_module(f"tests.benchmarks.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
