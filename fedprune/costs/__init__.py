"""What federated training costs a device: FLOPs, memory, bytes and virtual time."""
