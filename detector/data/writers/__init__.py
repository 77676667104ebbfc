"""Annotation indices written as files of the formats that :mod:`detector.data` reads."""
