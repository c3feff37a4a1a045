"""Schedules by measurement: candidates are timed on this machine, and what won is kept in a database."""
