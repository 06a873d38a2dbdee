"""A granted page as a backend in this process uses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.grant_table import GNTST_bad_copy_arg, GNTST_general_error
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.hypervisor.grant_table.entries import GrantError
from hvmlite.hypervisor.memory import Page

if TYPE_CHECKING:
    from hvmlite.hypervisor.grant_table.table import GrantTable, Pin


class BackendMapping:
    """A mapped grant, valid until `close` even if the guest frees the page or is destroyed.

    `page` is for words that both sides change, such as ring indexes; `read` and `write` are for
    data.  `gfn` is the guest frame that was granted.
    """

    __slots__ = ("_open", "_table", "gfn", "page", "readonly", "ref")

    def __init__(self, table: GrantTable, ref: int, pin: Pin, readonly: bool) -> None:
        self._table = table
        self._open = True
        self.ref = ref
        self.readonly = readonly
        self.gfn = pin.gfn
        self.page = Page(table.domain.host.machine, pin.frame)

    def read(self, offset: int, size: int) -> bytes:
        """Copies bytes out of the page; raises IndexError beyond it."""
        return self.page.read(offset, size)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copies bytes into the page so that the guest may also execute them; raises GrantError."""
        if self.readonly:
            raise GrantError(GNTST_general_error, "it is mapped read-only")
        if offset < 0 or offset + len(data) > PAGE_SIZE:
            raise GrantError(GNTST_bad_copy_arg, f"bytes {offset}+{len(data)} are not in one page")
        self._table.store(self.page.frame, offset, data)

    @property
    def in_place(self) -> bool:
        """Whether data may be stored into `page.u8` directly: the guest has no code there.

        Whoever does so says `stored` afterwards.
        """
        return not self.readonly and self._table.in_place(self.page.frame)

    def stored(self, offset: int = 0, size: int = PAGE_SIZE) -> None:
        """These bytes were written directly; the guest may execute the page since."""
        self._table.stored(self.page.frame, offset, size)

    def close(self) -> None:
        """Ends the mapping; safe to call twice."""
        if self._open:
            self._open = False
            self._table.unpin(self.ref, readonly=self.readonly)

    def __enter__(self) -> BackendMapping:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
