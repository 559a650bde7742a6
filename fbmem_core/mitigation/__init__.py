"""Mitigations behind one interface, one file each. `METHODS` knows their names without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fbmem_core.mitigation.method import Method

UNMITIGATED = "none"  # the method of the model as it is
# every other file of this folder is a method: nemo_c.py holds NemoC
_NO_METHODS = frozenset({"method", "sampling"})
_NAMES = tuple(module.name for module in iter_modules(__path__) if module.name not in _NO_METHODS)


class _Methods(Mapping[str, "type[Method]"]):
    def __getitem__(self, name: str) -> type[Method]:
        if name not in _NAMES:
            raise KeyError(name)
        return getattr(import_module(f"{__name__}.{name}"), name.title().replace("_", ""))

    def __iter__(self) -> Iterator[str]:
        return iter(_NAMES)

    def __len__(self) -> int:
        return len(_NAMES)

    def __contains__(self, name: object) -> bool:
        return name in _NAMES


METHODS: Mapping[str, type[Method]] = _Methods()
