"""What a run has of its machine: the device, memory, processes and their signals."""
