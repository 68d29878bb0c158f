"""N-gram tables in machine code: `Ngrams` that answer as `NgramTable` does, in a fifth of the time or less."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Mapping, Sequence
from ctypes import PyDLL, c_double, c_int32, c_int64, c_uint32, c_void_p

from outrider.core.propose.ngram import OCCURRENCES_MAX, ORDERS
from outrider.core.propose.ngram_static import StaticNgrams
from outrider.core.protocol.tree import Node

_PATH_TOKENS = max(ORDERS)
"""How many of a path's last tokens decide what is looked up."""

_LINE_GUESSES_MAX = len(ORDERS) * OCCURRENCES_MAX
"""Most tokens that a line itself proposes for one place."""


class NativeNgrams:
    """Makes tables that stand above one static table, or above none."""

    def __init__(self, library: PyDLL, static: StaticNgrams | None = None) -> None:
        """The library is that of `library.load`. Copies `static`."""
        _declare(library)
        self._library = library
        self._num_guesses_max = _LINE_GUESSES_MAX
        self._static: c_void_p | None = None
        if static is not None:
            self._num_guesses_max += len(static.orders) * static.width
            self._static = c_void_p(library.static_ngrams_new(static.width))
            weakref.finalize(self, library.static_ngrams_delete, self._static)
            for num_tokens, order in static.orders.items():
                columns = array("q", order.contexts), array("i", order.token_ids), array("B", order.shares)
                addresses = (column.buffer_info()[0] for column in columns)
                library.static_ngrams_add_order(self._static, num_tokens, len(order.contexts), *addresses)

    def table(self) -> NativeNgramTable:
        """An empty table, for one line."""
        return NativeNgramTable(self, self._library, self._static, self._num_guesses_max)


class NativeNgramTable:
    """What one line tells about its own continuation. Token ids below VOCAB_SIZE_MAX are the caller's promise."""

    def __init__(self, maker: NativeNgrams, library: PyDLL, static: c_void_p | None, num_guesses_max: int) -> None:
        """Made by `NativeNgrams.table`: `maker` holds the memory of `static`."""
        self._maker = maker
        self._library = library
        self._handle = c_void_p(library.ngram_table_new(static))
        weakref.finalize(self, library.ngram_table_delete, self._handle)
        self._probabilities = library.ngram_table_probabilities
        self._path = (c_uint32 * _PATH_TOKENS)()
        self._token_ids = (c_uint32 * num_guesses_max)()
        self._found = (c_double * num_guesses_max)()

    def read(self, token_ids: Sequence[int]) -> None:
        """See `Ngrams.read`."""
        ids = array("I", token_ids)
        self._library.ngram_table_read(self._handle, ids.buffer_info()[0], len(ids))

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Ngrams.commit`."""
        ids = array("I", token_ids)
        self._library.ngram_table_commit(self._handle, ids.buffer_info()[0], len(ids))

    def after(self, root: Node, node: Node) -> Mapping[int, float]:
        """See `Ngrams.after`."""
        path, num_tokens = self._path, 0
        while node is not root and num_tokens < _PATH_TOKENS:
            path[num_tokens] = node.token_id
            num_tokens += 1
            assert node.parent is not None
            node = node.parent
        token_ids, found = self._token_ids, self._found
        num = self._probabilities(self._handle, path, num_tokens, token_ids, found)
        return dict(zip(token_ids[:num], found[:num], strict=True))

    @property
    def trust(self) -> float:
        """See `NgramTable.trust`."""
        return self._library.ngram_table_trust(self._handle)


def _declare(library: PyDLL) -> None:
    """Tells of each function what it takes and gives. `ngram_table_probabilities` is called with what is a C value
    already, in half the time."""
    library.static_ngrams_new.argtypes, library.static_ngrams_new.restype = [c_int64], c_void_p
    library.static_ngrams_add_order.argtypes = [c_void_p, c_int32, c_int64, c_void_p, c_void_p, c_void_p]
    library.ngram_table_new.argtypes, library.ngram_table_new.restype = [c_void_p], c_void_p
    library.ngram_table_probabilities.restype = c_int32
    library.ngram_table_trust.restype = c_double
    for function in (library.ngram_table_read, library.ngram_table_commit):
        function.argtypes = [c_void_p, c_void_p, c_int64]
    for function in (
        library.static_ngrams_add_order,
        library.static_ngrams_delete,
        library.ngram_table_delete,
        library.ngram_table_read,
        library.ngram_table_commit,
    ):
        function.restype = None
