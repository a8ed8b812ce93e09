"""The job of kafka_app.py for other systems; each file runs in that system's own environment."""
