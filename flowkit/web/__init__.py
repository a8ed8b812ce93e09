"""A small HTTP server beside a worker or a run: health, metrics, the running flow and its tables, to be read only."""

from flowkit.web.address import Address, address_of
from flowkit.web.server import serve_http

__all__ = ["Address", "address_of", "serve_http"]
