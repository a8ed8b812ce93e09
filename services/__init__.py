"""Services built with flowkit: one package a use case, each with its app, its README and its input."""
