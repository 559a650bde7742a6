"""Mitigations behind one interface, one file each, registered by name in `METHODS`.

A method of one's own needs no registration: an audit names it by the path of its class, `my_module:MyMethod`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from fbmem_core.errors import InputError

if TYPE_CHECKING:
    from fbmem_core.mitigation.method import Method

UNMITIGATED = "none"  # the method of the model as it is
ENTRY_POINTS = "fbmem.mitigations"  # the group by which other packages name their own

_BUILT_IN = {
    "clean_twin": "fbmem_core.mitigation.clean_twin:CleanTwin",
    "fade": "fbmem_core.mitigation.fade:Fade",
    "initial_noise": "fbmem_core.mitigation.initial_noise:InitialNoise",
    "nemo": "fbmem_core.mitigation.nemo:Nemo",
    "nemo_c": "fbmem_core.mitigation.nemo_c:NemoC",
    "padding": "fbmem_core.mitigation.padding:Padding",
    "random": "fbmem_core.mitigation.random:Random",
    "sail": "fbmem_core.mitigation.sail:Sail",
    "wanda": "fbmem_core.mitigation.wanda:Wanda",
    "wen": "fbmem_core.mitigation.wen:Wen",
}


class Registry(Mapping[str, "type[Method]"]):
    """Methods by name. A built-in one, and one of another package, is imported when it is first looked up.

    Example:
        >>> METHODS["nemo_c"].__name__, METHODS["fbmem_core.mitigation.nemo:Nemo"] is METHODS["nemo"]
        ('NemoC', True)
        >>> "no_such_method" in METHODS
        False
    """

    def __init__(self, targets: Mapping[str, str]) -> None:
        self._targets: dict[str, str | type[Method]] = dict(targets)

    def register(self, method: type[Method]) -> type[Method]:
        """Add a method under its `name`; can stand above its class.

        Raises:
            ValueError: The name is taken.
        """
        if method.name in self:
            raise ValueError(f"`{method.name}` is the name of another mitigation")
        self._targets[method.name] = method
        return method

    def unregister(self, name: str) -> None:
        """Remove a method that `register` added."""
        del self._targets[name]

    def __getitem__(self, name: str) -> type[Method]:
        target = self._targets.get(name) or _installed().get(name) or (name if ":" in name else None)
        if target is None:
            raise KeyError(name)
        return _import(name, target) if isinstance(target, str) else target

    def __iter__(self) -> Iterator[str]:
        return iter({**self._targets, **_installed()})

    def __len__(self) -> int:
        return len({**self._targets, **_installed()})

    def __contains__(self, name: object) -> bool:
        return name in self._targets or name in _installed() or (isinstance(name, str) and ":" in name)


def _import(name: str, target: str) -> type[Method]:
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        cure = "Install its package, or mend its name."
        raise InputError(
            f"a class `{target}`", f"none ({error})", where=f"the mitigation `{name}`", cure=cure
        ) from None


@cache
def _installed() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}


METHODS = Registry(_BUILT_IN)
