"""Mitigations behind one interface, one file each. `METHODS` knows their names without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fbmem_core.mitigation.method import Method

_CLASSES = {  # by the name of the method, which is that of its module, in the order of tables and plots
    "random": "Random",
    "nemo": "Nemo",
    "nemo_c": "NemoC",
    "fade": "Fade",
    "wanda": "Wanda",
    "wen": "Wen",
}


class _Methods(Mapping[str, "type[Method]"]):
    def __getitem__(self, name: str) -> type[Method]:
        return getattr(import_module(f"{__name__}.{name}"), _CLASSES[name])

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)

    def __contains__(self, name: object) -> bool:
        return name in _CLASSES


METHODS: Mapping[str, type[Method]] = _Methods()
