"""Judging weights as a reviewer would: the papers' metrics, intervals, cohorts, readers, errors, queues, promotion."""
