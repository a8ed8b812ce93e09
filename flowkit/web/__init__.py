"""A small HTTP server beside a worker or a run: health, metrics, the running flow and its tables, to be read only."""

from flowkit.web.address import Address, address_of, listen_at
from flowkit.web.server import serve_http

__all__ = ["Address", "address_of", "listen_at", "serve_http"]
