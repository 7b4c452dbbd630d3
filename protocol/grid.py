"""Which coordinates are sent and with which sign, as bits (FORMAT.md, "Grid").

The coordinates are read as rows of 16 (with rank 16: one output of a module), groups of rows as one module or a part of it.
What an update sends clusters in few rows and, within a group, in few columns, and its signs are nearly those of a rank-one
matrix: so the grid holds the rows that have any, their cells by column density, and the signs that differ from row sign
times column sign. Knows nothing of values. Invariants: one grid has one bit string; reading needs memory for one page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.bits import Bits, Reader, Writer
from protocol.errors import Malformed, NotCanonical

WIDTH = 16
UNIT_ROWS = 64  # a group has a multiple of it
MAX_GROUP = 3
PAGE_GROUPS = 32
CLASSES = 8
_DENSITY = np.searchsorted([0, 3, 7, 13, 25, 42, 56], np.arange(65), side="right").astype(np.uint8)
_TURNS = 3

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a reader must know before the first bit."""

    coordinates: int
    group: int  # of 64 rows, 1..3
    page: int  # a page ends with the group that brings its rows to so many
    order: tuple[int, ...]  # the density classes, the most frequent first
    signs: bool  # whether signs are told apart from a template, or one by one

    @property
    def rows(self) -> int:
        """All rows, the last one perhaps not whole."""
        return -(-self.coordinates // WIDTH)

    @property
    def height(self) -> int:
        """Rows of a group; the last group may have fewer."""
        return self.group * UNIT_ROWS

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return -(-self.rows // self.height)

    def heights(self, first: int, last: int) -> Integers:
        """Rows of each group from `first` to before `last`."""
        found = np.full(last - first, self.height, dtype=np.int64)
        if last == self.groups:
            found[-1] = self.rows - self.height * (self.groups - 1)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some groups: the rows in which something is sent, and which of the groups that have such a row each is in."""

    rows: Integers  # [rows], their numbers
    group: Bits  # [rows], ascending, each number from 0
    cells: Bits  # [rows, 16], 1 is sent
    minus: Bits  # [rows, 16], 1 is sent with a minus
    classes: Bits  # [groups with a row, 16]


def classes(ones: Integers, of: Integers) -> Bits:
    """The density class of each: 0 where there are no ones, 7 where nearly all are."""
    return np.where(ones == 0, 0, _DENSITY[64 * ones // np.maximum(of, 1)]).astype(np.uint8)


# -- writing ---------------------------------------------------------------------------------------------------------
def write(writer: Writer, shape: Shape, positions: Integers, minus: Bits) -> None:
    """Write ascending `positions` [k] and which of them are negative [k]."""
    rows, starts = np.unique(positions // WIDTH, return_index=True)
    cells = np.zeros((len(rows), WIDTH), dtype=np.uint8)
    signs = np.zeros_like(cells)
    place = np.repeat(np.arange(len(rows)), np.diff(starts, append=len(positions)))
    cells[place, positions % WIDTH] = 1
    signs[place, positions % WIDTH] = minus
    counts = np.bincount(rows // shape.height, minlength=shape.groups)
    at = group = 0
    while group < shape.groups:
        last = _page_end(counts[group : group + PAGE_GROUPS], shape.page) + group
        take = int(counts[group:last].sum())
        inside = rows[at : at + take] - group * shape.height
        mine = np.unique(inside // shape.height, return_inverse=True)[1].astype(np.uint8)
        page = Page(
            rows=inside,
            group=mine,
            cells=cells[at : at + take],
            minus=signs[at : at + take],
            classes=_classes(mine, cells[at : at + take]),
        )
        _write_page(writer, shape, page, counts[group:last], shape.heights(group, last))
        at, group = at + take, last


def _write_page(writer: Writer, shape: Shape, page: Page, counts: Integers, heights: Integers) -> None:
    writer.fields(counts, shape.height.bit_length())
    occupied = np.zeros(int(heights.sum()), dtype=np.uint8)
    occupied[page.rows] = 1
    dense = np.repeat(classes(counts, heights), heights)
    for each in range(1, CLASSES):
        writer.cells(occupied[dense == each], known=True)
    rank = np.argsort(shape.order)
    writer.unary(rank[page.classes].ravel().astype(np.int64))
    full = page.classes[page.group]
    for each in range(1, CLASSES):
        writer.cells(page.cells[full == each])
    if shape.signs:
        columns, flips = _template(page)
        writer.raw(columns[page.classes != 0])
        writer.raw(flips)
        differ = page.minus ^ columns[page.group] ^ flips[:, None]
        writer.cells(differ[page.cells == 1])
    else:
        writer.raw(page.minus[page.cells == 1])


def shape_of(coordinates: int, group: int, page: int, positions: Integers) -> Shape:
    """The shape for these positions: classes by how often they occur, signs against a template."""
    rows, starts = np.unique(positions // WIDTH, return_index=True)
    cells = np.zeros((len(rows), WIDTH), dtype=np.uint8)
    cells[np.repeat(np.arange(len(rows)), np.diff(starts, append=len(positions))), positions % WIDTH] = 1
    groups = np.unique(rows // (group * UNIT_ROWS), return_inverse=True)[1]
    kinds = np.bincount(_classes(groups, cells).ravel(), minlength=CLASSES)
    return Shape(coordinates=coordinates, group=group, page=page, order=by_frequency(kinds), signs=True)


def by_frequency(counts: Integers) -> tuple[int, ...]:
    """Classes by falling count; equal ones by number."""
    return tuple(np.argsort(-counts, kind="stable").tolist())


# -- reading ---------------------------------------------------------------------------------------------------------
def read(reader: Reader, shape: Shape, *, again: bool = False) -> Iterator[Page]:
    """Yield the pages with a row in them, `rows` counted from the first of all.

    With `again` the same bits have been read before, and what is a matter of spelling alone is not checked once more.

    Raises:
        Malformed, NotCanonical: not a grid of this shape.
    """
    group = 0
    width = shape.height.bit_length()
    while group < shape.groups:
        counts = reader.ahead(min(PAGE_GROUPS, shape.groups - group), width).astype(np.int64)
        last = _page_end(counts, shape.page) + group
        counts = counts[: last - group]
        reader.skip((last - group) * width)
        heights = shape.heights(group, last)
        if bool((counts > heights).any()):
            raise Malformed("couldn't decode update: a group has more rows than it can")
        if bool(counts.any()):
            page, template = _read_page(reader, shape, counts, heights, group * shape.height)
            if not again:
                _check(page, template)
            yield page
            del page, template  # only one page at a time
        group = last


def _read_page(
    reader: Reader, shape: Shape, counts: Integers, heights: Integers, first: int
) -> tuple[Page, tuple[Bits, Bits] | None]:
    rows = _read_rows(reader, counts, heights)
    held = counts.nonzero()[0]
    group = np.arange(len(held), dtype=np.uint8).repeat(counts[held])
    kinds = _read_classes(reader, shape, len(held))
    cells = np.zeros((len(rows), WIDTH), dtype=np.uint8)
    full = kinds[group]
    for each in range(1, CLASSES):
        mine = full == each
        count = int(np.count_nonzero(mine))
        if count:
            cells[mine] = reader.cells(count)
    del full, mine
    minus = np.zeros_like(cells)
    sent = cells.view(np.bool_)
    count = int(np.count_nonzero(cells))
    if not shape.signs:
        minus[sent] = reader.raw(count)
        return Page(rows=rows + first, group=group, cells=cells, minus=minus, classes=kinds), None
    columns = np.zeros_like(kinds)
    columns[kinds != 0] = reader.raw(int(np.count_nonzero(kinds)))
    flips = reader.raw(len(rows))
    minus[sent] = reader.cells(count)
    minus ^= columns[group]
    minus ^= flips[:, None]
    minus &= cells
    return Page(rows=rows + first, group=group, cells=cells, minus=minus, classes=kinds), (columns, flips)


def _read_classes(reader: Reader, shape: Shape, groups: int) -> Bits:
    ranks = reader.unary(groups * WIDTH, groups * WIDTH * (CLASSES - 1))
    if int(ranks.max()) >= CLASSES:
        raise Malformed("couldn't decode update: an unknown density class")
    return np.array(shape.order, dtype=np.uint8)[ranks].reshape(groups, WIDTH)


def _check(page: Page, template: tuple[Bits, Bits] | None) -> None:
    """Refuse what says the same as other bits: one spelling is the right one."""
    if not bool(page.cells.any(axis=1).all()):
        raise NotCanonical("couldn't decode update: a row is listed in which nothing is sent")
    if not np.array_equal(_classes(page.group, page.cells), page.classes):
        raise NotCanonical("couldn't decode update: a column has another density than its class")
    if template is not None and not all(map(np.array_equal, template, _template(page))):
        raise NotCanonical("couldn't decode update: the signs are told apart from another template than theirs")


def _read_rows(reader: Reader, counts: Integers, heights: Integers) -> Integers:
    occupied = np.zeros(int(heights.sum()), dtype=np.uint8)
    kinds = classes(counts, heights)
    dense = kinds.repeat(heights)
    for each in sorted(set(kinds.tolist()) - {0}):
        mine = kinds == each
        occupied[dense == each] = reader.cells(int(heights[mine].sum()), int(counts[mine].sum()))
    if bool((np.add.reduceat(occupied, heights.cumsum() - heights, dtype=np.uint16) != counts).any()):
        raise Malformed("couldn't decode update: a group has another number of rows than it says")
    return occupied.nonzero()[0]


# -- both ------------------------------------------------------------------------------------------------------------
def _page_end(counts: npt.NDArray[np.integer], most: int) -> int:
    """How many groups the page takes: up to the one that brings it to `most` rows, at most all."""
    return min(int(np.searchsorted(np.cumsum(counts), most)) + 1, len(counts))


def _starts(group: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    return np.concatenate(([True], group[1:] != group[:-1])).nonzero()[0]


def _classes(group: npt.NDArray[np.integer], cells: Bits) -> Bits:
    """The class of each column in each group that has a row [groups with a row, 16]."""
    if not len(group):
        return np.zeros((0, WIDTH), dtype=np.uint8)
    starts = _starts(group)
    ones = np.add.reduceat(cells, starts, axis=0, dtype=np.uint16).astype(np.int64)
    return classes(ones, np.bincount(group)[:, None])


def _template(page: Page) -> tuple[Bits, Bits]:
    """Column signs [groups with a row, 16] and row signs [rows] by which the fewest signs differ, nearly.

    Three turns of the power method on the signs, each a majority vote of integers in which a draw is a plus.
    """
    if not len(page.rows):
        return np.zeros((0, WIDTH), dtype=np.uint8), np.zeros(0, dtype=np.uint8)
    starts = _starts(page.group)
    signs = (page.cells - 2 * page.minus).view(np.int8)
    columns = np.ones((len(starts), WIDTH), dtype=np.int8)
    for turn in range(_TURNS + 1):
        flips = 1 - 2 * (np.einsum("ij,ij->i", signs, columns[page.group]) < 0).view(np.int8)
        if turn == _TURNS:
            break
        votes = np.add.reduceat(signs * flips[:, None], starts, axis=0, dtype=np.int16)
        columns = 1 - 2 * (votes < 0).view(np.int8)
    return (columns < 0).view(np.uint8), (flips < 0).view(np.uint8)
