"""The account of bytes: capacity, loaded, loading, unloading, unattributed.

    loaded + loading + unloading + unattributed <= capacity

holds after every call, unless something outside was found larger than it was thought: a measured size above its
reservation, a grown base, unattributed memory. That overdraft shows as negative free bytes, and nothing is
admitted until it is paid.
"""

from __future__ import annotations

from modelmesh.errors import InvariantBroken
from modelmesh.mesh.views import LedgerView


class Ledger:
    """One entry per model at most, in one of three accounts. Misuse raises InvariantBroken, it is a bug of ours."""

    def __init__(self, capacity_bytes: int = 0) -> None:
        self.capacity_bytes = capacity_bytes
        self.unattributed_bytes = 0
        self._loaded: dict[str, int] = {}
        self._loading: dict[str, int] = {}
        self._unloading: dict[str, int] = {}
        self._loaded_bytes = 0
        self._loading_bytes = 0
        self._unloading_bytes = 0
        self._excused = False

    @property
    def free_bytes(self) -> int:
        """What may be reserved; negative in overdraft."""
        used_bytes = self._loaded_bytes + self._loading_bytes + self._unloading_bytes
        return self.capacity_bytes - self.unattributed_bytes - used_bytes

    @property
    def loading_bytes(self) -> int:
        return self._loading_bytes

    @property
    def unloading_bytes(self) -> int:
        """Still charged, free once the runtime confirms."""
        return self._unloading_bytes

    def reserve(self, model: str, size_bytes: int) -> bool:
        """Charge a load that is about to start. False, and nothing changed, when it does not fit."""
        self._expect_absent(model)
        if size_bytes > self.free_bytes:
            return False
        self._loading[model] = size_bytes
        self._loading_bytes += size_bytes
        return True

    def settle(self, model: str, size_bytes: int, capacity_bytes: int) -> None:
        """The load is done: release its reservation, charge its size and adopt the capacity, in one step."""
        self._loading_bytes -= self._take(self._loading, model)
        self._loaded[model] = size_bytes
        self._loaded_bytes += size_bytes
        self.capacity_bytes = capacity_bytes
        self._excuse()

    def resize(self, model: str, size_bytes: int) -> None:
        """A loaded or unloading model was measured anew."""
        if model in self._loaded:
            self._loaded_bytes += size_bytes - self._loaded[model]
            self._loaded[model] = size_bytes
        elif model in self._unloading:
            self._unloading_bytes += size_bytes - self._unloading[model]
            self._unloading[model] = size_bytes
        else:
            raise InvariantBroken(f"Model {model} was resized but is not charged.", model=model)
        self._excuse()

    def begin_unload(self, model: str) -> None:
        """A loaded copy, or a load that failed and may have left something behind, is being unloaded."""
        if model in self._loaded:
            size_bytes = self._take(self._loaded, model)
            self._loaded_bytes -= size_bytes
        else:
            size_bytes = self._take(self._loading, model)
            self._loading_bytes -= size_bytes
        self._unloading[model] = size_bytes
        self._unloading_bytes += size_bytes

    def release(self, model: str) -> None:
        """The runtime confirmed the unload, or lost the copy: its bytes are free."""
        if model in self._loaded:
            self._loaded_bytes -= self._take(self._loaded, model)
        else:
            self._unloading_bytes -= self._take(self._unloading, model)
        self._excuse()

    def adopt(self, capacity_bytes: int, unattributed_bytes: int) -> None:
        """The runtime reports what models may use, and what belongs to nobody."""
        self.capacity_bytes, self.unattributed_bytes = capacity_bytes, unattributed_bytes
        self._excuse()

    def charged_bytes(self, model: str) -> int:
        """What a model is charged now; 0 when it is not."""
        for account in (self._loaded, self._loading, self._unloading):
            if model in account:
                return account[model]
        return 0

    def view(self) -> LedgerView:
        return LedgerView(
            capacity_bytes=self.capacity_bytes,
            loaded_bytes=self._loaded_bytes,
            loading_bytes=self._loading_bytes,
            unloading_bytes=self._unloading_bytes,
            unattributed_bytes=self.unattributed_bytes,
        )

    def check(self) -> None:
        """Raise InvariantBroken when the account does not add up. For tests: linear in what is charged."""
        for name, account, total_bytes in (
            ("loaded", self._loaded, self._loaded_bytes),
            ("loading", self._loading, self._loading_bytes),
            ("unloading", self._unloading, self._unloading_bytes),
        ):
            if sum(account.values()) != total_bytes or total_bytes < 0:
                raise InvariantBroken(
                    f"The ledger's {name} bytes are {total_bytes}, its entries say otherwise."
                )
        if self._loaded.keys() & self._loading.keys() or self._unloading.keys() & (
            self._loaded.keys() | self._loading.keys()
        ):
            raise InvariantBroken("A model is charged twice.")
        if self.free_bytes < 0 and not self._excused:
            raise InvariantBroken(f"The ledger is overdrawn by {-self.free_bytes} bytes though nothing grew.")

    def _excuse(self) -> None:
        self._excused = self.free_bytes < 0

    def _expect_absent(self, model: str) -> None:
        if model in self._loaded or model in self._loading or model in self._unloading:
            raise InvariantBroken(f"Model {model} is charged already.", model=model)

    @staticmethod
    def _take(account: dict[str, int], model: str) -> int:
        try:
            return account.pop(model)
        except KeyError:
            raise InvariantBroken(
                f"Model {model} is not in the account it should be in.", model=model
            ) from None
