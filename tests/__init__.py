"""The tests mirror the rooms: tests/<room>/test_<module>.py. This package lets them import what they share."""
