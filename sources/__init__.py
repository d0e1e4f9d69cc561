"""Sources of images: folders, zip and tar archives, parquet and Arrow files, and plug-ins.

A `Source` lists an ordered index of records and reads the bytes of each; `decode_crop` turns the bytes into a center
crop. `opening` opens a source by its path, one module per kind implements it, and `demo_images` makes the source of the
demo. The pipeline and the CLI may import this package. From the rest of the project it imports only `converter` and
`errors`, and importing it does not load torch.
"""

from .crop import center_crop
from .decode import decode_crop
from .index import SCHEMA, UNKNOWN_SIZE, Index, Record, build_index, index_digest, records_of
from .opening import kind_of_recorded, open_recorded, open_source
from .options import DEFAULTS, SourceOptions
from .skipped import SkipCounter, Skipped, describe_skipped, recorded_skipped
from .source import Listing, Progress, Source

__all__ = [
    "DEFAULTS",
    "SCHEMA",
    "UNKNOWN_SIZE",
    "Index",
    "Listing",
    "Progress",
    "Record",
    "SkipCounter",
    "Skipped",
    "Source",
    "SourceOptions",
    "build_index",
    "center_crop",
    "decode_crop",
    "describe_skipped",
    "index_digest",
    "kind_of_recorded",
    "open_recorded",
    "open_source",
    "recorded_skipped",
    "records_of",
]
