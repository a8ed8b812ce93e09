"""Tests against Apache Kafka itself, which `real.py` fetches and starts."""
