"""Where images come from: an ordered index of records, their bytes, and the center crop of each."""

from .crop import center_crop
from .decode import decode_crop
from .index import SCHEMA, UNKNOWN_SIZE, Index, Record, build_index, index_digest, records_of
from .opening import KINDS, open_source
from .source import Listing, Progress, Source

__all__ = [
    "KINDS",
    "SCHEMA",
    "UNKNOWN_SIZE",
    "Index",
    "Listing",
    "Progress",
    "Record",
    "Source",
    "build_index",
    "center_crop",
    "decode_crop",
    "index_digest",
    "open_source",
    "records_of",
]
