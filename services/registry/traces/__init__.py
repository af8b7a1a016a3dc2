"""Traces of incidents: read from the streams, stored, shown to callers, and exported to an OTLP back end if one is set up."""
