"""Predictive maintenance of a fleet: readings and a registry in, maintenance alerts with reasons and lead time out."""
