"""What happened in an incident, as one trace: taken from the streams, kept, shown, and sent to whatever OTLP back end there is."""
