"""What runs and watches a mesh on one machine: processes, nats-server, certificates, checks of the machine, and the watch."""
