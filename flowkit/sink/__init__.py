"""Where results go: the seam between flowkit and an outside system that takes no part in the commit.

No effect leaves before its frame is durable. At the cut a sink *stages* the records into a hand-off, which is part of
the frame; once the frame counts the hand-off is *delivered*. Delivery is idempotent: after a crash the last frame's
hand-off is delivered again.
"""

from flowkit.sink.destinations import destination, is_file
from flowkit.sink.file import FileDestination, FileSink
from flowkit.sink.file_target import OutputClosed
from flowkit.sink.seam import Destination, Ending, Forking, Heir, Outgoing, Rejected, Sink, SinkTask, Staging, Typed
from flowkit.sink.url_options import UrlOptions

__all__ = [
    "Destination",
    "Ending",
    "FileDestination",
    "FileSink",
    "Forking",
    "Heir",
    "Outgoing",
    "OutputClosed",
    "Rejected",
    "Sink",
    "SinkTask",
    "Staging",
    "Typed",
    "UrlOptions",
    "destination",
    "is_file",
]
