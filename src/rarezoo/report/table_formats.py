"""FITS and VOTable files of plain columns."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarezoo.provenance import flat

# Divisible by 3, so that pieces of base64 can be put one after another.
_ROWS_AT_ONCE = 30_000
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
# Bytes of mere padding that a column of text may have where its fields are all as wide as the longest value.
MOST_PADDING = 10**9
_VOTABLE_TYPES = {"f4": "float", "f8": "double", "i2": "short", "i4": "int", "i8": "long", "b1": "boolean"}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    values : (N,) float32, float64, int16, int32, int64, bool, or text as objects
    missing : (N,) bool, rows without a value, whatever `values` has there
    """

    name: str
    values: NDArray
    missing: NDArray[np.bool_]
    description: str = ""
    ucd: str = ""
    unit: str = ""

    @property
    def is_text(self) -> bool:
        """Whether the values are text."""
        return self.values.dtype.kind == "O"

    def padding(self) -> int:
        """Bytes by which fields as wide as the longest text, as FITS has it, exceed the texts; 0 for other values."""
        if not self.is_text:
            return 0
        lengths = np.fromiter((len(_ascii(text)) for text in self.values), np.int64, len(self.values))
        return int(len(lengths) * lengths.max(initial=0) - lengths.sum())


def write_fits(path: Path, name: str, columns: Sequence[Column], made_from: Mapping[str, Any]) -> None:
    """Write a FITS file with one binary table.

    A missing whole number is TNULL, which none of the values is; a missing truth value makes its column one of whole
    numbers. Characters other than printable ASCII, which is all that FITS has, are written as escapes of Python.

    Parameters
    ----------
    name : EXTNAME
    made_from : to go into HISTORY, one line a value
    """
    from astropy.io import fits  # slow to import
    from astropy.table import Table

    table = Table({_ascii(column.name): _fits_values(column) for column in columns})
    hdu = fits.table_to_hdu(table, character_as_bytes=True, name=name)
    for number, column in enumerate(columns, start=1):
        for keyword, text in (("TUNIT", column.unit), ("TCOMM", column.description), ("TUCD", column.ucd)):
            if text:
                hdu.header[f"{keyword}{number}"] = _ascii(text)
    for key, value in flat(made_from).items():
        hdu.header.add_history(_ascii(f"{key} = {value}"))
    try:
        hdu.writeto(path)
    except OSError as error:
        # astropy raises another error, without the number that tells a full disk from a fault of ours.
        raise error.__context__ or error from None


def _fits_values(column: Column) -> Any:
    from astropy.table import MaskedColumn

    values = column.values
    if column.is_text:
        return np.array([_ascii(text) for text in values], dtype="S")
    if not column.missing.any() or values.dtype.kind == "f":
        return values
    values = values.astype(np.promote_types(values.dtype, np.int16))
    # astropy's own TNULL is 999999, whether or not that is a value.
    return MaskedColumn(values, mask=column.missing, fill_value=_unused(values))


def _unused(values: NDArray[np.signedinteger]) -> int:
    """A whole number of the values' type that none of them is."""
    least = int(np.iinfo(values.dtype).min)
    while (values == least).any():
        least += 1
    return least


def _ascii(text: str) -> str:
    return text if text.isascii() and text.isprintable() else text.encode("unicode_escape").decode()


def write_votable(path: Path, name: str, columns: Sequence[Column], made_from: Mapping[str, Any]) -> None:
    """Write a VOTable 1.4 with its rows as BINARY2.

    astropy writes all but the rows, for which it takes thirty times as long.

    Parameters
    ----------
    name : of the table
    made_from : to go into INFO elements, one a value
    """
    n_rows = len(columns[0].values) if columns else 0
    fields = [_votable_field(column) for column in columns]
    before, end, after = _votable_frame(name, columns, fields, made_from).rpartition(b"</TABLE>")
    with path.open("wb") as file:
        file.write(before + b'<DATA><BINARY2><STREAM encoding="base64">\n')
        for start in range(0, n_rows, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            file.write(base64.b64encode(_binary2_rows(columns, fields, rows)) + b"\n")
        file.write(b"</STREAM></BINARY2></DATA>\n" + end + after)


@dataclass(frozen=True)
class _Field:
    datatype: str
    arraysize: int | None
    dtype: np.dtype


def _votable_field(column: Column) -> _Field:
    if not column.is_text:
        kind = column.values.dtype.str[1:]
        return _Field(_VOTABLE_TYPES[kind], None, np.dtype("S1" if kind == "b1" else f">{kind}"))
    if all(map(str.isascii, column.values)):
        width = max(map(len, column.values), default=0) or 1
        return _Field("char", width, np.dtype(f"S{width}"))
    width = max(len(text.encode("utf-16-be")) for text in column.values) // 2
    return _Field("unicodeChar", width, np.dtype(f"S{2 * width}"))


def _binary2_rows(columns: Sequence[Column], fields: Sequence[_Field], rows: slice) -> bytes:
    """Each row: a bit for each missing value, then the values, all of the width that their field says."""
    missing = np.packbits(np.column_stack([column.missing[rows] for column in columns]), axis=1)
    layout = [("missing", "u1", missing.shape[1:]), *((f"f{i}", field.dtype) for i, field in enumerate(fields))]
    packed = np.zeros(len(missing), dtype=layout)
    packed["missing"] = missing
    for i, (column, field) in enumerate(zip(columns, fields, strict=True)):
        values = column.values[rows]
        if field.datatype == "boolean":
            values = np.where(values, b"T", b"F")
        elif column.is_text:
            encoding = "ascii" if field.datatype == "char" else "utf-16-be"
            values = np.array([text.encode(encoding) for text in values], dtype=field.dtype)
        packed[f"f{i}"] = values
    return packed.tobytes()


def _votable_frame(
    name: str, columns: Sequence[Column], fields: Sequence[_Field], made_from: Mapping[str, Any]
) -> bytes:
    """The XML of a table without rows."""
    from astropy.io.votable import tree  # slow to import

    file = tree.VOTableFile()
    resource = tree.Resource(type="results")
    file.resources.append(resource)
    resource.infos.extend(tree.Info(name=key, value=str(value)) for key, value in flat(made_from).items())
    table = tree.TableElement(file, name=name)
    resource.tables.append(table)
    table.fields.extend(_xml_fields(file, columns, fields))
    written = io.BytesIO()
    file.to_xml(written)
    return written.getvalue()


def _xml_fields(file: Any, columns: Sequence[Column], fields: Sequence[_Field]) -> Iterator[Any]:
    from astropy.io.votable import tree

    for number, (column, field) in enumerate(zip(columns, fields, strict=True)):
        # Readers take the ID for the column's name, and XML allows few characters in it.
        identifier = column.name if _IDENTIFIER.fullmatch(column.name) else f"column_{number}"
        shape = {} if field.arraysize is None else {"arraysize": str(field.arraysize)}
        about = {"ucd": column.ucd or None, "unit": column.unit or None}
        found = tree.Field(file, ID=identifier, name=column.name, datatype=field.datatype, **shape, **about)
        found.description = column.description or None
        yield found
